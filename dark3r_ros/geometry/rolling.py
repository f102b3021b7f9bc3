# SPDX-License-Identifier: Apache-2.0
"""A camera that turns while its picture is read out row by row (rolling shutter)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dark3r_ros.geometry.camera import Camera

Array = NDArray[np.float64]

_ROUNDS = 3  # of the search for the row that sees a point; each takes off all but a few hundredths of the error


@dataclass(frozen=True)
class RollingCamera(Camera):
    """A camera whose rows are exposed one after the other while it turns; its pose is that of the middle row.

    Its way during that time is left out, since it would take the distance of every point: at 1 m/s and 20 ms a wall 1 m
    beside the camera is off by 10 mrad at the first and the last row, and what lies ahead hardly.

    Attributes
    ----------
    readout: seconds from the first to the last row.
    turn: rotation vector in the frame of the camera, radians, by which it turns in that time.

    """

    readout: float = 0.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, camera: Camera, readout: float) -> RollingCamera:
        """The same camera with a readout in seconds, not turning."""
        return cls(**{field.name: getattr(camera, field.name) for field in fields(Camera)}, readout=readout)

    def moments(self, pixels: ArrayLike) -> Array:
        """When pixels (N, 2) are exposed, as a share of the readout: -1/2 in the first row, 1/2 in the last."""
        rows = np.asarray(pixels, dtype=np.float64).reshape(-1, 2)[:, 1]
        return np.asarray((rows + 0.5) / self.height - 0.5)

    def project(self, points: ArrayLike) -> Array:
        """Pixels (N, 2) of points (N, 3) in the frame of the camera at the middle row; z must be positive."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        pixels = super().project(points)
        if not any(self.turn):
            return pixels
        for _ in range(_ROUNDS):
            turned = self._turned(points, -np.clip(self.moments(pixels), -1.0, 1.0))
            pixels = super().project(np.where(turned[:, 2:] > 0, turned, points))
        return pixels

    def unproject(self, pixels: ArrayLike) -> Array:
        """Normalised coordinates (N, 2), as the camera at the middle row would see what pixels (N, 2) show."""
        if not any(self.turn):
            return super().unproject(pixels)
        normalised = replace(self, turn=(0.0, 0.0, 0.0)).unproject(pixels)  # which asks for its own projection
        rays = self._turned(np.column_stack([normalised, np.ones(len(normalised))]), self.moments(pixels))
        return np.asarray(rays[:, :2] / rays[:, 2:])

    def _turned(self, vectors: Array, shares: Array) -> Array:
        """Vectors (N, 3), each by its share (N,) of the turn, by Rodrigues' formula."""
        turn = np.array(self.turn)
        angle = float(np.linalg.norm(turn))
        axis, angles = turn / angle, angle * shares[:, None]
        along = (vectors @ axis)[:, None] * axis
        return np.asarray(
            along
            + np.cos(angles) * (vectors - along)
            + np.sin(angles) * np.cross(np.broadcast_to(axis, vectors.shape), vectors)
        )
