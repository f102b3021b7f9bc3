# SPDX-License-Identifier: Apache-2.0
"""Whether a pose can follow from those before it, by odometry where there is one, else by the motion so far.

Places that look alike draw a camera to the wrong one, and the picture alone cannot tell. What the wheels say, or how
fast the camera moved until now, often can.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.odometry_track import OdometryTrack

Array = NDArray[np.float64]

_MAX_GAP_NS = 300_000_000
_MAX_SPEED = 20.0  # m/s, beyond which the odometry has started anew
_LEVER = 0.5  # metres that the camera may sit beside the axis of a turn
_FLOOR = 0.15  # metres that a step may differ from the odometry
_SLIP = (0.5, 0.45)  # metres, and share of the way, that slipping wheels may add
_SHARE = 0.25  # of the way, that every odometry may be wrong
_KNOT = 0.1  # metres between poses that the scale is found from
_KNOTS = (5, 40)  # ratios that a scale needs, and those kept
_REFUSALS = 30  # in a row, after which the odometry is taken to have lost its way

_STEPS = 15  # recent motions kept
_FASTER = 4.0  # how many times faster than lately a camera may be all of a sudden
_SLACK = 0.1  # share of the depth of the scene that it may move in any case
_LONG_GAP = 1.0  # seconds without a pose after which the way travelled meanwhile is compared


def odometry_track() -> OdometryTrack:
    """Track that the judge and others of a pipeline look into."""
    return OdometryTrack(_MAX_GAP_NS, _MAX_SPEED)


class MotionJudge:
    """Compares steps between posed frames with what else is known, such as the odometry of a track."""

    def __init__(self, track: OdometryTrack) -> None:
        self.track = track
        self.restart()

    def restart(self) -> None:
        """Forget the poses: the map or its unit is another one. The odometry stays."""
        self._last: tuple[int, Array] | None = None
        self._knot: tuple[int, Array] | None = None
        self._ratios: deque[float] = deque(maxlen=_KNOTS[1])
        self._speeds: deque[float] = deque(maxlen=_STEPS)
        self._refused = 0

    def moved(self) -> None:
        """Forget the newest pose: the map has moved under it."""
        self._last = self._knot = None

    def carry(self, new_from_old: Array) -> None:
        """Move the newest pose with the map (4, 4) that it was found in."""
        if self._last is not None:
            self._last = self._last[0], new_from_old @ self._last[1]
        if self._knot is not None:
            self._knot = self._knot[0], new_from_old @ self._knot[1]

    def objection(self, stamp_ns: int, world_from_camera: Array, depth: float, *, lost: bool) -> str:
        """Why a pose cannot follow, one sentence; empty where nothing speaks against it.

        `depth` of the scene in map units. A camera that is `lost` may have been carried anywhere, unless there is
        odometry.
        """
        if self._last is None:
            return ''
        before_ns, before = self._last
        length = _length(before, world_from_camera)
        way = self._way(before_ns, stamp_ns)
        if way is not None and len(self._ratios) >= _KNOTS[0]:
            reason = self._against_odometry(length * median(self._ratios), *way)
            self._refused = self._refused + 1 if reason else 0
            if self._refused <= _REFUSALS:
                return reason
            self._ratios.clear()
            self._refused = 0
            return ''
        return '' if lost else self._against_motion(length, (stamp_ns - before_ns) / 1e9, depth)

    def accept(self, stamp_ns: int, world_from_camera: Array) -> None:
        """Remember a pose that was believed."""
        if self._last is not None and stamp_ns > self._last[0]:
            elapsed = (stamp_ns - self._last[0]) / 1e9
            self._speeds.append(_length(self._last[1], world_from_camera) / elapsed)
        self._last = (stamp_ns, world_from_camera)
        if self._knot is None:
            self._knot = self._last
            return
        way = self._way(self._knot[0], stamp_ns)
        if way is None:
            self._knot = self._last if stamp_ns - self._knot[0] > 10 * _MAX_GAP_NS else self._knot
        elif way[0] >= _KNOT:
            length = _length(self._knot[1], world_from_camera)
            if length > 0:
                self._ratios.append(way[0] / length)
            self._knot = self._last

    def expected(self, stamp_ns: int) -> Array | None:
        """world_from_camera (4, 4) at a time, as odometry goes on from the newest pose; None where it cannot tell."""
        if self._last is None or not self._ratios:
            return None
        before_ns, before = self._last
        body = self._motion(before_ns, stamp_ns)
        if body is None:
            return None
        motion = se3.inverse(self.track.body_from_camera) @ body @ self.track.body_from_camera
        motion[:3, 3] /= median(self._ratios)
        return se3.normalised(before @ motion)

    @staticmethod
    def _against_odometry(moved: float, way: float, turn: float) -> str:
        allowed = _FLOOR + _LEVER * turn + _SHARE * way + min(_SLIP[0], _SLIP[1] * way)
        if abs(moved - way) <= allowed:
            return ''
        return (
            f'the picture says {moved:.2f} m since the last pose, the odometry {way:.2f} m: places here look alike, or '
            'wheels slip'
        )

    def _against_motion(self, length: float, elapsed: float, depth: float) -> str:
        if len(self._speeds) < 3:
            return ''
        if length > _FASTER * max(self._speeds) * elapsed + _SLACK * depth:
            return 'the camera seems to jump: places here may look alike'
        expected = median(self._speeds) * elapsed
        if elapsed > _LONG_GAP and expected > 0.5 * depth and abs(length - expected) > 0.5 * expected:
            return f'after {elapsed:.1f} s without a pose the camera lies where its motion did not lead'
        return ''

    def _way(self, first_ns: int, second_ns: int) -> tuple[float, float] | None:
        """Distance in metres and turn in radians between two times; None where the odometry does not tell."""
        motion = self._motion(first_ns, second_ns)
        if motion is None:
            return None
        return float(np.linalg.norm(motion[:3, 3])), float(se3.rotation_angle(motion[:3, :3]))

    def _motion(self, first_ns: int, second_ns: int) -> Array | None:
        """Motion (4, 4) of the body between two times, in metres; None where the odometry does not tell."""
        first, second = self._at(first_ns), self._at(second_ns)
        if first is None or second is None or first[1] != second[1]:
            return None
        return se3.inverse(first[0]) @ second[0]

    def _at(self, stamp_ns: int) -> tuple[Array, int] | None:
        """Pose and unbroken piece at a time; a little beyond the newest one, as the motion went on before it.

        Odometry of the moment of an image may come later than the image.
        """
        newest_ns = self.track.newest_ns
        if newest_ns is None or not 0 < stamp_ns - newest_ns <= _MAX_GAP_NS // 3:
            return self.track.at(stamp_ns)
        newest, before = self.track.at(newest_ns), self.track.at(2 * newest_ns - stamp_ns)
        if newest is None or before is None or before[1] != newest[1]:
            return newest
        return se3.normalised(newest[0] @ se3.inverse(before[0]) @ newest[0]), newest[1]


def _length(first: Array, second: Array) -> float:
    return float(np.linalg.norm(second[:3, 3] - first[:3, 3]))
