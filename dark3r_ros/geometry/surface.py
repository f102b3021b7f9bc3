# SPDX-License-Identifier: Apache-2.0
"""Depth images of many views as one mesh, by a truncated signed distance volume of Open3D.

Source: Curless and Levoy, A volumetric method for building complex models from range images, 1996.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.open3d import import_open3d

_TRUNCATION = 5.0  # voxels on either side of a surface
_BLOCK_SIDE = 8  # voxels
_BLOCKS = 20_000  # to begin with (200 MB); the volume grows where it must


@dataclass(frozen=True, eq=False)
class Mesh:
    """Vertices (N, 3) float32 in the world, their colours (N, 3) uint8, and triangles (M, 3) int32 of them."""

    vertices: NDArray[np.float32]
    colors: NDArray[np.uint8]
    triangles: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class DepthView:
    """What a camera without distortion saw.

    Attributes
    ----------
    depth: (H, W) float32 along the optical axis in world units, 0 where unknown. colors: (H, W, 3) uint8.
    matrix: (3, 3) of the camera. world_from_camera: (4, 4).

    """

    depth: NDArray[np.float32]
    colors: NDArray[np.uint8]
    matrix: NDArray[np.float64]
    world_from_camera: NDArray[np.float64]


def fuse_surface(views: Iterable[DepthView], voxel: float) -> Mesh:
    """Surface of the depths of views, with voxels of the side `voxel` in world units; views come one after the other.

    Raises DependencyError without Open3D and ReconstructionError where no depths form a surface.
    """
    o3d = import_open3d()
    if voxel <= 0:
        raise ReconstructionError('no depth is known to choose the size of a voxel by')
    real = o3d.core.float32
    # The older ScalableTSDFVolume stays empty in some builds of Open3D; this one works in all.
    volume = o3d.t.geometry.VoxelBlockGrid(
        ('tsdf', 'weight', 'color'), (real, real, real), ((1), (1), (3)), voxel_size=voxel,
        block_resolution=_BLOCK_SIDE, block_count=_BLOCKS,
    )  # fmt: skip
    empty = True
    for view in views:
        largest = float(view.depth.max(initial=0.0))
        if largest <= 0:
            continue
        image = o3d.t.geometry.Image(np.ascontiguousarray(view.depth, np.float32))
        picture = o3d.t.geometry.Image(np.ascontiguousarray(view.colors, np.float32) / 255.0)
        intrinsics = o3d.core.Tensor(np.ascontiguousarray(view.matrix, np.float64))
        extrinsics = o3d.core.Tensor(np.ascontiguousarray(se3.inverse(view.world_from_camera)))
        limits = (1.0, 1.01 * largest, _TRUNCATION)  # counts per unit, largest depth, truncation
        blocks = volume.compute_unique_block_coordinates(image, intrinsics, extrinsics, *limits)
        volume.integrate(blocks, image, picture, intrinsics, intrinsics, extrinsics, *limits)
        empty = False
    if empty:
        raise ReconstructionError('no depth is sure enough to make a mesh from')
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
