# SPDX-License-Identifier: Apache-2.0
"""Turning a posed view into a keyframe: linking it to landmarks and triangulating new ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.two_view import parallax_angles, reprojection_errors, sampson_distance, triangulate
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.initialise import InitialPair
from dark3r_ros.mapping.provisional import guessed_points
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.types import Correspondences

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_PARENTS = 3


@dataclass(eq=False)
class _Candidates:
    """Verified matches of the new keyframe: its rows, the neighbour's number and the neighbour's rows."""

    row: Index
    neighbour: Index
    neighbour_row: Index

    def select(self, which: NDArray[np.bool_] | Index) -> _Candidates:
        return _Candidates(self.row[which], self.neighbour[which], self.neighbour_row[which])


def start_map(sparse_map: SparseMap, pair: InitialPair, min_parallax_deg: float) -> tuple[Keyframe, Keyframe]:
    """Make the first two keyframes and their landmarks; the median depth becomes one unit."""
    first = new_keyframe(sparse_map, pair.first, np.eye(4))
    inliers = pair.geometry.inliers
    points = pair.geometry.points
    scale = 1.0 / max(float(np.median(points[inliers][:, 2])), 1e-9)
    pose = pair.geometry.second_from_first.copy()
    pose[:3, 3] *= scale
    second = new_keyframe(sparse_map, pair.second, pose, [first])
    sparse_map.keyframes += [first, second]
    points = points * scale
    angles = parallax_angles(first.centre, second.centre, points)
    kept = inliers & (np.degrees(angles) >= min_parallax_deg)
    matches = pair.matches
    rows_first = first.table.lookup(matches.points_a, matches.index_a)[kept]
    rows_second = second.table.lookup(matches.points_b, matches.index_b)[kept]
    landmarks = sparse_map.landmarks.add(points[kept], pair.second.color_at(matches.points_b[kept]))
    first.table.landmark[rows_first] = landmarks
    second.table.landmark[rows_second] = landmarks
    return first, second


def new_keyframe(
    sparse_map: SparseMap, view: View, camera_from_world: Array, neighbours: Sequence[Keyframe] = ()
) -> Keyframe:
    """Make a keyframe without observations, not yet a part of the map; `neighbours` are in order of what they share."""
    return Keyframe(
        next(sparse_map.numbers),
        view.stamp_ns,
        view.frame_id,
        view.camera,
        camera_from_world,
        view.snr_db,
        view.features,
        parents=tuple(neighbour.keyframe_id for neighbour in neighbours[:_PARENTS]),
        averaged=view.averaged,
    )


def link(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    neighbours: Sequence[Keyframe],
    predictor: Predictor,
    config: MappingConfig,
) -> None:
    """Match a posed keyframe with its neighbours and link it with them."""
    partners = [neighbour for neighbour in neighbours if neighbour.features is not None]
    if partners and keyframe.features is not None:
        matches = predictor.match([(neighbour.features, keyframe.features) for neighbour in partners])
        link_matched(sparse_map, keyframe, partners, matches, config)


def link_matched(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    matches: Sequence[Correspondences],
    config: MappingConfig,
    view: View | None = None,
) -> None:
    """Share the landmarks of matched keyframes (partner, keyframe), merge doubles, triangulate new ones.

    Without the `view` new landmarks are grey.
    """
    if not partners:
        return
    sparse_map.revive([keyframe, *partners])
    candidates = _verified(keyframe, partners, matches, config)
    _place_provisional(sparse_map, keyframe, partners, candidates, config)
    _share_landmarks(sparse_map, keyframe, partners, candidates, config)
    _add_new(sparse_map, keyframe, partners, candidates, config, view)
    _observe_from_neighbours(sparse_map, keyframe, partners, candidates, config)


def _verified(
    keyframe: Keyframe, partners: Sequence[Keyframe], matches: Sequence[Correspondences], config: MappingConfig
) -> _Candidates:
    rows, numbers, partner_rows = [], [], []
    for number, (partner, found) in enumerate(zip(partners, matches, strict=True)):
        relative = keyframe.camera_from_world @ partner.world_from_camera
        distance = sampson_distance(
            relative, partner.camera.unproject(found.points_a), keyframe.camera.unproject(found.points_b)
        )
        good = found.select(distance * keyframe.focal < config.max_error)
        rows.append(keyframe.table.lookup(good.points_b, good.index_b))
        partner_rows.append(partner.table.lookup(good.points_a, good.index_a))
        numbers.append(np.full(len(good), number))
    return _Candidates(np.concatenate(rows), np.concatenate(numbers), np.concatenate(partner_rows))


def _partner_landmarks(partners: Sequence[Keyframe], candidates: _Candidates) -> Index:
    result = np.full(len(candidates.row), -1, dtype=np.int64)
    for number, partner in enumerate(partners):
        own = candidates.neighbour == number
        result[own] = partner.table.landmark[candidates.neighbour_row[own]]
    return result


def _share_landmarks(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    candidates: _Candidates,
    config: MappingConfig,
) -> None:
    landmark = _partner_landmarks(partners, candidates)
    known = landmark >= 0
    landmark, row = landmark[known], candidates.row[known]
    errors = reprojection_errors(
        keyframe.camera_from_world, sparse_map.landmarks.points[landmark], keyframe.normalised(row)
    )
    good = errors * keyframe.focal < config.max_error
    landmark, row, errors = landmark[good], row[good], errors[good]
    if len(row) == 0:
        return
    seen = sparse_map.observation_counts(partners)[landmark]
    order = np.lexsort((landmark, -seen, row))
    row, landmark, errors = row[order], landmark[order], errors[order]
    first = np.concatenate([[True], np.diff(row) != 0])
    chosen = np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))
    double = landmark != landmark[chosen]
    already = set(keyframe.table.landmark[keyframe.table.observing()].tolist())
    # The same landmark may be claimed by two rows through different neighbours: the closer one gets it.
    claims = np.flatnonzero(first)
    for number in claims[np.lexsort((row[claims], errors[claims]))].tolist():
        if int(landmark[number]) not in already and keyframe.table.landmark[row[number]] < 0:
            keyframe.table.landmark[row[number]] = landmark[number]
            already.add(int(landmark[number]))
    if double.any():
        pair = np.stack([landmark[double], landmark[chosen[double]]])
        sparse_map.merge(pair.min(axis=0), pair.max(axis=0))


def _triangulated(
    keyframe: Keyframe, partners: Sequence[Keyframe], candidates: _Candidates, config: MappingConfig
) -> tuple[Array, Array]:
    """Points (N, 3) of candidates, and under which angle (N,) both keyframes see them; 0 where that is no use."""
    poses = np.stack([partner.camera_from_world for partner in partners])[candidates.neighbour]
    centres = np.stack([partner.centre for partner in partners])[candidates.neighbour]
    own = keyframe.normalised(candidates.row)
    other = _partner_normalised(partners, candidates)
    both = np.stack([poses, np.broadcast_to(keyframe.camera_from_world, poses.shape)], axis=1)
    points = triangulate(both, np.stack([other, own], axis=1))
    angles = parallax_angles(centres, keyframe.centre, points)
    limit = config.max_error / keyframe.focal
    good = np.isfinite(points).all(axis=1) & (angles >= math.radians(config.min_parallax))
    good &= reprojection_errors(keyframe.camera_from_world, points, own) < limit
    good &= reprojection_errors(poses, points, other) < limit
    return points, np.where(good, angles, 0.0)


def _best(merit: Array, of: Index) -> Index:
    """Numbers of the candidates of most merit, such as the angle they are seen from, one for each value of `of`.

    None where that is 0.
    """
    numbers = np.flatnonzero(merit > 0.0)
    numbers = numbers[np.lexsort((-merit[numbers], of[numbers]))]
    first = np.concatenate([[True], np.diff(of[numbers]) != 0]) if len(numbers) else np.zeros(0, bool)
    return np.asarray(numbers[first], dtype=np.int64)


def _place_provisional(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    candidates: _Candidates,
    config: MappingConfig,
) -> None:
    """Put provisional landmarks where they are, once a pair of keyframes sees them with parallax."""
    landmark = _partner_landmarks(partners, candidates)
    known = (landmark >= 0) & np.append(sparse_map.landmarks.provisional, False)[landmark]
    seen = candidates.select(known)
    apart = _apart(keyframe, partners, seen, sparse_map.landmarks.points[landmark[known]], config)
    seen, landmark = seen.select(apart), landmark[known][apart]
    if len(seen.row) == 0:
        return
    points, angles = _triangulated(keyframe, partners, seen, config)
    chosen = _best(angles, landmark)
    sparse_map.landmarks.move(landmark[chosen], points[chosen])
    sparse_map.landmarks.confirm(landmark[chosen])


def _apart(
    keyframe: Keyframe, partners: Sequence[Keyframe], candidates: _Candidates, points: Array, config: MappingConfig
) -> NDArray[np.bool_]:
    """Which candidates (N,) belong to a partner so far from the keyframe that most of their points show parallax.

    The points (N, 3) are where they are expected: triangulated ones would show some for their noise alone.
    """
    centres = np.stack([partner.centre for partner in partners])[candidates.neighbour]
    angles = np.degrees(parallax_angles(centres, keyframe.centre, points))
    apart = np.zeros(len(points), dtype=bool)
    for number in np.unique(candidates.neighbour).tolist():
        own = candidates.neighbour == number
        apart[own] = float(np.median(angles[own])) >= config.min_parallax
    return apart


def _add_new(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    candidates: _Candidates,
    config: MappingConfig,
    view: View | None,
) -> None:
    """Make landmarks of what both keyframes see and neither knew: triangulated ones, or provisional ones in a turn."""
    unknown = (_partner_landmarks(partners, candidates) < 0) & (keyframe.table.landmark[candidates.row] < 0)
    fresh = candidates.select(unknown)
    if len(fresh.row) == 0:
        return
    guess = guessed_points(sparse_map, keyframe, fresh.row)
    apart = np.ones(len(fresh.row), bool) if guess is None else _apart(keyframe, partners, fresh, guess[0], config)
    # Each keypoint is triangulated with the neighbour that sees it from the widest angle.
    points, angles = _triangulated(keyframe, partners, fresh, config)
    chosen = _best(np.where(apart, angles, 0.0), fresh.row)
    _add(sparse_map, keyframe, partners, fresh.select(chosen), points[chosen], view)
    if guess is None or apart.all():
        return
    points, distances = guess
    unknown = (_partner_landmarks(partners, fresh) < 0) & (keyframe.table.landmark[fresh.row] < 0)
    poses = np.stack([partner.camera_from_world for partner in partners])[fresh.neighbour]
    errors = reprojection_errors(poses, points, _partner_normalised(partners, fresh)) * keyframe.focal
    good = unknown & ~apart & (errors < config.max_error)
    chosen = _best(np.where(good, config.max_error - errors, 0.0), fresh.row)
    _add(sparse_map, keyframe, partners, fresh.select(chosen), points[chosen], view, distances[chosen])


def _add(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    candidates: _Candidates,
    points: Array,
    view: View | None,
    guessed: Array | float = 0.0,
) -> None:
    """Make a landmark of every candidate, seen by both keyframes; its row occurs once."""
    pixels = keyframe.table.pixels[candidates.row]
    colors = view.color_at(pixels) if view is not None else np.full((len(points), 3), 128, dtype=np.uint8)
    landmarks = sparse_map.landmarks.add(points, colors, guessed)
    keyframe.table.landmark[candidates.row] = landmarks
    for number, (partner, landmark) in enumerate(zip(candidates.neighbour.tolist(), landmarks.tolist(), strict=True)):
        partners[partner].table.landmark[candidates.neighbour_row[number]] = landmark


def _partner_normalised(partners: Sequence[Keyframe], candidates: _Candidates) -> Array:
    result = np.zeros((len(candidates.row), 2))
    for number, partner in enumerate(partners):
        own = candidates.neighbour == number
        result[own] = partner.normalised(candidates.neighbour_row[own])
    return result


def _observe_from_neighbours(
    sparse_map: SparseMap,
    keyframe: Keyframe,
    partners: Sequence[Keyframe],
    candidates: _Candidates,
    config: MappingConfig,
) -> None:
    """Let neighbours see the landmarks of keypoints they were matched with, where the point falls on their pixel."""
    landmark = keyframe.table.landmark[candidates.row]
    for number, partner in enumerate(partners):
        own = (candidates.neighbour == number) & (landmark >= 0)
        rows, wanted = candidates.neighbour_row[own], landmark[own]
        errors = reprojection_errors(
            partner.camera_from_world, sparse_map.landmarks.points[wanted], partner.normalised(rows)
        )
        seen = partner.table.landmark
        free = (seen[rows] < 0) & ~np.isin(wanted, seen) & (errors * partner.focal < config.max_error)
        seen[rows[free]] = wanted[free]
