# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a bundle adjustment: residuals, derivatives, and sums of their products.

Residuals are differences of normalised image coordinates times the focal length, hence in pixels. Poses are
perturbed from the left, camera_from_world <- exp(twist) camera_from_world. The order of every sum is fixed, so that the
same problem gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dark3r_ros.geometry import se3

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MIN_DEPTH = 1e-6
# Observations whose derivatives are made at a time.
_AT_ONCE = 500_000


@dataclass(frozen=True, eq=False)
class BundleProblem:
    """One bundle adjustment.

    Attributes
    ----------
    cameras_from_world: (F, 4, 4) poses, start values.
    pose_free: (F,) bool, which poses may move. Without two fixed poses the gauge is held by the damping alone.
    points: (P, 3) world points, start values; all may move.
    frame_index, point_index: (K,) which frame sees which point; a pair occurs once.
    observations: (K, 2) undistorted normalised coordinates.
    focal: pixels per normalised unit, so that residuals and `robust_width` are in pixels.
    robust_width: residual in pixels from which the Huber loss grows only linearly.
    weights: (K,) factors of the residuals, such as the inverse of their noise in pixels; None for one.

    """

    cameras_from_world: Array
    pose_free: NDArray[np.bool_]
    points: Array
    frame_index: Index
    point_index: Index
    observations: Array
    focal: float
    robust_width: float = 1.0
    weights: Array | None = None


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Derivatives of the weighted residuals (K, 2): by pose (K, 2, 6), by point (K, 2, 3), by the focal's logarithm."""

    residual: Array
    by_pose: Array
    by_point: Array
    by_focal: Array  # (K, 2)


@dataclass(frozen=True, eq=False)
class Linearised:
    """Normal equations of a bundle adjustment: F poses by their left twists, P points, K observations."""

    hessian_poses: Array  # (F, 6, 6)
    hessian_points: Array  # (P, 3, 3)
    coupling: Array  # (K, 6, 3)
    gradient_poses: Array  # (F, 6)
    gradient_points: Array  # (P, 3)


def local_points(problem: BundleProblem) -> Array:
    """The point (K, 3) of each observation in the frame of its camera."""
    poses = problem.cameras_from_world[problem.frame_index]
    points = problem.points[problem.point_index]
    return np.einsum('kij,kj->ki', poses[:, :3, :3], points) + poses[:, :3, 3]


def _residuals(problem: BundleProblem, local: Array) -> tuple[Array, NDArray[np.bool_]]:
    front = local[:, 2] > _MIN_DEPTH
    z = np.where(front, local[:, 2], 1.0)
    residual = problem.focal * (local[:, :2] / z[:, None] - problem.observations)
    if problem.weights is not None:
        residual *= problem.weights[:, None]
    return np.where(front[:, None], residual, 0.0), front


def robust_costs(length: Array, front: NDArray[np.bool_], width: float) -> Array:
    """Huber costs (K,); a point behind its camera costs as much as one 20 widths off: none gains by going there."""
    length = np.where(front, length, 20.0 * width)
    return np.where(length <= width, 0.5 * length**2, width * (length - 0.5 * width))


def cost_of(problem: BundleProblem) -> tuple[float, Array]:
    """Robust cost, and weighted lengths (K,) of the residuals in pixels, infinite for points behind their camera."""
    lengths, fronts = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    for _, part in _parts(problem):
        residual, front = _residuals(part, local_points(part))
        lengths.append(np.hypot(residual[:, 0], residual[:, 1]))
        fronts.append(front)
    length, front = np.concatenate(lengths), np.concatenate(fronts)
    return float(robust_costs(length, front, problem.robust_width).sum()), np.where(front, length, np.inf)


def _parts(problem: BundleProblem) -> Iterator[tuple[slice, BundleProblem]]:
    """The problem with some of its observations at a time, and which: what is made of one is far larger than it."""
    count = len(problem.frame_index)
    for begin in range(0, count, _AT_ONCE):
        rows = slice(begin, min(begin + _AT_ONCE, count))
        weights = None if problem.weights is None else problem.weights[rows]
        yield (
            rows,
            replace(
                problem,
                frame_index=problem.frame_index[rows],
                point_index=problem.point_index[rows],
                observations=problem.observations[rows],
                weights=weights,
            ),
        )


def sum_by(index: Index, values: Array, count: int) -> Array:
    """Sum rows of `values` (K, ...) that share an index; the sparse product keeps a fixed order and is fast."""
    flat = values.reshape(len(values), -1)
    selector = sparse.csr_matrix((np.ones(len(index)), (index, np.arange(len(index)))), shape=(count, len(index)))
    return np.asarray(selector @ flat).reshape(count, *values.shape[1:])


def jacobians(problem: BundleProblem) -> Jacobians:
    """Derivatives of a problem where it stands, each row by the root of its robust weight."""
    local = local_points(problem)
    residual, front = _residuals(problem, local)
    length = np.hypot(residual[:, 0], residual[:, 1])
    weight = np.where(length > problem.robust_width, problem.robust_width / np.maximum(length, 1e-12), 1.0)
    root = np.sqrt(weight * front)
    z_inverse = np.where(front, 1.0 / np.where(front, local[:, 2], 1.0), 0.0)
    projection = np.zeros((len(local), 2, 3))
    projection[:, 0, 0] = projection[:, 1, 1] = problem.focal * z_inverse
    projection[:, 0, 2] = -problem.focal * local[:, 0] * z_inverse**2
    projection[:, 1, 2] = -problem.focal * local[:, 1] * z_inverse**2
    scale = root if problem.weights is None else root * problem.weights
    projection *= scale[:, None, None]
    by_pose = np.concatenate([projection, -projection @ se3.hat(local)], axis=2)
    by_pose *= problem.pose_free[problem.frame_index][:, None, None]
    return Jacobians(
        residual * root[:, None],
        by_pose,
        projection @ problem.cameras_from_world[problem.frame_index][:, :3, :3],
        (problem.focal * scale * z_inverse)[:, None] * local[:, :2],
    )


def linearise(problem: BundleProblem) -> Linearised:
    """Normal equations of a problem where it stands."""
    if len(problem.frame_index) <= _AT_ONCE:
        return _linearised(problem)
    coupling = np.empty((len(problem.frame_index), 6, 3))
    sums: list[Array] = []
    for rows, part in _parts(problem):
        own = _linearised(part)
        coupling[rows] = own.coupling
        added = [own.hessian_poses, own.hessian_points, own.gradient_poses, own.gradient_points]
        sums = [total + one for total, one in zip(sums, added, strict=True)] if sums else added
    return Linearised(sums[0], sums[1], coupling, sums[2], sums[3])


def _linearised(problem: BundleProblem) -> Linearised:
    found = jacobians(problem)
    frames, points = len(problem.cameras_from_world), len(problem.points)
    pose_t, point_t = found.by_pose.transpose(0, 2, 1), found.by_point.transpose(0, 2, 1)
    weighted = found.residual[:, :, None]
    return Linearised(
        sum_by(problem.frame_index, pose_t @ found.by_pose, frames),
        sum_by(problem.point_index, point_t @ found.by_point, points),
        pose_t @ found.by_point,
        sum_by(problem.frame_index, (pose_t @ weighted)[:, :, 0], frames),
        sum_by(problem.point_index, (point_t @ weighted)[:, :, 0], points),
    )
