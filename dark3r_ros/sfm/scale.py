# SPDX-License-Identifier: Apache-2.0
"""Metric scale of a reconstruction, from odometry or from a known distance of two frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.geometry import se3
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
    if len(odometry) < 2 or not len(own):
        raise ReconstructionError('the odometry has fewer than two poses: no scale follows from it')
    body, known = odometry_at(odometry, own.stamps_ns)
    here, there = own.world_from_camera[known, :3, 3], body[known, :3, 3]
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


def odometry_at(odometry: Trajectory, stamps_ns: NDArray[np.int64]) -> tuple[Array, NDArray[np.bool_]]:
    """Poses (N, 4, 4) of odometry at stamps (N,), and where they are known.

    Between poses less than 0.2 s apart they are interpolated; elsewhere one within 0.1 s stands for them.
    """
    order, count = np.argsort(odometry.stamps_ns, kind='stable'), len(odometry)
    stamps, poses = odometry.stamps_ns[order], odometry.world_from_camera[order]
    found, known = np.tile(np.eye(4), (len(stamps_ns), 1, 1)), np.zeros(len(stamps_ns), dtype=bool)
    for row, stamp in enumerate(stamps_ns.tolist() if count else ()):
        after = min(int(np.searchsorted(stamps, stamp)), count - 1)
        before = max(after - 1, 0)
        first, second = int(stamps[before]), int(stamps[after])
        if first <= stamp <= second and 0 < second - first <= 2 * _MAX_GAP_NS:
            fraction = (stamp - first) / (second - first)
            found[row] = se3.interpolate(poses[before], poses[after], fraction)
            known[row] = True
            continue
        nearest = before if abs(stamp - first) < abs(stamp - second) else after
        found[row] = poses[nearest]
        known[row] = abs(int(stamps[nearest]) - stamp) <= _MAX_GAP_NS
    return found, known


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
