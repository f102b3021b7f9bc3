# SPDX-License-Identifier: Apache-2.0
"""Frames of an offline reconstruction: binned, judged and encoded once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import Dark3rError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.model.predictor import Features, Predictor
from dark3r_ros.raw.blind import plane_noise_variance
from dark3r_ros.raw.camera_info import check_camera
from dark3r_ros.raw.checks import frame_health
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.raw.snr import estimate_snr
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.types import Frame, Planes

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """One input frame.

    Attributes
    ----------
    stamp_ns, name: of the frame. full_camera: intrinsics at the size of the mosaic, or None.
    camera: intrinsics at the size of the planes, or None. features: what the predictor remembers, or None.
    colors: (h, w, 3) uint8 picture for people, or None. snr_db: NaN when unknown.
    problem: why the frame cannot be used; empty when it can, and then nothing above is None.
    planes: what was encoded, or None where it is not kept.

    """

    stamp_ns: int
    name: str
    full_camera: Camera | None = None
    camera: Camera | None = None
    features: Features | None = None
    colors: NDArray[np.uint8] | None = None
    snr_db: float = math.nan
    problem: str = ''
    planes: Planes | None = None

    @property
    def usable(self) -> bool:
        """Whether the frame can take part."""
        return not self.problem

    @property
    def focal(self) -> float:
        """Mean focal length in pixels of the planes."""
        assert self.camera is not None
        return 0.5 * (self.camera.fx + self.camera.fy)

    def normalised(self, pixels: Array) -> Array:
        """Undistorted normalised coordinates (N, 2) of pixels (N, 2) of the planes."""
        assert self.camera is not None
        return self.camera.unproject(pixels)

    def color_at(self, pixels: Array) -> NDArray[np.uint8]:
        """Colours (N, 3) of pixels (N, 2)."""
        assert self.colors is not None
        height, width = self.colors.shape[:2]
        xy = np.rint(pixels).astype(np.int64)
        return self.colors[np.clip(xy[:, 1], 0, height - 1), np.clip(xy[:, 0], 0, width - 1)]


def median_focal(views: Sequence[View], numbers: Iterable[int]) -> float:
    """Median focal length, in pixels of the planes, of some of the views."""
    return float(np.median([views[number].focal for number in numbers]))


def content_problem(frame: Frame, noise: NoiseModel | None) -> str:
    """Why the content of a frame is of no use, or an empty text."""
    health = frame_health(frame, noise)
    if health.all_saturated:
        return 'all pixels are saturated: shorten the exposure or lower the gain'
    if health.all_black:
        return 'all pixels are black: lens cap on, or no light'
    if frame.mosaic.min() == frame.mosaic.max():
        return 'all pixels have the same value: no picture of the sensor'
    return ''


def take_view(frame: Frame, predictor: Predictor, config: SfmConfig, noise: NoiseModel | None = None) -> View:
    """Bin, judge and encode one frame; a frame that cannot be used says why."""
    if frame.camera is None:
        return View(
            frame.stamp_ns,
            frame.name,
            problem='no calibration: give --camera, or --fix-intrinsics false to have the focal length found',
        )
    try:
        check_camera(frame, frame.camera)
        problem = content_problem(frame, noise)
        if problem:
            return View(frame.stamp_ns, frame.name, frame.camera, problem=problem)
        planes = to_planes(frame, config.binning or choose_binning(frame.size[0], config.network_width))
        known = None if frame.processed else noise
        if known is None:
            red, green, blue = plane_noise_variance(planes, frame).tolist()
            planes = replace(planes, noise_variance=(red, green, blue))
        features = predictor.encode(planes)
    except Dark3rError as error:
        return View(frame.stamp_ns, frame.name, frame.camera, problem=str(error))
    return View(
        frame.stamp_ns,
        frame.name,
        frame.camera,
        planes.camera,
        features,
        display_image(planes),
        estimate_snr(planes, known).db,
        planes=planes,
    )


def take_views(
    frames: Iterable[Frame], predictor: Predictor, config: SfmConfig, noise: NoiseModel | None = None
) -> Iterator[View]:
    """Views of all frames, in their order."""
    for frame in frames:
        yield take_view(frame, predictor, config, noise)
