# SPDX-License-Identifier: Apache-2.0
"""The newest poses of a robot's odometry, looked up at any time between them; from any thread."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.types import Trajectory

Array = NDArray[np.float64]

_SAMPLES = 20000
_DENSEST_NS = 4_000_000  # poses that follow faster are left out: what is kept spans 80 s at least


class OdometryTrack:
    """Poses of a body in order of time, in pieces where its odometry started anew.

    Parameters
    ----------
    max_gap_ns: longest time between two poses that is interpolated. max_speed: m/s, a faster jump is a new start.

    Attributes
    ----------
    body_from_camera: (4, 4) how the camera sits on the body; by default it looks along its x.

    """

    def __init__(self, max_gap_ns: int, max_speed: float) -> None:
        self._max_gap_ns, self._max_speed = max_gap_ns, max_speed
        self.body_from_camera: Array = se3.BODY_FROM_OPTICAL
        self._lock = threading.Lock()
        self._stamps: list[int] = []
        self._poses: list[Array] = []
        self._chains: list[int] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest_ns(self) -> int | None:
        """Stamp of the newest pose."""
        with self._lock:
            return self._stamps[-1] if self._stamps else None

    def add(self, stamp_ns: int, odom_from_body: Array) -> None:
        """Add the next pose (4, 4); one that is not newer starts the track anew when it is older by over a second.

        What is not a number is left out, and what comes within 4 ms of the pose before.
        """
        if not np.isfinite(odom_from_body).all():
            return
        with self._lock:
            chain = 0
            if self._stamps:
                elapsed = (stamp_ns - self._stamps[-1]) / 1e9
                if -1.0 <= elapsed < _DENSEST_NS / 1e9:
                    return
                moved = float(np.linalg.norm(odom_from_body[:3, 3] - self._poses[-1][:3, 3]))
                restarted = elapsed < 0.0 or moved > self._max_speed * elapsed + 0.1
                chain = self._chains[-1] + int(restarted)
                if elapsed < 0.0:
                    self._drop(len(self._stamps))
            self._stamps.append(stamp_ns)
            self._poses.append(odom_from_body)
            self._chains.append(chain)
            self._drop(len(self._stamps) - _SAMPLES)

    def forget_before(self, stamp_ns: int) -> None:
        """Drop poses that no lookup at or after `stamp_ns` needs."""
        with self._lock:
            self._drop(bisect_right(self._stamps, stamp_ns) - 1)

    def nearest(self, stamp_ns: int) -> Array | None:
        """Pose (4, 4) of the sample nearest in time; None without any."""
        with self._lock:
            if not self._stamps:
                return None
            after = min(bisect_left(self._stamps, stamp_ns), len(self._stamps) - 1)
            before = max(after - 1, 0)
            return self._poses[min((before, after), key=lambda index: abs(self._stamps[index] - stamp_ns))]

    def at(self, stamp_ns: int) -> tuple[Array, int] | None:
        """Pose (4, 4) at a time and the number of the unbroken piece it lies in; None where it is not known."""
        with self._lock:
            if not self._stamps or not self._stamps[0] <= stamp_ns <= self._stamps[-1]:
                return None
            after = bisect_left(self._stamps, stamp_ns)
            if self._stamps[after] == stamp_ns:
                return self._poses[after], self._chains[after]
            before = after - 1
            gap = self._stamps[after] - self._stamps[before]
            if gap > self._max_gap_ns or self._chains[before] != self._chains[after]:
                return None
            fraction = (stamp_ns - self._stamps[before]) / gap
            return se3.interpolate(self._poses[before], self._poses[after], fraction), self._chains[after]

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._stamps[:count], self._poses[:count], self._chains[:count]


class OdometryReplay:
    """Recorded odometry, handed on as the frames of the same recording advance, as it would come to a live robot.

    Parameters
    ----------
    recorded: odom_from_body in metres. add: takes a stamp and a pose (4, 4).

    """

    def __init__(self, recorded: Trajectory, add: Callable[[int, Array], None]) -> None:
        self._recorded, self._add = recorded, add
        self._count = 0  # handed on

    def until(self, stamp_ns: int) -> None:
        """Hand on what was recorded up to a frame, and the first pose after it, so that one between can be found."""
        stamps, poses = self._recorded.stamps_ns, self._recorded.world_from_camera
        while self._count < len(stamps) and (self._count == 0 or stamps[self._count - 1] < stamp_ns):
            self._add(int(stamps[self._count]), poses[self._count])
            self._count += 1
