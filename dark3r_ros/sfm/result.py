# SPDX-License-Identifier: Apache-2.0
"""Poses and structure as a `Reconstruction`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.sfm.tracks import Tracks, rows_by
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View
from dark3r_ros.types import FrameRecord, Observations, PointCloud, Reconstruction

Array = NDArray[np.float64]


def build_reconstruction(
    views: Sequence[View], poses: Mapping[int, Array], structure: Structure, tracks: Tracks, reasons: Mapping[int, str]
) -> Reconstruction:
    """Collect frames, cloud and observations; the world is the first posed camera.

    `tracks` are all that were tried, `reasons` say why a view has no pose. Raises ReconstructionError when no view is
    calibrated.
    """
    camera = next((view.full_camera for view in views if view.full_camera is not None), None)
    if camera is None:
        raise ReconstructionError('no frame has a calibration, so there is nothing to reconstruct')
    world = poses[min(poses)] if poses else np.eye(4)
    seen = np.bincount(structure.tracks.view, minlength=len(views))
    tried = np.bincount(tracks.view, minlength=len(views))
    records = []
    for number, view in enumerate(views):
        pose = world @ se3.inverse(poses[number]) if number in poses else None
        reason = '' if pose is not None else view.problem or reasons.get(number, 'no view sees the same')
        records.append(
            FrameRecord(
                view.stamp_ns,
                pose,
                pose is not None,
                view.snr_db,
                int(seen[number]),
                int(tried[number]),
                reason,
                view.name,
            )
        )
    points = se3.transform_points(world, structure.points)
    colors = _colors(views, structure.tracks)
    rays = np.column_stack([structure.tracks.normalised, np.ones(len(structure.tracks.normalised))])
    observations = Observations(
        points,
        colors,
        structure.tracks.point,
        structure.tracks.view,
        # Every view is undistorted by its own camera; the pixels are those of the first full-size camera.
        camera.project(rays) if len(rays) else np.zeros((0, 2)),
    )
    counts = np.bincount(structure.tracks.point, minlength=len(points))
    cloud = PointCloud(points.astype(np.float32), colors, counts.astype(np.float32))
    return Reconstruction(camera, tuple(records), cloud, observations)


def world_poses(reconstruction: Reconstruction) -> dict[int, Array]:
    """Poses world_from_camera by number of the frame."""
    return {
        number: frame.world_from_camera
        for number, frame in enumerate(reconstruction.frames)
        if frame.world_from_camera is not None
    }


def _colors(views: Sequence[View], tracks: Tracks) -> NDArray[np.uint8]:
    centre = tracks.centre
    colors = np.zeros((len(tracks), 3), np.uint8)
    for number, mine in rows_by(tracks.view[centre]):
        colors[mine] = views[number].color_at(tracks.pixels[centre[mine]])
    return colors
