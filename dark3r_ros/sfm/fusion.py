# SPDX-License-Identifier: Apache-2.0
"""Depth maps of many views as one cloud, or as one mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DependencyError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.sfm.views import View
from dark3r_ros.types import DepthMap, PointCloud

Array = NDArray[np.float64]

# Voxels over the median depth of the scene: finer than what a plane pixel covers at 300 pixels of focal length.
_VOXELS_PER_DEPTH = 250.0


def voxel_size(maps: Mapping[int, DepthMap]) -> float:
    """Side of a voxel that suits depth maps; 0 where all are empty."""
    depths = [one.depth[one.depth > 0][::50] for one in maps.values()]
    known = np.concatenate(depths) if depths else np.zeros(0)
    return float(np.median(known)) / _VOXELS_PER_DEPTH if len(known) else 0.0


def fuse(
    maps: Mapping[int, DepthMap],
    views: Sequence[View],
    world_from_camera: Mapping[int, Array],
    min_confidence: float = 0.5,
    voxel: float = 0.0,
) -> PointCloud:
    """Mean point and colour of every voxel, from depths of at least `min_confidence`; 0 chooses the voxel.

    The confidence of a voxel is the sum of those of its depths. One view after the other is merged, so that memory
    stays that of the cloud.
    """
    voxel = voxel or voxel_size(maps)
    table = np.zeros((0, 10))  # voxel (3), sums of confidence, position (3), colour (3)
    for number in sorted(maps):
        table = _merged(
            np.concatenate(
                [table, _rows(maps[number], views[number], world_from_camera[number], min_confidence, voxel)]
            )
        )
    weight = np.maximum(table[:, 3:4], 1e-12)
    colors = np.clip(np.rint(table[:, 7:10] / weight), 0, 255).astype(np.uint8)
    return PointCloud((table[:, 4:7] / weight).astype(np.float32), colors, table[:, 3].astype(np.float32))


def _rows(one: DepthMap, view: View, pose: Array, min_confidence: float, voxel: float) -> Array:
    rows, columns = np.nonzero((one.depth > 0) & (one.confidence >= min_confidence))
    pixels = np.column_stack([columns, rows]).astype(np.float64)
    depth = one.depth[rows, columns].astype(np.float64)
    local = np.column_stack([view.normalised(pixels), np.ones(len(pixels))]) * depth[:, None]
    points = se3.transform_points(pose, local)
    weight = one.confidence[rows, columns].astype(np.float64)[:, None]
    cells = np.floor(points / max(voxel, 1e-12))
    return np.concatenate([cells, weight, points * weight, view.color_at(pixels) * weight], axis=1)


def _merged(table: Array) -> Array:
    """Rows of the same voxel added up."""
    if not len(table):
        return table
    cells, place = np.unique(table[:, :3], axis=0, return_inverse=True)
    sums = np.zeros((len(cells), 7))
    for column in range(7):
        sums[:, column] = np.bincount(place.ravel(), weights=table[:, 3 + column], minlength=len(cells))
    return np.concatenate([cells, sums], axis=1)


def write_mesh(
    path: Path,
    maps: Mapping[int, DepthMap],
    views: Sequence[View],
    world_from_camera: Mapping[int, Array],
    min_confidence: float = 0.5,
) -> int:
    """Fuse depth maps in a truncated signed distance volume and write its surface as PLY; returns its triangles.

    Views must have no lens distortion. Raises DependencyError without Open3D and ReconstructionError without depth.
    """
    try:
        import open3d
    except ImportError as error:
        raise DependencyError('open3d is missing: pip install "dark3r_ros[mesh]"') from error
    voxel = 2.0 * voxel_size(maps)
    if voxel <= 0:
        raise ReconstructionError('there is no depth to make a mesh from')
    volume = open3d.pipelines.integration.ScalableTSDFVolume(
        voxel_length=voxel,
        sdf_trunc=5.0 * voxel,
        color_type=open3d.pipelines.integration.TSDFVolumeColorType.RGB8,
    )
    for number in sorted(maps):
        camera, colors = views[number].camera, views[number].colors
        assert camera is not None and colors is not None
        kept = np.where(maps[number].confidence >= min_confidence, maps[number].depth, 0).astype(np.float32)
        image = open3d.geometry.RGBDImage.create_from_color_and_depth(
            open3d.geometry.Image(np.ascontiguousarray(colors)),  # type: ignore[call-overload]
            open3d.geometry.Image(np.ascontiguousarray(kept)),  # type: ignore[call-overload]
            depth_scale=1.0,
            depth_trunc=float(kept.max()) + 1.0,
            convert_rgb_to_intensity=False,
        )
        pinhole = open3d.camera.PinholeCameraIntrinsic(
            camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy
        )
        volume.integrate(image, pinhole, se3.inverse(world_from_camera[number]))
    mesh = volume.extract_triangle_mesh()
    open3d.io.write_triangle_mesh(path, mesh)
    return len(mesh.triangles)
