# SPDX-License-Identifier: Apache-2.0
"""Camera paths: exact poses at the stamps of the frames, and between them for motion blur.

A path is a function from time in seconds (N,) to world_from_camera (N, 4, 4), so that any instant can be asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dark3r_ros.simulation.tunnel import TunnelShape

Array = NDArray[np.float64]
Path = Callable[[Array], Array]


def look_along(forward: ArrayLike, up: ArrayLike = (0.0, 0.0, 1.0)) -> Array:
    """Rotations world_from_camera (N, 3, 3) of cameras that look along `forward` (N, 3) with `up` upwards."""
    z = np.atleast_2d(np.asarray(forward, dtype=np.float64))
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(z, np.asarray(up, dtype=np.float64))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=-1)


def poses_from(rotation: Array, position: Array) -> Array:
    """Stack rotations (N, 3, 3) and positions (N, 3) to transforms (N, 4, 4)."""
    result = np.zeros((len(position), 4, 4))
    result[:, :3, :3], result[:, :3, 3], result[:, 3, 3] = rotation, position, 1.0
    return result


class Waves:
    """Smooth random function of time or distance: a sum of sines of zero mean and given deviation per channel."""

    def __init__(
        self, rng: np.random.Generator, scale: ArrayLike, periods: tuple[float, float], terms: int = 4
    ) -> None:
        scale = np.atleast_1d(np.asarray(scale, dtype=np.float64))
        self.rate = 2.0 * np.pi / rng.uniform(*periods, (terms, len(scale)))
        self.phase = rng.uniform(0.0, 2.0 * np.pi, (terms, len(scale)))
        self.amplitude = scale * np.sqrt(2.0 / terms)

    def __call__(self, at: Array) -> Array:
        """Values (N, channels)."""
        angle = self.rate * np.asarray(at, dtype=np.float64)[:, None, None] + self.phase
        return (self.amplitude * np.sin(angle)).sum(axis=1)

    def integral(self, at: Array) -> Array:
        """Integral (N, channels) from 0."""
        angle = self.rate * np.asarray(at, dtype=np.float64)[:, None, None] + self.phase
        return (self.amplitude / self.rate * (np.cos(self.phase) - np.cos(angle))).sum(axis=1)


def tunnel_drive(
    shape: TunnelShape,
    seed: int,
    *,
    speed: float = 0.75,
    seconds: float = 20.0,
    loop: bool = False,
    pitch_deg: float = 4.0,
    height: float = -0.25,
) -> Path:
    """Rover that follows the tunnel at `speed` m/s with changes of speed, wander and bobbing.

    `pitch_deg` tilts the camera down, `height` is its place above the axis in metres. With `loop` the mean speed is
    adjusted so that the drive ends where it started after a whole number of laps, wander included.
    """
    rng = np.random.default_rng([seed, 3])
    if loop:
        laps = max(1, round(speed * seconds / shape.length))
        speed = laps * shape.length / seconds
    pace = Waves(rng, [0.12 * speed], (6.0, 15.0))
    wander = Waves(rng, [0.10, 0.05], (7.0, 14.0))
    bob = Waves(rng, [0.008], (0.8, 1.6))
    shake = Waves(rng, np.radians([0.5, 0.7, 1.2]), (1.1, 2.5))

    def path(time: Array) -> Array:
        time = np.asarray(time, dtype=np.float64)
        arc = speed * time + pace.integral(time)[:, 0]
        lateral, turn = wander(time).T
        lift, tilt = bob(time)[:, 0], shake(time)
        if loop:
            # Fade every deviation out at both ends, so that the last pose meets the first.
            fade = np.clip(np.minimum(time, seconds - time) / 3.0, 0.0, 1.0)
            arc = speed * time + fade * pace.integral(time)[:, 0]
            lateral, turn, lift, tilt = fade * lateral, fade * turn, fade * lift, fade[:, None] * tilt
        axes = shape.frame(arc)
        position = shape.axis(arc) + axes[:, :, 0] * lateral[:, None] + axes[:, :, 2] * (height + lift)[:, None]
        nod = Rotation.from_euler(
            'xyz', tilt + np.stack([-np.full_like(turn, np.radians(pitch_deg)), turn, 0 * turn], 1)
        )
        return poses_from(look_along(axes[:, :, 1]) @ nod.as_matrix(), position)

    return path


def straight_drive(
    seed: int,
    *,
    speed: float = 0.75,
    height: float = 0.8,
    pitch_deg: float = 3.0,
    start: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Rover that drives along +x from `start` with changes of speed, wander across and bobbing."""
    rng = np.random.default_rng([seed, 3])
    pace = Waves(rng, [0.12 * speed], (6.0, 15.0))
    wander = Waves(rng, [0.12, 0.06], (7.0, 14.0))
    bob = Waves(rng, [0.008], (0.8, 1.6))
    shake = Waves(rng, np.radians([0.5, 0.7, 1.2]), (1.1, 2.5))
    x0, y0 = start

    def path(time: Array) -> Array:
        time = np.asarray(time, dtype=np.float64)
        lateral, turn = wander(time).T
        x = x0 + speed * time + pace.integral(time)[:, 0]
        position = np.stack([x, y0 + lateral, height + bob(time)[:, 0]], axis=1)
        base = np.broadcast_to(look_along([1.0, 0.0, 0.0]), (len(time), 3, 3))
        tilt = shake(time) + np.stack([np.full_like(turn, -np.radians(pitch_deg)), turn, 0.0 * turn], axis=1)
        return poses_from(base @ Rotation.from_euler('xyz', tilt).as_matrix(), position)

    return path


def hand_held(seed: int, *, radius: float = 1.9, height: float = 1.35, target: ArrayLike = (0.0, 0.0, 0.8)) -> Path:
    """Hand-held camera that goes round `target`, with the sway of steps and a wandering gaze; about 0.3 m/s."""
    rng = np.random.default_rng([seed, 6])
    sway = Waves(rng, [0.12, 0.10, 0.06], (4.0, 9.0))
    steps = Waves(rng, [0.012, 0.012, 0.016], (0.5, 1.1))
    gaze = Waves(rng, np.radians([5.0, 9.0, 2.5]), (2.5, 7.0))
    begin, direction = rng.uniform(0.0, 2.0 * np.pi), rng.choice([-1.0, 1.0])

    def path(time: Array) -> Array:
        time = np.asarray(time, dtype=np.float64)
        around, out, lift = sway(time).T
        angle = begin + direction * 0.14 * time + around / radius
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (radius + out)[:, None]
        position = np.column_stack([ring, height + lift]) + steps(time)
        rotation = look_along(np.asarray(target, dtype=np.float64) - position)
        return poses_from(rotation @ Rotation.from_euler('xyz', gaze(time)).as_matrix(), position)

    return path


def orbit(*, seconds: float, radius: float = 1.9, height: float = 1.4, target: ArrayLike = (0.0, 0.0, 0.75)) -> Path:
    """One smooth turn round `target` within `seconds`, looking at it."""

    def path(time: Array) -> Array:
        angle = 2.0 * np.pi * np.asarray(time, dtype=np.float64) / seconds
        ring = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        position = np.column_stack([ring + np.asarray(target)[:2], np.full(len(angle), height)])
        return poses_from(look_along(np.asarray(target, dtype=np.float64) - position), position)

    return path
