# SPDX-License-Identifier: Apache-2.0
"""Metric scale of a reconstruction, from odometry or from a known distance of two frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.types import DepthMap, FrameRecord, Observations, PointCloud, Reconstruction, Trajectory

Array = NDArray[np.float64]

# Odometry farther than this from a frame says nothing about it.
_MAX_GAP_NS = 10**8


def scale_from_odometry(reconstruction: Reconstruction, odometry: Trajectory) -> float:
    """Metres per unit, as the median ratio of distances between frames some way apart.

    Odometry may be that of any body fixed to the camera; it drifts, so that far frames say no more than near ones.
    Raises ReconstructionError where fewer than three frames move and have odometry within 0.1 s.
    """
    own = reconstruction.trajectory()
    nearest = np.searchsorted(odometry.stamps_ns, own.stamps_ns).clip(1, max(len(odometry) - 1, 1))
    if len(odometry) < 2 or not len(own):
        raise ReconstructionError('the odometry has fewer than two poses: no scale follows from it')
    before = np.abs(odometry.stamps_ns[nearest - 1] - own.stamps_ns) < np.abs(
        odometry.stamps_ns[nearest] - own.stamps_ns
    )
    nearest = nearest - before
    close = np.abs(odometry.stamps_ns[nearest] - own.stamps_ns) <= _MAX_GAP_NS
    here = own.world_from_camera[close, :3, 3]
    there = odometry.world_from_camera[nearest[close], :3, 3]
    ratios = []
    for step in (1, 2, 4, 8, 16):
        if step < len(here):
            length = np.linalg.norm(here[step:] - here[:-step], axis=1)
            metres = np.linalg.norm(there[step:] - there[:-step], axis=1)
            moved = (length > 0) & (metres > 0.02)
            ratios.append(metres[moved] / length[moved])
    found = np.concatenate(ratios) if ratios else np.zeros(0)
    if len(found) < 2:
        raise ReconstructionError('odometry and posed frames share no motion: no scale follows from it')
    return float(np.median(found))


def scale_from_distance(reconstruction: Reconstruction, first: str, second: str, metres: float) -> float:
    """Metres per unit from the distance of two frames, named by file, stamp or number.

    Such as the two cameras of a stereo rig. Raises DataError for frames that are unknown, without pose or at one place.
    """
    a, b = (_position(reconstruction.frames, name) for name in (first, second))
    length = float(np.linalg.norm(a - b))
    if not metres > 0 or length <= 0:
        raise DataError(f'the distance of {first} and {second} must be positive: {metres} m over {length} units')
    return metres / length


def _position(frames: tuple[FrameRecord, ...], name: str) -> Array:
    for number, frame in enumerate(frames):
        if name in (frame.name, str(frame.stamp_ns), str(number)):
            if frame.world_from_camera is None:
                raise DataError(f'frame {name} has no pose, so that no scale follows from it: {frame.reason}')
            return np.asarray(frame.world_from_camera[:3, 3])
    raise DataError(f'there is no frame {name!r}: give a file name, a stamp in nanoseconds or a number from 0')


def scaled(reconstruction: Reconstruction, scale: float) -> Reconstruction:
    """The same in metres."""
    frames = []
    for frame in reconstruction.frames:
        pose = frame.world_from_camera
        if pose is not None:
            pose = pose.copy()
            pose[:3, 3] *= scale
        frames.append(replace(frame, world_from_camera=pose))
    cloud, seen = reconstruction.cloud, reconstruction.observations
    return replace(
        reconstruction,
        frames=tuple(frames),
        cloud=PointCloud(cloud.points * np.float32(scale), cloud.colors, cloud.confidence),
        observations=Observations(seen.points * scale, seen.colors, seen.point_index, seen.frame_index, seen.pixels),
        metric_scale=True,
    )


def scaled_depths(depths: dict[int, DepthMap], scale: float) -> dict[int, DepthMap]:
    """Depth maps in metres."""
    return {number: DepthMap(one.depth * np.float32(scale), one.confidence) for number, one in depths.items()}


def scaled_covariance(covariance: Array, scale: float) -> Array:
    """Covariance (6, 6) of a twist (translation, rotation) after its unit became metres."""
    factor = np.array([scale] * 3 + [1.0] * 3)
    return np.asarray(covariance * factor[:, None] * factor)
