# SPDX-License-Identifier: Apache-2.0
"""Frames are averaged while the camera stands still, and only then."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from drive import CONFIG, Route, World, along
from synthetic_world import CAMERA, EPOCH_NS, RATE_NS, frame

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.initialise import Initialiser
from dark3r_ros.mapping.intake import Intake
from dark3r_ros.mapping.motion import odometry_track
from dark3r_ros.mapping.resting import RestAverage, compare
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.types import Correspondences, Frame, Planes

WIDTH, HEIGHT = 160, 120
NOISE = 4.0  # deviation of a value of a plane
BLACK = 64.0


def texture(seed=0, margin=24):
    """Light above black with structure of a few pixels, and the glow of a lamp; larger than a picture by a margin."""
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT + 2 * margin, WIDTH + 2 * margin))
    for sigma, part in ((2.0, 3.0), (5.0, 4.0)):
        layer = cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), sigma)
        image += part * layer / layer.std()
    return image


SCENE = texture()
GLOW = 6.0 * np.exp(-(((np.mgrid[:HEIGHT, :WIDTH] - np.array([60, 80])[:, None, None]) / 60.0) ** 2).sum(axis=0))


def picture(shift=0.0, brightness=1.0, scene=SCENE):
    """Light of a scene that the camera has moved across by a shift in pixels; the lamp moves with the camera."""
    moved = cv2.warpAffine(
        scene, np.float64([[1, 0, -24 + shift], [0, 1, -24]]), (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC
    )
    return brightness * (0.3 * moved + 0.2 * GLOW)


def planes(light, number, noise=NOISE):
    rng = np.random.default_rng([7, number])
    values = BLACK + light[None] + rng.normal(0.0, noise, (3, *light.shape))
    variance = (noise**2,) * 3
    stamp = EPOCH_NS + number * RATE_NS
    return Planes(values.astype(np.float32), (BLACK,) * 3, 4095.0, (1, 2, 1), 2, stamp, noise_variance=variance)


def shot(number, **settings):
    stamp = EPOCH_NS + number * RATE_NS
    return Frame(stamp, np.zeros((2, 2), np.uint16), 'rggb', (BLACK,) * 3, 4095.0, None, 'camera', **settings)


def counts(rest, pictures, noise=NOISE, **settings):
    return [
        rest.add(shot(number, **settings), planes(light, number, noise))[1] for number, light in enumerate(pictures)
    ]


def grey(light, number, noise):
    rng = np.random.default_rng([11, number])
    return (light + rng.normal(0.0, noise, light.shape)).astype(np.float32)


@pytest.mark.parametrize('share', [1.0, 0.125])
def test_the_shift_between_two_noisy_pictures_is_measured_as_exactly_as_it_is_said(share):
    noise = 1.5
    for shift in (0.0, 0.6):
        found = [
            compare(
                grey(picture(), 2 * k, noise * math.sqrt(share)),
                grey(picture(shift), 2 * k + 1, noise),
                noise**2,
                share,
            )
            for k in range(40)
        ]
        motion = np.stack([one.motion for one in found])
        np.testing.assert_allclose(motion.mean(axis=0), [shift, 0.0, 0.0, 0.0], atol=0.1)
        scatter = math.sqrt(motion.var(axis=0).sum())
        said = float(np.mean([one.sigma for one in found]))
        assert 0.6 * said < scatter < 1.4 * said
        assert abs(np.mean([one.gain for one in found]) - 1.0) < 0.06


def test_an_average_has_the_noise_that_it_says_and_nothing_of_it_is_clipped():
    rest, light = RestAverage(8), picture()
    for number in range(40):
        mean, count = rest.add(shot(number), planes(light, number))
    assert count == 8 and mean.stamp_ns == EPOCH_NS + 39 * RATE_NS
    left = mean.values - BLACK - light[None]
    assert left.var() == pytest.approx(mean.noise_variance[0], rel=0.05)
    assert mean.noise_variance[0] < NOISE**2 / 8
    assert abs(left.mean()) < 0.01
    assert (mean.values < BLACK).any()  # where it is dark half of the noise lies below black, and stays there


def test_a_camera_that_moves_is_never_averaged():
    for step in (1.0, 3.0, 12.0):
        assert max(counts(RestAverage(16), [picture(step * number) for number in range(12)])) == 1


def test_a_creeping_camera_does_not_blur():
    """However slowly it moves: what is averaged lies within less than a pixel of what is seen."""
    for step in (0.02, 0.05, 0.1, 0.2):
        rest = RestAverage(16)
        for number in range(60):
            mean, count = rest.add(shot(number), planes(picture(step * number), number))
            if count > 1:
                now = compare(
                    mean.values.mean(axis=0) - np.float32(BLACK), grey(picture(step * number), 0, 1e-3), 1e-6, 0.0
                )
                assert np.linalg.norm(now.motion) < 0.8


def test_it_stops_with_the_first_frame_that_moves():
    stand = [picture()] * 20
    rest = RestAverage(16)
    found = counts(rest, [*stand, picture(1.2), picture(2.4)])
    assert found[19] == 16 and found[20:] == [1, 1]


@pytest.mark.parametrize(
    'changed',
    [
        {'exposure_s': 0.02},
        {'gain': 4.0},
        {'black_level': (60.0,) * 3},
        {'camera': CAMERA},
    ],
)
def test_other_settings_begin_anew(changed):
    rest = RestAverage(16)
    assert counts(rest, [picture()] * 12, exposure_s=0.01, gain=1.0)[-1] == 12
    now = replace(shot(12, exposure_s=0.01, gain=1.0), **changed)
    assert rest.add(now, planes(picture(), 12))[1] == 1


def test_another_size_light_lens_cap_and_a_gap_begin_anew():
    half = cv2.resize(picture(), (80, 60))
    for light in (half, picture(brightness=2.0), picture(brightness=0.4), np.zeros((HEIGHT, WIDTH))):
        rest = RestAverage(16)
        assert counts(rest, [picture()] * 12)[-1] == 12
        assert rest.add(shot(12), planes(light, 12))[1] == 1
    rest = RestAverage(16)
    counts(rest, [picture()] * 12)
    assert rest.add(shot(30), planes(picture(), 30))[1] == 1


def stands(count, moved=()):
    track, x = odometry_track(), 0.0
    for number in range(count):
        x += 0.02 * (number in moved)
        track.add(EPOCH_NS + number * RATE_NS, se3.make(np.eye(3), [x, 0.0, 0.0]))
    return track


def test_odometry_says_at_once_that_it_stands_and_that_it_moves():
    dark = [0.1 * picture()] * 20  # too dark for a shift to show
    assert max(counts(RestAverage(16), dark)) == 1
    assert counts(RestAverage(16, stands(20)), dark) == [*range(1, 17), *[16] * 4]
    assert counts(RestAverage(16, stands(20, moved=[10])), dark)[9:12] == [10, 1, 2]


def test_a_picture_that_moves_is_not_averaged_though_the_wheels_stand():
    pushed = [picture(1.5 * number) for number in range(12)]
    assert max(counts(RestAverage(16, stands(12)), pushed)) == 1


def test_light_that_comes_back_is_not_averaged_with_the_dark():
    rest = RestAverage(16, stands(40))
    found = counts(rest, [*[np.zeros((HEIGHT, WIDTH))] * 10, *[picture()] * 10])
    assert found[9] == 10 and found[10:12] == [1, 2]


# ---------------------------------------------------------------------- in the pipeline


class Encoder:
    """Remembers what it was given."""

    name = fingerprint = 'encoder'

    def encode(self, given):
        return given

    def match(self, pairs):
        none = np.zeros((0, 2))
        return [Correspondences(none, none, np.zeros(0)) for _ in pairs]


def mosaic(number, seed=3):
    """A dark, noisy mosaic of 320x240; the light is that of the scene twice as large."""
    light = cv2.resize(picture(), (320, 240), interpolation=cv2.INTER_CUBIC) + 1.0
    noise = np.random.default_rng([seed, number]).normal(0.0, 8.0, light.shape)
    return np.clip(np.rint(BLACK + light + noise), 0, 4095)


def test_the_intake_averages_below_its_limit_and_says_so():
    intake = Intake(CONFIG, Encoder(), None)
    prepared = [intake.prepare(frame(number, mosaic=mosaic(number))) for number in range(20)]
    first, last = prepared[0], prepared[-1]
    assert (first.averaged, last.averaged) == (1, 16)
    assert last.view.averaged == 16 and last.view.since_ns == first.frame.stamp_ns
    assert last.samples == 16 * first.samples
    assert last.snr_db == pytest.approx(first.snr_db + 10 * math.log10(16), abs=1.5)
    again = Intake(CONFIG, Encoder(), None)
    for number, one in enumerate(prepared):
        other = again.prepare(frame(number, mosaic=mosaic(number)))
        np.testing.assert_array_equal(one.view.features.values, other.view.features.values)
    black = intake.prepare(frame(20, mosaic=np.full((240, 320), BLACK)))
    assert black.view is None and black.averaged == 0
    assert intake.prepare(frame(21, mosaic=mosaic(21))).averaged == 1


def test_a_bright_picture_is_left_alone_and_so_is_every_one_where_it_is_switched_off():
    for config in (replace(CONFIG, rest_frames=1), replace(CONFIG, rest_snr=-30.0)):
        intake = Intake(config, Encoder(), None)
        for number in range(12):
            one = intake.prepare(frame(number, mosaic=mosaic(number)))
            assert one.averaged == 1 and one.view.since_ns is None


def test_a_camera_that_waits_to_be_moved_is_not_remembered_frame_by_frame():
    start = Initialiser(CONFIG, Encoder())

    def view(number, averaged, since):
        stamp = EPOCH_NS + number * RATE_NS
        return View(stamp, '', '', CAMERA, None, None, 0.0, averaged, EPOCH_NS + since * RATE_NS)

    for number in range(1000):
        start.push(view(number, min(number + 1, 16), 0))
    assert len(start.pending) == 1 and len(start.pending) + len(start.dropped) <= CONFIG.retry_frames + 1


def test_the_average_of_a_rest_becomes_a_keyframe_once():
    world = World()
    stop = 40
    metres = [0.12 * min(number, stop) for number in range(stop + 30)]
    route = Route(world, along(world, metres))

    def push(number):
        # What the predictor sees comes from the stamp; the mosaics stand still when the camera does.
        image = frame(number) if number < stop else frame(number, mosaic=mosaic(number))
        route.events += route.pipeline.push(image)
        return route.pipeline.status()

    statuses = [push(number) for number in range(len(metres))]
    assert [status.averaged for status in statuses[:stop]] == [1] * stop
    assert statuses[-1].averaged == 16
    averaged = [one.averaged for one in route.pipeline._atlas.active.map.keyframes]
    assert sum(count > 1 for count in averaged) == 1 and max(averaged) >= 8
    assert len({event.stamp_ns for event in route.posed()}) == len(metres)
