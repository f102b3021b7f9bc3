# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as 4x4 float64 matrices named `target_from_source`, and their Lie algebra.

A twist is `(rho, phi)`: translation first, rotation vector second, in the frame it is applied from the left.
Source: Barfoot, State Estimation for Robotics, chapter 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation, Slerp

Array = NDArray[np.float64]


def make(rotation: ArrayLike, translation: ArrayLike) -> Array:
    """Compose a transform (4, 4) from a rotation (3, 3) and a translation (3,)."""
    result = np.eye(4)
    result[:3, :3] = rotation
    result[:3, 3] = np.asarray(translation, dtype=np.float64).reshape(3)
    return result


# Body: x forward, y left, z up; optical: x right, y down, z forward (REP-103).
BODY_FROM_OPTICAL = make([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], [0.0, 0.0, 0.0])


def inverse(transform: ArrayLike) -> Array:
    """Invert transforms (..., 4, 4)."""
    transform = np.asarray(transform, dtype=np.float64)
    result = np.zeros_like(transform)
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    result[..., :3, :3] = rotation_t
    result[..., :3, 3] = -np.einsum('...ij,...j->...i', rotation_t, transform[..., :3, 3])
    result[..., 3, 3] = 1.0
    return result


def transform_points(target_from_source: ArrayLike, points: ArrayLike) -> Array:
    """Map points (N, 3) by one transform (4, 4)."""
    matrix = np.asarray(target_from_source, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]


def hat(vector: ArrayLike) -> Array:
    """Skew-symmetric matrices (..., 3, 3) of vectors (..., 3)."""
    v = np.asarray(vector, dtype=np.float64)
    result = np.zeros((*v.shape[:-1], 3, 3))
    result[..., 0, 1], result[..., 0, 2], result[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    result[..., 1, 0], result[..., 2, 0], result[..., 2, 1] = v[..., 2], -v[..., 1], v[..., 0]
    return result


def exp_so3(phi: ArrayLike) -> Array:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3), in radians."""
    phi = np.asarray(phi, dtype=np.float64)
    return Rotation.from_rotvec(phi.reshape(-1, 3)).as_matrix().reshape(*phi.shape[:-1], 3, 3)


def log_so3(rotation: ArrayLike) -> Array:
    """Rotation vectors (..., 3) of rotation matrices (..., 3, 3)."""
    rotation = np.asarray(rotation, dtype=np.float64)
    return Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_rotvec().reshape(rotation.shape[:-1])


def _left_jacobian(phi: Array) -> Array:
    """Left Jacobians (..., 3, 3) of rotation vectors (..., 3)."""
    angle = np.linalg.norm(phi, axis=-1)
    small = angle < 1e-5  # second order is exact to float64 here
    safe = np.where(small, 1.0, angle)
    a = np.where(small, 0.5, (1.0 - np.cos(safe)) / safe**2)[..., None, None]
    b = np.where(small, 1.0 / 6.0, (safe - np.sin(safe)) / safe**3)[..., None, None]
    skew = hat(phi)
    return np.asarray(np.eye(3) + a * skew + b * skew @ skew)


def exp(twist: ArrayLike) -> Array:
    """Transforms (..., 4, 4) of twists (..., 6) = (rho, phi)."""
    twist = np.asarray(twist, dtype=np.float64)
    rho, phi = twist[..., :3], twist[..., 3:]
    result = np.zeros((*twist.shape[:-1], 4, 4))
    result[..., :3, :3] = exp_so3(phi)
    result[..., :3, 3] = (_left_jacobian(phi) @ rho[..., None])[..., 0]
    result[..., 3, 3] = 1.0
    return result


def log(transform: ArrayLike) -> Array:
    """Twist (6,) = (rho, phi) of a transform (4, 4)."""
    transform = np.asarray(transform, dtype=np.float64)
    phi = log_so3(transform[:3, :3])
    return np.concatenate([np.linalg.solve(_left_jacobian(phi), transform[:3, 3]), phi])


def quaternion(rotation: ArrayLike) -> Array:
    """Unit quaternions (..., 4) as (x, y, z, w) with w >= 0 of rotation matrices (..., 3, 3)."""
    rotation = np.asarray(rotation, dtype=np.float64)
    q = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_quat()
    q = np.where(q[:, 3:] < 0, -q, q)
    return q.reshape(*rotation.shape[:-2], 4)


def from_quaternion(xyzw: ArrayLike, translation: ArrayLike = (0.0, 0.0, 0.0)) -> Array:
    """Transform (4, 4) of a quaternion (x, y, z, w), normalised here, and a translation (3,)."""
    return make(Rotation.from_quat(np.asarray(xyzw, dtype=np.float64)).as_matrix(), translation)


def normalised(transform: ArrayLike) -> Array:
    """Return the transform (4, 4) with its rotation projected onto SO(3), against accumulated rounding."""
    transform = np.asarray(transform, dtype=np.float64)
    u, _, vt = np.linalg.svd(transform[:3, :3])
    sign = np.sign(np.linalg.det(u @ vt))
    return make(u @ np.diag([1.0, 1.0, sign]) @ vt, transform[:3, 3])


def rotation_angle(rotation: ArrayLike) -> float:
    """Angle in radians of a rotation matrix (3, 3)."""
    return float(np.linalg.norm(log_so3(np.asarray(rotation, dtype=np.float64)[:3, :3])))


def interpolate(first: ArrayLike, second: ArrayLike, fraction: float) -> Array:
    """Pose (4, 4) between two poses: translation linear, rotation spherical; fraction 0 gives the first."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    slerp = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([first[:3, :3], second[:3, :3]])))
    translation = (1.0 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    return make(slerp([fraction]).as_matrix()[0], translation)
