# SPDX-License-Identifier: Apache-2.0
"""Once there is time: views of a map are matched again where they must lie, and adjusted as `sfm` does.

While the camera is followed a keyframe is matched with few others, once, and every match counts alike. Here each is
matched with all that share most with it, looked for again near its predictions, and weighs as much as its expected
error says. The landmarks follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.provisional import held_by_bearings
from dark3r_ros.mapping.recording import HeldViews, Passing
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.similarity import between_poses
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm import views as sfm_views
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import agreeing
from dark3r_ros.sfm.pairs import VerifiedPair, match_pair
from dark3r_ros.sfm.pooled import PooledOptions, pooled
from dark3r_ros.sfm.refine import Refined, refine
from dark3r_ros.sfm.rematch import rematch, rematched_tracks
from dark3r_ros.sfm.tracks import Tracks, build_tracks, merge_stars

Array = NDArray[np.float64]
Poses = dict[int, Array]

_PARTNERS = 8  # views that each is matched with, of those that share most landmarks with it
_LEAST_SHARED = 15
_ROUNDS = (2.0, 1.5, 1.0)  # bounds of errors, in units of the largest
_MIN_PARALLAX = np.radians(0.3)
_SURFACES = PooledOptions(surfaces=300_000)  # 100 MB


@dataclass(frozen=True, eq=False)
class MatchedAgain:
    """What came of it: whether any view has moved, and the pairs, whose numbers are places in `stamps_ns`."""

    moved: bool
    pairs: list[VerifiedPair]
    stamps_ns: list[int]


def match_again(
    submap: Submap, predictor: Predictor, config: MappingConfig, log: PoseLog, held: HeldViews
) -> MatchedAgain | None:
    """Put the views of a map where all their matches want them; None for a map or a predictor that it is not meant for.

    A map with a turn on the spot is not: its views are held by bearings, which a pair triangulates by its noise.

    Keyframes and passing views that landmarks do not tie together move apart from each other. The first keyframe of
    each group stays, and so does its size. The landmarks are left where they are.
    """
    keyframes = [keyframe for keyframe in submap.map.keyframes if keyframe.matchable]
    if not isinstance(predictor, MiniPredictor) or not 3 <= len(keyframes) <= config.rematch_keyframes:
        return None
    if held_by_bearings(submap.map, keyframes):
        return None  # what is triangulated anew would shrink what comes after the turn
    predictor = predictor.with_config(replace(predictor.config, max_keypoints=0))
    keyframes = [keyframe for keyframe in keyframes if isinstance(keyframe.features, MiniFeatures)]
    guests = held.of(submap, log)
    views = [*map(sfm_view, keyframes), *(sfm_view(guest.view) for guest in guests)]
    poses = [keyframe.camera_from_world for keyframe in keyframes] + [guest.camera_from_world for guest in guests]
    before = dict(enumerate(poses))
    options = SfmConfig(max_error=config.max_error)
    graph = _graph(_shared(submap, keyframes, guests))
    matched = (match_pair(pair, views, predictor, options) for pair in graph)
    pairs = [pair for pair in matched if pair is not None]
    moved: Poses = {}
    for group in _groups(pairs, len(views)):
        start = {number: before[number] for number in group}
        own = [pair for pair in pairs if pair.first in start]
        found = _adjusted(views, own, start, predictor, config)
        if all_agreeing(own, found, views, config.max_error) > all_agreeing(own, start, views, config.max_error):
            moved |= _in_place(found, start)
    for number, keyframe in enumerate(keyframes):
        keyframe.camera_from_world = moved.get(number, keyframe.camera_from_world)
    for number, guest in enumerate(guests, len(keyframes)):
        if number in moved:
            relative = guest.keyframe.camera_from_world @ se3.inverse(moved[number])
            log.hang(guest.view.stamp_ns, relative)
    return MatchedAgain(bool(moved), pairs, [view.stamp_ns for view in views])


def sfm_view(one: Keyframe | View) -> sfm_views.View:
    """A view or keyframe as `sfm` takes it."""
    return sfm_views.View(one.stamp_ns, '', one.camera, one.camera, one.features, snr_db=one.snr_db)


def _shared(submap: Submap, keyframes: Sequence[Keyframe], guests: Sequence[Passing]) -> Array:
    """How many landmarks (M, M) two views share; a passing view sees what its surroundings see and it could."""
    landmarks = submap.map.landmarks
    seen = np.zeros((len(keyframes) + len(guests), landmarks.capacity), dtype=np.float32)
    row = {keyframe.keyframe_id: number for number, keyframe in enumerate(keyframes)}
    for number, keyframe in enumerate(keyframes):
        seen[number, keyframe.table.landmark[keyframe.table.observing()]] = 1.0
    for number, guest in enumerate(guests, len(keyframes)):
        own = row.get(guest.keyframe.keyframe_id)
        if own is not None:
            around = np.flatnonzero(seen[: len(keyframes)] @ seen[own] >= _LEAST_SHARED)
            known = np.flatnonzero(seen[around].any(axis=0))
            seen[number, known[_in_picture(guest, landmarks.points[known])]] = 1.0
    shared = seen @ seen.T
    np.fill_diagonal(shared, 0.0)
    return shared.astype(np.float64)


def _in_picture(guest: Passing, points: Array) -> NDArray[np.bool_]:
    local = se3.transform_points(guest.camera_from_world, points)
    front = local[:, 2] > 0.0
    camera = guest.view.camera
    pixels = camera.project(np.where(front[:, None], local, (0.0, 0.0, 1.0)))
    inside = (pixels > 0.0).all(axis=1) & (pixels < (camera.width - 1, camera.height - 1)).all(axis=1)
    return np.asarray(front & inside)


def _graph(shared: Array) -> list[tuple[int, int]]:
    """Pairs of views worth matching, in order."""
    pairs = set()
    for number, row in enumerate(shared):
        for other in np.argsort(-row, kind='stable')[:_PARTNERS].tolist():
            if row[other] >= _LEAST_SHARED:
                pairs.add((min(number, other), max(number, other)))
    return sorted(pairs)


def _groups(pairs: Sequence[VerifiedPair], count: int) -> list[list[int]]:
    """Views that hang together, three or more."""
    rows, columns = [pair.first for pair in pairs], [pair.second for pair in pairs]
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
    number, group = connected_components(graph, directed=False)
    members = [np.flatnonzero(group == one).tolist() for one in range(number)]
    return [one for one in members if len(one) >= 3]


def _adjusted(
    views: Sequence[sfm_views.View],
    pairs: Sequence[VerifiedPair],
    start: Poses,
    predictor: MiniPredictor,
    config: MappingConfig,
) -> Poses:
    """Poses of a group by all its matches, those found again near their predictions, and what weak ones say."""
    tracks = build_tracks(views, pairs)
    refined = _refined(tracks, start, views, config)
    again = rematched_tracks(views, rematch(views, refined.poses, refined.structure, predictor))
    refined = _refined(merge_stars(views, tracks, again), refined.poses, views, config)
    found = pooled(views, refined.poses, refined.structure, predictor, _SURFACES)
    return refined.poses if found is None else found


def _refined(tracks: Tracks, poses: Poses, views: Sequence[sfm_views.View], config: MappingConfig) -> Refined:
    focal = sfm_views.median_focal(views, poses)
    errors = [bound * config.max_error for bound in _ROUNDS]
    return refine(tracks, poses, focal, errors=errors, min_parallax=float(_MIN_PARALLAX))


def all_agreeing(
    pairs: Sequence[VerifiedPair], poses: Mapping[int, Array], views: Sequence[sfm_views.View], max_error: float
) -> int:
    """Number of matches that agree with poses, within `max_error` pixels of their epipolar lines."""
    return sum(agreeing(pair, poses, views, max_error) for pair in pairs)


def _in_place(found: Poses, before: Poses) -> Poses:
    """Poses so that the first one is where it was, and all together are as large as they were."""
    first = min(found)
    scale = float(umeyama(_centres(found), _centres(before))[0])
    back = between_poses(before[first], found[first], scale)
    return {number: back.pose(pose) for number, pose in found.items()}


def _centres(poses: Poses) -> Array:
    return np.stack([se3.inverse(poses[number])[:3, 3] for number in sorted(poses)])
