# SPDX-License-Identifier: Apache-2.0
"""Intrinsics of the image from sensor_msgs/CameraInfo.

K and D of the message belong to the full sensor. The region of interest is applied first, in full-sensor pixels,
then the binning of the sensor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dark3r_ros.errors import CalibrationError
from dark3r_ros.geometry.camera import DISTORTION_MODELS, Camera
from dark3r_ros.types import Frame

# Names that drivers use for the models of REP 104.
_SYNONYMS = {'fisheye': 'equidistant', 'kannala_brandt': 'equidistant', 'radtan': 'plumb_bob'}


def camera_from_info(info: Any, sensor_binning: str = 'unset') -> Camera:
    """Build the camera of the images that come with this CameraInfo.

    Parameters
    ----------
    info: message with the fields of sensor_msgs/CameraInfo (`K`, `D` in capitals as in ROS 1 are read as well).
    sensor_binning: `mosaic` or `merged` where the sensor bins; CameraInfo cannot tell them apart, so that `unset` is
        refused then.

    Raises CalibrationError when K is all zero, sizes are missing or contradict each other, or the distortion model is
    unknown.

    """
    width, height = int(info.width), int(info.height)
    matrix = np.array(_field(info, 'k'), dtype=np.float64).reshape(-1)
    if matrix.size != 9 or not matrix.any():
        raise CalibrationError(
            'camera_info has an all-zero K: the camera is not calibrated; run camera_calibration and let the driver '
            'publish the result'
        )
    if width <= 0 or height <= 0:
        raise CalibrationError(f'camera_info states a size of {width}x{height}: the driver must fill it')
    if matrix[1]:
        raise CalibrationError(f'camera_info has skew {matrix[1]}: only cameras without skew are supported')
    model, coefficients = _distortion(info)
    camera = Camera(width, height, matrix[0], matrix[4], matrix[2], matrix[5], model, coefficients)
    return _binned(_region(camera, getattr(info, 'roi', None)), info, sensor_binning)


def roi_offset(info: Any) -> tuple[int, int]:
    """Offset (x, y) of the image within the full sensor, in pixels of the image; its parity decides the Bayer phase."""
    roi = getattr(info, 'roi', None)
    if roi is None:
        return 0, 0
    binning_x, binning_y = _binning(info)
    return int(roi.x_offset) // binning_x, int(roi.y_offset) // binning_y


def check_camera(frame: Frame, camera: Camera) -> None:
    """Raise CalibrationError when the camera has another size than the frame."""
    if (camera.width, camera.height) != frame.size:
        raise CalibrationError(
            f'camera_info is for {camera.width}x{camera.height} (after region of interest and binning) but the image '
            f'is {frame.size[0]}x{frame.size[1]}: publish the calibration of this resolution'
        )


def _field(info: Any, name: str) -> Any:
    return getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())


def _distortion(info: Any) -> tuple[str, tuple[float, ...]]:
    coefficients = tuple(float(value) for value in _field(info, 'd'))
    name = str(info.distortion_model).lower()
    model = _SYNONYMS.get(name, name)
    if not any(coefficients) and model in ('', 'none', *DISTORTION_MODELS):
        return 'none', ()
    if not model:
        raise CalibrationError(
            f'camera_info has {len(coefficients)} distortion coefficients but no distortion_model: set one of '
            f'{", ".join(DISTORTION_MODELS)}'
        )
    return model, coefficients


def _region(camera: Camera, roi: Any) -> Camera:
    if roi is None or (not roi.width and not roi.height):
        return camera
    x, y, width, height = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if width <= 0 or height <= 0 or x + width > camera.width or y + height > camera.height:
        raise CalibrationError(
            f'camera_info: region of interest {width}x{height} at ({x}, {y}) lies outside its {camera.width}x'
            f'{camera.height} sensor'
        )
    return camera.cropped(x, y, width, height)


def _binning(info: Any) -> tuple[int, int]:
    return max(1, int(getattr(info, 'binning_x', 1))), max(1, int(getattr(info, 'binning_y', 1)))


def _binned(camera: Camera, info: Any, sensor_binning: str) -> Camera:
    x, y = _binning(info)
    if (x, y) == (1, 1):
        return camera
    if sensor_binning not in ('mosaic', 'merged'):
        raise CalibrationError(
            f'camera_info states {x}x{y} binning in the sensor: set sensor_binning to mosaic (sites of one colour are '
            'binned, the image is still a mosaic) or merged (neighbours are binned, colour is lost)'
        )
    return replace(
        camera,
        width=camera.width // x,
        height=camera.height // y,
        fx=camera.fx / x,
        fy=camera.fy / y,
        cx=(camera.cx + 0.5) / x - 0.5,
        cy=(camera.cy + 0.5) / y - 0.5,
    )
