# SPDX-License-Identifier: Apache-2.0
"""Which pairs of views show what the map says: those that only look alike are refused.

Epipolar lines do not tell: where a camera moves ahead, a place that looks the same from another one agrees with them.
The depths of the map say as well how far along its line every match must lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.resection import resect
from dark3r_ros.sfm.tracks import rows_by
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]

# A match may be nearer or farther by this factor than the point of the map that is next to it in the picture.
_DEPTH_SPREAD = 1.5
# Pixels within which a point of the map tells the depth of a match.
_BESIDE = 24.0
# Fewest matches with a depth that a pair is judged by.
_LEAST = 10


class DepthsSeen:
    """Depths that the points of a map have in each view, to be asked for at any pixel."""

    def __init__(self, structure: Structure, poses: Mapping[int, Array]) -> None:
        self._trees: dict[int, tuple[cKDTree, Array]] = {}
        tracks = structure.tracks
        for number, rows in rows_by(tracks.view):
            depth = structure.points[tracks.point[rows]] @ poses[number][2, :3] + poses[number][2, 3]
            self._trees[number] = cKDTree(tracks.pixels[rows]), depth

    def at(self, view: int, pixels: Array) -> Array:
        """Depth (N,) of the nearest point of the map at pixels (N, 2) of a view; NaN where there is none."""
        if view not in self._trees:
            return np.full(len(pixels), np.nan)
        tree, depth = self._trees[view]
        distance, place = tree.query(pixels, distance_upper_bound=_BESIDE)
        found = np.isfinite(distance)
        return np.where(found, depth[np.where(found, place, 0)], np.nan)


def fitting_share(
    pair: VerifiedPair, poses: Mapping[int, Array], depths: DepthsSeen, views: Sequence[View], max_error: float
) -> float:
    """Share of the verified matches of a pair, of those with a depth in the map, that lie where the map says.

    `max_error` is in pixels. 0 where fewer than ten have a depth: nothing speaks for the pair.
    """
    found = _lifted(pair, depths, views)
    if found is None:
        return 0.0
    points, observed = found
    second_from_first = poses[pair.second] @ se3.inverse(poses[pair.first])
    ends = [
        _flat(se3.transform_points(second_from_first, factor * points))
        for factor in (1.0 / _DEPTH_SPREAD, _DEPTH_SPREAD)
    ]
    distance = _distance_to_segments(observed, *ends) * views[pair.second].focal
    return float((distance < max_error).mean())


def pose_of_pair(
    pair: VerifiedPair, depths: DepthsSeen, views: Sequence[View], max_error: float, min_inliers: int
) -> Array | None:
    """Where the matches of a pair alone put the second view: second_from_first (4, 4) in the units of the map."""
    found = _lifted(pair, depths, views)
    if found is None:
        return None
    result = resect(*found, views[pair.second].focal, max_error, min_inliers=min_inliers)
    return None if result is None else result.camera_from_world


def _lifted(pair: VerifiedPair, depths: DepthsSeen, views: Sequence[View]) -> tuple[Array, Array] | None:
    """Points (N, 3) in the first view of its verified matches with a depth, and where the second one sees them (N, 2).

    None where they are fewer than ten.
    """
    own = pair.verified()
    depth = depths.at(pair.first, own.pixels_first)
    known = np.isfinite(depth) & (depth > 0)
    if known.sum() < _LEAST:
        return None
    rays = np.column_stack([views[pair.first].normalised(own.pixels_first[known]), np.ones(int(known.sum()))])
    return rays * depth[known, None], views[pair.second].normalised(own.pixels_second[known])


def _flat(points: Array) -> Array:
    """Normalised coordinates (N, 2) of points (N, 3); NaN behind the camera."""
    front = points[:, 2] > 1e-9
    return np.where(front[:, None], points[:, :2] / np.where(front, points[:, 2], 1.0)[:, None], np.nan)


def _distance_to_segments(places: Array, begins: Array, ends: Array) -> Array:
    """Distance (N,) of places (N, 2) to segments; infinite where these are not known."""
    along = ends - begins
    length = np.maximum(np.einsum('ij,ij->i', along, along), 1e-18)
    fraction = np.clip(np.einsum('ij,ij->i', places - begins, along) / length, 0.0, 1.0)
    distance = np.linalg.norm(begins + fraction[:, None] * along - places, axis=1)
    return np.where(np.isfinite(distance), distance, np.inf)
