# SPDX-License-Identifier: Apache-2.0
"""The classical matcher against known motion of a textured plane, and the stabilisation against its purpose."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry import se3
from dark3r_ros.matching.classical import ClassicalConfig, ClassicalPredictor, stabilise
from dark3r_ros.matching.draw import draw_matches
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.matching.verify import estimate_two_view
from dark3r_ros.raw.noise import preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.types import Correspondences, Frame

SHIFT = (7.25, -3.5)  # pixels of the planes


def texture(seed=0, size=(400, 300)):
    """Smooth random radiance in (0, 1] with structure from 4 to 64 pixels."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size[1], size[0]), np.float32)
    for scale in (4, 8, 16, 32, 64):
        coarse = rng.normal(size=(size[1] // scale + 2, size[0] // scale + 2)).astype(np.float32)
        image += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    image -= image.min()
    return image / image.max() + 0.05


def planes_of(image, exposure, seed=0, noise=None):
    """Photograph an image (h, w) through 2x2 quads of equal radiance; one plane pixel is one image pixel."""
    noise = noise or preset('sony_a7s2')
    signal = np.repeat(np.repeat(image * exposure, 2, 0), 2, 1)
    mosaic = noise.sample(signal, np.random.default_rng(seed))
    return to_planes(Frame(seed, mosaic, 'rggb', (noise.black_level,) * 3, noise.white_level), 2)


def shifted(image, shift):
    matrix = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize(('exposure', 'share', 'count'), [(4000.0, 0.95, 150), (300.0, 0.85, 60)])
def test_matches_follow_a_known_shift(exposure, share, count):
    image = texture()
    predictor = ClassicalPredictor(noise=preset('sony_a7s2'))
    a = predictor.encode(planes_of(image, exposure, 1))
    b = predictor.encode(planes_of(shifted(image, SHIFT), exposure, 2))
    matches = predictor.match([(a, b)])[0]
    error = np.linalg.norm(matches.points_b - matches.points_a - SHIFT, axis=1)
    assert len(matches) > count
    assert np.mean(error < 1.5) > share
    # Pixel (0, 0) is the centre of the first one: a convention half a pixel off would show here.
    assert np.abs(np.median(matches.points_b - matches.points_a - SHIFT, axis=0)).max() < 0.1


def test_indices_name_the_same_keypoint_in_every_match():
    image = texture()
    predictor = ClassicalPredictor()
    a, b, c = (predictor.encode(planes_of(shifted(image, (4.0 * k, 0)), 3000.0, k)) for k in range(3))
    first, second = predictor.match([(a, b), (a, c)])
    where = dict(zip(first.index_a.tolist(), first.points_a.tolist(), strict=True))
    both = [row for row in range(len(second)) if int(second.index_a[row]) in where]
    assert len(both) > 30
    assert all(where[int(second.index_a[row])] == second.points_a[row].tolist() for row in both)


@pytest.mark.parametrize('known', [True, False])
def test_stabilised_noise_is_equally_strong_in_bright_and_dark_parts(known):
    noise = replace(preset('sony_a7s2'), row_sigma=0.0, offset_sigma=0.0)
    ramp = np.repeat(np.linspace(0.02, 1.0, 8), 40)[None].repeat(240, 0).astype(np.float32)
    picture = stabilise(planes_of(ramp, 2000.0, noise=noise), noise if known else None)
    spread = np.array([picture[:, 40 * k + 4 : 40 * k + 36].std() for k in range(8)])
    assert spread.max() / spread.min() < (1.15 if known else 2.0)
    if known:
        assert np.abs(spread - 1.0).max() < 0.12


def test_stabilisation_is_monotonic_and_keeps_what_lies_below_black():
    planes = planes_of(texture(), 3000.0)
    values = np.linspace(-300, 3000, planes.values.size // 3, dtype=np.float32).reshape(planes.values.shape[1:])
    ramp = replace(planes, values=np.stack([values + planes.black_level[0]] * 3))
    out = stabilise(ramp, preset('sony_a7s2')).ravel()
    assert (np.diff(out) > 0).all()
    assert out[0] < -5


def test_keypoints_are_spread_over_the_picture():
    image = texture()
    image[:, 200:] = 0.5 + 0.3 * image[:, 200:]  # the right half has a third of the contrast
    predictor = ClassicalPredictor(ClassicalConfig(max_keypoints=300))
    features = predictor.encode(planes_of(image, 8000.0))
    assert len(features.keypoints) == 300
    share = (features.keypoints[:, 0] > 200).mean()
    alone = ClassicalPredictor(ClassicalConfig(max_keypoints=300, grid=1)).encode(planes_of(image, 8000.0))
    assert share > 0.3
    assert share > 1.5 * (alone.keypoints[:, 0] > 200).mean()


def test_nothing_to_see_gives_no_matches_and_no_error():
    predictor = ClassicalPredictor()
    flat = planes_of(np.full((240, 320), 0.5, np.float32), 0.0)
    dark, other = predictor.encode(flat), predictor.encode(planes_of(texture(), 3000.0))
    black = predictor.encode(replace(flat, values=np.full_like(flat.values, 64.0)))
    assert len(black.keypoints) == 0
    assert [len(match) for match in predictor.match([(black, other), (other, black)])] == [0, 0]
    assert len(predictor.match([(dark, other)])[0]) < 12


def test_encoding_repeats_bit_for_bit_and_settings_change_the_fingerprint():
    planes = planes_of(texture(), 1000.0)
    a, b = ClassicalPredictor().encode(planes), ClassicalPredictor().encode(planes)
    np.testing.assert_array_equal(a.descriptors, b.descriptors)
    np.testing.assert_array_equal(a.keypoints, b.keypoints)
    assert ClassicalPredictor().fingerprint != ClassicalPredictor(ClassicalConfig(ratio=0.7)).fingerprint


def test_registry_refuses_unknown_names():
    assert make_predictor('classical').name == 'classical'
    with pytest.raises(ConfigError, match='clasical'):
        make_predictor('clasical')


@pytest.fixture
def two_views():
    rng = np.random.default_rng(0)
    points = rng.uniform([-2, -2, 3], [2, 2, 9], (200, 3))
    pose = se3.exp([0.5, 0.05, -0.1, 0.02, -0.12, 0.04])
    local = se3.transform_points(pose, points)
    first = points[:, :2] / points[:, 2:] + rng.normal(0, 0.3 / 300, (200, 2))
    second = local[:, :2] / local[:, 2:] + rng.normal(0, 0.3 / 300, (200, 2))
    return points, pose, first, second


def test_two_view_geometry_among_wrong_matches(two_views):
    points, pose, first, second = two_views
    wrong = np.arange(200) % 3 == 0
    second = second.copy()
    second[wrong] = np.random.default_rng(1).uniform(-0.6, 0.6, (int(wrong.sum()), 2))
    found = estimate_two_view(first, second, 2.0 / 300)
    direction = pose[:3, 3] / np.linalg.norm(pose[:3, 3])
    assert found.second_from_first[:3, 3] @ direction > np.cos(np.radians(2.0))
    assert se3.rotation_angle(found.second_from_first[:3, :3] @ pose[:3, :3].T) < np.radians(0.5)
    assert found.inliers[~wrong].mean() > 0.95
    scale = np.linalg.norm(pose[:3, 3])
    good = found.inliers & ~wrong
    # Noise of 0.3 px trades rotation against translation, which stretches depth by some percent.
    assert np.median(found.points[good, 2] * scale / points[good, 2]) == pytest.approx(1.0, abs=0.2)
    expected = np.degrees(np.median(np.arctan(scale / points[:, 2])))
    assert np.degrees(found.median_parallax) == pytest.approx(expected, rel=0.25)


def test_pure_rotation_shows_as_no_parallax(two_views):
    points, _, first, _ = two_views
    turned = points @ se3.exp_so3([0.02, 0.1, 0.0]).T
    found = estimate_two_view(first, turned[:, :2] / turned[:, 2:], 2.0 / 300)
    assert found is None or np.degrees(found.median_parallax) < 0.6


def test_unrelated_matches_have_no_geometry():
    rng = np.random.default_rng(2)
    found = estimate_two_view(rng.uniform(-0.6, 0.6, (60, 2)), rng.uniform(-0.6, 0.6, (60, 2)), 1.0 / 300, 30)
    assert found is None
    assert estimate_two_view(np.zeros((3, 2)), np.zeros((3, 2)), 1.0 / 300) is None


def test_drawn_matches_end_on_their_pixels():
    blank = np.zeros((40, 50, 3), np.uint8)
    matches = Correspondences(np.array([[10.0, 20.0]]), np.array([[30.0, 5.0]]), np.ones(1))
    picture = draw_matches(blank, blank, matches, np.array([True]), enlarge=1)
    assert picture.shape == (40, 102, 3)
    assert picture[20, 10].argmax() == 1
    assert picture[20, 10, 1] > 100
    assert picture[5, 52 + 30, 1] > 100
    assert picture[35, 45].sum() == 0
