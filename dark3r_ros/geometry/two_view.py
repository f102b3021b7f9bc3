# SPDX-License-Identifier: Apache-2.0
"""Two-view and multi-view geometry on normalised image coordinates (x/z, y/z)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dark3r_ros.geometry import se3

Array = NDArray[np.float64]


def essential_matrix(second_from_first: ArrayLike) -> Array:
    """Essential matrix (3, 3) E with x2^T E x1 = 0, of the pose (4, 4) of the first camera in the second."""
    pose = np.asarray(second_from_first, dtype=np.float64)
    return se3.hat(pose[:3, 3]) @ pose[:3, :3]


def sampson_distance(second_from_first: ArrayLike, first: ArrayLike, second: ArrayLike) -> Array:
    """First-order distance (N,) of matches to the epipolar constraint, in normalised units.

    `first`, `second` are (N, 2). Multiply by the focal length for pixels.
    Source: Hartley and Zisserman, Multiple View Geometry, 2nd edition, equation 11.9.
    """
    x1 = np.column_stack([first, np.ones(len(np.asarray(first)))])
    x2 = np.column_stack([second, np.ones(len(np.asarray(second)))])
    essential = essential_matrix(second_from_first)
    line2, line1 = x1 @ essential.T, x2 @ essential
    residual = np.einsum('ij,ij->i', x2, line2)
    gradient = line2[:, 0] ** 2 + line2[:, 1] ** 2 + line1[:, 0] ** 2 + line1[:, 1] ** 2
    return np.abs(residual) / np.sqrt(np.maximum(gradient, 1e-24))


def triangulate(cameras_from_world: ArrayLike, observations: ArrayLike) -> Array:
    """Points (N, 3) in the world from V >= 2 views each, by the homogeneous linear method.

    `cameras_from_world` is (N, V, 4, 4) or (V, 4, 4) shared by all points, `observations` (N, V, 2). A point at
    infinity comes out with very large coordinates. Source: Hartley and Zisserman, section 12.2.
    """
    xy = np.asarray(observations, dtype=np.float64)
    poses = np.asarray(cameras_from_world, dtype=np.float64)
    if poses.ndim == 3:
        poses = np.broadcast_to(poses, (len(xy), *poses.shape))
    rows_x = xy[..., 0:1] * poses[..., 2, :] - poses[..., 0, :]
    rows_y = xy[..., 1:2] * poses[..., 2, :] - poses[..., 1, :]
    system = np.concatenate([rows_x, rows_y], axis=1)
    normal = np.einsum('nri,nrj->nij', system, system)
    _, vectors = np.linalg.eigh(normal)
    homogeneous = vectors[:, :, 0]
    w = homogeneous[:, 3:]
    safe = np.where(np.abs(w) < 1e-12, np.where(w < 0, -1e-12, 1e-12), w)
    return homogeneous[:, :3] / safe


def parallax_angles(centre_first: ArrayLike, centre_second: ArrayLike, points: ArrayLike) -> Array:
    """Angle (N,) in radians under which points (N, 3) see two camera centres; centres are (3,) or (N, 3)."""
    a = np.asarray(centre_first, dtype=np.float64) - np.asarray(points, dtype=np.float64)
    b = np.asarray(centre_second, dtype=np.float64) - np.asarray(points, dtype=np.float64)
    cross = np.linalg.norm(np.cross(a, b), axis=1)
    return np.arctan2(cross, np.einsum('ij,ij->i', a, b))


def reprojection_errors(camera_from_world: ArrayLike, points: ArrayLike, observed: ArrayLike) -> Array:
    """Distance (N,) in normalised units between projected points (N, 3) and observations (N, 2).

    Points behind the camera give infinity. `camera_from_world` is (4, 4) or (N, 4, 4).
    """
    pose = np.asarray(camera_from_world, dtype=np.float64)
    points = np.asarray(points, dtype=np.float64)
    if pose.ndim == 2:
        local = points @ pose[:3, :3].T + pose[:3, 3]
    else:
        local = np.einsum('nij,nj->ni', pose[:, :3, :3], points) + pose[:, :3, 3]
    front = local[:, 2] > 1e-9
    z = np.where(front, local[:, 2], 1.0)
    error = np.linalg.norm(local[:, :2] / z[:, None] - np.asarray(observed, dtype=np.float64), axis=1)
    return np.where(front, error, np.inf)
