# SPDX-License-Identifier: Apache-2.0
"""What the map remembers of old keyframes, so that its memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.records import BoundedCloud
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap


class Archive:
    """Retires keyframes behind the window in three steps.

    1. A spread-out choice keeps its features, in memory or on disk, so that a place can be found again.
    2. The others keep the observations of their landmarks, for bundle adjustment at the end.
    3. Beyond `max_archived` only the pose stays, and the landmarks nobody else sees become points of a cloud.
    """

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._next = 0  # keyframes before this one have been retired
        self._without_features: list[Keyframe] = []  # those that still keep their observations
        self.remembered: list[Keyframe] = []
        self.cloud = BoundedCloud(config.max_cloud_points)

    def retire(self, sparse_map: SparseMap) -> None:
        """Retire every keyframe that window and neighbour search have left behind, and those that were revived."""
        keep = self._config.window + 4 * self._config.window_fixed
        self._retire_before(sparse_map, len(sparse_map.keyframes) - keep)
        # In lots, because every landmark has to be looked at.
        if len(self._without_features) > self._config.max_archived + 100:
            self.forget(sparse_map, len(self._without_features) - self._config.max_archived)

    def forget(self, sparse_map: SparseMap, count: int) -> int:
        """Let `count` keyframes that nobody matches any more keep no more than their poses; returns how many did."""
        keyframes, self._without_features = self._without_features[:count], self._without_features[count:]
        sparse_map.revive(keyframes)
        for keyframe in keyframes:
            keyframe.table.landmark = np.full_like(keyframe.table.landmark, -1)
            keyframe.table.compact()
        sparse_map.retire(keyframes)
        counts = sparse_map.support()
        gone = np.flatnonzero(sparse_map.landmarks.alive & (counts < 2))
        known = gone[~sparse_map.landmarks.provisional[gone]]
        self.cloud.add(sparse_map.landmarks.points[known], sparse_map.landmarks.colors[known])
        sparse_map.revive(sparse_map.keyframes)  # a landmark may hang on a single retired keyframe now
        sparse_map.remove_unsupported()
        sparse_map.retire(sparse_map.keyframes[: self._next])
        return len(keyframes)

    def drop_most_redundant(self) -> Keyframe | None:
        """Forget the features of the remembered keyframe whose neighbours in time are closest; the ends stay."""
        if len(self.remembered) < 3:
            return None
        numbers = np.array([keyframe.keyframe_id for keyframe in self.remembered])
        gaps = numbers[2:] - numbers[:-2]
        keyframe = self.remembered[1 + int(np.argmin(gaps))]
        self.drop(keyframe)
        return keyframe

    def drop(self, keyframe: Keyframe) -> None:
        """Forget the features of a remembered keyframe."""
        self.remembered.remove(keyframe)
        keyframe.drop_features()
        self._without_features.append(keyframe)

    def retire_all(self, sparse_map: SparseMap) -> None:
        """Retire every keyframe: the camera has left this map."""
        self._retire_before(sparse_map, len(sparse_map.keyframes))

    def followed_by(self, other: Archive, keyframes: int) -> Archive:
        """Archive of a map of so many keyframes, all retired, that those of `other` now follow."""
        joined = Archive(self._config)
        joined._next = keyframes + other._next
        joined.remembered = [*self.remembered, *other.remembered]
        joined._without_features = [*self._without_features, *other._without_features]
        for cloud in (self.cloud.cloud(), other.cloud.cloud()):
            joined.cloud.add(cloud.points.astype(np.float64), cloud.colors)
        return joined

    def state(self) -> dict[str, NDArray[np.int64]]:
        """What is known of the keyframes, to be saved."""
        return {
            'left_behind': np.array([self._next], dtype=np.int64),
            'remembered': np.array([keyframe.keyframe_id for keyframe in self.remembered], dtype=np.int64),
            'without_features': np.array([one.keyframe_id for one in self._without_features], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[np.int64]], keyframes: Sequence[Keyframe]) -> None:
        """Take what was saved; the cloud aside."""
        known = {keyframe.keyframe_id: keyframe for keyframe in keyframes}
        self._next = int(state['left_behind'][0])
        self.remembered = [known[key] for key in state['remembered'].tolist()]
        self._without_features = [known[key] for key in state['without_features'].tolist()]

    def _retire_before(self, sparse_map: SparseMap, end: int) -> None:
        for keyframe in sparse_map.keyframes[self._next : max(end, self._next)]:
            keyframe.table.compact(matchable=True)
            self.remembered.append(keyframe)
            if len(self.remembered) > self._config.relocalise_keyframes:
                self.drop_most_redundant()
            self._next += 1
        sparse_map.retire(sparse_map.keyframes[: self._next])
