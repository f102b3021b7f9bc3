# SPDX-License-Identifier: Apache-2.0
"""When a recognised place is believed.

Tunnels repeat themselves, and one false loop ruins a map that was good. So a place must look alike, fit by geometry,
fit better than every other place that looks alike, lie within the drift of the way travelled since, and several
keyframes must agree on it. What the map rules out by itself, or would change nothing in it, is not compared at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.chores import finished
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.evidence import Evidence, verify
from dark3r_ros.mapping.places import PlaceIndex
from dark3r_ros.mapping.prospects import Place, Prospects, largest_turn
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.model.predictor import Predictor

_SCALE = (0.1, 0.02)  # largest logarithm of the scale of a correction, and more for every keyframe since
_LARGEST_SCALE = 1.5  # however long ago
_RIVAL_SHARE = 0.5  # of the inliers, with which another place casts doubt
_MISSES = 1  # keyframes without evidence between those that agree


class LoopGate:
    """Proposes places for new keyframes, checks them, and collects those that agree."""

    def __init__(self, config: MappingConfig, predictor: Predictor, places: PlaceIndex) -> None:
        self._config, self._predictor, self._prospects = config, predictor, Prospects(config, places)
        self._agreeing: list[Evidence] = []
        self._missed = 0
        self._credit = 0.0  # comparisons that keyframes so far have left over
        self.proposed = self.verified = self.accepted = 0
        self.refused: Counter[str] = Counter()

    def forget(self) -> None:
        """Forget what has been collected: poses have moved."""
        self._agreeing, self._missed = [], 0

    def consider(self, query: Keyframe, new: Submap, submaps: Sequence[Submap]) -> list[Evidence]:
        """Look for the place of a new keyframe; returns the keyframes' evidence once enough of them agree."""
        return finished(self.consider_in_steps(query, new, submaps))

    def consider_in_steps(
        self, query: Keyframe, new: Submap, submaps: Sequence[Submap]
    ) -> Generator[None, None, list[Evidence]]:
        """As `consider`, with a pause before every comparison of two pictures."""
        best = yield from self._best(query, new, submaps)
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

    # ------------------------------------------------------------------ checks

    def _best(self, query: Keyframe, new: Submap, submaps: Sequence[Submap]) -> Generator[None, None, Evidence | None]:
        """Evidence of the place that most correspondences agree with, unless another one contradicts it."""
        self._credit = min(self._credit + self._config.loop_share, float(self._config.loop_candidates))
        places = self._prospects.of(query, new, submaps, self.refused)
        self.proposed += len(places)
        found: list[Evidence] = []
        for place in (place for place in places if place.possible):
            if not self._may_compare():
                break
            yield
            evidence = self._verified(query, new, place)
            if evidence is not None:
                found.append(evidence)
            elif not found:
                break  # what looks less alike is not worth the time
        if not found:
            return None
        # Where the map rules a place out it is no loop, but still a sign that places here are copies of each other.
        for place in (place for place in places if not place.possible):
            yield
            evidence = self._verified(query, new, place)
            found += [] if evidence is None else [evidence]
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

    def _may_compare(self) -> bool:
        """Whether there is time left for a comparison; what others have begun to agree on is seen through at once."""
        if self._agreeing or not self._config.loop_share:
            return True
        if self._credit < 1.0 - 1e-6:
            self.refused['no time'] += 1
            return False
        self._credit -= 1.0
        return True

    def _verified(self, query: Keyframe, new: Submap, place: Place) -> Evidence | None:
        evidence = verify(query, new, place.keyframe, place.submap, self._predictor, self._config)
        if evidence is None:
            self.refused['geometry'] += 1
        else:
            self.verified += 1
        return evidence

    def _within_drift(self, evidence: Evidence, submap: Submap) -> bool:
        """Whether the way travelled since explains the correction."""
        change = evidence.old_from_new
        centre = evidence.query.centre
        moved = float(np.linalg.norm(change.points(centre[None])[0] - centre))
        since = sum(1 for other in submap.map.keyframes if other.keyframe_id > evidence.place.keyframe_id)
        allowed = self._config.loop_drift * submap.distance_since(evidence.place)
        scale = min(_SCALE[0] + _SCALE[1] * since, _LARGEST_SCALE)
        return (
            moved <= allowed + self._config.loop_agreement * evidence.depth
            and se3.rotation_angle(change.rotation) <= largest_turn(since)
            and abs(change.log_scale) <= scale
        )
