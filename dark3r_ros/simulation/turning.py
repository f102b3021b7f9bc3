# SPDX-License-Identifier: Apache-2.0
"""A drive that is interrupted by a turn on the spot."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry import se3
from dark3r_ros.simulation.paths import Path, poses_from

Array = NDArray[np.float64]

_RAMP = 0.5  # seconds in which the robot, or its turn, gets to full speed and stops again


@dataclass(frozen=True)
class Turn:
    """A turn on the spot: degrees to the left, degrees per second, and how far ahead of its axis the camera sits (m).

    What ends facing the way it came drives back, what ends facing ahead drives on; anything else turns back first.
    """

    degrees: float = 180.0
    rate: float = 30.0
    lever: float = 0.05

    @property
    def reverses(self) -> bool:
        """Whether the robot faces the way it came from afterwards."""
        return math.cos(math.radians(self.degrees)) < -0.99

    @property
    def returns(self) -> bool:
        """Whether the robot turns back to where it looked before."""
        return abs(math.cos(math.radians(self.degrees))) <= 0.99

    @property
    def seconds(self) -> float:
        """How long one turn takes."""
        return abs(self.degrees) / self.rate + _RAMP


def with_turn(drive: Path, turn: Turn, *, seconds: float) -> Path:
    """The drive with a turn in the middle of `seconds`; raises ConfigError where that leaves no time to drive."""
    turning = turn.seconds * (2 if turn.returns else 1)
    leg = 0.5 * (seconds - turning)
    if leg <= 2.0 * _RAMP:
        raise ConfigError(
            f'a turn by {turn.degrees:g} degrees at {turn.rate:g} degrees/s takes {turning:.1f} s of {seconds:g} s: '
            'simulate more seconds'
        )

    def path(time: Array) -> Array:
        time = np.asarray(time, dtype=np.float64)
        # At full speed from the start; ramps take half their time of the way.
        ahead = np.minimum(time, leg) - _slowed(time - leg + _RAMP)
        on = _trapezoid(time - leg - turning, leg + _RAMP)
        drive_time = ahead + (-on if turn.reverses else on)
        angle = _trapezoid(time - leg, turn.seconds)
        if turn.returns:
            angle = angle - _trapezoid(time - leg - turn.seconds, turn.seconds)
        angle = math.radians(math.copysign(turn.rate, turn.degrees)) * angle
        poses = drive(drive_time)
        forward = poses[:, :3, 2] * (1.0, 1.0, 0.0)
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        about = se3.exp_so3(angle[:, None] * (0.0, 0.0, 1.0))
        swung = np.einsum('nij,nj->ni', about, forward) - forward
        return poses_from(about @ poses[:, :3, :3], poses[:, :3, 3] + turn.lever * swung)

    return path


def _slowed(since: Array) -> Array:
    """Seconds (N,) of driving lost by slowing down evenly within the ramp, `since` its beginning."""
    return np.asarray(0.5 * np.clip(since, 0.0, _RAMP) ** 2 / _RAMP)


def _trapezoid(time: Array, length: float) -> Array:
    """Seconds (N,) at full speed that go as far as a motion from time 0 to `length` with a ramp at both ends."""
    ramp = min(_RAMP, 0.5 * length)
    done = np.clip(time, 0.0, length)
    begin = 0.5 * np.minimum(done, ramp) ** 2 / ramp
    middle = np.clip(done - ramp, 0.0, length - 2.0 * ramp)
    left = np.clip(done - (length - ramp), 0.0, ramp)
    return np.asarray(begin + middle + left - 0.5 * left**2 / ramp)
