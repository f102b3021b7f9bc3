# SPDX-License-Identifier: Apache-2.0
"""The start of frames in order of time: a chain of neighbours, pairs that fit it, and pairs that only look alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.chain import REACH, adjusted, map_in_order, near_pairs, steps_apart, time_order
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.consistency import DepthsSeen, fitting_share, pose_of_pair
from dark3r_ros.sfm.late import pose_remaining
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.refine import Refined
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.views import View, median_focal

Array = NDArray[np.float64]
Key = tuple[int, int]

# A pair fits when this share of its verified matches lies where the map says. Simulated tunnel and corridor at -4 dB,
# the true map: right pairs 0.4 to 1, pairs of places that look alike 0 to 0.2.
_FITS = 0.4
_ROUNDS = 2
# A chain stands when it poses this share of the views, and neighbours fit it by as much on average.
_POSED = 0.9
_NEIGHBOURS = 0.9
# A pair that does not fit closes a loop when what the chain would have drifted is at most this share of the way.
_DRIFT = 0.15
_DRIFT_DEG = 20.0
# Pairs of views without a pose are believed over so many places.
_BELIEVED = 10


@dataclass(frozen=True, eq=False)
class OrderedStart:
    """What the neighbours in time say.

    Attributes
    ----------
    poses: camera_from_world by view. neighbours: share of the matches of next neighbours that fit, on average.
    refused: pairs that only look alike. loops: pairs that do not fit but may close a loop that the chain left open.
    refused_share, loops_share: of all verified matches.
    stands: whether the chain is good enough to judge by.

    """

    poses: dict[int, Array]
    neighbours: float
    refused: frozenset[Key]
    loops: frozenset[Key]
    refused_share: float
    loops_share: float
    stands: bool

    def figures(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            'stands': self.stands,
            'neighbours_fitting': self.neighbours,
            'refused_pairs': len(self.refused),
            'refused_share': self.refused_share,
            'open_loops': len(self.loops),
        }


def start_in_order(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
) -> OrderedStart:
    """First poses along the order of time, adjusted with all pairs that fit them; `tick` hears of every view."""
    state = map_in_order(views, pairs, config, tick)
    if len(state.poses) < 3:
        return OrderedStart({}, 0.0, frozenset(), frozenset(), 0.0, 0.0, False)
    near = near_pairs(pairs, time_order(views, pairs), _BELIEVED)
    return judged_in_order(_with_the_still(state, near, views, config), views, pairs, config)


def judged_in_order(
    state: Refined, views: Sequence[View], pairs: Sequence[VerifiedPair], config: SfmConfig
) -> OrderedStart:
    """A map adjusted with all pairs that fit it, and what it says of the others."""
    order = time_order(views, pairs)
    for _ in range(_ROUNDS):
        depths = DepthsSeen(state.structure, state.poses)
        shares = fitting_shares(pairs, state.poses, depths, views, config)
        fitting = [pair for pair in pairs if shares.get(key_of(pair), 0.0) >= _FITS]
        state = adjusted(fitting, state.poses, views, config)
    depths = DepthsSeen(state.structure, state.poses)
    shares = fitting_shares(pairs, state.poses, depths, views, config)
    neighbours = _mean([shares.get(key_of(pair), 0.0) for pair in near_pairs(pairs, order, 1)])
    loops, refused = _judged(pairs, order, shares, state.poses, depths, views, config)
    total = sum(pair.support for pair in pairs)
    return OrderedStart(
        state.poses,
        neighbours,
        refused,
        loops,
        _support(pairs, refused) / total,
        _support(pairs, loops) / total,
        len(state.poses) >= _POSED * len(order) and neighbours >= _NEIGHBOURS,
    )


def _with_the_still(state: Refined, near: Sequence[VerifiedPair], views: Sequence[View], config: SfmConfig) -> Refined:
    """The map with poses of the views that the chain passed over."""
    if {number for pair in near for number in key_of(pair)} <= set(state.poses):
        return state
    tracks = build_tracks(views, near, verified=True)
    parallax = np.radians(config.min_parallax)
    structure = triangulate_tracks(
        tracks, state.poses, median_focal(views, state.poses), 2.0 * config.max_error, parallax
    )
    found = pose_remaining(tracks, structure, state.poses, views, config)
    return adjusted(near, {**state.poses, **found}, views, config) if found else state


def key_of(pair: VerifiedPair) -> Key:
    """The two views of a pair."""
    return pair.first, pair.second


def fitting_shares(
    pairs: Sequence[VerifiedPair],
    poses: Mapping[int, Array],
    depths: DepthsSeen,
    views: Sequence[View],
    config: SfmConfig,
) -> dict[Key, float]:
    """Share of the verified matches of each pair of posed views that lie where the map says."""
    return {
        key_of(pair): fitting_share(pair, poses, depths, views, 2.0 * config.max_error)
        for pair in pairs
        if pair.first in poses and pair.second in poses
    }


def _judged(
    pairs: Sequence[VerifiedPair],
    order: Sequence[int],
    shares: Mapping[Key, float],
    poses: Mapping[int, Array],
    depths: DepthsSeen,
    views: Sequence[View],
    config: SfmConfig,
) -> tuple[frozenset[Key], frozenset[Key]]:
    """Pairs that do not fit: those that may close a loop, and those that only look alike.

    Neighbours that made the chain are neither: where they do not fit, the chain is wrong.
    """
    way = _way(order, poses)
    loops: set[Key] = set()
    refused: set[Key] = set()
    for pair, steps in zip(pairs, steps_apart(pairs, order), strict=True):
        key = key_of(pair)
        if key not in shares:
            if steps > _BELIEVED:
                refused.add(key)
        elif steps > REACH and shares[key] < _FITS:
            (loops if _closes(pair, way, poses, depths, views, config) else refused).add(key)
    return frozenset(loops), frozenset(refused)


def _way(order: Sequence[int], poses: Mapping[int, Array]) -> dict[int, float]:
    """How far the camera has come at each posed view, along the path."""
    posed = [number for number in order if number in poses]
    centres = np.stack([se3.inverse(poses[number])[:3, 3] for number in posed])
    lengths = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return dict(zip(posed, np.concatenate([[0.0], np.cumsum(lengths)]).tolist(), strict=True))


def _closes(
    pair: VerifiedPair,
    way: Mapping[int, float],
    poses: Mapping[int, Array],
    depths: DepthsSeen,
    views: Sequence[View],
    config: SfmConfig,
) -> bool:
    """Whether a pair puts its second view where the chain may have come but for its drift.

    A place that looks like another one is off by the whole way between them.
    """
    least = max(config.min_inliers, int(_FITS * pair.support))
    own = pose_of_pair(pair, depths, views, 2.0 * config.max_error, least)
    if own is None:
        return False
    chain = poses[pair.second] @ se3.inverse(poses[pair.first])
    apart = se3.inverse(own)[:3, 3] - se3.inverse(chain)[:3, 3]
    turned = np.degrees(se3.rotation_angle(own[:3, :3].T @ chain[:3, :3]))
    drift = _DRIFT * abs(way[pair.second] - way[pair.first])
    return bool(np.linalg.norm(apart) <= drift and turned <= _DRIFT_DEG)


def _support(pairs: Sequence[VerifiedPair], keys: frozenset[Key]) -> int:
    return sum(pair.support for pair in pairs if key_of(pair) in keys)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
