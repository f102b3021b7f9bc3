# SPDX-License-Identifier: Apache-2.0
"""Landmarks that no parallax tells the distance of: what a camera that only turns has to go by.

A keyframe that was turned on the spot shares most of what is new to it with others from the same place. Such a landmark
has a bearing, which holds the rotation, and a distance like that of its neighbours in the picture, which is expected
loosely wherever the map is adjusted. Once two keyframes see it with parallax it is one like the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.sparse_map import Keyframe, ObservationSet, SparseMap
from dark3r_ros.sfm.priors import DistancePrior

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_NEIGHBOURS = 5
_DEVIATION = 0.5  # of the logarithm of a guessed distance


def guessed_points(sparse_map: SparseMap, keyframe: Keyframe, rows: Index) -> tuple[Array, Array] | None:
    """Points (N, 3) of keypoints of a keyframe, by rows, and their distances (N,): those of landmarks around them.

    None where the keyframe sees too few of these.
    """
    from scipy.spatial import cKDTree

    known = keyframe.table.observing()
    if len(known) < _NEIGHBOURS:
        return None
    seen = sparse_map.landmarks.points[keyframe.table.landmark[known]]
    logs = np.log(np.maximum(np.linalg.norm(seen - keyframe.centre, axis=1), 1e-9))
    _, near = cKDTree(keyframe.table.pixels[known]).query(keyframe.table.pixels[rows], _NEIGHBOURS)
    distances = np.exp(np.median(logs[near], axis=1))
    rays = np.column_stack([keyframe.normalised(rows), np.ones(len(rows))])
    rays *= (distances / np.linalg.norm(rays, axis=1))[:, None]
    return se3.transform_points(keyframe.world_from_camera, rays), np.asarray(distances)


def expected_distances(
    sparse_map: SparseMap, keyframes: Sequence[Keyframe], seen: ObservationSet, landmarks: Index
) -> DistancePrior | None:
    """What is expected of those landmarks (P,) that are provisional, each seen from the first keyframe that sees it.

    None where all are known.
    """
    guessed = sparse_map.landmarks.guessed[landmarks]
    provisional = np.flatnonzero(guessed > 0.0)
    if len(provisional) == 0:
        return None
    first = np.full(sparse_map.landmarks.capacity, len(keyframes))
    np.minimum.at(first, seen.landmark, seen.keyframe)
    centres = np.stack([keyframe.centre for keyframe in keyframes])
    return DistancePrior(provisional, centres[first[landmarks[provisional]]], guessed[provisional], _DEVIATION)


def held_by_bearings(sparse_map: SparseMap, keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    """Those of the keyframes that see provisional landmarks more than others: no pair of views tells their places."""
    provisional = sparse_map.landmarks.provisional
    rows = ((keyframe, keyframe.table.landmark[keyframe.table.observing()]) for keyframe in keyframes)
    return [keyframe for keyframe, seen in rows if len(seen) and provisional[seen].mean() > 0.5]
