# SPDX-License-Identifier: Apache-2.0
"""Geometric verification of matches between two calibrated views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.two_view import parallax_angles, reprojection_errors, triangulate

Array = NDArray[np.float64]

_UNIT_CAMERA = {'model': 'SIMPLE_PINHOLE', 'width': 2, 'height': 2, 'params': [1.0, 0.0, 0.0]}


@dataclass(frozen=True, eq=False)
class TwoViewGeometry:
    """Relative pose of two calibrated views.

    Attributes
    ----------
    second_from_first: (4, 4), translation of unit length.
    inliers: (N,) bool over the matches given.
    points: (N, 3) triangulated in the first camera; meaningful where `inliers`.
    median_parallax: median triangulation angle of the inliers in radians; near zero for a pure rotation.

    """

    second_from_first: Array
    inliers: NDArray[np.bool_]
    points: Array
    median_parallax: float


def estimate_two_view(
    first: Array, second: Array, threshold: float, min_inliers: int = 15, max_iterations: int = 2000
) -> TwoViewGeometry | None:
    """Estimate the relative pose from matches (N, 2) in normalised coordinates, or None without support.

    `threshold` is the largest epipolar error of an inlier in the same units. Robust five-point estimation by
    PoseLib (LO-RANSAC, fixed seed, so that the same input gives the same pose), then every inlier must lie in front
    of both cameras.
    """
    import poselib

    if len(first) < max(min_inliers, 5):
        return None
    # PoseLib scores in pixels of the camera given; a unit focal length makes pixels and normalised units the same,
    # but its refinement works better at a natural scale, hence the factor.
    scale = 1.0 / threshold
    camera = {**_UNIT_CAMERA, 'params': [scale, 0.0, 0.0]}
    options = {'max_epipolar_error': 1.0, 'max_iterations': max_iterations, 'min_iterations': 50, 'seed': 0}
    pose, info = poselib.estimate_relative_pose(first * scale, second * scale, camera, camera, options, {})
    inliers = np.array(info['inliers'], dtype=bool)
    if inliers.sum() < min_inliers:
        return None
    second_from_first = se3.make(pose.R, pose.t)
    length = float(np.linalg.norm(pose.t))
    if not np.isfinite(length) or length < 1e-9:
        return None
    second_from_first[:3, 3] /= length
    poses = np.stack([np.eye(4), second_from_first])
    points = triangulate(poses, np.stack([first, second], axis=1))
    front = np.isfinite(reprojection_errors(poses[0], points, first))
    front &= np.isfinite(reprojection_errors(poses[1], points, second))
    inliers &= front
    if inliers.sum() < min_inliers:
        return None
    centre = se3.inverse(second_from_first)[:3, 3]
    angles = parallax_angles(np.zeros(3), centre, points[inliers])
    return TwoViewGeometry(second_from_first, inliers, points, float(np.median(angles)))
