# SPDX-License-Identifier: Apache-2.0
"""From the state of the map to what its driver is told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.events import Event, FramePosed, KeyframeAdded, KeyframesMoved, KeyframeState
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import TrackResult

Array = NDArray[np.float64]

STAGES = ('encode', 'initialise', 'track', 'keyframe', 'window', 'loops', 'final', 'anew')


class StageClock:
    """Wall seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure one stage while it runs."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


def frame_posed(view: View, submap: Submap, result: TrackResult, becomes_keyframe: bool, *, late: bool) -> FramePosed:
    """A view got a pose."""
    pose = result.camera_from_world
    assert pose is not None
    world_from_camera = se3.inverse(pose)
    return FramePosed(
        view.stamp_ns,
        view.frame_id,
        world_from_camera,
        world_covariance(world_from_camera, result.covariance),
        result.inliers,
        result.matches,
        view.snr_db,
        becomes_keyframe,
        late,
        submap.submap_id,
    )


def keyframe_added(keyframe: Keyframe, submap: Submap) -> KeyframeAdded:
    """A keyframe with its landmarks."""
    rows = keyframe.table.observing()
    return KeyframeAdded(
        keyframe.keyframe_id,
        keyframe.stamp_ns,
        keyframe.frame_id,
        keyframe.world_from_camera,
        submap.map.cloud(keyframe.table.landmark[rows]),
        keyframe.snr_db,
        len(rows),
        submap.submap_id,
    )


def frames_joined(keyframes: Sequence[Keyframe], submap: Submap, log: PoseLog) -> list[Event]:
    """Frames and keyframes of a submap once more, now that it belongs to another one.

    All of them are late, the newest one, too: it was posed before, and how sure it is in this map nobody has asked.
    """
    of_stamp = {keyframe.stamp_ns: keyframe for keyframe in keyframes}
    events: list[Event] = []
    for record in log.records(keyframes):
        if record.world_from_camera is None:
            continue
        keyframe = of_stamp.get(record.stamp_ns) if record.keyframe else None
        events.append(
            FramePosed(
                record.stamp_ns,
                keyframes[0].frame_id,
                record.world_from_camera,
                np.zeros((6, 6)),
                record.inliers,
                record.matches,
                record.snr_db,
                record.keyframe,
                True,
                submap.submap_id,
            )
        )
        if keyframe is not None:
            events.append(keyframe_added(keyframe, submap))
    return events


def keyframes_moved(keyframes: Sequence[Keyframe], submap: Submap) -> KeyframesMoved:
    """Newest estimates of the keyframes as an event."""
    return KeyframesMoved(
        tuple(
            KeyframeState(
                keyframe.keyframe_id,
                keyframe.stamp_ns,
                keyframe.world_from_camera,
                keyframe.snr_db,
                len(keyframe.table.observing()),
                submap.submap_id,
            )
            for keyframe in keyframes
        )
    )


def in_time_order(events: Sequence[Event]) -> list[Event]:
    """Order posed frames by their stamps; what belongs to a frame stays behind it, the newest moves go to the end."""
    newest = {state.keyframe_id: state for event in events if isinstance(event, KeyframesMoved)
              for state in event.keyframes}  # fmt: skip
    others = [event for event in events if not isinstance(event, KeyframesMoved)]
    ordered = sorted(others, key=lambda event: event.stamp_ns)
    return [*ordered, *([KeyframesMoved(tuple(newest.values()))] if newest else [])]


def world_covariance(world_from_camera: Array, left_twist: Array) -> Array:
    """Covariance (6, 6) of small motions of the camera, seen in the world: translation, then rotation.

    A left twist of camera_from_world moves the world in the camera's axes. Turned into the world frame, the camera
    moves the opposite way, which leaves the covariance as it is.
    """
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = world_from_camera[:3, :3]
    return turn @ left_twist @ turn.T
