# SPDX-License-Identifier: Apache-2.0
"""Rounds of triangulation and bundle adjustment over all views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.tracks import Tracks
from dark3r_ros.sfm.triangulation import Structure, pose_table, posed_views, triangulate_tracks

Array = NDArray[np.float64]
Index = NDArray[np.int64]


# Points of all views together in an adjustment, unless that leaves too few of each.
_TOTAL = 25_000
_FEWEST = 100


@dataclass(frozen=True, eq=False)
class Refined:
    """Poses camera_from_world by view, their structure, and the covariances (6, 6) of their left twists."""

    poses: dict[int, Array]
    structure: Structure
    covariance: dict[int, Array]


def thin(structure: Structure, per_view: int) -> Structure:
    """Keep the points best observed, `per_view` of those centred in each view."""
    tracks = structure.tracks
    weights = np.bincount(tracks.point, weights=tracks.sigma**-2, minlength=len(tracks))
    chosen = most_seen(tracks, weights, per_view)
    return Structure(tracks.select(chosen[tracks.point]), structure.points[chosen])


def most_seen(tracks: Tracks, counts: NDArray[Any], per_view: int) -> NDArray[np.bool_]:
    """Mask (P,) of the points with the largest counts (P,), `per_view` of those centred in each view."""
    view = tracks.view[tracks.centre]
    order = np.lexsort((np.arange(len(tracks)), -counts, view))
    rank = np.arange(len(order)) - np.searchsorted(view[order], view[order])
    chosen = np.zeros(len(tracks), dtype=bool)
    chosen[order[rank < per_view]] = True
    return chosen


def refine(
    tracks: Tracks,
    poses: Mapping[int, Array],
    focal: float,
    *,
    errors: Sequence[float] = (4.0, 3.0, 2.0),
    min_parallax: float = 0.005,
    per_view: int = 300,
    iterations: int = 12,
    with_covariance: bool = False,
    held: Collection[int] = (),
    tick: Callable[[int], None] | None = None,
) -> Refined:
    """Alternate triangulation within falling errors (pixels) and bundle adjustment of all poses.

    `per_view` limits the points that take part in an adjustment; the structure returned holds all of them. A view
    whose points are gone keeps its pose, and so do those `held`: without two of them the covariance knows no gauge.
    `tick` hears of every error bound that is done.
    """
    current = {number: np.array(pose) for number, pose in sorted(poses.items())}
    covariance: dict[int, Array] = {}
    per_view = min(per_view, max(_FEWEST, _TOTAL // max(len(current), 1)))
    likely = _longest(tracks, current, 2 * per_view)
    for round_number, error in enumerate(errors):
        structure = triangulate_tracks(likely, current, focal, error, min_parallax)
        if not len(structure.points):
            break
        last = round_number == len(errors) - 1
        chosen = thin(structure, per_view)
        current, covariance = _adjust(chosen, current, focal, iterations, with_covariance and last, held)
        if tick is not None:
            tick(1)
    structure = triangulate_tracks(tracks, current, focal, errors[-1], min_parallax)
    return Refined(current, structure, covariance)


def _longest(tracks: Tracks, poses: Mapping[int, Array], per_view: int) -> Tracks:
    """The tracks with most observations in posed views, `per_view` of those centred in each view.

    Twice as many as take part in an adjustment leave it a choice; triangulating the others would only cost time.
    """
    posed = posed_views(tracks, poses)
    counts = np.bincount(tracks.point, weights=posed[tracks.view] / tracks.sigma**2, minlength=len(tracks))
    return tracks.select(most_seen(tracks, counts, per_view)[tracks.point])


def bundle_problem(
    structure: Structure, poses: Mapping[int, Array], focal: float, held: Collection[int] = ()
) -> BundleProblem:
    """Adjustment of poses (camera_from_world by view) and structure; free are views with points, but for `held`."""
    tracks, count = structure.tracks, max(poses) + 1
    free = np.zeros(count, dtype=bool)
    free[np.unique(tracks.view)] = True
    free[list(held)] = False
    return BundleProblem(
        pose_table(poses, count),
        free,
        structure.points,
        tracks.view,
        tracks.point,
        tracks.normalised,
        focal,
        weights=1.0 / tracks.sigma,
    )


def _adjust(
    structure: Structure,
    poses: dict[int, Array],
    focal: float,
    iterations: int,
    with_covariance: bool,
    held: Collection[int],
) -> tuple[dict[int, Array], dict[int, Array]]:
    # Numbered anew, so that ten views of thousands cost what ten cost.
    numbers = sorted(poses)
    rank = {number: place for place, number in enumerate(numbers)}
    tracks = replace(structure.tracks, view=np.searchsorted(numbers, structure.tracks.view))
    ranked = {rank[number]: pose for number, pose in poses.items()}
    problem = bundle_problem(Structure(tracks, structure.points), ranked, focal, [rank[number] for number in held])
    result = adjust(problem, iterations, with_covariance=with_covariance)
    moved = {number: result.cameras_from_world[rank[number]] for number in poses}
    if result.pose_covariance is None:
        return moved, {}
    return moved, {
        number: result.pose_covariance[rank[number]]
        for number in poses
        if number in held or problem.pose_free[rank[number]]
    }
