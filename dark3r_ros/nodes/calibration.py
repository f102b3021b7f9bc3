# SPDX-License-Identifier: Apache-2.0
"""Cameras learnt from camera_info messages, by frame and size; frames come back from image messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dark3r_ros.errors import CalibrationError, Dark3rError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.advice import AdviceConfig, Observer
from dark3r_ros.nodes.worker import Job
from dark3r_ros.raw.camera_info import camera_from_info, roi_offset
from dark3r_ros.raw.checks import check_frame
from dark3r_ros.raw.decode import DecodeOptions, FrameDecoder
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame


@dataclass(frozen=True)
class Calibration:
    """Intrinsics at the size of the image, and the offset (x, y) of the image within the sensor in its pixels."""

    camera: Camera
    roi_offset: tuple[int, int]


class CameraCache:
    """Newest calibration of every (frame_id, width, height); fed by one thread, read by another."""

    def __init__(self, sensor_binning: str = 'unset') -> None:
        self._sensor_binning = sensor_binning
        self._cameras: dict[tuple[str, int, int], Calibration] = {}
        self._raw: dict[str, tuple[Any, ...]] = {}
        self.problem = ''

    def __len__(self) -> int:
        return len(self._cameras)

    @property
    def cameras(self) -> list[Camera]:
        """All calibrations at the sizes of their images, in order of arrival."""
        return [calibration.camera for calibration in list(self._cameras.values())]

    def update(self, info: Any) -> str:
        """Take a camera_info message; return a sentence when it changed a known camera or cannot be used."""
        frame_id = info.header.frame_id
        roi = info.roi
        raw = (
            info.width, info.height, info.distortion_model, tuple(info.k), tuple(info.d), info.binning_x,
            info.binning_y, roi.x_offset, roi.y_offset, roi.width, roi.height,
        )  # fmt: skip
        if self._raw.get(frame_id) == raw:
            return ''
        self._raw[frame_id] = raw
        try:
            camera = camera_from_info(info, self._sensor_binning)
        except Dark3rError as error:
            self.problem = str(error)
            return self.problem
        self.problem = ''
        key = (frame_id, camera.width, camera.height)
        before, after = self._cameras.get(key), Calibration(camera, roi_offset(info))
        self._cameras[key] = after
        if before is not None and before != after:
            old = before.camera
            return (
                f'the calibration of {frame_id!r} changed (fx {old.fx:g} -> {camera.fx:g}, cx {old.cx:g} -> '
                f'{camera.cx:g}); the new one is used from now on'
            )
        return ''

    def find(self, frame_id: str, width: int, height: int) -> Calibration:
        """Calibration of an image; CalibrationError says what is there instead."""
        exact = self._cameras.get((frame_id, width, height))
        if exact is not None:
            return exact
        same_size = [item for (_, w, h), item in self._cameras.items() if (w, h) == (width, height)]
        # Some drivers leave frame_id empty in one of the two messages; one camera of that size is meant then.
        if len(same_size) == 1:
            return same_size[0]
        if self.problem:
            raise CalibrationError(self.problem)
        if not self._cameras:
            raise CalibrationError('no calibration: no camera_info arrived yet; publish it beside the image')
        known = ', '.join(f'{w}x{h} for {name!r}' for name, w, h in self._cameras)
        raise CalibrationError(
            f'no calibration for the image of {width}x{height} from {frame_id!r}: camera_info gives {known}; publish '
            'a camera_info of the size of the image (region of interest and binning included)'
        )

    def ready(self, frame_id: str, width: int, height: int) -> bool:
        """Whether `find` will succeed."""
        try:
            self.find(frame_id, width, height)
        except CalibrationError:
            return False
        return True


class FrameReader:
    """Decode image messages in the worker thread, with their calibration, and give start-up advice once."""

    def __init__(
        self,
        options: DecodeOptions,
        noise: NoiseModel | None,
        cameras: CameraCache,
        advice: AdviceConfig | None = None,
    ) -> None:
        self.observer = Observer(advice or AdviceConfig(), noise)
        self._decoder = FrameDecoder(options)
        self._noise = noise
        self._cameras = cameras
        self._checked = False

    def read(self, job: Job) -> tuple[Frame, Sequence[str]]:
        """Frame of an image message and sentences for the log; EncodingError, DataError or CalibrationError."""
        message = job.message
        calibration = self._cameras.find(job.frame_id, message.width, message.height)
        frame = self._decoder.decode(
            message, job.stamp_ns, calibration.camera, roi_offset=calibration.roi_offset, frame_id=job.frame_id
        )
        self.observer.look(frame)
        notes = list(self._decoder.warnings)
        if not self._checked:
            self._checked = True
            notes += check_frame(frame, self._noise)
        return frame, notes
