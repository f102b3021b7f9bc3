# SPDX-License-Identifier: Apache-2.0
"""What the mapping pipeline tells its driver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    submap: whose frame the pose is in; 0 is the map. Another submap was begun while the camera was lost and lies
        anywhere at any scale until it is joined; its frames and keyframes are then reported again, late, in the map.

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
    submap: int = 0


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
    submap: int = 0


@dataclass(frozen=True, eq=False)
class KeyframeAdded:
    """A keyframe joined a submap (0 is the map); `cloud` holds its landmarks in the frame of the submap."""

    keyframe_id: int
    stamp_ns: int
    frame_id: str
    world_from_camera: Float64Array
    cloud: PointCloud
    snr_db: float
    landmarks: int
    submap: int = 0


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
    """Snapshot of the pipeline for status messages; counts are since the last reset.

    Attributes
    ----------
    submap: the submap that the camera is in; 0 is the map. submaps: how many there are that are not joined.
    loops_proposed, loops_verified, loops_accepted: places that looked alike, those that geometry confirmed, and those
        that closed a loop or joined a submap. loops_refused: how many were refused, by reason.
    averaged: frames that the newest picture is the average of, 0 for one that was refused; more than 1 while the camera
        stands still. `snr_db` and `samples_per_value` are those of the average.
    reprojection: median distance of the inliers of the newest pose from where they should be seen, in pixels of the
        planes. found_again: share of the landmarks looked for that agree with it. Both NaN where there is none.
    spilled: keyframes whose features went to disk. memory_problem: what keeps the map from its memory bound, or empty.

    """

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
    submap: int = 0
    submaps: int = 1
    loops_proposed: int = 0
    loops_verified: int = 0
    loops_accepted: int = 0
    loops_refused: Mapping[str, int] = field(default_factory=dict)
    spilled: int = 0
    memory_problem: str = ''
    averaged: int = 0
    reprojection: float = math.nan
    found_again: float = math.nan
