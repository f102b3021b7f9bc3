# SPDX-License-Identifier: Apache-2.0
"""What the map remembers of old keyframes, so that its memory stays bounded."""

from __future__ import annotations

import numpy as np

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.records import BoundedCloud
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap


class Archive:
    """Retires keyframes behind the window in three steps.

    1. A spread-out choice keeps its features, so that a lost camera can be found again.
    2. The others keep the observations of their landmarks, for bundle adjustment at the end.
    3. Beyond `max_archived` only the pose stays, and the landmarks nobody else sees become points of a cloud.
    """

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._next = 0  # keyframes before this one have been retired
        self._forgotten = 0  # keyframes before this one have no observations left
        self._turn = 0
        self._remembered: list[Keyframe] = []
        self.cloud = BoundedCloud(config.max_cloud_points)

    def retire(self, sparse_map: SparseMap) -> None:
        """Retire every keyframe that window and neighbour search have left behind."""
        keep = self._config.window + 4 * self._config.window_fixed
        while self._next < len(sparse_map.keyframes) - keep:
            self._remembered.append(sparse_map.keyframes[self._next])
            self._next += 1
            if len(self._remembered) > self._config.relocalise_keyframes:
                self._drop_features(self._most_redundant())
        sparse_map.retire(self._next)
        # In lots, because every landmark has to be looked at.
        if self._next - self._forgotten > self._config.max_archived + 100:
            self._forget(sparse_map, sparse_map.keyframes[self._forgotten : self._next - self._config.max_archived])
            self._forgotten = self._next - self._config.max_archived

    def relocalisation_candidates(self, sparse_map: SparseMap) -> list[Keyframe]:
        """Keyframes to compare a lost view with: the next few in turn, of all that still have features."""
        candidates = [*self._remembered, *sparse_map.keyframes[self._next :]]
        count = min(self._config.relocalise_per_frame, len(candidates))
        chosen = [candidates[(self._turn + number) % len(candidates)] for number in range(count)]
        self._turn = (self._turn + count) % max(len(candidates), 1)
        return chosen

    def _most_redundant(self) -> Keyframe:
        """Return the remembered keyframe whose neighbours in time are closest together; the first one stays."""
        numbers = np.array([keyframe.keyframe_id for keyframe in self._remembered])
        gaps = numbers[2:] - numbers[:-2]
        return self._remembered[1 + int(np.argmin(gaps))]

    def _drop_features(self, keyframe: Keyframe) -> None:
        self._remembered.remove(keyframe)
        keyframe.features = None
        keyframe.table.compact()

    def _forget(self, sparse_map: SparseMap, keyframes: list[Keyframe]) -> None:
        for keyframe in keyframes:
            if keyframe.features is None:
                seen = keyframe.table.landmark
                keyframe.table.landmark = np.full_like(seen, -1)
                keyframe.table.compact()
        sparse_map.retire(0)  # the counts have changed
        counts = sparse_map.support()
        gone = np.flatnonzero(sparse_map.landmarks.alive & (counts < 2))
        self.cloud.add(sparse_map.landmarks.points[gone], sparse_map.landmarks.colors[gone])
        sparse_map.remove_unsupported()
