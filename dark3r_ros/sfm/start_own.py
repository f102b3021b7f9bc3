# SPDX-License-Identifier: Apache-2.0
"""First poses without COLMAP: a good pair, then one view after another by resection, adjusted as the map grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import known_points
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.refine import Refined, refine
from dark3r_ros.sfm.resection import resect
from dark3r_ros.sfm.tracks import Tracks, build_tracks
from dark3r_ros.sfm.views import View, median_focal

Array = NDArray[np.float64]

_SEEDS = 3
_GROWTH = 1.2


def map_incrementally(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
) -> dict[int, Array]:
    """Poses camera_from_world by view, of the largest map over a few starting pairs; `tick` hears of every view."""
    tracks = build_tracks(views, pairs)
    paired = {number for pair in pairs for number in (pair.first, pair.second)}
    best: dict[int, Array] = {}
    for pair in seed_pairs(pairs, _SEEDS):
        poses = grow(pair, tracks, views, config, tick)
        if len(poses) > len(best):
            best = poses
        if len(best) == len(paired):
            break
    return best


def seed_pairs(pairs: Sequence[VerifiedPair], count: int) -> list[VerifiedPair]:
    """The `count` pairs with most matches and parallax."""

    def merit(pair: VerifiedPair) -> float:
        return pair.support * min(np.degrees(pair.parallax) / 8.0, 1.0)

    return sorted(pairs, key=lambda pair: (-merit(pair), pair.first, pair.second))[:count]


def adjusted_map(tracks: Tracks, poses: dict[int, Array], views: Sequence[View], config: SfmConfig) -> Refined:
    """Poses as a map ends up with that grew to them."""
    return _adjusted(tracks, poses, views, config, True)


def _adjusted(tracks: Tracks, poses: dict[int, Array], views: Sequence[View], config: SfmConfig, last: bool) -> Refined:
    focal = median_focal(views, poses)
    error = config.max_error
    errors = (2.0 * error, 1.5 * error) if last else (2.0 * error,)
    parallax = np.radians(max(config.min_parallax, 1.0 if len(poses) == 2 else 0.5))
    return refine(tracks, poses, focal, errors=errors, min_parallax=parallax, per_view=100, iterations=8)


def grow(
    pair: VerifiedPair,
    tracks: Tracks,
    views: Sequence[View],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
) -> dict[int, Array]:
    """Poses camera_from_world by view of the map that grows from one pair."""
    return grow_from({pair.first: np.eye(4), pair.second: pair.second_from_first}, tracks, views, config, tick).poses


def grow_from(
    poses: dict[int, Array],
    tracks: Tracks,
    views: Sequence[View],
    config: SfmConfig,
    tick: Callable[[], None] | None = None,
) -> Refined:
    """The map that grows from poses camera_from_world by view; `tick` hears of every view that is added."""
    state = _adjusted(tracks, poses, views, config, False)
    adjusted = len(poses)
    while True:
        found = _next_view(tracks, state, views, config)
        if found is None:
            if adjusted == len(state.poses):
                break
            state = _adjusted(tracks, state.poses, views, config, True)
            adjusted = len(state.poses)
            continue
        poses = {**state.poses, found[0]: found[1]}
        state = Refined(poses, state.structure, {})
        if tick is not None:
            tick()
        if len(poses) >= max(adjusted + 1, int(_GROWTH * adjusted)):
            state = _adjusted(tracks, poses, views, config, False)
            adjusted = len(poses)
    return state


def _next_view(tracks: Tracks, state: Refined, views: Sequence[View], config: SfmConfig) -> tuple[int, Array] | None:
    """The view that sees most known points and can be resected from them."""
    missing = [number for number, view in enumerate(views) if number not in state.poses and view.usable]
    known = known_points(tracks, state.structure, missing)
    candidates = [(-len(rows), number, rows, points) for number, (rows, points) in known.items()]
    for _, number, rows, points in sorted(candidates, key=lambda item: item[:2])[:5]:
        view = views[number]
        result = resect(
            state.structure.points[points],
            tracks.normalised[rows],
            view.focal,
            2.0 * config.max_error,
            min_inliers=config.min_inliers,
        )
        if result is not None and result.inliers.sum() >= config.min_inlier_share * len(rows):
            return number, result.camera_from_world
    return None
