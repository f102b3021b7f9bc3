# SPDX-License-Identifier: Apache-2.0
"""Similarities of space: what lies between two maps whose scales nobody knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Similarity:
    """`target_from_source`: x -> scale * rotation (3, 3) x + translation (3,)."""

    scale: float
    rotation: Array
    translation: Array

    @classmethod
    def identity(cls) -> Similarity:
        """Leave everything where it is."""
        return cls(1.0, np.eye(3), np.zeros(3))

    @classmethod
    def of_pose(cls, target_from_source: Array) -> Similarity:
        """A pose (4, 4), which changes no scale."""
        return cls(1.0, target_from_source[:3, :3], target_from_source[:3, 3])

    def points(self, points: Array) -> Array:
        """Map points (N, 3)."""
        return self.scale * np.asarray(points) @ self.rotation.T + self.translation

    def pose(self, camera_from_source: Array) -> Array:
        """camera_from_target (4, 4) of a camera given by camera_from_source: turned and moved, not scaled."""
        source_from_camera = se3.inverse(camera_from_source)
        centre = self.points(source_from_camera[None, :3, 3])[0]
        return se3.normalised(se3.inverse(se3.make(self.rotation @ source_from_camera[:3, :3], centre)))

    def inverse(self) -> Similarity:
        """source_from_target."""
        rotation = self.rotation.T
        return Similarity(1.0 / self.scale, rotation, -rotation @ self.translation / self.scale)

    def after(self, first: Similarity) -> Similarity:
        """`first`, then this one."""
        return Similarity(
            self.scale * first.scale, self.rotation @ first.rotation, self.points(first.translation[None])[0]
        )

    @property
    def log_scale(self) -> float:
        """Logarithm of the scale."""
        return math.log(self.scale)


def between_poses(camera_from_target: Array, camera_from_source: Array, scale: float) -> Similarity:
    """target_from_source by one camera that is known in both, and how many target units make a source unit."""
    target_from_camera = se3.inverse(camera_from_target)
    rotation = target_from_camera[:3, :3] @ camera_from_source[:3, :3]
    shift = scale * target_from_camera[:3, :3] @ camera_from_source[:3, 3] + target_from_camera[:3, 3]
    return Similarity(scale, rotation, shift)
