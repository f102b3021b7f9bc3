# SPDX-License-Identifier: Apache-2.0
"""Depth maps of many views as one mesh, by a truncated signed distance volume of Open3D.

Source: Curless and Levoy, A volumetric method for building complex models from range images, 1996.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.sfm.fusion import voxel_size
from dark3r_ros.sfm.views import View
from dark3r_ros.types import DepthMap

Array = NDArray[np.float64]

# Voxels of twice the cloud's side: a surface needs several depths in each.
_COARSER = 2.0
_TRUNCATION = 5.0  # voxels on either side of a surface
_BLOCKS = 20_000  # of 8x8x8 voxels to begin with; the volume grows where it must


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices (N, 3) float32 in the world, their colours (N, 3) uint8, and triangles (M, 3) int32 of them."""

    vertices: NDArray[np.float32]
    colors: NDArray[np.uint8]
    triangles: NDArray[np.int32]


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
    o3d = import_open3d()
    kept = {
        number: np.where(one.confidence >= min_confidence, one.depth, 0).astype(np.float32)
        for number, one in maps.items()
    }
    voxel = voxel or _COARSER * voxel_size(maps)
    largest = max((float(depth.max(initial=0.0)) for depth in kept.values()), default=0.0)
    if voxel <= 0 or largest <= 0:
        raise ReconstructionError('no depth is sure enough to make a mesh from')
    real = o3d.core.float32
    # The older ScalableTSDFVolume stays empty in some builds of Open3D; this one works in all.
    volume = o3d.t.geometry.VoxelBlockGrid(
        ('tsdf', 'weight', 'color'), (real, real, real), ((1), (1), (3)), voxel_size=voxel, block_count=_BLOCKS
    )
    for number in sorted(kept):
        depth, colors, matrix = _without_distortion(views[number], kept[number])
        if not depth.any():
            continue
        image, picture = o3d.t.geometry.Image(depth), o3d.t.geometry.Image(colors.astype(np.float32) / 255.0)
        intrinsics = o3d.core.Tensor(matrix)
        extrinsics = o3d.core.Tensor(np.ascontiguousarray(se3.inverse(world_from_camera[number])))
        limits = (1.0, 1.01 * largest, _TRUNCATION)  # counts per unit, largest depth, truncation
        blocks = volume.compute_unique_block_coordinates(image, intrinsics, extrinsics, *limits)
        volume.integrate(blocks, image, picture, intrinsics, intrinsics, extrinsics, *limits)
    # A surface that only one view saw stays.
    mesh = volume.extract_triangle_mesh(weight_threshold=0.5)
    if not len(mesh.vertex.positions) or not len(mesh.triangle.indices):
        raise ReconstructionError('the depths that are sure do not form a surface')
    colors = np.clip(np.rint(255.0 * mesh.vertex.colors.numpy()), 0, 255)
    return Mesh(
        mesh.vertex.positions.numpy().astype(np.float32),
        colors.astype(np.uint8),
        mesh.triangle.indices.numpy().astype(np.int32),
    )


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
