# SPDX-License-Identifier: Apache-2.0
"""Whether a reconstruction of frames in order of time is to be trusted: next neighbours must fit it.

A map that folds, because it took two places for one, leaves the fold somewhere: there neighbours in time, whose matches
are beyond doubt, do not lie where the map says. All other figures may look well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dark3r_ros.sfm.chain import near_pairs, steps_apart, time_order
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.consistency import DepthsSeen
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.refine import Refined
from dark3r_ros.sfm.start_ordered import fitting_shares, key_of
from dark3r_ros.sfm.views import View

# Frames are in order of time where next neighbours share so many times the matches of pairs this far apart.
_ALIKE = 1.3
_APART = 4
# Neighbours with this share of the matches that is usual for them must fit; the path breaks where fewer of them do.
_STRONG = 0.5
_BROKEN = 0.3


@dataclass(frozen=True)
class NeighbourCheck:
    """How well next neighbours in time fit a map: on average, and the pairs of views that contradict it."""

    fitting: float
    breaks: list[tuple[int, int]]

    def warning(self, views: Sequence[View]) -> str:
        """One line for the user."""
        first, second = (views[number].name or f'frame {number}' for number in self.breaks[0])
        more = len(self.breaks) - 1
        places = f' and at {more} other place{"s" if more > 1 else ""}' if more else ''
        return (
            f'the path breaks between {first} and {second}{places}: neighbours in time match well, but not as these '
            'poses say; do not trust the path there'
        )


def check_neighbours(
    pairs: Sequence[VerifiedPair],
    refined: Refined,
    views: Sequence[View],
    config: SfmConfig,
    ordered: bool = False,
) -> NeighbourCheck | None:
    """Judge a map by its next neighbours in time; None where frames are not in order of time.

    `ordered` says that they are; otherwise neighbours must stand out by their matches.
    """
    order = time_order(views, pairs)
    nearest = near_pairs(pairs, order, 1)
    usual = float(np.median([pair.support for pair in nearest])) if nearest else 0.0
    apart = [pair.support for pair, steps in zip(pairs, steps_apart(pairs, order), strict=True) if steps >= _APART]
    strong = [pair for pair in nearest if pair.support >= _STRONG * usual]
    depths = DepthsSeen(refined.structure, refined.poses)
    shares = fitting_shares(strong, refined.poses, depths, views, config)
    if not shares or (not ordered and apart and usual < _ALIKE * float(np.median(apart))):
        return None
    breaks = [key_of(pair) for pair in strong if shares.get(key_of(pair), 1.0) < _BROKEN]
    return NeighbourCheck(float(np.mean(list(shares.values()))), sorted(breaks))
