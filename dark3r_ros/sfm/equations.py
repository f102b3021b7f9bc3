# SPDX-License-Identifier: Apache-2.0
"""Normal equations of a bundle adjustment: residuals, derivatives, and sums of their products.

Residuals are differences of normalised image coordinates times the focal length, hence in pixels. Poses are
perturbed from the left, camera_from_world <- exp(twist) camera_from_world. The order of every sum is fixed, so that the
same problem gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dark3r_ros.sfm.priors import DistancePrior, PlacePrior

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MIN_DEPTH = 1e-6
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # entries that determine a symmetric 3x3 matrix
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
    prior, places: what is expected of the distance of some points and of the places of some cameras; None for nothing.

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
    prior: DistancePrior | None = None
    places: PlacePrior | None = None


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
    cost = float(robust_costs(length, front, problem.robust_width).sum())
    if problem.prior is not None:
        cost += float(problem.prior.costs(problem.points).sum())
    if problem.places is not None:
        cost += problem.places.cost(problem.cameras_from_world)
    return cost, np.where(front, length, np.inf)


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
    x, y = local[:, 0], local[:, 1]
    z = np.where(front, local[:, 2], 1.0)
    u, v = x / z, y / z
    scale = problem.focal * root if problem.weights is None else problem.focal * root * problem.weights
    steepness = np.where(front, scale / z, 0.0)
    # The rows of the projection are (1, 0, -u) and (0, 1, -v) times the steepness; a turn moves a point by its cross
    # product with them.
    by_pose = np.empty((len(local), 2, 6))
    columns = ((1.0, 0.0, -u, -u * y, z + u * x, -y), (0.0, 1.0, -v, -z - v * y, v * x, x))
    moves = steepness * problem.pose_free[problem.frame_index]
    for row, values in enumerate(columns):
        for column, value in enumerate(values):
            by_pose[:, row, column] = moves * value
    rotation = problem.cameras_from_world[:, :3, :3][problem.frame_index]
    by_point = rotation[:, :2] - np.stack([u, v], axis=1)[:, :, None] * rotation[:, 2:]
    by_point *= steepness[:, None, None]
    return Jacobians(residual * root[:, None], by_pose, by_point, steepness[:, None] * local[:, :2])


def linearise(problem: BundleProblem) -> Linearised:
    """Normal equations of a problem where it stands."""
    system = _in_parts(problem)
    if problem.prior is not None:
        problem.prior.add_to(system.hessian_points, system.gradient_points, problem.points)
    if problem.places is not None:
        problem.places.add_to(system.hessian_poses, system.gradient_poses, problem.cameras_from_world)
    return system


def _in_parts(problem: BundleProblem) -> Linearised:
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
    by_pose, by_point = found.by_pose, found.by_point
    hessian_poses, gradient_poses = _sums_by_frame(problem.frame_index, by_pose, found.residual, frames)
    hessian_points, gradient_points = sums_by_point(problem.point_index, by_point, found.residual, points)
    coupling = by_pose[:, 0, :, None] * by_point[:, 0, None] + by_pose[:, 1, :, None] * by_point[:, 1, None]
    return Linearised(hessian_poses, hessian_points, coupling, gradient_poses, gradient_points)


def sums_by_point(point_index: Index, by_point: Array, residual: Array, points: int) -> tuple[Array, Array]:
    """Sums of the products of derivatives (K, 2, 3) with themselves, (P, 3, 3), and with residuals (K, 2), (P, 3)."""
    # Written out over the two rows of an observation: products of many small matrices are several times slower.
    products = [by_point[:, 0, i] * by_point[:, 0, j] + by_point[:, 1, i] * by_point[:, 1, j] for i, j in _UPPER]
    gradient = by_point[:, 0] * residual[:, :1] + by_point[:, 1] * residual[:, 1:]
    sums = sum_by(point_index, np.column_stack([*products, gradient]), points)
    hessian = np.empty((points, 3, 3))
    for number, (i, j) in enumerate(_UPPER):
        hessian[:, i, j] = hessian[:, j, i] = sums[:, number]
    return hessian, sums[:, 6:].copy()


def _sums_by_frame(frame_index: Index, by_pose: Array, residual: Array, frames: int) -> tuple[Array, Array]:
    """Sums of the products of derivatives (K, 2, 6) with themselves, (F, 6, 6), and with residuals (K, 2), (F, 6)."""
    if (np.diff(frame_index) < 0).any():
        order = np.argsort(frame_index, kind='stable')
        frame_index, by_pose, residual = frame_index[order], by_pose[order], residual[order]
    hessian, gradient = np.zeros((frames, 6, 6)), np.zeros((frames, 6))
    ends = np.searchsorted(frame_index, np.arange(frames + 1))
    for frame, (begin, end) in enumerate(pairwise(ends.tolist())):
        own = by_pose[begin:end].reshape(-1, 6)
        hessian[frame], gradient[frame] = own.T @ own, residual[begin:end].ravel() @ own
    return hessian, gradient
