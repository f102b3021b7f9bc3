# SPDX-License-Identifier: Apache-2.0
"""A map made of the poses and points that `sfm` found, in place of the one that was there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.keyframing import new_keyframe
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.sfm.pipeline import Solution
from dark3r_ros.sfm.tracks import Tracks

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def replace_map(atlas: Atlas, log: PoseLog, views: Sequence[View], solution: Solution) -> Submap:
    """Forget all submaps and make one of a solution, whose numbers are those of `views`.

    Every posed view becomes a keyframe. The first is where the map begins, and the median depth of its points becomes
    one unit.
    """
    trust = atlas.largest(log).trust.state()
    log.discard_poses('no pose', [keyframe for submap in atlas.submaps for keyframe in submap.map.keyframes])
    while atlas.keyframes:
        atlas.give_up()
    submap = atlas.active
    submap.trust.restore(trust)
    poses, points = _in_unit(solution)
    tracks = solution.structure.tracks
    landmarks = submap.map.landmarks.add(points, _colors(views, tracks))
    tried = np.bincount(solution.tracks.view, minlength=len(views))
    for number, view in enumerate(views):
        if number not in poses:
            log.explain(view.stamp_ns, solution.reasons.get(number, 'no pose'))
            continue
        keyframe = new_keyframe(submap.map, view, poses[number], submap.map.keyframes[-1:])
        rows = np.flatnonzero(tracks.view == number)
        _observe(keyframe, tracks.pixels[rows], landmarks[tracks.point[rows]])
        submap.map.keyframes.append(keyframe)
        atlas.places.add(keyframe)
        log.pose(view.stamp_ns, keyframe, poses[number], len(keyframe.table.observing()), int(tried[number]), True)
    submap.map.remove_unsupported()
    submap.archive.retire(submap.map)
    return submap


def _in_unit(solution: Solution) -> tuple[dict[int, Array], Array]:
    """Poses camera_from_world and points (P, 3) as seen from the first posed view, its median depth one unit."""
    tracks, points = solution.structure.tracks, solution.structure.points
    first = min(solution.poses)
    seen = se3.transform_points(solution.poses[first], points[tracks.point[tracks.view == first]])[:, 2]
    scale = 1.0 / max(float(np.median(seen)), 1e-9) if len(seen) else 1.0
    poses = {}
    for number, pose in solution.poses.items():
        moved = pose @ se3.inverse(solution.poses[first])
        moved[:3, 3] *= scale
        poses[number] = moved
    return poses, scale * se3.transform_points(solution.poses[first], points)


def _observe(keyframe: Keyframe, pixels: Array, landmarks: Index) -> None:
    """Let a keyframe see landmarks (N,) at pixels (N, 2); of several at one place the last counts."""
    rows = keyframe.table.lookup(pixels, None)
    keyframe.table.landmark[rows] = landmarks


def _colors(views: Sequence[View], tracks: Tracks) -> NDArray[np.uint8]:
    """Colours (P, 3) of points where their centres lie."""
    colors = np.zeros((len(tracks), 3), np.uint8)
    seen = tracks.view[tracks.centre]
    for number in np.unique(seen).tolist():
        mine = np.flatnonzero(seen == number)
        colors[mine] = views[number].color_at(tracks.pixels[tracks.centre[mine]])
    return colors
