# SPDX-License-Identifier: Apache-2.0
"""When a recognised place is believed.

Tunnels repeat themselves, and one false loop ruins a map that was good. So a place must look alike, fit by geometry,
fit better than every other place that looks alike, lie within the drift of the way travelled since, and several
keyframes must agree on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.evidence import Evidence, verify
from dark3r_ros.mapping.places import PlaceIndex
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.model.predictor import Predictor

_TURN = (np.radians(10.0), np.radians(0.5))  # largest rotation of a correction, and more for every keyframe since
_SCALE = (0.1, 0.02)  # largest logarithm of the scale of a correction, and more for every keyframe since
_LARGEST = (np.radians(90.0), 1.5)  # of both, however long ago
_RIVAL_SHARE = 0.5  # of the inliers, with which another place casts doubt
_MISSES = 1  # keyframes without evidence between those that agree


class LoopGate:
    """Proposes places for new keyframes, checks them, and collects those that agree."""

    def __init__(self, config: MappingConfig, predictor: Predictor, places: PlaceIndex) -> None:
        self._config, self._predictor, self._places = config, predictor, places
        self._agreeing: list[Evidence] = []
        self._missed = 0
        self.proposed = self.verified = self.accepted = 0
        self.refused: Counter[str] = Counter()

    def forget(self) -> None:
        """Forget what has been collected: poses have moved."""
        self._agreeing, self._missed = [], 0

    def consider(self, query: Keyframe, new: Submap, submaps: Sequence[Submap]) -> list[Evidence]:
        """Look for the place of a new keyframe; returns the keyframes' evidence once enough of them agree."""
        places = self._propose(query, new, submaps)
        best = self._best(query, new, places) if places else None
        if best is None:
            self._missed += 1
            if self._missed > _MISSES and self._agreeing:
                self.refused['not confirmed'] += 1
                self.forget()
            return []
        self._missed = 0
        if self._agreeing and (
            best.old is not self._agreeing[-1].old
            or best.disagreement(self._agreeing[-1]) > self._config.loop_agreement
        ):
            self.refused['not confirmed'] += 1
            self._agreeing = []
        self._agreeing.append(best)
        if len(self._agreeing) < self._config.loop_frames:
            return []
        found = self._agreeing
        self.forget()
        return found

    # ------------------------------------------------------------------ proposals

    def _propose(self, query: Keyframe, new: Submap, submaps: Sequence[Submap]) -> list[tuple[Keyframe, Submap]]:
        """Places that look alike and are not near in time or by shared landmarks, most alike first, spread out."""
        vector = self._places.vector(query.features)
        if vector is None:
            return []
        seen = query.table.landmark
        near = new.around(seen[seen >= 0], exclude=query)
        excluded = {keyframe.keyframe_id for keyframe in [*near, *new.map.keyframes[-self._config.window :]]}
        candidates = [
            (keyframe, submap)
            for submap in submaps
            for keyframe in submap.map.keyframes
            if keyframe.matchable and keyframe.keyframe_id not in excluded
        ]
        if not candidates:
            return []
        usual = self._usual(vector, near)
        likeness = self._places.likeness(vector, [keyframe.keyframe_id for keyframe, _ in candidates])
        order = np.argsort(-np.nan_to_num(likeness, nan=-2.0), kind='stable')
        chosen: list[tuple[Keyframe, Submap]] = []
        for number in order.tolist():
            if (
                len(chosen) == self._config.loop_candidates
                or not likeness[number] >= self._config.loop_likeness * usual
            ):
                break
            keyframe, submap = candidates[number]
            # Neighbours of a place would only say the same once more.
            if all(abs(keyframe.keyframe_id - other.keyframe_id) > 2 for other, _ in chosen):
                chosen.append((keyframe, submap))
        self.proposed += len(chosen)
        return chosen

    def _usual(self, vector: np.ndarray, near: Sequence[Keyframe]) -> float:
        """How alike the query and the keyframes around it look."""
        likeness = self._places.likeness(vector, [keyframe.keyframe_id for keyframe in near[:5]])
        known = likeness[np.isfinite(likeness)]
        return float(np.median(known)) if len(known) else 1.0

    # ------------------------------------------------------------------ checks

    def _best(self, query: Keyframe, new: Submap, places: Sequence[tuple[Keyframe, Submap]]) -> Evidence | None:
        """Evidence of the place that most correspondences agree with, unless another one contradicts it."""
        found: list[Evidence] = []
        for place, old in places:
            evidence = verify(query, new, place, old, self._predictor, self._config)
            if evidence is None:
                self.refused['geometry'] += 1
                if not found:
                    return None  # what looks less alike is not worth the time
            else:
                self.verified += 1
                found.append(evidence)
        best = max(found, key=lambda evidence: evidence.inliers)
        for rival in found:
            enough = rival.inliers >= _RIVAL_SHARE * best.inliers
            if enough and (rival.old is not best.old or best.disagreement(rival) > 2 * self._config.loop_agreement):
                self.refused['ambiguous'] += 1
                return None
        if best.old is new and not self._within_drift(best, new):
            self.refused['beyond drift'] += 1
            return None
        return best

    def _within_drift(self, evidence: Evidence, submap: Submap) -> bool:
        """Whether the way travelled since explains the correction."""
        change = evidence.old_from_new
        centre = evidence.query.centre
        moved = float(np.linalg.norm(change.points(centre[None])[0] - centre))
        since = sum(1 for other in submap.map.keyframes if other.keyframe_id > evidence.place.keyframe_id)
        allowed = self._config.loop_drift * submap.distance_since(evidence.place)
        turn = min(_TURN[0] + _TURN[1] * since, _LARGEST[0])
        scale = min(_SCALE[0] + _SCALE[1] * since, _LARGEST[1])
        return (
            moved <= allowed + self._config.loop_agreement * evidence.depth
            and se3.rotation_angle(change.rotation) <= turn
            and abs(change.log_scale) <= scale
        )
