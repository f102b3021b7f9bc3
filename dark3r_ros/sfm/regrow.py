# SPDX-License-Identifier: Apache-2.0
"""A map made better by taking a part of its views out and growing them again from the rest.

Where steps are narrow for their noise, a map that grows view by view may take a wrong turn: a motion to the side with
a turn is explained nearly as well as the right one, and all that comes after rests on it. No adjustment finds back. But
more matches agree with the right map, and views that were grown from the other side, or after others, often take the
right turn. So parts are taken out and grown again, those first that agree least with their matches, and the new map is
taken where more matches agree with it.

More matches agree with a map that folds as well, because it takes places that look alike for one. Next neighbours in
time tell: their matches are beyond doubt, and by the depths of the map they do not fit a fold. So what counts is both,
the share of all matches that agree and that of the neighbours' matches that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import agreeing
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.refine import Refined
from dark3r_ros.sfm.start_own import adjusted_map, grow_from
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.trust import NeighbourCheck, check_neighbours
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Window = frozenset[int]

# Shares of the views that are taken out at a time.
_SHARES = (0.1, 0.2, 0.3, 0.5)
_FEWEST = 2
# Both shares together must grow by this: what changes less is another run of the same map.
_GAIN = 0.003
# The search ends after so many parts in a row that brought nothing, or after so many in all.
PATIENCE = 8
MOST_TRIALS = 24
# A better map poses nearly as many views.
_POSED = 0.9


@dataclass(frozen=True, eq=False)
class Regrown:
    """A map, how many parts of it were grown again, and how many of these were kept."""

    state: Refined
    trials: int
    taken: int


@dataclass(frozen=True, eq=False)
class _Judged:
    """A map and how it fares: share of all verified matches that agrees, the same by view (N,), and next neighbours."""

    state: Refined
    share: float
    by_view: Array
    neighbours: NeighbourCheck | None

    def betters(self, other: _Judged, ordered: bool) -> bool:
        """Whether it is the better map; where frames are known to be in order, its path has no further breaks."""
        if len(self.state.poses) < _POSED * len(other.state.poses):
            return False
        mine, theirs = self.neighbours, other.neighbours
        if mine is None or theirs is None:
            return self.share > other.share + _GAIN
        if ordered and len(mine.breaks) > len(theirs.breaks):
            return False
        return self.share + mine.fitting > other.share + theirs.fitting + _GAIN


def regrown(
    poses: Mapping[int, Array],
    pairs: Sequence[VerifiedPair],
    grown_from: Sequence[VerifiedPair],
    views: Sequence[View],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
    ordered: bool = False,
) -> Regrown:
    """The best map found from poses camera_from_world by view; the same ones, adjusted, where none is better.

    Parameters
    ----------
    pairs: all that a map is judged by. grown_from: those, or a thinner choice of their matches, that maps grow from.
    tick: hears of every part that was grown again.
    ordered: whether frames are known to be in order of time; otherwise next neighbours must stand out to be heeded.

    """
    tracks = build_tracks(views, grown_from)
    shared = _shared_matches(pairs, len(views))

    def judged(state: Refined) -> _Judged:
        return _judged(state, pairs, shared, views, config, ordered)

    best = judged(adjusted_map(tracks, dict(poses), views, config))
    trials = taken = failures = 0
    windows = _windows(best, shared)
    while failures < PATIENCE and trials < MOST_TRIALS:
        window = next(windows, None)
        if window is None:
            break
        rest = {number: pose for number, pose in best.state.poses.items() if number not in window}
        rival = judged(grow_from(rest, tracks, views, config))
        trials += 1
        failures += 1
        if rival.betters(best, ordered):
            best, failures, taken = rival, 0, taken + 1
            windows = _windows(best, shared)
        if tick is not None:
            tick()
    return Regrown(best.state, trials, taken)


def _judged(
    state: Refined,
    pairs: Sequence[VerifiedPair],
    shared: Array,
    views: Sequence[View],
    config: SfmConfig,
    ordered: bool,
) -> _Judged:
    agreed = np.zeros_like(shared)
    for pair in pairs:
        good = agreeing(pair, state.poses, views, config.max_error)
        agreed[pair.first, pair.second] = agreed[pair.second, pair.first] = good
    by_view = agreed.sum(axis=1) / np.maximum(shared.sum(axis=1), 1.0)
    neighbours = check_neighbours(pairs, state, views, config, ordered)
    return _Judged(state, float(agreed.sum() / max(shared.sum(), 1.0)), by_view, neighbours)


def _shared_matches(pairs: Sequence[VerifiedPair], count: int) -> Array:
    """Verified matches (count, count) that any two views share."""
    shared = np.zeros((count, count))
    for pair in pairs:
        shared[pair.first, pair.second] = shared[pair.second, pair.first] = pair.support
    return shared


def _windows(judged: _Judged, shared: Array) -> Iterator[Window]:
    """Parts to be taken out: the view that agrees least with its matches and those it shares most with, in four sizes.

    Then the same around the worst view that no part of that size has held so far.
    """
    posed = np.array(sorted(judged.state.poses))
    worst_first = posed[np.argsort(judged.by_view[posed], kind='stable')]
    sizes = sorted({max(_FEWEST, round(share * len(posed))) for share in _SHARES})
    held: dict[int, set[int]] = {size: set() for size in sizes}
    while True:
        found = False
        for size in sizes:
            centre = next((int(number) for number in worst_first if int(number) not in held[size]), None)
            if centre is None or size > len(posed) - _FEWEST:
                continue
            partners = posed[posed != centre]
            nearest = partners[np.argsort(-shared[centre, partners], kind='stable')]
            window = frozenset([centre, *nearest[: size - 1].tolist()])
            held[size] |= window
            found = True
            yield window
        if not found:
            return
