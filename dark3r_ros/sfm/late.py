# SPDX-License-Identifier: Apache-2.0
"""Views that the start left out are tried again; views that nothing holds are set aside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.two_view import sampson_distance
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.resection import resect
from dark3r_ros.sfm.tracks import Tracks
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def _centre_keys(tracks: Tracks) -> Index:
    """One number (P,) per track that survives selections: its centre view and anchor, or the centre's place."""
    centre = tracks.centre
    if (tracks.anchor >= 0).all():
        return tracks.view[centre] * (1 << 40) + tracks.anchor
    place = np.rint(tracks.pixels[centre] * 64.0).astype(np.int64)
    return tracks.view[centre] * (1 << 40) + place[:, 1] * (1 << 20) + place[:, 0]


def known_points(tracks: Tracks, structure: Structure, view: int) -> tuple[Index, Index]:
    """Rows of `tracks` seen in a view whose point is in the structure, and the numbers of those points."""
    keys = _centre_keys(structure.tracks)
    order = np.argsort(keys, kind='stable')
    rows = np.flatnonzero(tracks.view == view)
    wanted = _centre_keys(tracks)[tracks.point[rows]]
    place = np.searchsorted(keys[order], wanted).clip(max=max(len(order) - 1, 0))
    found = keys[order][place] == wanted if len(order) else np.zeros(len(rows), dtype=bool)
    return rows[found], order[place[found]] if len(order) else rows[:0]


def pose_remaining(
    tracks: Tracks,
    structure: Structure,
    poses: Mapping[int, Array],
    views: Sequence[View],
    config: SfmConfig,
    barred: Collection[int] = (),
) -> dict[int, Array]:
    """Poses of further views, except barred ones, by resection from the points known so far."""
    found: dict[int, Array] = {}
    for number, view in enumerate(views):
        if number in poses or number in barred or not view.usable:
            continue
        rows, points = known_points(tracks, structure, number)
        result = resect(
            structure.points[points],
            tracks.normalised[rows],
            view.focal,
            2.0 * config.max_error,
            min_inliers=config.min_inliers,
        )
        if result is not None and result.inliers.sum() >= config.min_inlier_share * len(rows):
            found[number] = result.camera_from_world
    return found


def supported(
    pairs: Sequence[VerifiedPair],
    poses: Mapping[int, Array],
    structure: Structure,
    views: Sequence[View],
    config: SfmConfig,
) -> set[int]:
    """Views that the matches hold in place: the largest group whose pairs agree with the poses.

    A view falls out when the matches that agree are fewer than `min_agreement` of those that the geometries of its
    single pairs explain, the worst first, or when it has fewer than `min_inliers` observations. A pair holds two views
    together when half as many of its matches agree, and at least `min_inliers`.
    """
    good = {(pair.first, pair.second): agreeing(pair, poses, views, 1.5 * config.max_error) for pair in pairs}
    inside = [pair for pair in pairs if pair.first in poses and pair.second in poses]
    counts = np.bincount(structure.tracks.view, minlength=max(poses) + 1)
    kept = {number for number in poses if counts[number] >= config.min_inliers}
    while kept:
        share = _shares([pair for pair in inside if pair.first in kept and pair.second in kept], good)
        worst = min(kept, key=lambda number: (share.get(number, 0.0), number))
        if share.get(worst, 0.0) >= config.min_agreement:
            break
        kept.remove(worst)
    edges = [
        pair
        for pair in inside
        if pair.first in kept
        and pair.second in kept
        and good[pair.first, pair.second] >= max(config.min_inliers, 0.5 * pair.support)
    ]
    return _largest_group(edges)


def _shares(pairs: Sequence[VerifiedPair], good: Mapping[tuple[int, int], int]) -> dict[int, float]:
    """Matches of each view that agree with the poses, over those that agree with the geometries of its pairs."""
    agreed: dict[int, int] = {}
    total: dict[int, int] = {}
    for pair in pairs:
        for number in (pair.first, pair.second):
            agreed[number] = agreed.get(number, 0) + good[pair.first, pair.second]
            total[number] = total.get(number, 0) + pair.support
    return {number: agreed[number] / total[number] for number in total}


def _largest_group(edges: Sequence[VerifiedPair]) -> set[int]:
    if not edges:
        return set()
    numbers = np.unique([(pair.first, pair.second) for pair in edges])
    rows = np.searchsorted(numbers, [pair.first for pair in edges])
    columns = np.searchsorted(numbers, [pair.second for pair in edges])
    graph = coo_matrix((np.ones(len(edges)), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, group = connected_components(graph, directed=False)
    return set(numbers[group == np.bincount(group).argmax()].tolist())


def agreement(
    pair: VerifiedPair, poses: Mapping[int, Array], views: Sequence[View], max_error: float
) -> NDArray[np.bool_] | None:
    """Which matches (N,) of a pair have an epipolar error below `max_error` pixels; None without both poses."""
    if pair.first not in poses or pair.second not in poses:
        return None
    relative = poses[pair.second] @ se3.inverse(poses[pair.first])
    if np.linalg.norm(relative[:3, 3]) < 1e-12:
        return np.zeros(len(pair), dtype=bool)
    first = views[pair.first].normalised(pair.pixels_first)
    second = views[pair.second].normalised(pair.pixels_second)
    error = sampson_distance(relative, first, second) * views[pair.first].focal
    return np.asarray(error < max_error)


def agreeing(pair: VerifiedPair, poses: Mapping[int, Array], views: Sequence[View], max_error: float) -> int:
    """Number of matches that agree with the poses as `agreement` says; 0 without both poses."""
    found = agreement(pair, poses, views, max_error)
    return 0 if found is None else int(found.sum())
