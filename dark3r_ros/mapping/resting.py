# SPDX-License-Identifier: Apache-2.0
"""Averages frames while the camera stands still: N of them have 10 log10(N) dB more than one.

Whether the camera stands still is measured, never assumed. A frame is compared with the average so far in a band of
spatial frequencies that holds texture but not the light of a lamp, which moves with the camera: gain, shift, zoom and
roll that turn one picture into the other come from linear least squares, with their deviations. Where the newest frames
together, or the odometry, say that the camera moves, the average begins anew. It is used once a motion of half a pixel
would show, or at once where the odometry says that the robot stands. Decisions rest on stamps and contents alone.
Source of the estimate: Lucas and Kanade, An iterative image registration technique, 1981.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.odometry_track import OdometryTrack
from dark3r_ros.types import Frame, Planes

Image = NDArray[np.float32]
Array = NDArray[np.float64]

_BAND = (2.0, 8.0)  # deviations in pixels of the two Gaussians whose difference is looked at
_STILL = 0.5  # pixels by which a frame may be off the average
_CREEP = 0.25  # the same for the newest frames together
_FADING = 0.75  # weight of a frame in these, of that of the one after it
_GAIN = (0.7, 1.4)  # light beyond which the scene or the lamp has changed
_NOTHING = 1.3  # of the power of noise, below which a picture shows nothing else
_SURE = 2.0  # deviations
_STANDS = (0.004, math.radians(0.08))  # metres and radians that the odometry of a robot at rest may move
_LONGEST_NS = 1_000_000_000  # between two frames of one rest


@dataclass(frozen=True)
class Difference:
    """What turns one picture into another.

    Attributes
    ----------
    gain: factor of the brightness. gain_sigma: its deviation.
    motion: (4,) pixels, root mean square over the picture, of shift along x and y, zoom, roll. sigma: deviation of its
        length, infinite where the picture is too dark to tell.

    """

    gain: float
    gain_sigma: float
    motion: Array
    sigma: float


class _Band:
    """Band-pass filter of white noise: what is left of its variance, in the picture and in its slopes."""

    def __init__(self) -> None:
        point = np.zeros((129, 129), np.float32)
        point[64, 64] = 1.0
        kernel = band(point)
        self.power = float(np.square(kernel, dtype=np.float64).sum())
        self.slope = float(np.square(_slopes(kernel)[0], dtype=np.float64).sum())


def band(image: Image) -> Image:
    """The part of an image (h, w) between the frequencies of texture, without what changes slowly across it."""
    fine, coarse = (cv2.GaussianBlur(image, (0, 0), sigma) for sigma in _BAND)
    return np.asarray(fine - coarse, dtype=np.float32)


def _slopes(image: Image) -> tuple[Image, Image]:
    """Central differences (h, w) along x and y; 0 at the edges."""
    x, y = np.zeros_like(image), np.zeros_like(image)
    x[:, 1:-1] = 0.5 * (image[:, 2:] - image[:, :-2])
    y[1:-1] = 0.5 * (image[2:] - image[:-2])
    return x, y


_FILTER = _Band()


def compare(before: Image, after: Image, variance: float, share: float) -> Difference:
    """How `after` (h, w) differs from `before`, both with white noise.

    `variance` of the noise of `after`; that of `before`, an average, is the `share` of it.
    """
    reference, newest = band(before), band(after)
    change = newest - reference
    height, width = reference.shape
    reach = math.sqrt((width**2 + height**2) / 12.0)  # root mean square distance of a pixel from the middle
    x = ((np.arange(width, dtype=np.float32) - (width - 1) / 2.0) / np.float32(reach))[None]
    y = ((np.arange(height, dtype=np.float32) - (height - 1) / 2.0) / np.float32(reach))[:, None]
    along_x, along_y = _slopes(reference)
    parts = [reference, along_x, along_y, x * along_x + y * along_y, x * along_y - y * along_x]
    basis = np.stack(parts).reshape(5, -1)
    squares = (basis @ basis.T).astype(np.float64)
    # What noise alone puts into the picture that is looked for, and into its product with the change.
    noise = share * variance * reference.size
    own = squares - noise * np.diag([_FILTER.power, *[_FILTER.slope] * 4])
    product = (basis @ change.ravel()).astype(np.float64)
    product[0] += noise * _FILTER.power
    if squares[0, 0] < _NOTHING * noise * _FILTER.power:
        power = float(np.mean(np.square(newest, dtype=np.float64))) / (variance * _FILTER.power)
        return Difference(1.0 if power < _NOTHING else math.inf, math.inf, np.zeros(4), math.inf)
    if np.linalg.eigvalsh(own[1:, 1:]).min() <= 0.0 or np.linalg.eigvalsh(own).min() <= 0.0:
        spread = math.sqrt(variance * (1.0 + share) * squares[0, 0]) / own[0, 0]
        return Difference(1.0 + float(product[0] / own[0, 0]), spread, np.zeros(4), math.inf)
    inverse = np.linalg.inv(own)
    solved = inverse @ product
    # The noise of the change is coloured: its share in the direction of a shift stands for all.
    filtered = float(np.square(band(along_x), dtype=np.float64).sum())
    passed = min(1.0, filtered / max(float(squares[1, 1]), 1e-30))
    covariance = passed * variance * (1.0 + share) * inverse @ squares @ inverse
    return Difference(
        1.0 + float(solved[0]),
        math.sqrt(covariance[0, 0]),
        -solved[1:],
        math.sqrt(float(np.trace(covariance[1:, 1:]))),
    )


class RestAverage:
    """The average of the newest frames for as long as the camera stands still.

    Parameters
    ----------
    most: frames that are averaged; from then on each new one takes the part of a `most`-th of the average.
    odometry: of the robot, asked whether it stands; it may be empty.

    """

    def __init__(self, most: int, odometry: OdometryTrack | None = None) -> None:
        self._most, self._odometry = most, odometry
        self.forget()

    @property
    def since_ns(self) -> int | None:
        """Stamp of the first frame of the average."""
        return self._since_ns

    def forget(self) -> None:
        """The next frame begins an average of its own."""
        self._mean: Planes | None = None
        self._frame: Frame | None = None
        self._since_ns: int | None = None
        self._count = 0
        self._share = 1.0  # variance of the average, of that of a frame
        self._drawn, self._precision = np.zeros(4), 0.0  # the motion that the newest frames show, times its precision
        self._stood: deque[tuple[Array, int]] = deque(maxlen=self._most)

    def add(self, frame: Frame, planes: Planes) -> tuple[Planes, int]:
        """Planes of the average that a frame belongs to, and how many frames that is; its own while that is not sure.

        `planes` of the frame carry their `noise_variance`; nothing of them is clipped.
        """
        stands = self._stands(frame.stamp_ns)
        if stands is False or not self._continues(frame, planes):
            self.forget()
        self._take(frame, planes)
        if self._count < 2 or not (stands or self._would_show()):
            return planes, 1
        assert self._mean is not None
        return self._mean, self._count

    def _take(self, frame: Frame, planes: Planes) -> None:
        values, weight = planes.values, 1.0 / min(self._count + 1, self._most)
        if self._mean is None:
            self._since_ns = frame.stamp_ns
        else:
            values = self._mean.values + np.float32(weight) * (values - self._mean.values)
        self._share = (1.0 - weight) ** 2 * self._share + weight**2
        assert planes.noise_variance is not None
        red, green, blue = (self._share * variance for variance in planes.noise_variance)
        self._mean = replace(planes, values=values, noise_variance=(red, green, blue))
        self._frame = replace(frame, mosaic=frame.mosaic[:0, :0].copy())  # its settings; the pixels are not held
        self._count = min(self._count + 1, self._most)
        reading = self._reading(frame.stamp_ns)
        if reading is not None:
            self._stood.append(reading)

    def _continues(self, frame: Frame, planes: Planes) -> bool:
        """Whether a frame shows what the average shows, as far as can be told."""
        before, mean = self._frame, self._mean
        if before is None or mean is None or not 0 < frame.stamp_ns - before.stamp_ns <= _LONGEST_NS:
            return False
        if _settings(before) != _settings(frame) or mean.values.shape != planes.values.shape:
            return False
        variances = np.array(planes.noise_variance)
        if not (np.isfinite(variances).all() and (variances > 0.0).all()):
            return False
        weights = _colour_weights(mean, variances)
        difference = compare(_grey(mean, weights), _grey(planes, weights), float(weights**2 @ variances), self._share)
        return self._same_light(difference) and not self._moves(difference)

    def _moves(self, difference: Difference) -> bool:
        """Whether a frame, or the newest ones together, are off the average."""
        if float(np.linalg.norm(difference.motion)) > _STILL + _SURE * difference.sigma:
            return True
        precision = 1.0 / difference.sigma**2
        self._drawn = _FADING * self._drawn + precision * difference.motion
        self._precision = _FADING * self._precision + precision
        if self._precision <= 0.0:
            return False
        off = float(np.linalg.norm(self._drawn)) / self._precision
        return off > _CREEP + _SURE / math.sqrt(self._precision)

    def _would_show(self) -> bool:
        """Whether the newest frames together are exact enough for a motion to show."""
        return self._precision > 0.0 and _SURE / math.sqrt(self._precision) <= _STILL

    @staticmethod
    def _same_light(difference: Difference) -> bool:
        if math.isinf(difference.gain_sigma):
            return math.isfinite(difference.gain)
        doubt = _SURE * difference.gain_sigma
        return _GAIN[0] - doubt <= difference.gain <= _GAIN[1] + doubt

    def _stands(self, stamp_ns: int) -> bool | None:
        """Whether odometry says that the robot stood as long as the average lasts; None where it says nothing."""
        now = self._reading(stamp_ns)
        if now is None or not self._stood or self._stood[0][1] != now[1]:
            return None
        motion = se3.inverse(self._stood[0][0]) @ now[0]
        way, turn = float(np.linalg.norm(motion[:3, 3])), float(se3.rotation_angle(motion[:3, :3]))
        return way <= _STANDS[0] and turn <= _STANDS[1]

    def _reading(self, stamp_ns: int) -> tuple[Array, int] | None:
        return None if self._odometry is None else self._odometry.at(stamp_ns)


def _settings(frame: Frame) -> tuple[object, ...]:
    """What two frames must share to be averaged."""
    return frame.exposure_s, frame.gain, frame.black_level, frame.white_level, frame.cfa, frame.camera, frame.processed


def _colour_weights(planes: Planes, variances: Array) -> Array:
    """Weights (3,) of the planes in a grey picture with as little noise as can be, if they differ by brightness."""
    signal = np.maximum(planes.signal().mean(axis=(1, 2), dtype=np.float64), 0.0)
    weights = signal / variances if signal.any() else 1.0 / variances
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _grey(planes: Planes, weights: Array) -> Image:
    return np.asarray(np.tensordot(weights.astype(np.float32), planes.signal(), axes=1), dtype=np.float32)
