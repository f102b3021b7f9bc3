# SPDX-License-Identifier: Apache-2.0
"""First poses of frames in order of time: from a good pair of neighbours the map grows view by view, both ways.

Along a tunnel or a corridor places look alike, and more pairs of views agree with a wrong geometry than with the right
one. Neighbours in time are beyond doubt: they alone make the map here, adjusted over the newest views as it grows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import known_points
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.refine import Refined, refine
from dark3r_ros.sfm.resection import resect
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.triangulation import Structure, triangulate_tracks
from dark3r_ros.sfm.views import View, median_focal

Array = NDArray[np.float64]

# Pairs of views at most so many places apart make the map: half a step further a rib of a tunnel looks like the next.
REACH = 2
# Newest views adjusted after each one, and how many of them, the oldest, then stay where they are.
_WINDOW = 10
_HELD = 4
# Views that move less than this in the picture add nothing to the chain: the camera stands, or frames come fast.
_MOTION_PX = 4.0
_SPAN = 12
# Smallest share of the verified matches with known points that must agree with the pose of a further view.
_AGREEING = 0.3
# A map begins with this many views, and is tried at so many places.
_NUCLEUS = 5
_PLACES = 4
# Views that far from a beginning know it better than it knows itself: where they turn it by more, they are right.
_BEYOND = 4
_TWIST = np.radians(2.0)
# Where the steps of the chain have shrunk by this, the world is moved there.
_SHRUNK = 0.01


def time_order(views: Sequence[View], pairs: Sequence[VerifiedPair]) -> list[int]:
    """The views that are in pairs, in order of time."""
    paired = {number for pair in pairs for number in (pair.first, pair.second)}
    return sorted(paired, key=lambda number: (views[number].stamp_ns, number))


def steps_apart(pairs: Sequence[VerifiedPair], order: Sequence[int]) -> list[int]:
    """By how many places of the order the views of each pair are apart."""
    place = {number: rank for rank, number in enumerate(order)}
    return [abs(place[pair.second] - place[pair.first]) for pair in pairs]


def near_pairs(pairs: Sequence[VerifiedPair], order: Sequence[int], reach: int = REACH) -> list[VerifiedPair]:
    """Pairs of views at most `reach` places apart."""
    return [pair for pair, steps in zip(pairs, steps_apart(pairs, order), strict=True) if steps <= reach]


def moving_views(pairs: Sequence[VerifiedPair], order: Sequence[int]) -> list[int]:
    """The views of the order that the chain is made of: each has moved in the picture since the one before it.

    Where a camera stands for longer than pairs reach, views far apart in time are kept.
    """
    motion = {frozenset((pair.first, pair.second)): _motion(pair) for pair in pairs}
    chosen, rank, last = list(order[:1]), 0, len(order) - 1
    while rank < last:
        moved = [motion.get(frozenset((order[rank], other))) for other in order[rank + 1 : rank + 1 + _SPAN]]
        still = 0
        for steps, pixels in enumerate(moved, start=1):
            if pixels is not None and pixels >= _MOTION_PX:
                break
            still = steps if pixels is not None else still
        # The view after the last still one, unless no pair leads there.
        leads = still == 0 or (still < len(moved) and moved[still] is not None)
        rank = min(rank + still + int(leads), last)
        chosen.append(order[rank])
    return chosen


def _motion(pair: VerifiedPair) -> float:
    """Median motion in pixels of the matches that agree."""
    return float(np.median(np.linalg.norm(pair.pixels_first - pair.pixels_second, axis=1)[pair.agrees]))


def map_in_order(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
) -> Refined:
    """Poses camera_from_world by view, and their points, of the chain that most matches agree with.

    `tick` hears of every view that is added.
    """
    order = moving_views(pairs, time_order(views, pairs))
    within = set(order)
    inside = [pair for pair in pairs if pair.first in within and pair.second in within]
    near = near_pairs(inside, order)
    chain = Chain(order, near, views, config)
    best, most = _nothing(views), -1
    for nucleus in _nuclei(order, near, views, config):
        state = adjusted(near, chain.mapped(nucleus, tick), views, config)
        held = len(state.structure.tracks.point)
        if held > most:
            best, most = state, held
        if len(best.poses) == len(order):
            break
    return best


def _nuclei(
    order: Sequence[int], near: Sequence[VerifiedPair], views: Sequence[View], config: SfmConfig
) -> list[dict[int, Array]]:
    """Poses of a few neighbours at places spread over the recording, those that most matches agree with first.

    Views a small step apart are explained by a motion to the side with a turn as well as by the right one, and which
    a single pair takes is chance; a third and a fourth view agree with the right one.
    """
    size = min(_NUCLEUS, len(order))
    places = min(_PLACES, len(order) // size) if size else 0
    begins = np.linspace(0, len(order) - size, places).round().astype(int).tolist()
    found = [_nucleus(order[begin : begin + size], near, views, config) for begin in begins]
    found.sort(key=lambda item: -item[0])
    return [poses for share, poses in found if share > 0.0]


def _nucleus(
    numbers: Sequence[int], near: Sequence[VerifiedPair], views: Sequence[View], config: SfmConfig
) -> tuple[float, dict[int, Array]]:
    """Poses of some neighbours from the pair that explains most, and observations that agree per verified match."""
    inside = set(numbers)
    pairs = [pair for pair in near if pair.first in inside and pair.second in inside]
    chain = Chain(numbers, pairs, views, config)
    best: dict[int, Array] = {}
    most = 0
    for pair in pairs:
        poses = chain.grown({pair.first: np.eye(4), pair.second: pair.second_from_first})
        state = chain.adjusted(poses, pair.second, 0.5, config.max_error)
        held = len(state.structure.tracks.point)
        if held > most:
            best, most = state.poses, held
    return most / max(sum(pair.support for pair in pairs), 1), best


def step_length(path: Sequence[Array]) -> float:
    """Median distance between neighbours on a path of poses camera_from_world."""
    centres = se3.inverse(np.stack(path))[:, :3, 3]
    return float(np.median(np.linalg.norm(np.diff(centres, axis=0), axis=1)))


def seen_from(poses: Mapping[int, Array], number: int, unit: float) -> dict[int, Array]:
    """The same poses camera_from_world in the world of one of their cameras, lengths in a unit given in the old one.

    A drift of scale of some per cent a second makes steps shrink by 10^13 in minutes. Numbers of 16 digits do not hold
    such a path as seen from its beginning. Seen from where the steps are smallest, each place is as exact as its own
    steps need.
    """
    new_from_old = se3.inverse(poses[number])
    moved = {other: pose @ new_from_old for other, pose in poses.items()}
    return {other: se3.make(pose[:3, :3], pose[:3, 3] / unit) for other, pose in moved.items()}


def adjusted(
    pairs: Sequence[VerifiedPair], poses: Mapping[int, Array], views: Sequence[View], config: SfmConfig
) -> Refined:
    """All poses adjusted by the matches of some pairs that agree with their geometries."""
    if not poses:
        return _nothing(views)
    errors = (2.0 * config.max_error, 1.5 * config.max_error)
    parallax = np.radians(max(config.min_parallax, 0.5))
    tracks = build_tracks(views, pairs, verified=True)
    return refine(tracks, poses, median_focal(views, poses), errors=errors, min_parallax=parallax)


class Chain:
    """A map that grows along the order of time."""

    def __init__(
        self, order: Sequence[int], pairs: Sequence[VerifiedPair], views: Sequence[View], config: SfmConfig
    ) -> None:
        self._order, self._views, self._config = order, views, config
        self._place = {number: rank for rank, number in enumerate(order)}
        self._of_first: dict[int, list[VerifiedPair]] = {number: [] for number in order}
        for pair in pairs:
            self._of_first[pair.first].append(pair)

    def mapped(self, nucleus: Mapping[int, Array], tick: Callable[[], None] | None = None) -> dict[int, Array]:
        """Poses camera_from_world by view, from those of a nucleus both ways to where the chain breaks.

        It grows around the nucleus first, and farther when that is straight.
        """
        ranks = [self._place[number] for number in nucleus]
        margin = _BEYOND + 2 * _WINDOW
        near = range(max(min(ranks) - margin, 0), min(max(ranks) + margin + 1, len(self._order)))
        poses = self.straightened(self.grown(nucleus, within=near), nucleus, near)
        return self.grown(poses, tick, between=False)

    def straightened(
        self, poses: dict[int, Array], nucleus: Collection[int], within: range | None = None
    ) -> dict[int, Array]:
        """Poses grown from a nucleus, or grown anew from views beyond it where these turn its views otherwise.

        In views that are narrow for their steps five may be explained by a motion to the side with a turn, too.
        Views that were added later rest on points that were seen from further apart.
        """
        ranks = sorted(self._place[number] for number in nucleus)
        posed = [rank for rank, number in enumerate(self._order) if number in poses]
        after = [rank for rank in posed if rank >= ranks[-1] + _BEYOND][:_WINDOW]
        before = [rank for rank in posed if rank <= ranks[0] - _BEYOND][-_WINDOW:]
        seed = after if len(after) == _WINDOW else before
        if len(seed) < _WINDOW:
            return poses
        start = {self._order[rank]: poses[self._order[rank]] for rank in seed}
        again = self.grown(start, within=range(min(ranks[0], seed[0]), max(ranks[-1], seed[-1]) + 1))
        common = [number for number in self._order[ranks[0] : ranks[-1] + 1] if number in again and number in poses]
        turned = [
            se3.rotation_angle((poses[b] @ se3.inverse(poses[a]) @ again[a] @ se3.inverse(again[b]))[:3, :3])
            for a, b in itertools.pairwise(common)
        ]
        return self.grown(start, within=within) if max(turned, default=0.0) > _TWIST else poses

    def grown(
        self,
        start: Mapping[int, Array],
        tick: Callable[[], None] | None = None,
        within: range | None = None,
        between: bool = True,
    ) -> dict[int, Array]:
        """Poses camera_from_world by view, from those of a start both ways to where the chain breaks.

        `within` are the places of the order that it may reach; all of them by default. `between` says whether views
        that lie between those of the start are tried, too.
        """
        poses, base = dict(start), 0.0
        if len(poses) == 2:
            poses = {**poses, **self.adjusted(poses, max(poses), 1.0).poses}
        ends = sorted(self._place[number] for number in poses)
        within = within or range(len(self._order))
        gaps = [number for number in self._order[ends[0] : ends[-1]] if number not in poses] if between else []
        ahead, back = self._order[ends[-1] + 1 : within.stop], self._order[within.start : ends[0]][::-1]
        for way in (gaps, ahead, back):
            missed = 0
            for number in way:
                pose = self._resected(number, poses)
                if pose is None:
                    missed += 1
                    if missed > REACH:
                        break
                    continue
                missed = 0
                poses[number] = pose
                poses |= self.adjusted(poses, number, 0.5).poses
                unit = step_length(
                    [poses[other] for other in sorted(self._window(number, poses), key=self._place.__getitem__)]
                )
                base = base or unit
                if unit < _SHRUNK * base:
                    poses, base = seen_from(poses, number, unit), 1.0
                if tick is not None:
                    tick()
        return poses

    def _window(self, number: int, poses: Mapping[int, Array]) -> list[int]:
        """The posed views nearest in time to a view, farthest first."""
        rank = self._place[number]
        found: list[int] = []
        for apart in range(len(self._order)):
            if len(found) >= _WINDOW:
                break
            # Of two equally near ones the greater number counts as the nearer.
            near = {place for place in (rank - apart, rank + apart) if 0 <= place < len(self._order)}
            found += sorted((self._order[place] for place in near if self._order[place] in poses), reverse=True)
        return found[:_WINDOW][::-1]

    def _pairs_within(self, numbers: set[int]) -> list[VerifiedPair]:
        return [pair for number in sorted(numbers) for pair in self._of_first[number] if pair.second in numbers]

    def _resected(self, number: int, poses: Mapping[int, Array]) -> Array | None:
        """Pose of a view from the points that its neighbours in time make."""
        window = self._window(number, poses)
        pairs = self._pairs_within({*window, number})
        if not any(number in (pair.first, pair.second) for pair in pairs):
            return None
        focal, error = median_focal(self._views, window), 2.0 * self._config.max_error
        tracks = build_tracks(self._views, pairs, verified=True)
        near = {other: poses[other] for other in window}
        structure = triangulate_tracks(tracks, near, focal, error, np.radians(0.5))
        rows, points = known_points(tracks, structure, [number])[number]
        view, config = self._views[number], self._config
        observed = tracks.normalised[rows]
        found = resect(structure.points[points], observed, view.focal, error, min_inliers=config.min_inliers)
        if found is None or found.inliers.sum() < _AGREEING * len(rows):
            return None
        return found.camera_from_world

    def adjusted(
        self, poses: Mapping[int, Array], newest: int, parallax_deg: float, error: float | None = None
    ) -> Refined:
        """Those poses near the newest one in time, adjusted; the oldest of them stay where they are."""
        window = self._window(newest, poses)
        return refine(
            build_tracks(self._views, self._pairs_within(set(window)), verified=True),
            {number: poses[number] for number in window},
            median_focal(self._views, window),
            errors=(error or 2.0 * self._config.max_error,),
            min_parallax=np.radians(max(self._config.min_parallax, parallax_deg)),
            per_view=100,
            iterations=8,
            held=window[:_HELD] if len(poses) > _WINDOW else (),
        )


def _nothing(views: Sequence[View]) -> Refined:
    tracks = build_tracks(views, [])
    return Refined({}, Structure(tracks, np.zeros((0, 3))), {})
