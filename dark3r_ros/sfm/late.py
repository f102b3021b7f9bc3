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
from dark3r_ros.sfm.tracks import Tracks, rows_by
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


def known_points(tracks: Tracks, structure: Structure, numbers: Collection[int]) -> dict[int, tuple[Index, Index]]:
    """Rows of `tracks` seen in each of some views whose point is in the structure, and the numbers of those points."""
    keys = _centre_keys(structure.tracks)
    order = np.argsort(keys, kind='stable')
    wanted = _centre_keys(tracks)
    place = np.searchsorted(keys[order], wanted).clip(max=max(len(order) - 1, 0))
    known = keys[order][place] == wanted if len(order) else np.zeros(len(wanted), dtype=bool)
    asked = np.zeros(max([int(tracks.view.max(initial=-1)), *numbers]) + 1, dtype=bool)
    asked[list(numbers)] = True
    rows = np.flatnonzero(asked[tracks.view] & known[tracks.point])
    nothing = rows[:0]
    result = dict.fromkeys(numbers, (nothing, nothing))
    for number, mine in rows_by(tracks.view[rows]):
        result[number] = rows[mine], order[place[tracks.point[rows[mine]]]]
    return result


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
    missing = [n for n, view in enumerate(views) if n not in poses and n not in barred and view.usable]
    for number, (rows, points) in known_points(tracks, structure, missing).items():
        result = resect(
            structure.points[points],
            tracks.normalised[rows],
            views[number].focal,
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
    inside = [pair for pair in inside if pair.first in kept and pair.second in kept]
    kept -= _worst_views(kept, inside, good, config.min_agreement)
    edges = [
        pair
        for pair in inside
        if pair.first in kept
        and pair.second in kept
        and good[pair.first, pair.second] >= max(config.min_inliers, 0.5 * pair.support)
    ]
    return _largest_group(edges)


def _worst_views(
    numbers: Collection[int], pairs: Sequence[VerifiedPair], good: Mapping[tuple[int, int], int], least: float
) -> set[int]:
    """Views to be set aside, the worst first, until the matches of every other one agree with the poses often enough.

    Counted are, in the pairs of views that are still there, matches that agree with the poses (`good`) over those that
    agree with the geometries of the pairs. A view without any agrees with nothing.
    """
    agreed, total = np.zeros(max(numbers, default=-1) + 1), np.zeros(max(numbers, default=-1) + 1)
    partners: dict[int, dict[int, tuple[int, int]]] = {number: {} for number in numbers}
    for pair in pairs:
        counts = good[pair.first, pair.second], pair.support
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            partners[one][other] = counts
            agreed[one] += counts[0]
            total[one] += counts[1]
    removed: set[int] = set()
    share = np.full(len(total), np.inf)
    share[list(numbers)] = 0.0
    known = total > 0
    share[known] = agreed[known] / total[known]
    while len(removed) < len(numbers):
        worst = int(share.argmin())
        if share[worst] >= least:
            break
        removed.add(worst)
        share[worst] = np.inf
        for other, (right, all_of_them) in partners[worst].items():
            if other in removed:
                continue
            agreed[other] -= right
            total[other] -= all_of_them
            share[other] = agreed[other] / total[other] if total[other] > 0 else 0.0
    return removed


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
