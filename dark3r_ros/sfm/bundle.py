# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment with known intrinsics: Levenberg-Marquardt on the Schur complement of the poses.

Residuals are differences of normalised image coordinates times the focal length, hence in pixels. Poses are
perturbed from the left, camera_from_world <- exp(twist) camera_from_world. Blocks are sparse, all arithmetic is
float64, and the order of every sum is fixed, so that the same problem gives the same result. Beyond 200 free poses the
reduced system is sparse as well.
Source: Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.priors import DistancePrior, PlacePrior

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Solver = Callable[[Array, Array], tuple[Array, Array]]


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
class BundleResult:
    """Refined poses (F, 4, 4), points (P, 3), weighted residual lengths (K,) in pixels, and how the solver went.

    `residuals` is infinite where a point ended behind its camera. `pose_covariance` (F, 6, 6) belongs to left
    twists (translation, rotation), zero for fixed poses, scaled by the residual variance; None unless asked for.
    """

    cameras_from_world: Array
    points: Array
    residuals: Array
    cost_before: float
    cost_after: float
    iterations: int
    pose_covariance: Array | None = None


@dataclass(frozen=True, eq=False)
class Linearised:
    """Normal equations of a bundle adjustment: F poses by their left twists, P points, K observations."""

    hessian_poses: Array  # (F, 6, 6)
    hessian_points: Array  # (P, 3, 3)
    coupling: Array  # (K, 6, 3)
    gradient_poses: Array  # (F, 6)
    gradient_points: Array  # (P, 3)


_MIN_DEPTH = 1e-6
# Beyond this many free poses the reduced system is made and factored sparse, unless more of it than a share is filled.
_DENSE_POSES = 200
_DENSE_SHARE = 0.3
# Share of the pairs of pose and point from which dense products are faster than sparse ones, and how much of them is
# made at a time.
_FILLED_COUPLING = 0.15
_DENSE_VALUES = 500_000


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


def _cost(problem: BundleProblem) -> tuple[float, Array]:
    residual, front = _residuals(problem, local_points(problem))
    length = np.hypot(residual[:, 0], residual[:, 1])
    cost = float(robust_costs(length, front, problem.robust_width).sum())
    if problem.prior is not None:
        cost += float(problem.prior.costs(problem.points).sum())
    if problem.places is not None:
        cost += problem.places.cost(problem.cameras_from_world)
    return cost, np.where(front, length, np.inf)


def sum_by(index: Index, values: Array, count: int) -> Array:
    """Sum rows of `values` (K, ...) that share an index; the sparse product keeps a fixed order and is fast."""
    flat = values.reshape(len(values), -1)
    selector = sparse.csr_matrix((np.ones(len(index)), (index, np.arange(len(index)))), shape=(count, len(index)))
    return np.asarray(selector @ flat).reshape(count, *values.shape[1:])


@dataclass(frozen=True, eq=False)
class Jacobians:
    """Derivatives of the weighted residuals (K, 2): by pose (K, 2, 6), by point (K, 2, 3), by the focal's logarithm."""

    residual: Array
    by_pose: Array
    by_point: Array
    by_focal: Array  # (K, 2)


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
    found = jacobians(problem)
    frames, points = len(problem.cameras_from_world), len(problem.points)
    pose_t, point_t = found.by_pose.transpose(0, 2, 1), found.by_point.transpose(0, 2, 1)
    weighted = found.residual[:, :, None]
    system = Linearised(
        sum_by(problem.frame_index, pose_t @ found.by_pose, frames),
        sum_by(problem.point_index, point_t @ found.by_point, points),
        pose_t @ found.by_point,
        sum_by(problem.frame_index, (pose_t @ weighted)[:, :, 0], frames),
        sum_by(problem.point_index, (point_t @ weighted)[:, :, 0], points),
    )
    if problem.prior is not None:
        problem.prior.add_to(system.hessian_points, system.gradient_points, problem.points)
    if problem.places is not None:
        problem.places.add_to(system.hessian_poses, system.gradient_poses, problem.cameras_from_world)
    return system


