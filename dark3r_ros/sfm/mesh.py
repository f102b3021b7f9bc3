# SPDX-License-Identifier: Apache-2.0
"""Depth maps of a reconstruction as one mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.surface import DepthView, Mesh, fuse_surface
from dark3r_ros.sfm.fusion import voxel_size
from dark3r_ros.sfm.views import View
from dark3r_ros.types import DepthMap

Array = NDArray[np.float64]

# Voxels of twice the cloud's side: a surface needs several depths in each.
_COARSER = 2.0


def fuse_mesh(
    maps: Mapping[int, DepthMap],
    views: Sequence[View],
    world_from_camera: Mapping[int, Array],
    min_confidence: float = 0.5,
    voxel: float = 0.0,
) -> Mesh:
    """Surface of the depths of at least `min_confidence`; a `voxel` of 0 suits the depths.

    Raises DependencyError without Open3D and ReconstructionError without depth.
    """

    def seen() -> Iterator[DepthView]:
        for number in sorted(maps):
            sure = np.where(maps[number].confidence >= min_confidence, maps[number].depth, 0).astype(np.float32)
            yield DepthView(*_without_distortion(views[number], sure), world_from_camera[number])

    return fuse_surface(seen(), voxel or _COARSER * voxel_size(maps))


def _without_distortion(view: View, depth: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8], Array]:
    """Depth, picture and matrix (3, 3) of the pinhole camera with the same focal length."""
    camera, colors = view.camera, view.colors
    assert camera is not None and colors is not None
    if not camera.distorted:
        return depth, np.ascontiguousarray(colors), camera.matrix
    across, down = cv2.split(camera.pinhole_map())
    # Nearest values: depths of different surfaces must not be mixed.
    moved = np.asarray(cv2.remap(depth, across, down, cv2.INTER_NEAREST), np.float32)
    return moved, np.asarray(cv2.remap(colors, across, down, cv2.INTER_LINEAR), np.uint8), camera.matrix
