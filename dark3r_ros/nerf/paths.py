# SPDX-License-Identifier: Apache-2.0
"""Camera paths to render: along the recorded one, around it, or from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, Slerp

from dark3r_ros.errors import DataError
from dark3r_ros.storage.sequence import CAMERAS_FILE, read_cameras_json
from dark3r_ros.storage.trajectory import read_tum

Array = NDArray[np.float64]


def along(poses: Array, count: int, smooth: float = 1.0) -> Array:
    """Poses (count, 4, 4) along recorded ones (N, 4, 4), evenly in their order.

    `smooth` is the standard deviation, in recorded poses, of the Gaussian that takes the shaking of the hand out.
    """
    if len(poses) < 2:
        return np.repeat(poses, count, axis=0)
    centres, turns = poses[:, :3, 3], Rotation.from_matrix(poses[:, :3, :3])
    quaternions = turns.as_quat()
    # q and -q are the same turn: follow one sign, or the mean of neighbours means nothing.
    signs = np.cumprod(np.r_[1.0, np.where((quaternions[1:] * quaternions[:-1]).sum(axis=1) < 0, -1.0, 1.0)])
    quaternions = quaternions * signs[:, None]
    if smooth > 0:
        centres = gaussian_filter1d(centres, smooth, axis=0, mode='nearest')
        quaternions = gaussian_filter1d(quaternions, smooth, axis=0, mode='nearest')
    time, wanted = np.arange(len(poses)), np.linspace(0.0, len(poses) - 1, count)
    result = np.tile(np.eye(4), (count, 1, 1))
    result[:, :3, 3] = CubicSpline(time, centres)(wanted)
    result[:, :3, :3] = Slerp(time, Rotation.from_quat(quaternions))(wanted).as_matrix()
    return result


def focus_point(poses: Array, fallback: float) -> Array:
    """Point (3,) nearest to all optical axes, or `fallback` in front of the mean camera where they are parallel."""
    axes, centres = poses[:, :3, 2], poses[:, :3, 3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    mean = axes.mean(axis=0)
    ahead = centres.mean(axis=0) + fallback * mean / max(float(np.linalg.norm(mean)), 1e-9)
    if np.linalg.cond(across.sum(axis=0)) > 1e4:
        return np.asarray(ahead)
    point = np.linalg.solve(across.sum(axis=0), np.einsum('nij,nj->i', across, centres))
    in_front = ((point - centres) * axes).sum(axis=1) > 0
    return np.asarray(point if in_front.mean() > 0.5 else ahead)


def orbit(poses: Array, count: int, reach: float) -> Array:
    """Poses (count, 4, 4) on a circle about the middle camera, as wide as the recorded ones, all looking at one point.

    It stays where cameras have been, so that it does not lead through walls. `reach` is how far ahead the scene lies
    where the recorded axes do not meet.
    """
    centres = poses[:, :3, 3]
    middle = int(np.argmin(np.linalg.norm(centres - centres.mean(axis=0), axis=1)))
    spread = 0.6 * float(np.median(np.linalg.norm(centres - centres.mean(axis=0), axis=1)))
    right, down = poses[middle, :3, 0], poses[middle, :3, 1]
    goal = focus_point(poses, reach)
    result = np.tile(np.eye(4), (count, 1, 1))
    for number, angle in enumerate(np.arange(count) * 2 * np.pi / count):
        centre = centres[middle] + spread * (np.cos(angle) * right + 0.5 * np.sin(angle) * down)
        result[number, :3, :3] = looking_at(centre, goal, down)
        result[number, :3, 3] = centre
    return result


def looking_at(centre: Array, goal: Array, down: Array) -> Array:
    """Rotation (3, 3) of a camera that looks from a centre at a goal, its y axis as far down as that allows."""
    forward = (goal - centre) / max(float(np.linalg.norm(goal - centre)), 1e-12)
    right = np.cross(down, forward)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(np.roll(down, 1), forward)
    right = right / np.linalg.norm(right)
    return np.column_stack([right, np.cross(forward, right), forward])


def from_file(path: Path | str) -> Array:
    """Poses (N, 4, 4) of a TUM file or a `cameras.json` in the world of the field; DataError without any."""
    path = Path(path)
    if path.name == CAMERAS_FILE or path.suffix == '.json' or path.is_dir():
        poses = read_cameras_json(path).trajectory().world_from_camera
    else:
        poses = read_tum(path).world_from_camera
    if not len(poses):
        raise DataError(f'{path} holds no pose')
    return np.asarray(poses)
