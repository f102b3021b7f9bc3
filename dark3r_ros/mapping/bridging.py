# SPDX-License-Identifier: Apache-2.0
"""Submaps joined by odometry where nothing was seen in between, as while a lens cap was on.

The odometry leads from the last view of one submap to the first one of the next, and gives both their scales. That is
exact enough to go on in the same map at once. The scale of the next submap, known from a short way at first, is put
right as the way gets longer; a recognised place may correct the rest later, as a loop.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.metric import MetricConfig, MetricScale
from dark3r_ros.mapping.odometry_track import OdometryTrack
from dark3r_ros.mapping.similarity import Similarity, between_poses
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap

Array = NDArray[np.float64]

# Scales are wanted soon, from a short way, and are believed accordingly less: the deviations that a bridge may rest on.
_METRIC = MetricConfig(min_distance=0.05, min_steps=4, max_deviation=0.1, window=800)
_DEVIATION = (0.03, 0.1)  # of the scale of the submap before, and of the one after
_LONGEST = (60.0, 30.0)  # seconds and metres without a view
# Deviations of a bridge: a floor (metres, radians, logarithm), shares of its way and of its turn, radians per metre.
_DOUBT = (0.01, 0.05, 0.05, 0.01)
_MISALIGNED = math.radians(20.0)  # between the stated mounting of the camera and what the motions show
_BETTER = 0.7  # share of the deviation at which a scale is put right
_LEAST_CHANGE = 0.003
_WAITING, _RECORDS = 1000, 8


@dataclass(frozen=True, eq=False)
class _Seen:
    """A view by its keyframe, which may move: keyframe_from_camera (4, 4) in units of the map."""

    stamp_ns: int
    keyframe: Keyframe
    relative: Array

    @property
    def world_from_camera(self) -> Array:
        return self.keyframe.world_from_camera @ self.relative


@dataclass(eq=False)
class _Record:
    """What a stay in one submap tells of its scale.

    `own_from_begun` leads from the frame that the submap had in the beginning to that of the map it belongs to now.
    `bridge` is the one over which it was joined to the map before.
    """

    submap: Submap
    first: _Seen
    last: _Seen
    scale: MetricScale
    own_from_begun: Similarity = field(default_factory=Similarity.identity)
    bridge: Bridge | None = None
    odometry_piece: int | None = None

    def take(self, stamp_ns: int, world_from_camera: Array, odom_from_body: Array, piece: int) -> None:
        if self.odometry_piece not in (None, piece):
            self.scale.interrupt()
        self.odometry_piece = piece
        camera_from_begun = self.own_from_begun.inverse().pose(se3.inverse(world_from_camera))
        self.scale.add_odometry(stamp_ns, odom_from_body)
        self.scale.add_pose(stamp_ns, se3.inverse(camera_from_begun))

    @property
    def metres(self) -> float:
        """Metres per present unit of the submap."""
        return self.scale.estimate.scale / self.own_from_begun.scale


@dataclass(frozen=True, eq=False)
class Bridge:
    """Where a submap lies in the one before it, by odometry.

    Attributes
    ----------
    place, query: keyframes at both ends.
    sigma: deviations of rotation (rad), translation (units of the old submap) and logarithm of the scale.
    old_metres: metres per unit of the old submap. deviation: relative one of the scale of the new submap.

    """

    old: Submap
    new: Submap
    place: Keyframe
    query: Keyframe
    old_from_new: Similarity
    sigma: tuple[float, float, float]
    old_metres: float
    deviation: float


@dataclass(frozen=True, eq=False)
class Stretch:
    """Keyframes of a submap from `first` on grow by a factor about a point (3,)."""

    submap: Submap
    first: Keyframe
    centre: Array
    factor: float

    def nodes(self) -> list[Similarity]:
        """Where every keyframe of the submap goes: world_from_keyframe with a scale."""
        return [self._node(keyframe) for keyframe in self.submap.map.keyframes]

    def _node(self, keyframe: Keyframe) -> Similarity:
        pose = keyframe.world_from_camera
        if keyframe.keyframe_id < self.first.keyframe_id:
            return Similarity.of_pose(pose)
        return Similarity(self.factor, pose[:3, :3], self.centre + self.factor * (pose[:3, 3] - self.centre))


class OdometryBridges:
    """Watches the submaps that the camera goes through, and says how odometry joins them.

    Parameters
    ----------
    track: the odometry of the robot.

    """

    def __init__(self, track: OdometryTrack) -> None:
        self._track = track
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: something else has moved the maps."""
        self._records: list[_Record] = []
        self._waiting: deque[tuple[_Record, int, Array]] = deque(maxlen=_WAITING)

    def see(self, submap: Submap, stamp_ns: int, world_from_camera: Array, keyframe: Keyframe | None = None) -> None:
        """Take a pose (4, 4) in a submap, in the order of the stamps, and a keyframe near it, by default the newest."""
        keyframe = keyframe or submap.map.keyframes[-1]
        seen = _Seen(stamp_ns, keyframe, se3.inverse(keyframe.world_from_camera) @ world_from_camera)
        if not self._records or self._records[-1].submap is not submap:
            record = _Record(submap, seen, seen, MetricScale(_METRIC, self._track.body_from_camera))
            self._records = [*self._records, record][-_RECORDS:]
        record = self._records[-1]
        record.last = seen
        record.scale.body_from_camera = self._track.body_from_camera
        self._waiting.append((record, stamp_ns, world_from_camera))
        newest = self._track.newest_ns
        while self._waiting and newest is not None and self._waiting[0][1] <= newest:
            record, stamp_ns, pose = self._waiting.popleft()
            found = self._track.at(stamp_ns)
            if found is not None:
                record.take(stamp_ns, pose, *found)

    # ------------------------------------------------------------------ bridges

    def across(self, submaps: Sequence[Submap]) -> Bridge | None:
        """A bridge from one of the submaps to the one that the camera came to next; None while there is none."""
        for before, after in itertools.pairwise(self._records):
            if before.submap is not after.submap and before.submap in submaps and after.submap in submaps:
                bridge = self._bridge(before, after)
                if bridge is not None:
                    after.bridge = bridge
                    return bridge
        return None

    def crossed(self, bridge: Bridge, joined: Submap, joined_from_other: Similarity) -> None:
        """The submaps of a bridge are one: the other one has moved into `joined`."""
        self._waiting.clear()
        for record in self._records:
            if record.submap in (bridge.old, bridge.new) and record.submap is not joined:
                record.own_from_begun = joined_from_other.after(record.own_from_begun)
                record.submap = joined

    def stretch(self) -> Stretch | None:
        """How the map behind the newest bridge has to grow, now that its scale is known better; None while not."""
        record = self._records[-1] if self._records else None
        if record is None or record.bridge is None or record.bridge.new is record.submap:
            return None
        found = record.scale.estimate
        if not found.known or found.deviation > _BETTER * record.bridge.deviation:
            return None
        factor = record.metres / record.bridge.old_metres
        record.bridge = replace(record.bridge, deviation=found.deviation)
        if abs(math.log(factor)) < _LEAST_CHANGE:
            return None
        centre = record.first.world_from_camera[:3, 3]
        grown = Similarity(factor, np.eye(3), centre - factor * centre)
        record.own_from_begun = grown.after(record.own_from_begun)
        self._waiting.clear()
        return Stretch(record.submap, record.first.keyframe, centre, factor)

    def _bridge(self, before: _Record, after: _Record) -> Bridge | None:
        """The bridge between two stays; None where odometry does not reach or a scale is not known."""
        start, end = before.last, after.first
        motion = self._motion(start.stamp_ns, end.stamp_ns, before.scale)
        if motion is None or not (before.scale.estimate.known and after.scale.estimate.known):
            return None
        deviations = (before.scale.estimate.deviation, after.scale.estimate.deviation)
        if deviations[0] > _DEVIATION[0] or deviations[1] > _DEVIATION[1]:
            return None
        old_from_end = start.world_from_camera @ se3.make(motion[:3, :3], motion[:3, 3] / before.metres)
        return Bridge(
            before.submap,
            after.submap,
            start.keyframe,
            end.keyframe,
            between_poses(se3.inverse(old_from_end), se3.inverse(end.world_from_camera), after.metres / before.metres),
            _doubt(motion, before.metres, math.hypot(*deviations)),
            before.metres,
            deviations[1],
        )

    def _motion(self, start_ns: int, end_ns: int, scale: MetricScale) -> Array | None:
        """start_from_end (4, 4) of the camera in metres by odometry alone; None where that does not tell."""
        start, end = self._track.at(start_ns), self._track.at(end_ns)
        if start is None or end is None or start[1] != end[1] or not 0 < end_ns - start_ns <= _LONGEST[0] * 1e9:
            return None
        turn = scale.misalignment()
        if turn is None or se3.rotation_angle(turn) > _MISALIGNED:
            return None
        stated = self._track.body_from_camera
        mounting = se3.make(stated[:3, :3] @ turn.T, stated[:3, 3])
        motion = se3.inverse(start[0] @ mounting) @ end[0] @ mounting
        return motion if float(np.linalg.norm(motion[:3, 3])) <= _LONGEST[1] else None


def _doubt(motion: Array, metres: float, scale: float) -> tuple[float, float, float]:
    """Deviations of a bridge; `metres` per unit of the old submap."""
    way, turn = float(np.linalg.norm(motion[:3, 3])), se3.rotation_angle(motion)
    floor, share, share_of_turn, per_metre = _DOUBT
    return floor + share_of_turn * turn + per_metre * way, (floor + share * way) / metres, max(scale, floor)
