# SPDX-License-Identifier: Apache-2.0
"""From a raw frame to an encoded view, refusing what cannot be used with a reason that people can act upon."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import Dark3rError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.odometry_track import OdometryTrack
from dark3r_ros.mapping.resting import RestAverage
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.blind import plane_noise_variance
from dark3r_ros.raw.camera_info import check_camera
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.raw.snr import estimate_snr
from dark3r_ros.types import Frame, Planes

_VARIANCE_EVERY = 5
_HYSTERESIS_DB = 1.0


class RefusedError(Exception):
    """A frame that cannot be used.

    `waiting`: only calibration is missing. `log`: the frame belongs into the record of all frames, which its stamp
    allows. `counts_as_loss`: the camera sees nothing, so the position is being lost.
    """

    def __init__(self, reason: str, *, waiting: bool = False, log: bool = True, counts_as_loss: bool = False) -> None:
        super().__init__(reason)
        self.waiting, self.log, self.counts_as_loss = waiting, log, counts_as_loss


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame on its way into the map: its view, or why there is none.

    `source` is the intake that made it; `snr_db` and `samples` are those of the picture that was encoded, an average of
    `averaged` frames where the camera stands still.
    """

    frame: Frame
    view: View | None
    refusal: RefusedError | None
    source: Intake
    snr_db: float
    samples: int
    averaged: int = 1


def camera_notes(of_map: Camera | None, now: Camera | None) -> list[str]:
    """What there is to say about two cameras that see the same map."""
    if of_map is None or now is None:
        return []
    wide = now.fx / now.width * of_map.width / of_map.fx
    if abs(wide - 1.0) < 0.02:
        return []
    return [
        f'the camera of the map has fx {of_map.fx:.1f} px at {of_map.width} px width, this one {now.fx:.1f} px at '
        f'{now.width} px: both are used as they are calibrated'
    ]


def _picture(planes: Planes) -> NDArray[np.uint8]:
    """Picture for people at half the size, which is enough for the colours of landmarks and less noisy."""
    height, width = (side // 2 * 2 for side in planes.values.shape[1:])
    if not height or not width:
        return display_image(planes)
    rows = planes.values[:, 0:height:2] + planes.values[:, 1:height:2]
    return display_image(replace(planes, values=np.float32(0.25) * (rows[..., 0:width:2] + rows[..., 1:width:2])))


class Intake:
    """Checks stamps, calibration and content, bins, averages at rest, measures the SNR and encodes.

    Parameters
    ----------
    noise: calibrated model of the camera, None to measure the noise of each frame.
    odometry: of the robot, which says whether it stands.

    """

    def __init__(
        self,
        config: MappingConfig,
        predictor: Predictor,
        noise: NoiseModel | None,
        odometry: OdometryTrack | None = None,
    ) -> None:
        self._config, self._predictor, self._noise = config, predictor, noise
        self._rest = RestAverage(config.rest_frames, odometry)
        self._last_stamp_ns: int | None = None
        self._variance: tuple[float, float, float] | None = None
        self._variance_age = 0
        self._variance_size = (0, 0)
        self.snr_db = math.nan
        self.samples = 0
        self.averaged = 0

    def prepare(self, frame: Frame) -> Prepared:
        """Everything that one frame needs and no other frame is asked for; frames must come in order."""
        try:
            view, refusal = self.take(frame), None
        except RefusedError as error:
            view, refusal = None, error
            self._rest.forget()
        return Prepared(frame, view, refusal, self, self.snr_db, self.samples, self.averaged)

    def take(self, frame: Frame) -> View:
        """Turn a frame into a view. Raises RefusedError."""
        self._check_stamp(frame.stamp_ns)
        self.snr_db, self.averaged = math.nan, 0  # a refused frame must not show what was measured before
        if frame.camera is None:
            raise RefusedError('no calibration: publish camera_info beside the image', waiting=True)
        try:
            check_camera(frame, frame.camera)
            self._check_content(frame)
            return self._encode(frame)
        except Dark3rError as error:
            raise RefusedError(str(error)) from error

    def _check_stamp(self, stamp_ns: int) -> None:
        last, self._last_stamp_ns = self._last_stamp_ns, max(stamp_ns, self._last_stamp_ns or stamp_ns)
        if last is None or stamp_ns > last:
            return
        if stamp_ns == last:
            raise RefusedError(f'the stamp {stamp_ns} ns repeats: the frame is ignored', log=False)
        back = (last - stamp_ns) / 1e9
        hint = '; was a bag started again? Reset the map to accept the new time' if back > 1.0 else ''
        raise RefusedError(f'the stamp went back by {back:.3f} s: the frame is ignored{hint}', log=False)

    @staticmethod
    def _check_content(frame: Frame) -> None:
        sample = frame.mosaic[::3, ::3]  # odd step: all colours take part
        if float(np.percentile(sample, 5)) >= 0.98 * frame.white_level:
            raise RefusedError('all pixels are saturated: shorten the exposure or lower the gain', counts_as_loss=True)
        low, high = int(sample.min()), int(sample.max())
        if high <= min(frame.black_level):
            raise RefusedError('all pixels are black: lens cap on, or no light and no pedestal', counts_as_loss=True)
        if low == high:
            raise RefusedError(
                f'all pixels have the same value {high}: saturated below the stated white level {frame.white_level:g}, '
                'or no picture of the sensor',
                counts_as_loss=True,
            )

    def _encode(self, frame: Frame) -> View:
        binning = self._config.binning or choose_binning(frame.size[0], self._config.network_width)
        planes = to_planes(frame, binning)
        noise = None if frame.processed else self._noise
        if noise is None:
            planes = replace(planes, noise_variance=self._measured_variance(planes, frame))
        self.snr_db, self.averaged = estimate_snr(planes, noise).db, 1
        enough = self._config.rest_snr + (_HYSTERESIS_DB if self._rest.since_ns is not None else 0.0)
        if self._config.rest_frames > 1 and self.snr_db < enough:
            planes = self._averaged(frame, planes, noise)
        else:
            self._rest.forget()
        self.samples = planes.samples[1] * self.averaged
        camera, readout = planes.camera, self._config.readout
        assert camera is not None
        return View(
            frame.stamp_ns,
            frame.frame_id,
            frame.name,
            RollingCamera.of(camera, readout) if readout > 0.0 else camera,
            self._predictor.encode(planes),
            _picture(planes),
            self.snr_db,
            self.averaged,
            self._rest.since_ns if self.averaged > 1 else None,
        )

    def _averaged(self, frame: Frame, planes: Planes, noise: NoiseModel | None) -> Planes:
        """The planes, averaged with those before while the camera stands still."""
        known = planes
        if noise is not None:
            red, green, blue = noise.mean_planes_variance(planes).tolist()
            known = replace(planes, noise_variance=(red, green, blue))
        mean, self.averaged = self._rest.add(frame, known)
        if self.averaged == 1:
            return planes
        self.snr_db = estimate_snr(mean).db
        return mean

    def _measured_variance(self, planes: Planes, frame: Frame) -> tuple[float, float, float]:
        """Noise of the frame itself; measured anew every few frames, since that costs as much as binning them."""
        if self._variance is None or self._variance_age >= _VARIANCE_EVERY or self._variance_size != planes.size:
            red, green, blue = plane_noise_variance(planes, frame).tolist()
            self._variance, self._variance_age, self._variance_size = (red, green, blue), 0, planes.size
        self._variance_age += 1
        return self._variance
