# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment with known intrinsics: Levenberg-Marquardt on the Schur complement of the poses.

All arithmetic is float64, and the order of every sum is fixed, so that the same problem gives the same result.
Source: Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, sections 4 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.equations import BundleProblem, cost_of, jacobians, linearise, sum_by
from dark3r_ros.sfm.schur import Schur

Array = NDArray[np.float64]


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
    cost, residuals = cost_of(problem)
    before, damping, iterations = cost, 1e-4, 0
    schur: Schur | None = None
    while iterations < max_iterations:
        iterations += 1
        schur = schur or Schur(problem, linearise(problem))
        step = schur.step(damping)
        if step is not None:
            trial = moved(problem, *step)
            trial_cost, trial_residuals = cost_of(trial)
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
        covariance = scaled_covariance(problem, residuals)
    poses = se3.normalised(problem.cameras_from_world)
    return BundleResult(poses, problem.points, residuals, before, cost, iterations, covariance)


def scaled_covariance(problem: BundleProblem, residuals: Array) -> Array:
    """Covariances (F, 6, 6) of left twists where a problem ended, by the variance of its residuals (K,)."""
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
