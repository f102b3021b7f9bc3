# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest

from dark3r_ros.errors import CalibrationError
from dark3r_ros.raw.camera_info import camera_from_info, check_camera, roi_offset


def info(**changes: object) -> SimpleNamespace:
    fields = {
        'width': 1280,
        'height': 960,
        'k': np.array([900.0, 0, 640.5, 0, 910.0, 480.5, 0, 0, 1]),
        'd': [-0.1, 0.01, 0.001, -0.001, 0.0],
        'distortion_model': 'plumb_bob',
        'roi': SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
        'binning_x': 0,
        'binning_y': 0,
    }
    return SimpleNamespace(**{**fields, **changes})


def region(x: int, y: int, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height)


def test_plain_calibration():
    camera = camera_from_info(info())
    assert (camera.width, camera.height) == (1280, 960)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (900.0, 910.0, 640.5, 480.5)
    assert camera.distortion == (-0.1, 0.01, 0.001, -0.001, 0.0)


def test_fields_of_ros_1_in_capitals():
    message = info()
    message.K, message.D = message.k, message.d
    del message.k, message.d
    assert camera_from_info(message).fx == 900.0


def test_region_then_binning():
    message = info(roi=region(101, 50, 640, 480), binning_x=2, binning_y=2)
    camera = camera_from_info(message, 'mosaic')
    assert (camera.width, camera.height) == (320, 240)
    assert (camera.fx, camera.fy) == (450.0, 455.0)
    # A ray through pixel (u, v) of the sensor lands at ((u - 101 + 0.5) / 2 - 0.5, (v - 50 + 0.5) / 2 - 0.5).
    point = np.array([[0.1, -0.05, 1.0]])
    u, v = camera_from_info(info()).project(point)[0]
    np.testing.assert_allclose(camera.project(point)[0], [(u - 100.5) / 2 - 0.5, (v - 49.5) / 2 - 0.5])
    assert roi_offset(message) == (50, 25)
    assert roi_offset(info(roi=region(101, 50, 640, 480))) == (101, 50)


def test_binning_is_not_guessed():
    with pytest.raises(CalibrationError, match='sensor_binning'):
        camera_from_info(info(binning_x=2, binning_y=2))
    wide = camera_from_info(info(binning_x=2, binning_y=1), 'merged')
    assert (wide.width, wide.height, wide.fx, wide.fy) == (640, 960, 450.0, 910.0)
    assert camera_from_info(info(binning_x=1, binning_y=1)).width == 1280


@pytest.mark.parametrize('model', ['', 'none', 'plumb_bob', 'rational_polynomial'])
def test_zero_distortion_is_no_distortion(model):
    camera = camera_from_info(info(d=[0.0] * 5, distortion_model=model))
    assert camera.distortion_model == 'none'
    assert camera_from_info(info(d=[], distortion_model=model)).distortion == ()


def test_other_models():
    assert camera_from_info(info(d=[0.1] * 4, distortion_model='fisheye')).distortion_model == 'equidistant'
    assert camera_from_info(info(d=[0.1] * 8, distortion_model='rational_polynomial')).distorted


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'k': np.zeros(9)}, 'all-zero K'),
        ({'k': []}, 'all-zero K'),
        ({'width': 0}, '0x960'),
        ({'d': [0.1] * 5, 'distortion_model': ''}, 'no distortion_model'),
        ({'d': [0.1] * 5, 'distortion_model': 'magic'}, 'magic'),
        ({'d': [0.1] * 3}, 'coefficients'),
        ({'k': np.array([900.0, 0, 640, 0, np.nan, 480, 0, 0, 1])}, 'not usable'),
        ({'k': np.array([900.0, 2.0, 640, 0, 900.0, 480, 0, 0, 1])}, 'skew'),
        ({'roi': region(1000, 0, 640, 480)}, 'outside'),
    ],
)
def test_unusable_calibrations_say_why(changes, text):
    with pytest.raises(CalibrationError, match=text):
        camera_from_info(info(**changes))


def test_size_mismatch(make_frame):
    with pytest.raises(CalibrationError, match=r'1280x960.*64x48'):
        check_camera(make_frame(np.zeros((48, 64), np.uint16)), camera_from_info(info()))
