# SPDX-License-Identifier: Apache-2.0
"""Depth maps of many views as one cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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
