# SPDX-License-Identifier: Apache-2.0
"""One map of its own frame and scale, and what tracking in it remembers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.archive import Archive
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap
from dark3r_ros.mapping.tracking import TrackResult
from dark3r_ros.mapping.trust import InlierBound

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_FORESEEN = 3.0  # times the last step that the motion is foreseen


@dataclass(eq=False)
class Submap:
    """Keyframes and landmarks that hang together.

    Attributes
    ----------
    submap_id: 0 is the map; others were begun while the camera was lost.
    baseline: result of the first view tracked against the present reference keyframe.
    motion: the last two stamps (ns) and camera_from_world, None after a jump.
    ties: pairs of keyframe ids that a loop or a joint tied together.
    bridges: pairs that odometry ties together where nothing was seen, with the deviations of rotation (rad),
        translation (units of the map) and logarithm of the scale.
    metres: per unit of the map, at which odometry holds it; NaN while it does not.

    """

    submap_id: int
    map: SparseMap
    archive: Archive
    trust: InlierBound
    config: MappingConfig
    baseline: TrackResult | None = None
    motion: tuple[tuple[int, Array], tuple[int, Array]] | None = None
    ties: list[tuple[int, int]] = field(default_factory=list)
    bridges: list[tuple[int, int, float, float, float]] = field(default_factory=list)
    metres: float = math.nan

    @classmethod
    def empty(cls, submap_id: int, config: MappingConfig, numbers: Iterator[int]) -> Submap:
        """Submap without keyframes."""
        return cls(submap_id, SparseMap(numbers), Archive(config), InlierBound(config), config)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.map.nbytes + self.archive.cloud.nbytes

    # ------------------------------------------------------------------ tracking

    def moved_to(self, stamp_ns: int, camera_from_world: Array) -> None:
        """Remember a pose for the prediction of the next one."""
        newest = stamp_ns, camera_from_world
        self.motion = (self.motion[1] if self.motion else newest, newest)

    def carry(self, new_from_old: Array) -> None:
        """Move the remembered poses with the map (4, 4) that they were found in."""
        if self.motion is not None:
            (before_ns, before), (last_ns, last) = self.motion
            old_from_new = se3.inverse(new_from_old)
            self.motion = (before_ns, before @ old_from_new), (last_ns, last @ old_from_new)

    def predicted(self, stamp_ns: int) -> Array | None:
        """camera_from_world at a time, at constant velocity; None where that is too long since to be told."""
        if self.motion is None:
            return None
        (before_ns, before), (last_ns, last) = self.motion
        share = (stamp_ns - last_ns) / (last_ns - before_ns) if last_ns > before_ns else 0.0
        if share > _FORESEEN:
            return None
        return se3.normalised(se3.exp(share * se3.log(last @ se3.inverse(before))) @ last)

    def narrow_references(self, inliers: int) -> list[Keyframe]:
        """Keyframes that a followed camera is compared with; `inliers` of the frame before."""
        # While the newest keyframe alone holds the pose firmly, a second one adds cost and little else.
        count = 1 if inliers >= self.config.firm_inliers else 2
        return self.map.keyframes[-count:][::-1]

    def wide_references(self) -> list[Keyframe]:
        """The newest keyframe and those around it."""
        newest = self.map.keyframes[-1]
        seen = newest.table.landmark
        return [newest, *self.around(seen[seen >= 0], exclude=newest)[:3]]

    def nearest_in_time(self, stamp_ns: int, count: int) -> list[Keyframe]:
        """Matchable keyframes whose stamps are closest."""
        matchable = [keyframe for keyframe in self.map.keyframes if keyframe.matchable]
        return sorted(matchable, key=lambda one: (abs(one.stamp_ns - stamp_ns), one.keyframe_id))[:count]

    def around(self, landmarks: Index, exclude: Keyframe | None = None) -> list[Keyframe]:
        """Matchable keyframes that see any of the landmarks, most shared first: recent ones and remembered places."""
        recent = self.map.keyframes[-(self.config.window + 4 * self.config.window_fixed) :]
        known = {keyframe.keyframe_id: keyframe for keyframe in [*self.archive.remembered, *recent]}
        candidates = [keyframe for keyframe in known.values() if keyframe.matchable and keyframe is not exclude]
        return self.map.covisible(landmarks, candidates)

    # ------------------------------------------------------------------ geometry

    def depth(self, keyframe: Keyframe) -> float:
        """Median distance of a keyframe's landmarks along its axis; 1 where it sees none."""
        seen = keyframe.table.landmark
        points = self.map.landmarks.points[seen[seen >= 0]]
        if len(points) == 0:
            return 1.0
        depth = se3.transform_points(keyframe.camera_from_world, points)[:, 2]
        return max(float(np.median(depth)), 1e-6)

    def distance_since(self, keyframe: Keyframe) -> float:
        """Length of the way from a keyframe to the newest one."""
        keyframes = self.map.keyframes
        start = next(number for number, other in enumerate(keyframes) if other is keyframe)
        centres = np.stack([other.centre for other in keyframes[start:]])
        return float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())

    def move(self, nodes: Sequence[Similarity]) -> None:
        """Move every keyframe to its node (world_from_keyframe with a scale), and what it sees along with it."""
        keyframes = self.map.keyframes
        owner = np.full(self.map.landmarks.capacity, -1, dtype=np.int64)
        for number in reversed(range(len(keyframes))):
            seen = keyframes[number].table.landmark
            owner[seen[seen >= 0]] = number
        rows = np.flatnonzero(owner >= 0)
        world = np.stack([keyframe.camera_from_world for keyframe in keyframes])
        shift = _Shift(world, nodes)
        self.map.landmarks.move(rows, shift.points(self.map.landmarks.points[rows], owner[rows]))
        self.map.landmarks.rescale(rows, np.array([node.scale for node in nodes])[owner[rows]])
        self.archive.cloud.move(lambda points: shift.points(points, shift.nearest(points)))
        for keyframe, node in zip(keyframes, nodes, strict=True):
            keyframe.camera_from_world = se3.normalised(se3.inverse(se3.make(node.rotation, node.translation)))
        self.motion = None

    # ------------------------------------------------------------------ joining

    def take(self, other: Submap, own_from_other: Similarity, camera: Submap) -> None:
        """Move all that another submap holds into this one.

        `camera` is the one of both that the camera is in; its keyframes stay the newest.
        """
        first, last = (self, other) if camera is other else (other, self)
        first.archive.retire_all(first.map)
        retired = [keyframe for submap in (first, last) for keyframe in submap.map.keyframes
                   if submap.map.is_retired(keyframe)]  # fmt: skip
        rows = np.flatnonzero(other.map.landmarks.alive)
        points = own_from_other.points(other.map.landmarks.points[rows])
        target = np.full(other.map.landmarks.capacity + 1, -1, dtype=np.int64)
        theirs = other.map.landmarks
        guessed = own_from_other.scale * theirs.guessed[rows]
        target[rows] = self.map.landmarks.add(points, theirs.colors[rows], guessed)
        for keyframe in other.map.keyframes:
            keyframe.camera_from_world = own_from_other.pose(keyframe.camera_from_world)
            keyframe.table.landmark = target[keyframe.table.landmark]
        other.archive.cloud.move(own_from_other.points)
        self.archive = first.archive.followed_by(last.archive, len(first.map.keyframes))
        keyframes = [*first.map.keyframes, *last.map.keyframes]
        self.map.revive(self.map.keyframes)
        self.map.keyframes = keyframes
        self.map.retire(retired)
        self.ties += other.ties
        grown = own_from_other.scale
        self.bridges += [(first, last, turn, grown * shift, scale) for first, last, turn, shift, scale in other.bridges]
        self.trust, self.baseline, self.motion = camera.trust, None, None
        if not math.isfinite(self.metres):
            self.metres = other.metres / grown


class _Shift:
    """Where things go that move with keyframes."""

    def __init__(self, cameras_from_world: Array, nodes: Sequence[Similarity]) -> None:
        self._before = cameras_from_world
        self._rotation = np.stack([node.rotation for node in nodes])
        self._translation = np.stack([node.translation for node in nodes])
        self._scale = np.array([node.scale for node in nodes])

    def points(self, points: Array, owner: Index) -> Array:
        """New places (N, 3) of points that move with keyframes `owner` (N,)."""
        before = self._before[owner]
        local = np.einsum('nij,nj->ni', before[:, :3, :3], points) + before[:, :3, 3]
        turned = np.einsum('nij,nj->ni', self._rotation[owner], local)
        return np.asarray(self._scale[owner, None] * turned + self._translation[owner])

    def nearest(self, points: Array) -> Index:
        """Keyframe (N,) nearest to each point."""
        from scipy.spatial import cKDTree

        return np.asarray(cKDTree(se3.inverse(self._before)[:, :3, 3]).query(points)[1], dtype=np.int64)
