# SPDX-License-Identifier: Apache-2.0
"""How a camera with a rolling shutter turns while a picture is read out, by the landmarks that it sees.

At 60 degrees a second and 24 ms the first and the last row of a picture are 1.4 degrees apart: six pixels of 320. The
turn is looked for together with the pose, near the one by which the camera came here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping.initialise import InitialPair
from dark3r_ros.sfm.resection import pose_system

Array = NDArray[np.float64]

# Deviation of a rate of turn from that by the motion so far, radians a second: at rest, and for each one by which the
# rate has changed since the interval before; and where nothing is known of the motion.
_STEADY, _CHANGING, _UNKNOWN = 0.05, 0.5, 1.0
_FASTEST = 10.0  # radians a second; beyond it is no turn but a jump
_LONGEST = 0.5  # seconds between two poses that tell a rate of turn
_LONGEST_AMONG_NS = 200_000_000  # between frames whose rates say more than what a picture shows
_STEPS = 4

Moment = tuple[int, Array]  # stamp in nanoseconds, and camera_from_world (4, 4)


def turning(camera: Camera, before: Moment, after: Moment) -> Camera:
    """A rolling camera that turns as it did between two moments; another one as it is."""
    rate = _rate(before, after)
    if not isinstance(camera, RollingCamera) or rate is None:
        return camera
    return _with_turn(camera, rate * camera.readout)


def _rate(before: Moment, after: Moment) -> Array | None:
    """Rate of turn (3,) in the frame of the camera, radians a second; None where the moments do not tell it."""
    seconds = (after[0] - before[0]) / 1e9
    if not 0 < seconds <= _LONGEST:
        return None
    rate = np.asarray(se3.log_so3(before[1][:3, :3] @ after[1][:3, :3].T) / seconds)
    return rate if float(np.linalg.norm(rate)) < _FASTEST else None


def _expected(motion: tuple[Moment, Moment], now: Moment) -> tuple[Array, float] | None:
    """Rate of turn (3,) at a moment, by its pose and those of the two before, and its deviation."""
    older, newer = _rate(*motion), _rate(motion[1], now)
    if newer is None:
        return None
    if older is None:
        return newer, _UNKNOWN
    # Either belongs to the middle of its interval: the change goes on for half of the last one.
    apart, ahead = (now[0] - motion[0][0]) / 2, (now[0] - motion[1][0]) / 2
    change = newer - older
    return newer + ahead / apart * change, _STEADY + _CHANGING * float(np.linalg.norm(change))


def turning_among(camera: Camera, around: Mapping[int, Moment]) -> Camera:
    """A rolling camera that turns as the poses of the frames around its own say, these given by their places in time.

    What comes after a picture tells more of how the camera turned than what came before. Another camera, or one of
    which too little is known, as it is.
    """
    rates = {}
    for place in (-1, 0, 1):
        if place in around and place + 1 in around and around[place + 1][0] - around[place][0] <= _LONGEST_AMONG_NS:
            rate, middle = _rate(around[place], around[place + 1]), (around[place][0] + around[place + 1][0]) / 2
            if rate is not None:
                rates[place] = middle - around[0][0], rate
    if not isinstance(camera, RollingCamera) or 0 not in rates or len(rates) < 2:
        return camera
    # On the line through the rates in the middle of two intervals, the nearest ones.
    (first, before), (second, after) = rates.get(-1, rates.get(1, rates[0])), rates[0]
    return _with_turn(camera, (before + first / (first - second) * (after - before)) * camera.readout)


def learn_turn(pair: InitialPair) -> None:
    """Let the rolling cameras of the two views that start a map turn as the camera did from one to the other."""
    motion = (pair.first.stamp_ns, np.eye(4)), (pair.second.stamp_ns, pair.geometry.second_from_first)
    for view in (pair.first, pair.second):
        view.camera = turning(view.camera, *motion)


def turned_as_seen(
    camera: RollingCamera, now: Moment, motion: tuple[Moment, Moment] | None, points: Array, pixels: Array
) -> RollingCamera:
    """The camera with the turn that explains best where points (N, 3) are seen (N, 2); most of them must be right.

    `now` is the pose found with the turn that it has, `motion` the two before it.
    """
    focal, foreseen = 0.5 * (camera.fx + camera.fy), None if motion is None else _expected(motion, now)
    rate, deviation = (np.array(camera.turn) / camera.readout, _UNKNOWN) if foreseen is None else foreseen
    expected, weight = rate * camera.readout, 1.0 / (deviation * camera.readout) ** 2
    pose, turn, moments = now[1], expected, np.repeat(camera.moments(pixels), 2)[:, None]
    for _ in range(_STEPS):
        observed = _with_turn(camera, turn).unproject(pixels)
        _, residual, by_pose = pose_system(pose, points, observed, focal, 1.0)
        # What turns the camera moves a point in its frame; what it turned until a row moves what that row saw.
        jacobian = np.hstack([by_pose, -moments * by_pose[:, 3:]])
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        normal[range(6, 9), range(6, 9)] += weight
        gradient[6:] += weight * (turn - expected)
        step = -np.linalg.solve(normal + 1e-9 * np.diag(np.diag(normal)), gradient)
        pose, turn = se3.exp(step[:6]) @ pose, turn + step[6:]
    return _with_turn(camera, turn) if np.linalg.norm(turn) < _FASTEST * camera.readout else camera


def _with_turn(camera: RollingCamera, turn: Array) -> RollingCamera:
    x, y, z = turn.tolist()
    return replace(camera, turn=(x, y, z))
