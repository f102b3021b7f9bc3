# SPDX-License-Identifier: Apache-2.0
"""What an adjustment expects besides what is seen: distances of points without parallax, places of cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_NEAREST = 1e-9


@dataclass(frozen=True, eq=False)
class DistancePrior:
    """Expected distances of M points from places in the world, as residuals of an adjustment beside those in pixels.

    One deviation of the logarithm of a distance costs as much as an error of one pixel. The places stay where they are
    while poses move.

    Attributes
    ----------
    points: (M,) which points of the problem. centres: (M, 3) from where. distances: (M,) how far.
    deviation: of the logarithm of a distance.

    """

    points: Index
    centres: Array
    distances: Array
    deviation: float

    def residuals(self, points: Array) -> tuple[Array, Array]:
        """Residuals (M,) of points (P, 3), and their derivatives (M, 3) by the point."""
        away = points[self.points] - self.centres
        length = np.maximum(np.linalg.norm(away, axis=1), _NEAREST)
        residual = np.log(length / self.distances) / self.deviation
        return np.asarray(residual), np.asarray(away / (self.deviation * length[:, None] ** 2))

    def costs(self, points: Array) -> Array:
        """Cost (P,) of every point of a problem (P, 3)."""
        residual, _ = self.residuals(points)
        return np.asarray(np.bincount(self.points, 0.5 * residual**2, minlength=len(points)), dtype=np.float64)

    def add_to(self, hessians: Array, gradients: Array, points: Array) -> None:
        """Add its part to the normal equations (P, 3, 3), (P, 3) of every point."""
        residual, slope = self.residuals(points)
        np.add.at(hessians, self.points, slope[:, :, None] * slope[:, None, :])
        np.add.at(gradients, self.points, slope * residual[:, None])


@dataclass(frozen=True, eq=False)
class PlacePrior:
    """Expected centres of M cameras in the world; one deviation costs as much as an error of one pixel.

    Attributes
    ----------
    frames: (M,) which poses of the problem. centres: (M, 3) where they are expected. deviation: of each coordinate.

    """

    frames: Index
    centres: Array
    deviation: float

    def _places(self, cameras_from_world: Array) -> Array:
        """Where the expected centres (M, 3) lie in the frames of their cameras, in deviations."""
        pose = cameras_from_world[self.frames]
        return np.asarray(np.einsum('mij,mj->mi', pose[:, :3, :3], self.centres) + pose[:, :3, 3]) / self.deviation

    def cost(self, cameras_from_world: Array) -> float:
        """Cost of poses (F, 4, 4)."""
        return 0.5 * float((self._places(cameras_from_world) ** 2).sum())

    def add_to(self, hessians: Array, gradients: Array, cameras_from_world: Array) -> None:
        """Add its part to the normal equations (F, 6, 6), (F, 6) of left twists."""
        place = self._places(cameras_from_world)
        # A left twist (v, w) moves what lies at p in the camera by v + w x p.
        slope = np.zeros((len(self.frames), 3, 6))
        slope[:, :, :3] = np.eye(3) / self.deviation
        slope[:, :, 3:] = -se3.hat(place)
        np.add.at(hessians, self.frames, np.einsum('mki,mkj->mij', slope, slope))
        np.add.at(gradients, self.frames, np.einsum('mki,mk->mi', slope, place))
