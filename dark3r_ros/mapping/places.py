# SPDX-License-Identifier: Apache-2.0
"""Which keyframes look like a view: one vector a keyframe, compared with all others at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.matching.retrieval import aggregate, local_descriptors, vocabulary
from dark3r_ros.model.predictor import Features

Vector = NDArray[np.float32]

_TRAINED_AT = (8, 64)  # keyframes; a vocabulary of the first ones must do until there are more
_PER_KEYFRAME = 600  # descriptors of each that the vocabulary is made from


class PlaceIndex:
    """Aggregated descriptors of keyframes. The vocabulary is made from the map itself, twice."""

    def __init__(self) -> None:
        self._waiting: list[Keyframe] = []
        self._rows: dict[int, int] = {}
        self._vectors = np.zeros((0, 0), np.float16)
        self._centres: Vector | None = None
        self._stage = 0

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._vectors.nbytes + (0 if self._centres is None else self._centres.nbytes)

    def add(self, keyframe: Keyframe) -> None:
        """Take a new keyframe, while its features are at hand."""
        if self._stage < len(_TRAINED_AT):
            self._waiting.append(keyframe)
            if len(self._waiting) >= _TRAINED_AT[self._stage]:
                self._train()
                return
        vector = self.vector(keyframe.features)
        if vector is not None:
            self._append([keyframe.keyframe_id], vector[None])

    def state(self) -> dict[str, NDArray[np.generic]]:
        """What is known, to be saved."""
        count = len(self._rows)
        result: dict[str, NDArray[np.generic]] = {
            'stage': np.array([self._stage]),
            'waiting': np.array([keyframe.keyframe_id for keyframe in self._waiting], dtype=np.int64),
            'ids': np.array(list(self._rows), dtype=np.int64),
            'vectors': self._vectors[:count],
        }
        return result if self._centres is None else {**result, 'centres': self._centres}

    def restore(self, state: Mapping[str, NDArray[Any]], keyframes: Mapping[int, Keyframe]) -> None:
        """Take what was saved."""
        self._stage = int(state['stage'][0])
        self._waiting = [keyframes[key] for key in state['waiting'].tolist()]
        self._vectors, self._centres = state['vectors'], state.get('centres')
        self._rows = {key: row for row, key in enumerate(state['ids'].tolist())}

    def forget(self, keyframe_ids: Iterable[int]) -> None:
        """Leave keyframes out from now on."""
        gone = set(keyframe_ids)
        self._waiting = [keyframe for keyframe in self._waiting if keyframe.keyframe_id not in gone]
        kept = [key for key in self._rows if key not in gone]
        if len(kept) < len(self._rows):
            self._vectors = self._vectors[[self._rows[key] for key in kept]]
            self._rows = {key: row for row, key in enumerate(kept)}

    def vector(self, features: Features | None) -> Vector | None:
        """Unit vector of a view, or None where nothing can be said of it."""
        if self._centres is None or features is None:
            return None
        local = local_descriptors(features)
        return None if local is None or not len(local) else aggregate(local, self._centres)

    def vector_of(self, keyframe: Keyframe) -> Vector | None:
        """Unit vector of a keyframe, which is at hand where it has been taken."""
        row = self._rows.get(keyframe.keyframe_id)
        return self.vector(keyframe.features) if row is None else self._vectors[row].astype(np.float32)

    def likeness(self, vector: Vector, keyframe_ids: Sequence[int]) -> NDArray[np.float64]:
        """How alike (N,) a view and keyframes look, -1..1; NaN for those that are not known."""
        result = np.full(len(keyframe_ids), np.nan)
        known = [number for number, key in enumerate(keyframe_ids) if key in self._rows]
        if known:
            rows = [self._rows[keyframe_ids[number]] for number in known]
            result[known] = self._vectors[rows].astype(np.float32) @ vector
        return result

    def _train(self) -> None:
        """Make the vocabulary from the keyframes so far, and their vectors with it."""
        self._stage += 1
        local = {keyframe.keyframe_id: local_descriptors(keyframe.features) for keyframe in self._waiting
                 if keyframe.features is not None}  # fmt: skip
        known = {key: one for key, one in local.items() if one is not None and len(one)}
        if known:
            sample = np.concatenate([one[:: max(1, len(one) // _PER_KEYFRAME)] for one in known.values()])
            self._centres = vocabulary(sample)
            self._rows, self._vectors = {}, np.zeros((0, 0), np.float16)
            self._append(list(known), np.stack([aggregate(one, self._centres) for one in known.values()]))
        if self._stage == len(_TRAINED_AT):
            self._waiting = []

    def _append(self, keys: Sequence[int], vectors: Vector) -> None:
        start = len(self._rows)
        self._rows.update({key: start + number for number, key in enumerate(keys)})
        if not start:
            self._vectors = vectors.astype(np.float16)
            return
        if len(self._vectors) < start + len(keys):
            room = np.zeros((max(len(keys), start), self._vectors.shape[1]), np.float16)
            self._vectors = np.concatenate([self._vectors[:start], room])
        self._vectors[start : start + len(keys)] = vectors
