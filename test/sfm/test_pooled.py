# SPDX-License-Identifier: Apache-2.0
"""Pooled evidence: surfaces against plain splines, poses against the simulator's truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import map_coordinates, spline_filter1d
from star_world import centre_error

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.model.mini import FINE
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pairs import match_pair
from dark3r_ros.sfm.pooled import PooledOptions, _bent, _positive, pooled, pooled_in_rounds
from dark3r_ros.sfm.refine import refine
from dark3r_ros.sfm.surfaces import Surfaces
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.views import take_view
from dark3r_ros.simulation.sequence import SimulationConfig, simulate


@pytest.fixture(scope='module')
def surfaces():
    """Random smooth surfaces and the values that they were made from."""
    values = np.random.default_rng(1).normal(size=(40, 9, 9)).astype(np.float32)
    coefficients = values
    for axis in (1, 2):
        coefficients = spline_filter1d(coefficients, axis=axis, mode='mirror', output=np.float32)
    rng = np.random.default_rng(2)
    # Bent, stretched and turned, as windows of rectified pictures are.
    shape = (np.eye(2) + rng.uniform(-0.3, 0.3, (40, 2, 2))) / FINE
    nothing = np.full(40, -3.0, np.float32)
    return values, Surfaces(coefficients, rng.uniform(10, 90, (40, 2)), shape, nothing)


def pixels_at(surfaces, offset):
    """Pixels of offsets (K, 2) from the middles in fine pixels."""
    return surfaces.origin + np.linalg.solve(surfaces.shape, offset[:, :, None])[:, :, 0]


def test_surfaces_are_the_splines_through_their_values(surfaces):
    values, found = surfaces
    offset = np.random.default_rng(3).uniform(-2.9, 2.9, (40, 2))
    value, _, _ = found.look(pixels_at(found, offset))
    expected = [
        map_coordinates(one, [[place[1] + 4], [place[0] + 4]], order=3, mode='mirror')[0]
        for one, place in zip(values, offset, strict=True)
    ]
    np.testing.assert_allclose(value, expected, atol=2e-4)


def test_derivatives_of_surfaces_are_those_of_their_values(surfaces):
    _, found = surfaces
    pixels, step = pixels_at(found, np.random.default_rng(4).uniform(-2.5, 2.5, (40, 2))), 1e-4
    _, gradient, curvature = found.look(pixels)
    for axis in range(2):
        aside = step * np.eye(2)[axis]
        up, down = found.look(pixels + aside), found.look(pixels - aside)
        np.testing.assert_allclose(gradient[:, axis], (up[0] - down[0]) / (2 * step), atol=1e-4)
        np.testing.assert_allclose(curvature[:, axis], (up[1] - down[1]) / (2 * step), atol=2e-3)


def test_outside_of_a_window_nothing_is_said(surfaces):
    _, found = surfaces
    value, gradient, curvature = found.look(pixels_at(found, np.full((40, 2), 3.5)))
    assert (value == -3.0).all()
    assert not gradient.any()
    assert not curvature.any()


def test_curvatures_are_made_positive():
    matrices = np.array([[[2.0, 0.0], [0.0, -1.0]], [[1.0, 0.5], [0.5, 3.0]]])
    found = _positive(matrices)
    assert (np.linalg.eigvalsh(found) > 0).all()
    np.testing.assert_allclose(found[1], matrices[1])
    assert found[0, 0, 0] == pytest.approx(2.0)


@pytest.mark.parametrize('model', ['none', 'plumb_bob'])
def test_derivatives_of_bent_rays(model):
    camera = Camera(320, 240, 200.0, 210.0, 160.0, 119.0, model, () if model == 'none' else (-0.2, 0.05, 0.001, 0.0, 0))
    flat = np.column_stack([np.random.default_rng(5).uniform(-0.5, 0.5, (20, 2)), np.ones(20)])
    pixels, derivative = _bent(camera, flat)
    np.testing.assert_allclose(pixels, camera.project(flat))
    for axis in range(2):
        aside = 1e-5 * np.eye(3)[axis]
        expected = (camera.project(flat + aside) - camera.project(flat - aside)) / 2e-5
        np.testing.assert_allclose(derivative[:, :, axis], expected, rtol=1e-3, atol=0.05)


PREDICTOR = MiniPredictor(config=OFFLINE_MINI, device='cpu')


def dark_scene(**settings):
    """Dark views of a scene, poses and points adjusted by matches with the next four, true poses, the predictor."""
    config = SfmConfig()
    made = list(simulate(SimulationConfig(width=640, height=480, depth=False, **settings)))
    views = [take_view(one.frame, PREDICTOR, config) for one in made]
    numbers = [(a, b) for a in range(len(views)) for b in range(a + 1, min(a + 5, len(views)))]
    pairs = [match_pair(pair, views, PREDICTOR, config) for pair in numbers]
    tracks = build_tracks(views, [pair for pair in pairs if pair is not None])
    truth = {number: se3.inverse(one.world_from_camera) for number, one in enumerate(made)}
    adjusted = refine(tracks, truth, views[0].focal)
    return views, adjusted.poses, adjusted.structure, truth, PREDICTOR


@pytest.fixture(scope='module')
def dark_room():
    return dark_scene(scene='room', seconds=4.0, rate=1.5, snr_db=4.0)


def errors(poses, truth):
    """Mean angle in degrees between estimated and true motions of all pairs."""
    numbers = sorted(poses)
    found = [
        se3.rotation_angle((poses[b] @ se3.inverse(poses[a]) @ truth[a] @ se3.inverse(truth[b]))[:3, :3])
        for a in numbers
        for b in numbers
        if a < b
    ]
    return float(np.degrees(np.mean(found)))


def test_poses_are_better_than_those_of_the_matches(dark_room):
    views, poses, structure, truth, predictor = dark_room
    found = pooled(views, poses, structure, predictor)
    assert errors(found, truth) < 0.9 * errors(poses, truth)


def test_more_views_than_there_is_memory_for_are_left_alone(dark_room):
    views, poses, structure, _, predictor = dark_room
    assert pooled(views, poses, structure, predictor, PooledOptions(surfaces=1000)) is None


def test_points_without_anchors_are_left_alone(dark_room):
    views, poses, structure, _, predictor = dark_room
    tracks = dataclasses.replace(structure.tracks, anchor=np.full(len(structure.tracks), -1))
    assert pooled(views, poses, dataclasses.replace(structure, tracks=tracks), predictor) is None


def rounds(scene, views=None):
    """Pooled in rectified pictures."""
    own, poses, structure, _, predictor = scene

    def triangulated(found):
        return triangulate_tracks(structure.tracks, found, own[0].focal, 2.0, 0.005)

    return pooled_in_rounds(views or own, poses, structure, predictor, triangulated)


def path_error(poses, truth):
    """Error of the camera centres after the best similarity."""
    return centre_error(*(np.stack([se3.inverse(side[number]) for number in sorted(poses)]) for side in (poses, truth)))


def test_rectified_pictures_make_the_path_better_still():
    scene = dark_scene(scene='corridor', seconds=3.2, rate=2.5, snr_db=-4.0, seed=1)
    views, poses, structure, truth, predictor = scene
    found, again, done = rounds(scene)
    assert done >= 1
    plain = pooled(views, poses, structure, predictor)
    assert path_error(found, truth) < 0.9 * path_error(plain, truth)
    assert path_error(plain, truth) < 0.95 * path_error(poses, truth)
    assert len(again.tracks.point) > 0.9 * len(structure.tracks.point)


def test_without_planes_there_is_one_round_in_the_pictures_themselves(dark_room):
    views, poses, structure, _, predictor = dark_room
    bare = [dataclasses.replace(view, planes=None) for view in views]
    found, _, done = rounds(dark_room, bare)
    plain = pooled(views, poses, structure, predictor)
    assert done == 1
    assert all(np.array_equal(found[number], plain[number]) for number in plain)


def test_several_threads_find_the_same(dark_room):
    views, poses, structure, _, predictor = dark_room
    alone, together = (pooled(views, poses, structure, predictor, rectify=True, workers=n) for n in (1, 2))
    for number in alone:
        np.testing.assert_allclose(together[number], alone[number], atol=1e-5)
