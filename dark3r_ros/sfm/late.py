# SPDX-License-Identifier: Apache-2.0
"""Views that the start left out are tried again; views that nothing holds are set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    tracks: Tracks, structure: Structure, poses: Mapping[int, Array], views: Sequence[View], config: SfmConfig
) -> dict[int, Array]:
    """Poses of further views by resection from the points known so far."""
    found: dict[int, Array] = {}
    for number, view in enumerate(views):
        if number in poses or not view.usable:
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
    """Views of the largest group that pairs hold together which agree with the poses.

    A pair agrees when half of its matches do, and at least `min_inliers`. A view also needs as many observations.
    """
    numbers = sorted(poses)
    place = {number: row for row, number in enumerate(numbers)}
    edges = [
        (place[pair.first], place[pair.second])
        for pair in pairs
        if pair.first in place and pair.second in place and agreement(pair, poses, views, config)
    ]
    if not edges:
        return set()
    rows, columns = np.array(edges).T
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, group = connected_components(graph, directed=False)
    largest = np.bincount(group).argmax()
    counts = np.bincount(structure.tracks.view, minlength=max(numbers) + 1)
    return {number for number in numbers if group[place[number]] == largest and counts[number] >= config.min_inliers}


def agreement(pair: VerifiedPair, poses: Mapping[int, Array], views: Sequence[View], config: SfmConfig) -> bool:
    """Whether half of the matches of a pair, and enough, agree with the poses of its views."""
    relative = poses[pair.second] @ se3.inverse(poses[pair.first])
    if np.linalg.norm(relative[:3, 3]) < 1e-12:
        return False
    first = views[pair.first].normalised(pair.pixels_first)
    second = views[pair.second].normalised(pair.pixels_second)
    error = sampson_distance(relative, first, second) * views[pair.first].focal
    good = int((error < 1.5 * config.max_error).sum())
    return good >= max(config.min_inliers, 0.5 * len(pair))
