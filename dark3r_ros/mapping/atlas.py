# SPDX-License-Identifier: Apache-2.0
"""All submaps, which of them the camera is in, and the keyframes that look like a view."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.bridging import Bridge
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.evidence import Evidence
from dark3r_ros.mapping.places import PlaceIndex
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.model.predictor import Features


class Atlas:
    """Submaps in the order they were begun. Exactly one is active; at the beginning it is empty."""

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._numbers = itertools.count()
        self._submap_ids = itertools.count()
        self._turn = 0
        self.places = PlaceIndex()
        self.active = self._empty()
        self.resting: list[Submap] = []

    @property
    def submaps(self) -> list[Submap]:
        """All submaps by id, the active one among them even while it is empty."""
        return sorted([*self.resting, self.active], key=lambda submap: submap.submap_id)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(submap.nbytes for submap in self.submaps) + self.places.nbytes

    @property
    def keyframes(self) -> int:
        """How many keyframes there are."""
        return sum(len(submap.map.keyframes) for submap in self.submaps)

    def _empty(self) -> Submap:
        return Submap.empty(next(self._submap_ids), self._config, self._numbers)

    def restore(self, submaps: Sequence[Submap], places: Mapping[str, NDArray[Any]]) -> None:
        """Take saved submaps; the oldest one becomes the active one."""
        keyframes = {keyframe.keyframe_id: keyframe for submap in submaps for keyframe in submap.map.keyframes}
        self._numbers = itertools.count(1 + max(keyframes))
        self._submap_ids = itertools.count(1 + max(submap.submap_id for submap in submaps))
        held = [submap for submap in submaps if submap.map.keyframes]
        for submap in held:
            submap.map.numbers = self._numbers
        self.active, *self.resting = held
        self.places.restore(places, keyframes)

    def begin(self) -> Submap:
        """Make a new submap the active one, unless the active one is still empty."""
        if self.active.map.keyframes:
            self.resting.append(self.active)
            self.active = self._empty()
        return self.active

    def activate(self, submap: Submap) -> None:
        """The camera was found in another submap."""
        if submap is not self.active:
            self.resting = [other for other in self.submaps if other is not submap]
            self.active = submap

    def give_up(self) -> None:
        """Forget the active submap; the newest of the others takes its place, or an empty one."""
        self.places.forget(keyframe.keyframe_id for keyframe in self.active.map.keyframes)
        for keyframe in self.active.map.keyframes:
            keyframe.drop_features()
        if self.resting:
            self.active = self.resting.pop()
            return
        self._submap_ids = itertools.count()
        self.active = self._empty()

    def largest(self, log: PoseLog) -> Submap:
        """The submap with most posed frames, the older among equals."""
        return max(self.submaps, key=lambda submap: (log.posed_by(submap.map.keyframes), -submap.submap_id))

    def join(self, evidence: Evidence, new: Submap) -> tuple[Submap, list[Keyframe], float]:
        """Join the submap of a query with that of the place it recognised, in the frame of the older one.

        Returns the joined submap, the keyframes that moved into it and the factor by which their surroundings grew.
        """
        own, moved, own_from_other = self.unite(evidence.old, new, evidence.old_from_new)
        own.ties.append((evidence.place.keyframe_id, evidence.query.keyframe_id))
        return own, moved, own_from_other.scale

    def bridge(self, bridge: Bridge) -> tuple[Submap, list[Keyframe], Similarity]:
        """Join the submaps that odometry connects, in the frame of the older one.

        Returns the joined submap, the keyframes that moved into it and the similarity that moved them.
        """
        own, moved, own_from_other = self.unite(bridge.old, bridge.new, bridge.old_from_new)
        turn, shift, scale = bridge.sigma
        grown = 1.0 if own is bridge.old else own_from_other.scale
        own.bridges.append((bridge.place.keyframe_id, bridge.query.keyframe_id, turn, shift * grown, scale))
        return own, moved, own_from_other

    def unite(self, old: Submap, new: Submap, old_from_new: Similarity) -> tuple[Submap, list[Keyframe], Similarity]:
        """Make one of two submaps, in the frame of the older one.

        Returns it, the keyframes that moved into it and the similarity that moved them.
        """
        own, other, own_from_other = old, new, old_from_new
        if own.submap_id > other.submap_id:
            own, other, own_from_other = other, own, own_from_other.inverse()
        camera = self.active if self.active in (own, other) else other
        moved = list(other.map.keyframes)
        own.take(other, own_from_other, camera)
        self.resting = [submap for submap in self.resting if submap is not other and submap is not own]
        if camera is self.active:
            self.active = own
        else:
            self.resting.append(own)
        return own, moved, own_from_other

    # ------------------------------------------------------------------ places

    def candidates(self, features: Features) -> list[tuple[Submap, list[Keyframe]]]:
        """Keyframes to compare a lost view with: those that look most like it, and a few of all in turn."""
        known = [(submap, keyframe) for submap in self.submaps for keyframe in submap.map.keyframes
                 if keyframe.matchable]  # fmt: skip
        count = min(self._config.relocalise_per_frame, len(known))
        chosen: list[int] = []
        vector = self.places.vector(features)
        if vector is not None:
            likeness = self.places.likeness(vector, [keyframe.keyframe_id for _, keyframe in known])
            order = np.argsort(-np.nan_to_num(likeness, nan=-2.0), kind='stable')
            chosen = order[: (count + 1) // 2].tolist()
        while len(chosen) < count:
            if self._turn % len(known) not in chosen:
                chosen.append(self._turn % len(known))
            self._turn += 1
        return _grouped(known[number] for number in chosen)


def _grouped(pairs: Iterable[tuple[Submap, Keyframe]]) -> list[tuple[Submap, list[Keyframe]]]:
    groups: dict[int, tuple[Submap, list[Keyframe]]] = {}
    for submap, keyframe in pairs:
        groups.setdefault(submap.submap_id, (submap, []))[1].append(keyframe)
    return list(groups.values())
