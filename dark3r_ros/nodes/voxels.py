# SPDX-License-Identifier: Apache-2.0
"""Thinning of clouds to at most one point a voxel."""

from __future__ import annotations

import numpy as np

from dark3r_ros.types import PointCloud


def voxelise(cloud: PointCloud, per_side: int) -> PointCloud:
    """Keep the most certain point of every voxel; `per_side` voxels span the longest side of the cloud.

    The side is that of the box around the middle 98 % of the points, so that a stray point does not set the size.
    """
    finite = np.isfinite(cloud.points).all(axis=1)
    points = cloud.points[finite]
    if not len(points):
        return PointCloud(points, cloud.colors[finite], cloud.confidence[finite])
    low, high = np.percentile(points, (1, 99), axis=0)
    edge = float((high - low).max()) / per_side
    if edge <= 0.0:
        edge = 1.0
    # Far strays would overflow the integer grid.
    cells = np.clip(np.floor((points - low) / edge), -(2**30), 2**30).astype(np.int64)
    confidence = cloud.confidence[finite]
    order = np.argsort(-confidence, kind='stable')
    _, first = np.unique(cells[order], axis=0, return_index=True)
    chosen = np.sort(order[first])
    return PointCloud(points[chosen], cloud.colors[finite][chosen], confidence[chosen])
