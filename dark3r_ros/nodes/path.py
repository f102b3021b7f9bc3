# SPDX-License-Identifier: Apache-2.0
"""Newest estimates of all posed frames, kept relative to keyframes so that refinement moves them too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.events import FramePosed, KeyframeAdded, KeyframeState
from dark3r_ros.nodes import convert
from dark3r_ros.types import Float64Array


@dataclass
class _Entry:
    """A frame: its keyframe, its pose relative to it, and the converted pose while that is current."""

    keyframe_id: int
    keyframe_from_camera: Float64Array
    message: PoseStamped | None = None


class PathKeeper:
    """At most `capacity` newest frames; a moved keyframe takes the frames that follow it along."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._entries: dict[int, _Entry] = {}
        self._keyframes: dict[int, Float64Array] = {}
        self._newest_keyframe = -1
        self._sorted = True
        self.changed = False

    def __len__(self) -> int:
        return len(self._entries)

    def posed(self, event: FramePosed) -> None:
        """Add or renew a frame that follows the newest keyframe."""
        reference = self._keyframes.get(self._newest_keyframe)
        if reference is None:  # before the first keyframe: an anchor of its own at the origin
            self._put(event.stamp_ns, _Entry(-1, event.world_from_camera))
            return
        relative = se3.inverse(reference) @ event.world_from_camera
        self._put(event.stamp_ns, _Entry(self._newest_keyframe, relative))

    def keyframe_added(self, event: KeyframeAdded) -> None:
        """Make a frame a keyframe."""
        self._keyframes[event.keyframe_id] = event.world_from_camera
        self._newest_keyframe = event.keyframe_id
        self._put(event.stamp_ns, _Entry(event.keyframe_id, np.eye(4)))

    def keyframes_moved(self, keyframes: Iterable[KeyframeState]) -> None:
        """Move keyframes and what hangs on them."""
        moved = set()
        for keyframe in keyframes:
            if keyframe.keyframe_id in self._keyframes:
                self._keyframes[keyframe.keyframe_id] = keyframe.world_from_camera
                moved.add(keyframe.keyframe_id)
        for entry in self._entries.values():
            if entry.keyframe_id in moved:
                entry.message = None
        self.changed = self.changed or bool(moved)

    def replace(self, stamps_ns: Iterable[int], world_from_camera: Iterable[Float64Array]) -> None:
        """Take exact poses of all frames, as a finished refinement gives them."""
        for stamp_ns, pose in zip(stamps_ns, world_from_camera, strict=True):
            old = self._entries.get(int(stamp_ns))
            reference = None if old is None else self._keyframes.get(old.keyframe_id)
            if old is None or reference is None:
                self._put(int(stamp_ns), _Entry(-1, pose))
            else:
                self._put(int(stamp_ns), _Entry(old.keyframe_id, se3.inverse(reference) @ pose))

    def rescaled(self) -> None:
        """Convert everything again next time: what turns poses into messages has changed."""
        for entry in self._entries.values():
            entry.message = None
        self.changed = bool(self._entries)

    def messages(self, base_pose: Callable[[Float64Array], Float64Array], map_frame: str) -> list[PoseStamped]:
        """Poses of the base in the map in order of time, by `base_pose` from world_from_camera.

        Only what changed is converted again.
        """
        if not self._sorted:
            self._entries = dict(sorted(self._entries.items()))
            self._sorted = True
        result = []
        for stamp_ns, entry in self._entries.items():
            if entry.message is None:
                entry.message = convert.pose_stamped(base_pose(self._pose(entry)), stamp_ns, map_frame)
            result.append(entry.message)
        self.changed = False
        return result

    def world_from_camera(self, stamp_ns: int) -> Float64Array | None:
        """Newest estimate of a frame; None for one that is not kept."""
        entry = self._entries.get(stamp_ns)
        return None if entry is None else self._pose(entry)

    def _pose(self, entry: _Entry) -> Float64Array:
        reference = self._keyframes.get(entry.keyframe_id)
        return entry.keyframe_from_camera if reference is None else reference @ entry.keyframe_from_camera

    def _put(self, stamp_ns: int, entry: _Entry) -> None:
        if self._entries and stamp_ns not in self._entries and stamp_ns < next(reversed(self._entries)):
            self._sorted = False
        self._entries[stamp_ns] = entry
        self.changed = True
        while len(self._entries) > self._capacity:
            if not self._sorted:
                self._entries = dict(sorted(self._entries.items()))
                self._sorted = True
            del self._entries[next(iter(self._entries))]
        # Keyframes that no kept frame hangs on are of no use any more.
        if len(self._keyframes) > 2 * len(self._entries) + 100:
            used = {item.keyframe_id for item in self._entries.values()}
            self._keyframes = {key: pose for key, pose in self._keyframes.items() if key in used}
