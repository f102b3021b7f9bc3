# SPDX-License-Identifier: Apache-2.0
"""Rounds of triangulation and bundle adjustment over all views."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.bundle import BundleProblem, adjust
from dark3r_ros.sfm.tracks import Tracks
from dark3r_ros.sfm.triangulation import Structure, pose_table, triangulate_tracks

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Refined:
    """Poses camera_from_world by view, their structure, and the covariances (6, 6) of their left twists."""

    poses: dict[int, Array]
    structure: Structure
    covariance: dict[int, Array]


def thin(structure: Structure, per_view: int) -> Structure:
    """Keep the points with most observations, `per_view` of those centred in each view."""
    tracks = structure.tracks
    counts = np.bincount(tracks.point, minlength=len(tracks))
    view = tracks.view[tracks.centre]
    order = np.lexsort((np.arange(len(tracks)), -counts, view))
    first = np.searchsorted(view[order], view[order])
    rank = np.arange(len(order)) - first
    chosen = np.zeros(len(tracks), dtype=bool)
    chosen[order[rank < per_view]] = True
    return Structure(tracks.select(chosen[tracks.point]), structure.points[chosen])


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
) -> Refined:
    """Alternate triangulation within falling errors (pixels) and bundle adjustment of all poses.

    `per_view` limits the points that take part in an adjustment; the structure returned holds all of them. A view
    whose points are gone keeps its pose, and so do those `held`: without two of them the covariance knows no gauge.
    """
    current = {number: np.array(pose) for number, pose in sorted(poses.items())}
    count = max(current, default=-1) + 1
    covariance: dict[int, Array] = {}
    for round_number, error in enumerate(errors):
        structure = triangulate_tracks(tracks, current, focal, error, min_parallax)
        if not len(structure.points):
            break
        last = round_number == len(errors) - 1
        chosen = thin(structure, per_view)
        current, covariance = _adjust(chosen, current, count, focal, iterations, with_covariance and last, held)
    structure = triangulate_tracks(tracks, current, focal, errors[-1], min_parallax)
    return Refined(current, structure, covariance)


def _adjust(
    structure: Structure,
    poses: dict[int, Array],
    count: int,
    focal: float,
    iterations: int,
    with_covariance: bool,
    held: Collection[int],
) -> tuple[dict[int, Array], dict[int, Array]]:
    tracks = structure.tracks
    free = np.zeros(count, dtype=bool)
    free[np.unique(tracks.view)] = True
    free[list(held)] = False
    problem = BundleProblem(
        pose_table(poses, count), free, structure.points, tracks.view, tracks.point, tracks.normalised, focal
    )
    result = adjust(problem, iterations, with_covariance=with_covariance)
    moved = {number: result.cameras_from_world[number] for number in poses}
    if result.pose_covariance is None:
        return moved, {}
    return moved, {number: result.pose_covariance[number] for number in poses if number in held or free[number]}
