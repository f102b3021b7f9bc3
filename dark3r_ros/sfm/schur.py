# SPDX-License-Identifier: Apache-2.0
"""The reduced system of a bundle adjustment: the Schur complement of the points over the free poses.

Blocks are sparse and the order of every sum is fixed. Beyond 200 free poses the reduced system is sparse as well.
Source: Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

from dark3r_ros.sfm.equations import BundleProblem, Linearised, sum_by

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Solver = Callable[[Array, Array], tuple[Array, Array]]

# Least curvature that damping counts with, and its share of that along another axis. Where a drift of scale has made
# the unit of a stretch 10^10 times that of another, derivatives by its lengths are that much smaller and mean as much.
_LEAST_OWN, _LEAST_SHARE, _NOTHING = 1e-6, 1e-3, 1e-60
# Beyond this many free poses the reduced system is made and factored sparse, unless more of it than a share is filled.
_DENSE_POSES = 200
_DENSE_SHARE = 0.3
# Share of the pairs of pose and point from which dense products are faster than sparse ones, and how much of them is
# made at a time.
_FILLED_COUPLING = 0.15
_DENSE_VALUES = 500_000


def _block_diagonal_damped(blocks: Array, damping: float) -> Array:
    result = blocks.copy()
    diagonal = np.arange(blocks.shape[1])
    own = blocks[:, diagonal, diagonal]
    # Lengths and angles apart.
    largest = np.repeat(own.reshape(len(own), own.shape[1] // 3, 3).max(axis=2), 3, axis=1)
    result[:, diagonal, diagonal] += damping * np.maximum(own, np.clip(_LEAST_SHARE * largest, _NOTHING, _LEAST_OWN))
    return result


class Schur:
    """Reduced system over the free poses for one linearisation; damping may vary."""

    def __init__(self, problem: BundleProblem, system: Linearised) -> None:
        self._problem, self._system = problem, system
        self._free = np.flatnonzero(problem.pose_free)
        frames, points = len(problem.cameras_from_world), len(problem.points)
        # Poses that are fixed have nothing to do with any point.
        order = np.flatnonzero(problem.pose_free[problem.frame_index])
        order = order[np.lexsort((problem.point_index[order], problem.frame_index[order]))]
        counts = np.bincount(problem.frame_index[order], minlength=frames)
        self._indptr = np.concatenate([[0], np.cumsum(counts)])
        self._columns = problem.point_index[order]
        self._coupling = self._bsr(system.coupling[order], (6 * frames, 3 * points))

    @cached_property
    def _coupling_t(self) -> sparse.csr_matrix:
        return self._coupling.T.tocsr()

    def _bsr(self, blocks: Array, shape: tuple[int, int]) -> sparse.bsr_matrix:
        return sparse.bsr_matrix((blocks, self._columns, self._indptr), shape=shape)

    def reduced(self, damping: float) -> tuple[Array, Array, sparse.bsr_matrix]:
        """Reduced matrix (6f, 6f), the inverted point blocks V (P, 3, 3), and W V^-1 for the coupling blocks W."""
        system = self._system
        damped = _block_diagonal_damped(system.hessian_points, damping)
        inverse_points = np.linalg.inv(damped).astype(np.float64, copy=False)
        scaled = self._bsr(self._coupling.data @ inverse_points[self._columns], self._coupling.shape)
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
        scaled = self._bsr(self._coupling.data @ inverse_points[self._columns], self._coupling.shape)
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
        if len(self._free) > _DENSE_POSES:
            # As below, without a further copy of the coupling.
            moved = np.einsum('kij,ki->kj', self._system.coupling, twists[self._problem.frame_index])
            rest = points - sum_by(self._problem.point_index, moved, len(points))
        else:
            rest = (points.ravel() - self._coupling_t @ twists.ravel()).reshape(-1, 3)
        return np.einsum('pij,pj->pi', inverse_points, rest)

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
