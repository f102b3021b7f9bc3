# SPDX-License-Identifier: Apache-2.0
"""Landmarks go where keyframes that stay see them: every point on its own, by damped Gauss-Newton.

That is what remains of a bundle adjustment without free poses, at a fifth of its cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.equations import robust_costs, sums_by_point
from dark3r_ros.sfm.priors import DistancePrior

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_DAMPING = 1e-4
_MIN_DEPTH = 1e-6


@dataclass(frozen=True, eq=False)
class Sightings:
    """Views of P points by F keyframes that stay.

    Attributes
    ----------
    cameras_from_world: (F, 4, 4). frame_index, point_index: (K,) which keyframe sees which point.
    observations: (K, 2) undistorted normalised coordinates. focal: pixels per normalised unit.
    robust_width: residual in pixels from which the Huber loss grows only linearly.
    prior: what is expected of the distance of some points.

    """

    cameras_from_world: Array
    frame_index: Index
    point_index: Index
    observations: Array
    focal: float
    robust_width: float
    prior: DistancePrior | None = None


def settled(points: Array, seen: Sightings, iterations: int) -> Array:
    """Points (P, 3) of least robust reprojection error near their start (P, 3); a step that costs is not taken."""
    points = points.copy()
    if len(seen.point_index) == 0:
        return points
    local = _local(points, seen)
    cost = _costs(points, local, seen)
    for _ in range(iterations):
        trial = points + _steps(points, local, seen)
        trial_local = _local(trial, seen)
        trial_cost = _costs(trial, trial_local, seen)
        better = trial_cost < cost
        points[better], cost[better] = trial[better], trial_cost[better]
        own = better[seen.point_index]
        local[own] = trial_local[own]
    return points


def _local(points: Array, seen: Sightings) -> Array:
    poses = seen.cameras_from_world[seen.frame_index]
    return np.asarray(np.einsum('kij,kj->ki', poses[:, :3, :3], points[seen.point_index]) + poses[:, :3, 3])


def _residuals(local: Array, seen: Sightings) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Residuals (K, 2) and their lengths (K,) in pixels, and which points lie before their camera."""
    front = local[:, 2] > _MIN_DEPTH
    residual = seen.focal * (local[:, :2] / np.where(front, local[:, 2], 1.0)[:, None] - seen.observations)
    return residual, np.hypot(residual[:, 0], residual[:, 1]), front


def _costs(points: Array, local: Array, seen: Sightings) -> Array:
    """Cost (P,) of every point: Huber's, and that of an unexpected distance."""
    _, length, front = _residuals(local, seen)
    cost = np.bincount(seen.point_index, robust_costs(length, front, seen.robust_width), minlength=len(points))
    return np.asarray(cost if seen.prior is None else cost + seen.prior.costs(points), dtype=np.float64)


def _steps(points: Array, local: Array, seen: Sightings) -> Array:
    """Moves (P, 3) of the damped normal equations."""
    residual, length, front = _residuals(local, seen)
    width = seen.robust_width
    root = np.sqrt(np.where(length > width, width / np.maximum(length, 1e-12), 1.0) * front)
    residual = residual * root[:, None]
    inverse = np.where(front, 1.0 / np.where(front, local[:, 2], 1.0), 0.0)
    rotation = seen.cameras_from_world[:, :3, :3][seen.frame_index]
    across = rotation[:, :2] - (local[:, :2] * inverse[:, None])[:, :, None] * rotation[:, 2:]
    jacobian = (seen.focal * root * inverse)[:, None, None] * across  # (K, 2, 3)
    normal, slope = sums_by_point(seen.point_index, jacobian, residual, len(points))
    if seen.prior is not None:
        seen.prior.add_to(normal, slope, points)
    for i in range(3):
        normal[:, i, i] += _DAMPING * np.maximum(normal[:, i, i], 1e-6)
    return np.asarray(np.linalg.solve(normal, -slope[:, :, None])[:, :, 0])
