# SPDX-License-Identifier: Apache-2.0
"""The box around the scene and the contraction that brings all of space into a finite domain.

World points become `x = (p - centre) / scale` with `scale` the longest half side, so that distances keep their ratios.
Per axis `u = x * scale / half` is then within [-1, 1] inside the box. What lies outside is squeezed into a shell:
with r = max|u| > 1, u becomes u / r * (1 + m * (1 - 1 / (1 + (r - 1) / m))), which continues with slope one, never
folds and stays within 1 + m. For m = 1 that is the contraction of mip-NeRF 360 (Barron et al., CVPR 2022) in the
maximum norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dark3r_ros.errors import DataError

_THINNEST = 0.15  # of the longest half side: a thin box would turn any error of a pose into a step outside
_PAD = 1.05
_CAMERA_REACH = 1.5  # half side in units of the cameras' spread when nothing but cameras is known


@dataclass(frozen=True)
class SceneBox:
    """Axis-aligned box: centre and half sides (x, y, z) in world units; `margin` is m of the contraction."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    margin: float = 0.5

    @property
    def scale(self) -> float:
        """World units per unit of normalised distance."""
        return max(self.half)

    @property
    def sides(self) -> tuple[float, float, float]:
        """Half sides relative to the longest."""
        return self.half[0] / self.scale, self.half[1] / self.scale, self.half[2] / self.scale

    def normalise(self, points: ArrayLike) -> NDArray[np.float64]:
        """World points (..., 3) to normalised ones."""
        return (np.asarray(points, dtype=np.float64) - self.centre) / self.scale

    def denormalise(self, points: ArrayLike) -> NDArray[np.float64]:
        """Normalised points (..., 3) back to the world."""
        return np.asarray(points, dtype=np.float64) * self.scale + self.centre

    def domain(self, points: Tensor) -> Tensor:
        """Contract normalised points (..., 3) into [-1, 1]^3."""
        return contract(points / points.new_tensor(self.sides), self.margin) / (1.0 + self.margin)


def contract(u: Tensor, margin: float) -> Tensor:
    """Squeeze points (..., 3) into max|u| < 1 + margin; those with max|u| <= 1 stay."""
    radius = u.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    squeezed = 1.0 + margin * (1.0 - 1.0 / (1.0 + (radius - 1.0) / margin))
    return u * (squeezed / radius)


def reflect(x: Tensor) -> Tensor:
    """Mirror coordinates back into [-1, 1] at its borders."""
    return 1.0 - ((x + 1.0) % 4.0 - 2.0).abs()


def box_around(centres: ArrayLike, points: ArrayLike, margin: float) -> SceneBox:
    """Box that holds the camera centres (N, 3) and 98 % of the scene points (M, 3) along every axis.

    Without enough points the cameras' own spread is all there is to go by. DataError when the cameras stand still then.
    """
    centres = np.asarray(centres, dtype=np.float64).reshape(-1, 3)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    low, high = centres.min(axis=0), centres.max(axis=0)
    if len(points) >= 20:
        quantiles = np.percentile(points, [1.0, 99.0], axis=0)
        low, high = np.minimum(low, quantiles[0]), np.maximum(high, quantiles[1])
        half = (high - low) / 2.0 * _PAD
    else:
        half = np.full(3, np.linalg.norm(high - low) * _CAMERA_REACH)
    if not half.max() > 0.0:
        raise DataError('the cameras stand still and no scene points are known: no box can be put around the scene')
    half = np.maximum(half, _THINNEST * half.max())
    centre = (low + high) / 2.0
    x, y, z = (float(value) for value in centre)
    return SceneBox((x, y, z), (float(half[0]), float(half[1]), float(half[2])), margin)


def normalised_poses(box: SceneBox, world_from_camera: ArrayLike) -> Tensor:
    """Poses (N, 4, 4) float32 in normalised coordinates."""
    poses = np.array(world_from_camera, dtype=np.float64).reshape(-1, 4, 4)
    poses[:, :3, 3] = box.normalise(poses[:, :3, 3])
    return torch.from_numpy(poses.astype(np.float32))
