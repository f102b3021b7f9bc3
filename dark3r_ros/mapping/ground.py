# SPDX-License-Identifier: Apache-2.0
"""Metres per map unit from the height of the camera above the ground.

Where nobody publishes odometry, a robot's camera still sits at a known height. Landmarks of the newest keyframes lie on
the floor by the hundred: the plane that most of them share, and below which few lie, is that height away.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.metric import ScaleEstimate
from dark3r_ros.mapping.robust import robust_line
from dark3r_ros.types import Reconstruction

Array = NDArray[np.float64]

# Upwards as a camera that looks ahead sees it, and how much its tilt and a slope may change that.
UP_IN_CAMERA: Array = se3.BODY_FROM_OPTICAL[2, :3].copy()
_MAX_TILT = math.radians(25.0)
_THICKNESS = 0.06  # of the ground, as a share of the height above it: relief and noise
_TRIALS, _POINTS = 300, 2000
_FEWEST = 40  # points of a ground
_MOST_BELOW = 0.5  # points below it, as a share of its own: what lies above a floor is a table
_KEYFRAMES = 8  # newest ones whose landmarks are looked at together
_MEASUREMENTS = (16, 24)  # that a scale needs, and the newest ones that tell it: the unit of a map creeps
_MAX_DEVIATION = 0.05  # of a scale that counts as known: no floor is flatter


def height_above_ground(points: Array, up: Array) -> float | None:
    """Height of the camera above the ground, in the unit of the points.

    `points` (N, 3) in the camera, `up` (3,) of unit length. Planes through three of the points, a fixed draw, are
    compared by how many lie on them and how few below; the best one is fitted to its points. None where no plane
    within 25 degrees of the horizontal stands out.
    """
    below = points[points @ up < 0.0]
    if len(below) < _FEWEST:
        return None
    rng = np.random.default_rng(0)
    if len(below) > _POINTS:
        below = below[rng.choice(len(below), _POINTS, replace=False)]
    corners = below[rng.integers(0, len(below), (_TRIALS, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    normals /= np.where(lengths > 0.0, lengths, 1.0)[:, None]
    normals *= np.sign(normals @ up)[:, None]
    heights = -(normals * corners[:, 0]).sum(axis=1)
    level = (normals @ up >= math.cos(_MAX_TILT)) & (heights > 0.0)
    normals, heights = normals[level], heights[level]
    if not len(heights):
        return None
    # Distances above each plane, in heights of the camera: (N, planes).
    above = below @ (normals / heights[:, None]).T + 1.0
    merit = (np.abs(above) < _THICKNESS).sum(axis=0) - (above < -2.0 * _THICKNESS).sum(axis=0)
    best = int(merit.argmax())
    return _fitted(below, normals[best], float(heights[best]), up)


def _fitted(below: Array, normal: Array, height: float, up: Array) -> float | None:
    """Height above the plane through the points near a first one; None where that is no ground."""
    for _ in range(4):
        above = (below @ normal + height) / height
        own = np.abs(above) < _THICKNESS
        if own.sum() < _FEWEST:
            return None
        middle = below[own].mean(axis=0)
        normal = np.linalg.svd(below[own] - middle, full_matrices=False)[2][2]
        normal = normal * np.sign(normal @ up)
        height = -float(normal @ middle)
        if normal @ up < math.cos(_MAX_TILT) or height <= 0.0:
            return None
    under = (below @ normal + height < -2.0 * _THICKNESS * height).sum()
    return None if under > _MOST_BELOW * own.sum() else height


class GroundScale:
    """Scale from keyframes in the order they were made.

    Parameters
    ----------
    metres: height of the camera above the ground. newest: measurements that tell it.

    Attributes
    ----------
    up: (3,) upwards in the camera.

    """

    def __init__(self, metres: float, newest: int = _MEASUREMENTS[1]) -> None:
        self._metres, self._ratios = metres, deque[float](maxlen=newest)
        self.up: Array = UP_IN_CAMERA
        self.reset()

    def reset(self) -> None:
        """Forget everything: the map is another one."""
        self._newest: deque[Array] = deque(maxlen=_KEYFRAMES)
        self._ratios.clear()
        self._seen = 0
        self._estimate: ScaleEstimate | None = None

    def interrupt(self) -> None:
        """Say that the camera may be elsewhere now: what was seen before is not looked at with what comes."""
        self._newest.clear()

    def add(self, world_from_camera: Array, points: NDArray[np.floating]) -> None:
        """Take a keyframe (4, 4) and its landmarks (N, 3), both in map units of the world."""
        self._seen += 1
        self._estimate = None
        self._newest.append(np.asarray(points, dtype=np.float64))
        around = se3.transform_points(se3.inverse(world_from_camera), np.concatenate(list(self._newest)))
        height = height_above_ground(around, self.up)
        if height is not None:
            self._ratios.append(math.log(self._metres / height))

    @property
    def estimate(self) -> ScaleEstimate:
        """What all keyframes so far say."""
        if self._estimate is None:
            self._estimate = self._evaluate()
        return self._estimate

    def _evaluate(self) -> ScaleEstimate:
        count = len(self._ratios)
        if count < _MEASUREMENTS[0]:
            return ScaleEstimate(reason=f'the ground was found below {count} of {self._seen} keyframes so far')
        # Neighbours see the same ground.
        line = robust_line(np.arange(-count, 0.0), np.array(self._ratios), overlap=_KEYFRAMES // 2)
        known = line.deviation <= _MAX_DEVIATION
        reason = '' if known else f'the height above the ground is known to {100.0 * line.deviation:.1f} % so far'
        rejected = 1.0 - line.agreeing / count
        return ScaleEstimate(math.exp(line.value), line.deviation, 0.0, known, line.independent, rejected, reason)


def scale_from_height(reconstruction: Reconstruction, metres: float) -> ScaleEstimate:
    """Scale of a finished reconstruction from the height of its camera, which looks ahead.

    Each frame is taken with the points that it sees.
    """
    frames, seen = reconstruction.frames, reconstruction.observations
    found = GroundScale(metres, newest=max(len(frames), 1))
    order = np.argsort(seen.frame_index, kind='stable')
    ends = np.searchsorted(seen.frame_index[order], np.arange(len(frames) + 1))
    for number, frame in enumerate(frames):
        own = order[ends[number] : ends[number + 1]]
        if frame.world_from_camera is not None and len(own):
            found.add(frame.world_from_camera, seen.points[seen.point_index[own]])
    return found.estimate
