# SPDX-License-Identifier: Apache-2.0
"""From the pipeline's world to the map frame: mounting of the camera and unit of length in one place.

The pipeline's world is the optical frame of its first camera, in units of its own. The map frame is put so that the
base starts at its origin with its own axes: with E = base_from_camera and the world scaled to metres,
map_from_base(t) = E world_from_camera(t) E^-1. A map that was loaded keeps the E that it was made with on the left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.nodes import convert
from dark3r_ros.sfm.scale import scaled_covariance
from dark3r_ros.types import Float64Array, PointCloud


class MapFrame:
    """Place and unit that all outputs share, so that they change together.

    Attributes
    ----------
    map_from_world: (4, 4); None until there is a map.
    scale: metres per unit of the world, 1 while it is not known. deviation: its relative standard deviation.

    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.map_from_world: Float64Array | None = None
        self._base_from_camera: Float64Array | None = None
        self.scale = 1.0
        self.deviation = 0.0

    @property
    def known(self) -> bool:
        """Whether there is a map frame."""
        return self.map_from_world is not None

    @property
    def base_from_camera(self) -> Float64Array | None:
        """Mounting of the camera (4, 4), metres; None until it was looked up."""
        return self._base_from_camera

    def mount(self, base_from_camera: Float64Array) -> None:
        """Take the mounting; it also places the world of a map that was not loaded."""
        self._base_from_camera = base_from_camera
        if self.map_from_world is None:
            self.map_from_world = base_from_camera

    def camera(self, world_from_camera: Float64Array) -> Float64Array:
        """map_from_camera (4, 4)."""
        assert self.map_from_world is not None
        return np.asarray(self.map_from_world @ self._metric(world_from_camera))

    def base(self, world_from_camera: Float64Array) -> Float64Array:
        """map_from_base (4, 4)."""
        return self.camera(world_from_camera) @ self._camera_from_base

    def covariance(self, covariance: Float64Array, world_from_camera: Float64Array) -> Float64Array:
        """Covariance (6, 6) of the base in map axes from that of the camera in the world.

        What is not known of the scale moves the base along the line from the start of the world.
        """
        assert self.map_from_world is not None
        metric = self._metric(world_from_camera)
        result = convert.body_covariance(
            scaled_covariance(covariance, self.scale), self.map_from_world, metric, self._camera_from_base
        )
        along = self.deviation * (self.map_from_world[:3, :3] @ metric[:3, 3])
        result[:3, :3] += np.outer(along, along)
        return result

    def cloud(self, cloud: PointCloud) -> PointCloud:
        """The points in the map frame."""
        return PointCloud(self.points(cloud.points).astype(np.float32), cloud.colors, cloud.confidence)

    def points(self, points: NDArray[np.floating]) -> Float64Array:
        """Points (N, 3) in the map frame."""
        assert self.map_from_world is not None
        return se3.transform_points(self.map_from_world, np.asarray(points, dtype=np.float64) * self.scale)

    @property
    def _camera_from_base(self) -> Float64Array:
        mounting = se3.BODY_FROM_OPTICAL if self._base_from_camera is None else self._base_from_camera
        return se3.inverse(mounting)

    def _metric(self, pose: Float64Array) -> Float64Array:
        result = pose.copy()
        result[:3, 3] *= self.scale
        return result