def _block_diagonal_damped(blocks: Array, damping: float) -> Array:
    result = blocks.copy()
    diagonal = np.arange(blocks.shape[1])
    own = blocks[:, diagonal, diagonal]
    result[:, diagonal, diagonal] += damping * np.maximum(own, 1e-6)
    return result


class Schur:
    """Reduced system over the free poses for one linearisation; damping may vary."""

    def __init__(self, problem: BundleProblem, system: Linearised) -> None:
        self._problem, self._system = problem, system
        self._free = np.flatnonzero(problem.pose_free)
        frames, points = len(problem.cameras_from_world), len(problem.points)
        order = np.lexsort((problem.point_index, problem.frame_index))
        counts = np.bincount(problem.frame_index, minlength=frames)
        self._order = order
        self._indptr = np.concatenate([[0], np.cumsum(counts)])
        self._columns = problem.point_index[order]
        self._coupling = self._bsr(system.coupling[order], (6 * frames, 3 * points))
        self._coupling_t = self._coupling.T.tocsr()

    def _bsr(self, blocks: Array, shape: tuple[int, int]) -> sparse.bsr_matrix:
        return sparse.bsr_matrix((blocks, self._columns, self._indptr), shape=shape)

    def reduced(self, damping: float) -> tuple[Array, Array, sparse.bsr_matrix]:
        """Reduced matrix (6f, 6f), the inverted point blocks V (P, 3, 3), and W V^-1 for the coupling blocks W."""
        system = self._system
        damped = _block_diagonal_damped(system.hessian_points, damping)
        inverse_points = np.linalg.inv(damped).astype(np.float64, copy=False)
        scaled = self._bsr(system.coupling[self._order] @ inverse_points[self._columns], self._coupling.shape)
        if len(self._free) and len(self._columns) > _FILLED_COUPLING * len(self._free) * len(inverse_points):
            matrix = -self._eliminated(scaled)
        else:
            rows = self._rows()
            matrix = -(scaled.tocsr()[rows] @ self._coupling_t[:, rows]).toarray()
        blocks = _block_diagonal_damped(system.hessian_poses[self._free], damping)
        for number, block in enumerate(blocks):
            place = slice(6 * number, 6 * number + 6)
            matrix[place, place] += block
        return matrix, inverse_points, scaled

    def _eliminated(self, scaled: sparse.bsr_matrix) -> Array:
        """(W V^-1) W^T (6f, 6f) with dense blocks of points: the way for points that many views see."""
        place = np.full(len(self._problem.cameras_from_world), -1)
        place[self._free] = np.arange(len(self._free))
        pose, point = np.repeat(place, np.diff(self._indptr)), self._columns
        order = np.argsort(point, kind='stable')
        order = order[pose[order] >= 0]
        ordered = point[order]
        points, size = len(self._problem.points), 6 * len(self._free)
        chunk = max(1, _DENSE_VALUES // (3 * size))
        total = np.zeros((size, size))
        for begin in range(0, points, chunk):
            rows = order[slice(*np.searchsorted(ordered, (begin, begin + chunk)))]
            sides = np.zeros((2, len(self._free), 6, min(chunk, points - begin), 3))
            for side, blocks in zip(sides, (scaled.data, self._coupling.data), strict=True):
                side[pose[rows], :, point[rows] - begin] = blocks[rows]
            left, right = sides.reshape(2, size, -1)
            total += left @ right.T
        return total

    def _reduced_sparse(self, damping: float) -> tuple[sparse.csc_matrix, Array, sparse.bsr_matrix]:
        """The same over all poses (6F, 6F), one where they are fixed: few of many views share points."""
        system = self._system
        damped = _block_diagonal_damped(system.hessian_points, damping)
        inverse_points = np.linalg.inv(damped).astype(np.float64, copy=False)
        scaled = self._bsr(system.coupling[self._order] @ inverse_points[self._columns], self._coupling.shape)
        blocks = _block_diagonal_damped(system.hessian_poses, damping)
        blocks[~self._problem.pose_free] = np.eye(6)
        frames = len(blocks)
        own = sparse.bsr_matrix((blocks, np.arange(frames), np.arange(frames + 1)), shape=(6 * frames, 6 * frames))
        return (own - scaled @ self._coupling.T.tobsr((3, 6))).tocsc(), inverse_points, scaled

    def _rows(self) -> Index:
        return np.asarray((6 * self._free[:, None] + np.arange(6)).ravel(), dtype=np.int64)

    def step(self, damping: float) -> tuple[Array, Array] | None:
        """Twists (F, 6) and point moves (P, 3), or None where the system is not positive definite."""
        return self.solve(damping, -self._system.gradient_poses, -self._system.gradient_points)

    def solve(self, damping: float, poses: Array, points: Array) -> tuple[Array, Array] | None:
        """Solution (F, 6), (P, 3) of the damped normal equations for right sides (F, 6) and (P, 3)."""
        solver = self.solver(damping)
        return None if solver is None else solver(poses, points)

    def solver(self, damping: float) -> Solver | None:
        """`solve` for any number of right sides with one factorisation; None where it is not positive definite."""
        if len(self._free) > _DENSE_POSES:
            return self._solver_sparse(damping)
        matrix, inverse_points, scaled = self.reduced(damping)
        try:
            factor = linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return None

        def solved(poses: Array, points: Array) -> tuple[Array, Array]:
            found = np.zeros((len(self._problem.cameras_from_world), 6))
            if len(self._free):
                right = (poses.ravel() - scaled @ points.ravel())[self._rows()]
                found[self._free] = linalg.cho_solve(factor, right, check_finite=False).reshape(-1, 6)
            return found, self._point_moves(found, inverse_points, points)

        return solved

    def _solver_sparse(self, damping: float) -> Solver | None:
        matrix, inverse_points, scaled = self._reduced_sparse(damping)
        solve = _factored(matrix)
        if solve is None:
            return None

        def solved(poses: Array, points: Array) -> tuple[Array, Array]:
            right = (poses.ravel() - scaled @ points.ravel()).reshape(-1, 6)
            right[~self._problem.pose_free] = 0.0
            found = solve(right.ravel()).reshape(-1, 6)
            return found, self._point_moves(found, inverse_points, points)

        return solved

    def _point_moves(self, twists: Array, inverse_points: Array, points: Array) -> Array:
        """Moves (P, 3) of the points that go with twists (F, 6) of the poses, for their right side (P, 3)."""
        rest = points.ravel() - self._coupling_t @ twists.ravel()
        return np.einsum('pij,pj->pi', inverse_points, rest.reshape(-1, 3))

    def covariance(self) -> Array:
        """Inverse of the undamped reduced matrix as (F, 6, 6) blocks, zero for fixed poses."""
        matrix = self.reduced(1e-9)[0]
        result = np.zeros((len(self._problem.cameras_from_world), 6, 6))
        inverted = linalg.pinvh(matrix)
        for number, frame in enumerate(self._free):
            place = slice(6 * number, 6 * number + 6)
            result[frame] = inverted[place, place]
        return result


def _factored(matrix: sparse.csc_matrix) -> Callable[[Array], Array] | None:
    """Solver of a symmetric sparse system; None where it is not positive definite."""
    if matrix.nnz > _DENSE_SHARE * matrix.shape[0] ** 2:
        try:
            factor = linalg.cho_factor(matrix.toarray(), lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return None
        return lambda right: linalg.cho_solve(factor, right, check_finite=False)
    try:
        # Without pivoting off the diagonal the pivots of L U are those of L D L^T.
        lower_upper = sparse_linalg.splu(
            matrix, permc_spec='MMD_AT_PLUS_A', diag_pivot_thresh=0.0, options={'SymmetricMode': True}
        )
    except RuntimeError:
        return None
    return lower_upper.solve if (lower_upper.U.diagonal() > 0).all() else None


def moved(problem: BundleProblem, twists: Array, moves: Array) -> BundleProblem:
    """The problem after a step: left twists (F, 6) of the free poses and moves (P, 3) of the points."""
    poses = problem.cameras_from_world.copy()
    free = problem.pose_free
    poses[free] = se3.exp(twists[free]) @ poses[free]
    return replace(problem, cameras_from_world=poses, points=problem.points + moves)


def adjust(
    problem: BundleProblem, max_iterations: int = 15, tolerance: float = 1e-4, with_covariance: bool = False
) -> BundleResult:
    """Minimise the robust reprojection error over the free poses and all points.

    Stops after `max_iterations` accepted or refused steps, or when a step lowers the cost by less than the share
    `tolerance`. The input is not changed.
    """
    cost, residuals = _cost(problem)
    before, damping, iterations = cost, 1e-4, 0
    schur: Schur | None = None
    while iterations < max_iterations:
        iterations += 1
        schur = schur or Schur(problem, linearise(problem))
        step = schur.step(damping)
        if step is not None:
            trial = moved(problem, *step)
            trial_cost, trial_residuals = _cost(trial)
        if step is None or not trial_cost < cost:
            damping *= 8.0
            if damping > 1e8:
                break
            continue
        gained = (cost - trial_cost) / max(cost, 1e-12)
        problem, cost, residuals = trial, trial_cost, trial_residuals
        damping = max(damping / 4.0, 1e-9)
        if gained < tolerance:
            break
        schur = None
    covariance = None
    if with_covariance:
        covariance = _scaled_covariance(problem, residuals)
    poses = np.stack([se3.normalised(pose) for pose in problem.cameras_from_world])
    return BundleResult(poses, problem.points, residuals, before, cost, iterations, covariance)


def _scaled_covariance(problem: BundleProblem, residuals: Array) -> Array:
    finite = np.minimum(residuals[np.isfinite(residuals)], 3.0 * problem.robust_width)
    free = 2 * len(finite) - 3 * len(problem.points) - 6 * int(problem.pose_free.sum())
    variance = float((finite**2).sum()) / max(free, 1)
    return variance * Schur(problem, linearise(problem)).covariance()


def focal_step(problem: BundleProblem, damping: float = 1e-6) -> tuple[float, float] | None:
    """How a common focal length would move if it were free: Gauss-Newton step of its logarithm, and its deviation.

    Poses and points follow; the residual variance scales the deviation. None where nothing determines it.
    """
    found = jacobians(problem)
    frames, points = len(problem.cameras_from_world), len(problem.points)
    focal = found.by_focal[:, :, None]
    poses = sum_by(problem.frame_index, (found.by_pose.transpose(0, 2, 1) @ focal)[:, :, 0], frames)
    places = sum_by(problem.point_index, (found.by_point.transpose(0, 2, 1) @ focal)[:, :, 0], points)
    solved = Schur(problem, linearise(problem)).solve(damping, poses, places)
    if solved is None:
        return None
    # What of the derivative by the focal length the other unknowns cannot imitate.
    imitated = np.einsum('kri,ki->kr', found.by_pose, solved[0][problem.frame_index])
    imitated += np.einsum('kri,ki->kr', found.by_point, solved[1][problem.point_index])
    own = found.by_focal - imitated
    curvature = float((own**2).sum())
    freedom = found.residual.size - 3 * points - 6 * int(problem.pose_free.sum())
    if curvature <= 0 or freedom <= 0:
        return None
    variance = float((found.residual**2).sum()) / freedom
    return -float((own * found.residual).sum()) / curvature, float(np.sqrt(variance / curvature))
