# SPDX-License-Identifier: Apache-2.0
"""Wheel odometry with the faults of real wheels: wrong scale, noise, slip.

Poses are those of a planar robot in ROS body axes (x forward, y left, z up), which is what nav_msgs/Odometry carries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OdometrySample:
    """One wheel odometry reading: odom_from_body (4, 4), velocities (3,) in the body frame, covariances (6, 6)."""

    stamp_ns: int
    odom_from_body: Array
    linear: Array
    angular: Array
    pose_covariance: Array
    twist_covariance: Array


class WheelOdometry:
    """Integrates noisy planar increments of the true motion, one reading at a time.

    Parameters
    ----------
    rng: source of all randomness.
    scale_error: constant relative error of the distance (worn tyres), e.g. 0.02.
    noise: standard deviation of the distance per square root of metre, and of the heading in radians likewise.
    slip_rate: expected slips per metre; while one lasts (0.3 to 1 s) the wheels turn 20 to 80 % too far.

    """

    def __init__(self, rng: np.random.Generator, *, scale_error: float, noise: float, slip_rate: float) -> None:
        self._rng = rng
        self._scale = 1.0 + scale_error
        self._noise = noise
        self._slip_rate = slip_rate
        self._slip_until_ns = -1
        self._slip = 0.0
        self._last: tuple[int, Array] | None = None
        self._odom_from_body = np.eye(4)
        self._covariance = np.diag([1e-6] * 6)

    def read(self, stamp_ns: int, world_from_camera: Array) -> OdometrySample:
        """Reading at the time of a true camera pose, the wheels being right below the camera."""
        body = _planar(world_from_camera)
        linear, angular = np.zeros(3), np.zeros(3)
        if self._last is not None:
            before_ns, before = self._last
            seconds = (stamp_ns - before_ns) * 1e-9
            forward, left, turn = _increment(before, body)
            distance = float(np.hypot(forward, left))
            self._start_slip(stamp_ns, distance)
            stretch = self._scale * (1.0 + (self._slip if stamp_ns < self._slip_until_ns else 0.0))
            spread = self._noise * np.sqrt(distance)
            forward = forward * stretch + self._rng.normal(0.0, 1.0) * spread
            turn = turn + self._rng.normal(0.0, 1.0) * spread
            step = np.array([forward, left * stretch, 0.0, 0.0, 0.0, turn])
            self._odom_from_body = se3.normalised(self._odom_from_body @ se3.exp(step))
            self._covariance[[0, 1, 5], [0, 1, 5]] += spread**2 + (0.02 * distance) ** 2
            linear, angular = step[:3] / seconds, step[3:] / seconds
        self._last = (stamp_ns, body)
        twist = np.diag([2.5e-3, 2.5e-3, 1e-6, 1e-6, 1e-6, 2.5e-3])
        return OdometrySample(stamp_ns, self._odom_from_body.copy(), linear, angular, self._covariance.copy(), twist)

    def _start_slip(self, stamp_ns: int, distance: float) -> None:
        if stamp_ns >= self._slip_until_ns and self._rng.random() < self._slip_rate * distance:
            self._slip_until_ns = stamp_ns + int(self._rng.uniform(0.3, 1.0) * 1e9)
            self._slip = float(self._rng.uniform(0.2, 0.8))


def _planar(world_from_camera: Array) -> Array:
    """Position and heading (x, y, yaw) of the body under a camera, in a world with z up."""
    body = world_from_camera[:3, :3] @ se3.BODY_FROM_OPTICAL[:3, :3].T
    return np.array([world_from_camera[0, 3], world_from_camera[1, 3], np.arctan2(body[1, 0], body[0, 0])])


def _increment(before: Array, after: Array) -> tuple[float, float, float]:
    """Motion (forward, left, turn) in the frame of the pose before."""
    dx, dy = after[:2] - before[:2]
    cos, sin = np.cos(before[2]), np.sin(before[2])
    turn = (after[2] - before[2] + np.pi) % (2.0 * np.pi) - np.pi
    return float(cos * dx + sin * dy), float(cos * dy - sin * dx), float(turn)
