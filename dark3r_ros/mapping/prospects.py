# SPDX-License-Identifier: Apache-2.0
"""Places that are worth comparing with a new keyframe, before any picture is compared.

A place has to look alike. Where it lies in the same map, the map says how far off it may be: no farther than the drift
of the way since, and what two pictures of one place can be apart. And where a loop has just been closed, or the
keyframe sees landmarks of the old place anyway, one more would change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.places import PlaceIndex
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap

Array = NDArray[np.float64]

_REACH = 2.5  # depths of the scene between two pictures of one place
_QUIET = 3.0  # depths of the scene after a loop in which another one would find nothing to mend
_FACING = np.radians(75.0)  # between the axes of two pictures of one place
_TURN = (np.radians(10.0), np.radians(0.5))  # largest one by drift, and more for every keyframe since
_LARGEST_TURN = np.radians(90.0)  # however long ago
_APART = 2  # keyframes beside a chosen place that would only say the same once more


@dataclass(frozen=True, eq=False)
class Place:
    """A keyframe that looks like another one. `possible`: whether the map allows that they see the same."""

    keyframe: Keyframe
    submap: Submap
    possible: bool


class Prospects:
    """Chooses places by their looks and by the map."""

    def __init__(self, config: MappingConfig, places: PlaceIndex) -> None:
        self._config, self._places = config, places

    def of(self, query: Keyframe, new: Submap, submaps: Sequence[Submap], refused: Counter[str]) -> list[Place]:
        """Places for a keyframe, most alike first, spread out: `loop_candidates` possible ones at most, and others.

        Counts what is refused by its reason.
        """
        seen = query.table.landmark
        near = new.around(seen[seen >= 0], exclude=query)
        tied = new in submaps and self._is_tied(query, near, new)
        if tied:
            refused['nothing to close'] += 1
        excluded = {keyframe.keyframe_id for keyframe in [*near, *new.map.keyframes[-self._config.window :]]}
        candidates = [
            (keyframe, submap)
            for submap in submaps
            if not (tied and submap is new)
            for keyframe in submap.map.keyframes
            if keyframe.matchable and keyframe.keyframe_id not in excluded
        ]
        vector = self._places.vector_of(query) if candidates else None
        if vector is None:
            return []
        likeness = self._places.likeness(vector, [keyframe.keyframe_id for keyframe, _ in candidates])
        alike = self._config.loop_likeness * self._usual(vector, near)
        order = np.argsort(-np.nan_to_num(likeness, nan=-2.0), kind='stable')
        ordered = [candidates[number] for number in order.tolist() if likeness[number] >= alike]
        places = self._spread(query, new, ordered)
        refused.update('elsewhere by the map' for place in places if not place.possible)
        return places

    def _is_tied(self, query: Keyframe, near: Sequence[Keyframe], new: Submap) -> bool:
        """Whether a keyframe sees landmarks of a place far back, or a loop was closed right before it."""
        recent = new.map.keyframes[-(self._config.window + 4 * self._config.window_fixed) :]
        known = {keyframe.keyframe_id for keyframe in recent}
        old = next((keyframe for keyframe in near if keyframe.keyframe_id not in known), None)
        if old is not None:
            seen = query.table.landmark
            if np.isin(seen[seen >= 0], old.table.landmark).sum() >= self._config.min_inliers:
                return True
        closed = {second for _, second in new.ties}
        last = next((keyframe for keyframe in reversed(recent) if keyframe.keyframe_id in closed), None)
        return last is not None and new.distance_since(last) < _QUIET * new.depth(query)

    def _spread(self, query: Keyframe, new: Submap, ordered: Sequence[tuple[Keyframe, Submap]]) -> list[Place]:
        """Of keyframes in order the first possible ones and the first others, none beside another of its kind."""
        if not ordered:
            return []
        bounds = _Bounds(query, new, self._config)
        chosen: list[Place] = []
        for keyframe, submap in ordered:
            if len(chosen) == 2 * self._config.loop_candidates:
                break
            possible = submap is not new or bounds.allow(keyframe)
            kind = [place.keyframe.keyframe_id for place in chosen if place.possible == possible]
            full = len(kind) == self._config.loop_candidates
            if not full and all(abs(keyframe.keyframe_id - other) > _APART for other in kind):
                chosen.append(Place(keyframe, submap, possible))
        return chosen

    def _usual(self, vector: NDArray[np.float32], near: Sequence[Keyframe]) -> float:
        """How alike the query and the keyframes around it look."""
        likeness = self._places.likeness(vector, [keyframe.keyframe_id for keyframe in near[:5]])
        known = likeness[np.isfinite(likeness)]
        return float(np.median(known)) if len(known) else 1.0


def largest_turn(since: int) -> float:
    """Angle in radians by which a map may have turned in so many keyframes."""
    return float(min(_TURN[0] + _TURN[1] * since, _LARGEST_TURN))


class _Bounds:
    """What the map says of where a keyframe can be: its place in it, and the drift of the way since another place."""

    def __init__(self, query: Keyframe, new: Submap, config: MappingConfig) -> None:
        self._submap, self._config = new, config
        poses = se3.inverse(np.stack([keyframe.camera_from_world for keyframe in new.map.keyframes]))
        self._centres, self._axes = poses[:, :3, 3], poses[:, :3, 2]
        steps = np.linalg.norm(np.diff(self._centres, axis=0), axis=1)
        self._way = np.concatenate([[0.0], np.cumsum(steps)])
        self._number = {keyframe.keyframe_id: number for number, keyframe in enumerate(new.map.keyframes)}
        self._own, self._depth = self._number[query.keyframe_id], new.depth(query)

    def allow(self, keyframe: Keyframe) -> bool:
        """Whether the query can see what a keyframe of the same map sees."""
        own, other = self._own, self._number[keyframe.keyframe_id]
        drift = self._config.loop_drift * abs(self._way[own] - self._way[other])
        reach = _REACH * max(self._depth, self._submap.depth(keyframe))
        apart = float(np.linalg.norm(self._centres[own] - self._centres[other]))
        angle = float(np.arccos(np.clip(self._axes[own] @ self._axes[other], -1.0, 1.0)))
        return apart <= drift + reach and angle <= _FACING + largest_turn(abs(own - other))
