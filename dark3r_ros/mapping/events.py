# SPDX-License-Identifier: Apache-2.0
"""What the mapping pipeline tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dark3r_ros.types import Float64Array, MappingState, PointCloud


@dataclass(frozen=True, eq=False)
class FramePosed:
    """A frame got a pose.

    Attributes
    ----------
    world_from_camera: (4, 4).
    covariance: (6, 6) in the order x y z rx ry rz, small motions of the camera expressed in the world frame.
    keyframe: whether the frame became a keyframe.
    late: True for a frame that is older than one already reported.

    """

    stamp_ns: int
    frame_id: str
    world_from_camera: Float64Array
    covariance: Float64Array
    inliers: int
    matches: int
    snr_db: float
    keyframe: bool
    late: bool = False


@dataclass(frozen=True, eq=False)
class FrameUnposed:
    """A frame got no pose, and why. A later `FramePosed` with the same stamp may still follow."""

    stamp_ns: int
    frame_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class KeyframeState:
    """Newest estimate of one keyframe."""

    keyframe_id: int
    stamp_ns: int
    world_from_camera: Float64Array
    snr_db: float
    landmarks: int


@dataclass(frozen=True, eq=False)
class KeyframeAdded:
    """A keyframe joined the map; `cloud` holds its landmarks in the world frame."""

    keyframe_id: int
    stamp_ns: int
    frame_id: str
    world_from_camera: Float64Array
    cloud: PointCloud
    snr_db: float
    landmarks: int


@dataclass(frozen=True, eq=False)
class KeyframesMoved:
    """Bundle adjustment moved these keyframes."""

    keyframes: tuple[KeyframeState, ...]


@dataclass(frozen=True, eq=False)
class StateChanged:
    """The state of the mapping changed; `message` says why and what to do."""

    stamp_ns: int
    old: MappingState
    new: MappingState
    message: str


@dataclass(frozen=True, eq=False)
class MapDiscarded:
    """The map was given up while it was young; poses and keyframes reported so far are void, ids begin anew."""

    stamp_ns: int
    message: str


Event: TypeAlias = FramePosed | FrameUnposed | KeyframeAdded | KeyframesMoved | StateChanged | MapDiscarded


@dataclass(frozen=True)
class PipelineStatus:
    """Snapshot of the pipeline for status messages; counts are since the last reset."""

    state: MappingState
    message: str
    snr_db: float
    samples_per_value: int
    inliers: int
    matches: int
    keyframes: int
    landmarks: int
    frames: int
    posed: int
    map_bytes: int
