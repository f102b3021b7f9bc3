# SPDX-License-Identifier: Apache-2.0
"""The map as a `Reconstruction`."""

from __future__ import annotations

import numpy as np

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.records import BoundedCloud, PoseLog
from dark3r_ros.mapping.sparse_map import SparseMap
from dark3r_ros.types import Observations, PointCloud, Reconstruction


def build_reconstruction(
    camera: Camera | None, sparse_map: SparseMap, forgotten: BoundedCloud, log: PoseLog
) -> Reconstruction:
    """Collect frames, cloud and observations of one map; frames of others count as unposed.

    Raises ReconstructionError when no calibrated frame was seen.
    """
    if camera is None:
        raise ReconstructionError('no frame with calibration was seen, so there is nothing to write')
    records = log.records(sparse_map.keyframes, 'posed in another submap, which could not be joined')
    places = log.keyframe_places()
    observing = [keyframe for keyframe in sparse_map.keyframes if keyframe.keyframe_id in places
                 and len(keyframe.table.observing())]  # fmt: skip
    seen = sparse_map.observations(observing)
    seen = seen.select(~sparse_map.landmarks.provisional[seen.landmark])
    landmarks, point_index = np.unique(seen.landmark, return_inverse=True)
    frames = np.array([places[keyframe.keyframe_id] for keyframe in observing], dtype=np.int64)
    rays = np.column_stack([seen.normalised, np.ones(len(seen.normalised))])
    observations = Observations(
        sparse_map.landmarks.points[landmarks].copy(),
        sparse_map.landmarks.colors[landmarks].copy(),
        point_index.astype(np.int64),
        frames[seen.keyframe] if len(seen.keyframe) else np.zeros(0, dtype=np.int64),
        # Every view is undistorted by its own camera; the pixels are those of the first full-size camera.
        camera.project(rays) if len(rays) else np.zeros((0, 2)),
    )
    near, old = sparse_map.cloud(landmarks), forgotten.cloud()
    cloud = PointCloud(
        np.concatenate([old.points, near.points]),
        np.concatenate([old.colors, near.colors]),
        np.concatenate([old.confidence, near.confidence]),
    )
    return Reconstruction(camera, tuple(records), cloud, observations)
