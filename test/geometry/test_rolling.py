# SPDX-License-Identifier: Apache-2.0
"""A camera that turns while it is read out, against rows photographed one by one."""

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera

PLAIN = Camera(320, 240, 250.0, 250.0, 159.5, 119.5)
WIDE = Camera(320, 240, 180.0, 180.0, 161.0, 118.0, 'plumb_bob', (-0.2, 0.05, 0.001, 0.0, 0.0))
RATE = np.array([0.3, -1.1, 0.6])  # radians a second
READOUT = 0.03


def rolling(camera):
    return RollingCamera(**{**RollingCamera.of(camera, READOUT).__dict__, 'turn': tuple((RATE * READOUT).tolist())})


def points(count=300):
    return np.random.default_rng(0).uniform([-2.0, -1.4, 3.0], [2.0, 1.4, 5.0], (count, 3))


@pytest.mark.parametrize('camera', [PLAIN, WIDE])
def test_each_point_is_seen_by_the_row_that_looks_at_it_when_it_is_exposed(camera):
    pixels = rolling(camera).project(points())
    for point, pixel in zip(points(), pixels, strict=True):
        seconds = READOUT * ((pixel[1] + 0.5) / camera.height - 0.5)
        then_from_middle = se3.exp_so3(RATE * seconds).T  # the camera has turned by that much
        np.testing.assert_allclose(camera.project(then_from_middle @ point)[0], pixel, atol=2e-3)
    assert np.abs(pixels - camera.project(points())).max() > 2.0


@pytest.mark.parametrize('camera', [PLAIN, WIDE])
def test_what_is_seen_is_given_back(camera):
    normalised = rolling(camera).unproject(rolling(camera).project(points()))
    np.testing.assert_allclose(normalised, points()[:, :2] / points()[:, 2:], atol=1e-5)


def test_a_camera_that_does_not_turn_is_the_plain_one():
    still = RollingCamera.of(WIDE, READOUT)
    np.testing.assert_array_equal(still.project(points()), WIDE.project(points()))
    pixels = WIDE.project(points())
    np.testing.assert_array_equal(still.unproject(pixels), WIDE.unproject(pixels))


def test_it_is_binned_as_a_camera():
    small = rolling(PLAIN).binned(2)
    pixels = rolling(PLAIN).project(points())
    np.testing.assert_allclose(small.project(points()), (pixels + 0.5) / 2 - 0.5, atol=1e-3)
