# SPDX-License-Identifier: Apache-2.0
"""The posed raw views a field is made from, in memory, in one common unit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.blind import plane_noise_variance
from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.raw.noise import NoiseModel, at_levels
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.types import Frame, Planes

_NOISE_FRAMES = 8
_SATURATED = 0.98


@dataclass(frozen=True, eq=False)
class Views:
    """V views of one camera.

    Attributes
    ----------
    values: (V, 3, H, W) float32 planes, or (V, 1, H, W) of a mosaic: counts above black / `unit`, signed.
    colour: (H, W) int64 plane of each site of a mosaic; None for planes.
    camera: intrinsics at H x W.
    world_from_camera: (V, 4, 4) float64. stamps_ns: (V,). names: of the frames, or empty texts.
    exposure: (V,) float32 brightness relative to the median frame, 1 where unknown.
    depth, confidence: (V, h, w) float32 along the optical axis in world units and 0..1 over the same picture, at any
        size; 0 where unknown; or None.
    read_variance, shot_gain: (3,) variance of a value = read + gain * signal, in the unit of the values.
    unit: counts per 1 of the values. white: saturation in units. black_level: counts of R, G, B.
    samples: raw pixels behind a value of R, G, B.
    held_out: (V,) bool, views kept out of training.
    points: (M, 3) float64 sparse scene points in the world, possibly none.
    metric: whether world units are metres.
    warnings: what was left out or assumed, one sentence each.

    """

    values: NDArray[np.float32]
    colour: NDArray[np.int64] | None
    camera: Camera
    world_from_camera: NDArray[np.float64]
    stamps_ns: NDArray[np.int64]
    names: tuple[str, ...]
    exposure: NDArray[np.float32]
    depth: NDArray[np.float32] | None
    confidence: NDArray[np.float32] | None
    read_variance: NDArray[np.float64]
    shot_gain: NDArray[np.float64]
    unit: float
    white: float
    black_level: tuple[float, float, float]
    samples: tuple[int, int, int]
    held_out: NDArray[np.bool_]
    points: NDArray[np.float64]
    metric: bool = False
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def training(self) -> NDArray[np.int64]:
        """Indices of the views to train on."""
        return np.flatnonzero(~self.held_out)

    def usable(self) -> NDArray[np.bool_]:
        """Sites (V, C, H, W) below saturation."""
        return self.values < _SATURATED * self.white

    def without_depth(self) -> Views:
        """Copy without any depth."""
        return dataclasses.replace(self, depth=None, confidence=None)

    def scene_points(self, limit: int = 50_000) -> NDArray[np.float64]:
        """Points (M, 3) of the scene: the sparse ones, or from the depths where there are none."""
        if len(self.points) >= 20 or self.depth is None or self.confidence is None:
            return self.points
        height, width = self.depth.shape[1:]
        rng = np.random.default_rng(0)
        rows, columns = rng.integers(0, height, limit), rng.integers(0, width, limit)
        views = rng.integers(0, len(self), limit)
        z = self.depth[views, rows, columns].astype(np.float64)
        keep = (z > 0) & (self.confidence[views, rows, columns] > 0.3)
        pixels = np.column_stack([(columns + 0.5) * self.camera.width / width - 0.5,
                                  (rows + 0.5) * self.camera.height / height - 0.5])[keep]  # fmt: skip
        local = np.column_stack([self.camera.unproject(pixels), np.ones(len(pixels))]) * z[keep, None]
        poses = self.world_from_camera[views[keep]]
        return np.asarray(np.einsum('nij,nj->ni', poses[:, :3, :3], local) + poses[:, :3, 3])


def frame_values(frame: Frame, binning: int, mosaic: bool) -> NDArray[np.float32]:
    """Counts above black of a frame: planes (3, h, w), or the mosaic itself (1, H, W)."""
    if not mosaic or frame.cfa == MONO:
        return to_planes(frame, 1 if mosaic else binning).signal()
    return (frame.mosaic.astype(np.float32) - _black_sites(frame))[None]


def clipped_at_black(frame: Frame) -> Frame:
    """Copy whose mosaic pixels are cut off at the black level, as a camera driver that subtracts it unsigned does.

    For comparison only: noise loses its negative half, so that what is dark comes out too bright.
    """
    # Drivers subtract whole counts.
    lowest = np.rint(_black_sites(frame)).clip(min=0.0).astype(frame.mosaic.dtype)
    return dataclasses.replace(frame, mosaic=np.maximum(frame.mosaic, lowest))


def _black_sites(frame: Frame) -> NDArray[np.float32]:
    """Black level (H, W) of each site of a mosaic, or (1, 1) of a mono sensor."""
    black = np.array(frame.black_level, dtype=np.float32)
    return black[None, :1] if frame.cfa == MONO else black[colour_sites(frame.cfa, *frame.mosaic.shape)]


def colour_sites(cfa: str, height: int, width: int) -> NDArray[np.int64]:
    """Plane (0, 1, 2 for R, G, B) of each site (H, W) of a Bayer mosaic."""
    result = np.zeros((height, width), dtype=np.int64)
    for plane, places in enumerate(sites(cfa).values()):
        for y, x in places:
            result[y::2, x::2] = plane
    return result


def noise_line(
    frames: Sequence[Frame], binning: int, mosaic: bool, noise: NoiseModel | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variance of a value in counts: its dark part (3,) and its slope with the signal (3,).

    From the calibrated model, else measured in a few frames; then the slope is unknown and the variance that of their
    mean signal.
    """
    first = frames[0]
    mosaic = mosaic and first.cfa != MONO
    samples = (1, 1, 1) if mosaic else to_planes(first, 1 if first.cfa == MONO and mosaic else binning).samples
    if noise is not None:
        model = at_levels(noise, max(first.black_level[1], 0.0), first.white_level)
        zero, one = np.zeros((3, 1)), np.ones((3, 1))
        if mosaic:
            dark, bright = model.variance(zero)[:, 0], model.variance(one)[:, 0]
        else:
            dark, bright = (model.planes_variance(light, samples)[:, 0] for light in (zero, one))
        return dark, bright - dark
    measured = []
    for frame in frames[:_NOISE_FRAMES]:
        planes = to_planes(frame, 2 if mosaic else binning)
        factor = np.array(planes.samples, dtype=np.float64) if mosaic else np.ones(3)
        measured.append(_measured_variance(planes, frame) * factor)
    variance = np.nanmedian(np.array(measured), axis=0)
    return np.where(np.isfinite(variance) & (variance > 0), variance, 1.0), np.zeros(3)


def _measured_variance(planes: Planes, frame: Frame) -> NDArray[np.float64]:
    try:
        return plane_noise_variance(planes, frame)
    except (ValueError, DataError):  # too small a picture to measure anything in
        return planes.signal().var(axis=(1, 2), dtype=np.float64)


def signal_unit(values: NDArray[np.float32], read_variance: NDArray[np.float64]) -> float:
    """Counts of the mean signal; never below a twentieth of the noise, so that black recordings stay finite."""
    mean = float(values.mean(dtype=np.float64))
    floor = 0.05 * math.sqrt(float(read_variance.mean()))
    return max(mean, floor, 1e-6)


def choose_held_out(count: int, every: int) -> NDArray[np.bool_]:
    """Every n-th view, away from both ends; none where fewer than six would be left to train on."""
    held = np.zeros(count, dtype=np.bool_)
    if every > 1:
        held[every // 2 :: every] = True
    return held if count - held.sum() >= 6 else np.zeros(count, dtype=np.bool_)
