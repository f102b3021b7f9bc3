# SPDX-License-Identifier: Apache-2.0
"""Pose of one calibrated view from known 3-D points, with covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.two_view import reprojection_errors

Array = NDArray[np.float64]

_ASTRAY = 0.5  # deviation of a place that nothing tells of, as a share of the depth of the scene
# Points that extend by less than this, and by more than its inverse, are left in their own unit.
_ORDINARY = 1e4


@dataclass(frozen=True, eq=False)
class Resection:
    """Pose of a view: camera_from_world (4, 4), inliers (N,) bool, covariance (6, 6) of the left twist."""

    camera_from_world: Array
    inliers: NDArray[np.bool_]
    covariance: Array


@dataclass(frozen=True, eq=False)
class Similarity:
    """A world of its own for points: its origin (3,) and its unit in the world that they come from."""

    origin: Array
    unit: float

    def points(self, points: Array) -> Array:
        """Points (N, 3) of the old world in the new one."""
        return (points - self.origin) / self.unit

    def into(self, camera_from_world: Array) -> Array:
        """Pose (4, 4) in the new world."""
        moved = camera_from_world[:3, :3] @ self.origin + camera_from_world[:3, 3]
        return se3.make(camera_from_world[:3, :3], moved / self.unit)

    def back(self, found: Resection) -> Resection:
        """What was found in the new world, in the old one."""
        rotation, factor = found.camera_from_world[:3, :3], np.array([self.unit] * 3 + [1.0] * 3)
        shift = self.unit * found.camera_from_world[:3, 3] - rotation @ self.origin
        covariance = found.covariance * factor[:, None] * factor
        return Resection(se3.make(rotation, shift), found.inliers, covariance)


def resect(
    points: Array,
    observed: Array,
    focal: float,
    threshold_px: float,
    *,
    guess: Array | None = None,
    min_inliers: int = 12,
    max_iterations: int = 1000,
    provisional: NDArray[np.bool_] | None = None,
) -> Resection | None:
    """Pose from points (N, 3) and normalised observations (N, 2), or None without enough support.

    A `guess` (camera_from_world) that already explains half of the points is refined at once; otherwise PoseLib's
    LO-RANSAC P3P (fixed seed) finds the start. Inliers reproject within `threshold_px` pixels of focal length `focal`.
    Points whose distance was guessed, `provisional` (N,), hold the rotation; the covariance says that they do not tell
    how far the camera moved.
    """
    if len(points) < max(min_inliers, 4):
        return None
    middle = np.median(points, axis=0)
    extent = float(np.median(np.abs(points - middle).max(axis=1)))
    if extent > 0 and not 1.0 / _ORDINARY < extent < _ORDINARY:
        # Solvers have absolute bounds, and a drift of scale takes the unit of a long path by many powers of ten.
        ordinary = Similarity(middle, extent)
        own = None if guess is None else ordinary.into(guess)
        found = resect(
            ordinary.points(points),
            observed,
            focal,
            threshold_px,
            guess=own,
            min_inliers=min_inliers,
            max_iterations=max_iterations,
            provisional=provisional,
        )
        return None if found is None else ordinary.back(found)
    threshold = threshold_px / focal
    pose = None
    if guess is not None:
        good = reprojection_errors(guess, points, observed) < 2.0 * threshold
        if good.sum() >= max(min_inliers, 0.5 * len(points)):
            pose = guess
    if pose is None:
        pose = _ransac(points, observed, threshold, max_iterations)
        if pose is None:
            return None
    refined_from = None
    for _ in range(3):
        inliers = reprojection_errors(pose, points, observed) < threshold
        if inliers.sum() < min_inliers:
            return None
        if refined_from is not None and np.array_equal(inliers, refined_from):
            break
        refined_from = inliers
        guessed = None if provisional is None else provisional[inliers]
        pose, covariance = refine_pose(pose, points[inliers], observed[inliers], focal, provisional=guessed)
    inliers = reprojection_errors(pose, points, observed) < threshold
    if inliers.sum() < min_inliers:
        return None
    return Resection(pose, inliers, covariance)


def _ransac(points: Array, observed: Array, threshold: float, max_iterations: int) -> Array | None:
    import poselib

    scale = 1.0 / threshold
    camera = {'model': 'SIMPLE_PINHOLE', 'width': 2, 'height': 2, 'params': [scale, 0.0, 0.0]}
    options = {'max_reproj_error': 1.0, 'max_iterations': max_iterations, 'min_iterations': 30, 'seed': 0}
    pose, info = poselib.estimate_absolute_pose(observed * scale, points, camera, options, {})
    if not info['num_inliers'] or not np.isfinite(pose.t).all():
        return None
    return se3.make(pose.R, pose.t)


def refine_pose(
    pose: Array,
    points: Array,
    observed: Array,
    focal: float,
    robust_width: float = 1.0,
    iterations: int = 8,
    provisional: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array]:
    """Minimise the Huber reprojection error in pixels over one pose (4, 4) with the points (N, 3) held fixed.

    Returns the pose and the covariance (6, 6) of its left twist, scaled by the residual variance; `provisional` as of
    `resect`.
    """
    damping = 1e-6
    cost, residual, jacobian = pose_system(pose, points, observed, focal, robust_width)
    for _ in range(iterations):
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        step = -np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), gradient)
        trial = se3.exp(step) @ pose
        system = pose_system(trial, points, observed, focal, robust_width)
        if not system[0] < cost:
            damping *= 10.0
            if damping > 1e4:
                break
            continue
        gained = (cost - system[0]) / max(cost, 1e-12)
        pose, damping = trial, max(damping / 10.0, 1e-9)
        cost, residual, jacobian = system
        if gained < 1e-5:
            break
    bearings = provisional is not None and bool(provisional.any())
    if bearings:
        jacobian.reshape(-1, 2, 6)[provisional, :, :3] = 0.0
    normal = jacobian.T @ jacobian
    freedom = max(2 * len(points) - 6, 1)
    variance = float(residual @ residual) / freedom
    if bearings:
        # Without any other point the camera is somewhere between where it was and what it sees.
        depth = float(np.median(points @ pose[2, :3] + pose[2, 3]))
        normal[range(3), range(3)] += variance / (_ASTRAY * depth) ** 2
    return se3.normalised(pose), np.asarray(variance * np.linalg.pinv(normal, hermitian=True), dtype=np.float64)


def pose_system(pose: Array, points: Array, observed: Array, focal: float, width: float) -> tuple[float, Array, Array]:
    """Huber cost, residuals (2N,) in pixels and derivatives (2N, 6) by the left twist, times roots of their weights."""
    local = points @ pose[:3, :3].T + pose[:3, 3]
    front = local[:, 2] > 1e-6
    inverse = np.where(front, 1.0 / np.where(front, local[:, 2], 1.0), 0.0)
    u, v = local[:, 0] * inverse, local[:, 1] * inverse
    residual = focal * (np.stack([u, v], axis=1) - observed) * front[:, None]
    length = np.where(front, np.hypot(residual[:, 0], residual[:, 1]), 20.0 * width)
    root = np.sqrt(np.where(front, np.minimum(1.0, width / np.maximum(length, 1e-12)), 0.0))
    cost = float(np.where(length <= width, 0.5 * length**2, width * (length - 0.5 * width)).sum())
    # The rows of the projection are (1, 0, -u) and (0, 1, -v) over the depth; a turn moves a point by its cross
    # product with them.
    jacobian = np.zeros((len(points), 2, 6))
    jacobian[:, 0, 0] = jacobian[:, 1, 1] = inverse
    jacobian[:, 0, 2], jacobian[:, 1, 2] = -u * inverse, -v * inverse
    jacobian[:, 0, 3], jacobian[:, 0, 4], jacobian[:, 0, 5] = -u * v, 1.0 + u * u, -v
    jacobian[:, 1, 3], jacobian[:, 1, 4], jacobian[:, 1, 5] = -1.0 - v * v, u * v, u
    jacobian *= (focal * root)[:, None, None]
    return cost, (residual * root[:, None]).ravel(), jacobian.reshape(-1, 6)
