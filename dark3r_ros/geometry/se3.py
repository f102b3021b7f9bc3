# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as 4x4 float64 matrices named `target_from_source`, and their Lie algebra.

A twist is `(rho, phi)`: translation first, rotation vector second, in the frame it is applied from the left.
Source: Barfoot, State Estimation for Robotics, chapter 7. Rotations are written out: the general classes of scipy take
a third of a millisecond for one of them, and a frame asks for dozens.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _outer_of_matrix() -> Array:
    """Matrix (9, 16) that makes 4 q q^T - 1 of the unit quaternion q = (x, y, z, w) from its rotation matrix."""
    result = np.zeros((3, 3, 4, 4))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        result[range(3), range(3), i, i] = -1.0
        result[i, i, i, i] = result[i, i, 3, 3] = 1.0
        result[i, j, [i, j], [j, i]] = result[j, i, [i, j], [j, i]] = 1.0
        result[k, j, [i, 3], [3, i]], result[j, k, [i, 3], [3, i]] = 1.0, -1.0
    return result.reshape(9, 16)


_OUTER_OF_MATRIX = _outer_of_matrix()
# Skew-symmetric matrices (3, 9) of the three axes.
_GENERATORS = np.array(
    [[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]], float
)


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
    return np.asarray((v @ _GENERATORS).reshape(*v.shape[:-1], 3, 3))


def exp_so3(phi: ArrayLike) -> Array:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3), in radians, by Rodrigues' formula."""
    first, second, _, skew = _series(np.asarray(phi, dtype=np.float64))
    return np.asarray(np.eye(3) + first * skew + second * skew @ skew)


def log_so3(rotation: ArrayLike) -> Array:
    """Rotation vectors (..., 3) of rotation matrices (..., 3, 3)."""
    q = quaternion(rotation)
    sine = np.sqrt((q[..., :3] ** 2).sum(axis=-1, keepdims=True))
    small = sine < 1e-9  # the factor is 2 here to float64
    angle = 2.0 * np.arctan2(sine, q[..., 3:])
    return np.asarray(q[..., :3] * np.where(small, 2.0, angle / np.where(small, 1.0, sine)))


def _series(phi: Array) -> tuple[Array, Array, Array, Array]:
    """sin(a) / a, (1 - cos(a)) / a^2, (a - sin(a)) / a^3 of the angles a, and `hat`, of vectors (..., 3)."""
    angle = np.sqrt((phi * phi).sum(axis=-1))[..., None, None]
    small = angle < 1e-5  # second order is exact to float64 here
    safe = np.where(small, 1.0, angle)
    sine, half = np.sin(safe), np.sin(0.5 * safe)
    first = np.where(small, 1.0 - angle * angle / 6.0, sine / safe)
    second = np.where(small, 0.5, 2.0 * (half / safe) ** 2)
    third = np.where(small, 1.0 / 6.0, (safe - sine) / safe**3)
    return first, second, third, hat(phi)


def exp(twist: ArrayLike) -> Array:
    """Transforms (..., 4, 4) of twists (..., 6) = (rho, phi)."""
    twist = np.asarray(twist, dtype=np.float64)
    first, second, third, skew = _series(twist[..., 3:])
    square = skew @ skew
    result = np.zeros((*twist.shape[:-1], 4, 4))
    result[..., :3, :3] = np.eye(3) + first * skew + second * square
    left_jacobian = np.eye(3) + second * skew + third * square
    result[..., :3, 3] = (left_jacobian @ twist[..., :3, None])[..., 0]
    result[..., 3, 3] = 1.0
    return result


def log(transform: ArrayLike) -> Array:
    """Twist (6,) = (rho, phi) of a transform (4, 4)."""
    transform = np.asarray(transform, dtype=np.float64)
    phi = log_so3(transform[:3, :3])
    _, second, third, skew = _series(phi)
    left_jacobian = np.eye(3) + second * skew + third * skew @ skew
    return np.concatenate([np.linalg.solve(left_jacobian, transform[:3, 3]), phi])


def quaternion(rotation: ArrayLike) -> Array:
    """Unit quaternions (..., 4) as (x, y, z, w) with w >= 0 of rotation matrices (..., 3, 3).

    Of the matrices q q^T that the values of the rotations spell out, the rows that are longest: no cancellation.
    """
    rotation = np.asarray(rotation, dtype=np.float64)
    outer = (rotation.reshape(-1, 9) @ _OUTER_OF_MATRIX).reshape(-1, 4, 4) + np.eye(4)
    longest = np.einsum('nii->ni', outer).argmax(axis=1)
    q = outer[np.arange(len(outer)), longest]
    q = q / np.sqrt((q * q).sum(axis=1, keepdims=True))
    return np.where(q[:, 3:] < 0, -q, q).reshape(*rotation.shape[:-2], 4)


def from_quaternion(xyzw: ArrayLike, translation: ArrayLike = (0.0, 0.0, 0.0)) -> Array:
    """Transform (4, 4) of a quaternion (x, y, z, w), normalised here, and a translation (3,)."""
    q = np.asarray(xyzw, dtype=np.float64)
    x, y, z, w = (q / np.sqrt(q @ q)).tolist()
    return make(
        [
            [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - z * w), 2.0 * (x * z + y * w)],
            [2.0 * (x * y + z * w), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - x * w)],
            [2.0 * (x * z - y * w), 2.0 * (y * z + x * w), 1.0 - 2.0 * (x * x + y * y)],
        ],
        translation,
    )


def normalised(transform: ArrayLike) -> Array:
    """Return transforms (..., 4, 4) with their rotations projected onto SO(3), against accumulated rounding."""
    result = np.array(transform, dtype=np.float64)
    u, _, vt = np.linalg.svd(result[..., :3, :3])
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    result[..., :3, :3] = u @ vt
    result[..., 3, :] = 0.0, 0.0, 0.0, 1.0
    return result


def rotation_angle(rotation: ArrayLike) -> float:
    """Angle in radians of a rotation matrix (3, 3)."""
    x, y, z, w = quaternion(np.asarray(rotation, dtype=np.float64)[:3, :3]).tolist()
    return 2.0 * math.atan2(math.sqrt(x * x + y * y + z * z), w)


def interpolate(first: ArrayLike, second: ArrayLike, fraction: float) -> Array:
    """Pose (4, 4) between two poses: translation linear, rotation spherical; fraction 0 gives the first."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    turn = log_so3(second[:3, :3] @ first[:3, :3].T)
    translation = (1.0 - fraction) * first[:3, 3] + fraction * second[:3, 3]
    return make(exp_so3(fraction * turn) @ first[:3, :3], translation)
