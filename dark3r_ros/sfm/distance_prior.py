# SPDX-License-Identifier: Apache-2.0
"""What is expected of the distance of points that no parallax tells anything about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_NEAREST = 1e-9


@dataclass(frozen=True, eq=False)
class DistancePrior:
    """Expected distances of M points from places in the world, as residuals of an adjustment beside those in pixels.

    The logarithm of a distance is off by so many deviations, each of which costs as much as an error of one pixel. The
    places stay where they are while poses move.

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
