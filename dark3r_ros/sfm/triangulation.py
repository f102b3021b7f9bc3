# SPDX-License-Identifier: Apache-2.0
"""Points of tracks whose views have poses, with the observations that agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.two_view import reprojection_errors
from dark3r_ros.sfm.equations import sum_by
from dark3r_ros.sfm.tracks import Tracks

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_BLOCK = 200_000  # observations triangulated at a time
_CHUNK = 200_000  # judgements of proposals made at a time
_PROPOSERS = 12


@dataclass(frozen=True, eq=False)
class Structure:
    """Triangulated tracks: every observation agrees with its point; points (P, 3) in the world."""

    tracks: Tracks
    points: Array


def pose_table(poses: Mapping[int, Array], count: int) -> Array:
    """Poses camera_from_world (count, 4, 4) by view; identity where a view has none."""
    table = np.tile(np.eye(4), (count, 1, 1))
    for number, pose in poses.items():
        table[number] = pose
    return table


def posed_views(tracks: Tracks, poses: Mapping[int, Array]) -> NDArray[np.bool_]:
    """Which views have a pose (count,), of all that see a track or have one: either may be beyond the other."""
    posed = np.zeros(max(int(tracks.view.max(initial=-1)), max(poses, default=-1)) + 1, dtype=bool)
    posed[list(poses)] = True
    return posed


def triangulate_tracks(
    tracks: Tracks, poses: Mapping[int, Array], focal: float, max_error: float, min_parallax: float
) -> Structure:
    """Triangulate every track seen by two posed views or more.

    Each observation proposes the point that it makes with the centre of its track; the proposal that most observations
    agree with wins, is made anew from all of these, and keeps those within `max_error` of their expected errors (in
    pixels of focal length `focal`). Points whose rays never part by `min_parallax` radians are left out.
    """
    posed = posed_views(tracks, poses)
    tracks = tracks.select(posed[tracks.view])
    if not len(tracks):
        return Structure(tracks, np.zeros((0, 3)))
    table = pose_table(poses, len(posed))
    parts = [_triangulated(block, table, max_error / focal, min_parallax) for block in _blocks(tracks)]
    return _joined(parts)


def _blocks(tracks: Tracks) -> Iterator[Tracks]:
    """The tracks in blocks of whole points: what is made of each observation is far larger than the observation."""
    starts = tracks.centre
    begin = 0
    while begin < len(tracks):
        end = max(int(np.searchsorted(starts, starts[begin] + _BLOCK)), begin + 1)
        rows = slice(int(starts[begin]), int(starts[end]) if end < len(tracks) else None)
        yield Tracks(
            tracks.point[rows] - begin,
            tracks.view[rows],
            tracks.pixels[rows],
            tracks.normalised[rows],
            tracks.sigma[rows],
            tracks.anchor[begin:end],
        )
        begin = end


def _joined(parts: Sequence[Structure]) -> Structure:
    sizes = np.cumsum([0, *(len(part.points) for part in parts)])
    tracks = [part.tracks for part in parts]
    return Structure(
        Tracks(
            np.concatenate([one.point + base for one, base in zip(tracks, sizes[:-1], strict=True)]),
            np.concatenate([one.view for one in tracks]),
            np.concatenate([one.pixels for one in tracks]),
            np.concatenate([one.normalised for one in tracks]),
            np.concatenate([one.sigma for one in tracks]),
            np.concatenate([one.anchor for one in tracks]),
        ),
        np.concatenate([part.points for part in parts]),
    )


def _triangulated(tracks: Tracks, table: Array, limit: float, min_parallax: float) -> Structure:
    """Points of some tracks; `limit` is the largest error in normalised units."""
    points = _vote(tracks, table, limit, min_parallax)
    for _ in range(2):
        good = _errors(tracks, table, points[tracks.point]) < limit
        points = _least_squares(tracks, table, points, good)
    good = _errors(tracks, table, points[tracks.point]) < limit
    wide = _parallax(tracks, table, points, good) >= min_parallax
    rows = good & wide[tracks.point]
    return Structure(tracks.select(rows), points[_surviving(tracks, rows)])


def _surviving(tracks: Tracks, rows: NDArray[np.bool_]) -> Index:
    """Numbers of the points that `Tracks.select` keeps."""
    kept = rows & rows[tracks.centre][tracks.point]
    return np.flatnonzero(np.bincount(tracks.point[kept], minlength=len(tracks)) >= 2)


def _errors(tracks: Tracks, table: Array, points: Array) -> Array:
    return reprojection_errors(table[tracks.view], points, tracks.normalised) / tracks.sigma


def _proposals(tracks: Tracks, table: Array, rows: Index) -> Array:
    """Point (R, 3) halfway between the rays of some observations and their centres; nonsense at the centres."""
    centre = tracks.centre[tracks.point[rows]]
    origins = -np.einsum('vji,vj->vi', table[:, :3, :3], table[:, :3, 3])
    first, second = origins[tracks.view[centre]], origins[tracks.view[rows]]
    own, other = _directions(tracks, table, centre), _directions(tracks, table, rows)
    cosine = np.einsum('ij,ij->i', own, other)
    shift = second - first
    along, across = np.einsum('ij,ij->i', own, shift), np.einsum('ij,ij->i', other, shift)
    sine = np.maximum(1.0 - cosine**2, 1e-12)
    near = first + ((along - cosine * across) / sine)[:, None] * own
    far = second + ((cosine * along - across) / sine)[:, None] * other
    return 0.5 * (near + far)


def _directions(tracks: Tracks, table: Array, rows: Index) -> Array:
    """Unit vectors (R, 3) in the world from the views towards some observations."""
    rays = np.column_stack([tracks.normalised[rows], np.ones(len(rows))])
    turned = np.einsum('kji,kj->ki', table[:, :3, :3][tracks.view[rows]], rays)
    return turned / np.linalg.norm(turned, axis=1, keepdims=True)


def _vote(tracks: Tracks, table: Array, limit: float, min_parallax: float) -> Array:
    """Proposal (P, 3) of each track with the largest truncated score over its observations."""
    centres = -np.einsum('vji,vj->vi', table[:, :3, :3], table[:, :3, 3])
    centre = tracks.centre
    base = centre[tracks.point]
    starts = np.append(centre, len(tracks.point))
    lengths = np.diff(starts)
    # A dozen proposals spread over a long track are enough to hit a right one.
    within = np.arange(len(tracks.point)) - base
    stride = (-(-lengths // _PROPOSERS))[tracks.point]
    rows = np.flatnonzero((within - 1) % stride == 0)
    proposals = _proposals(tracks, table, rows)
    point = tracks.point[rows]
    score = np.zeros(len(rows))
    own = lengths[point]
    begin = 0
    cumulative = np.cumsum(own)
    while begin < len(rows):
        end = max(int(np.searchsorted(cumulative, (cumulative[begin - 1] if begin else 0) + _CHUNK)), begin + 1)
        block = np.arange(begin, end)
        proposer = np.repeat(block, own[block])
        offset = np.arange(len(proposer)) - np.repeat(np.cumsum(own[block]) - own[block], own[block])
        judge = centre[point[proposer]] + offset
        error = reprojection_errors(table[tracks.view[judge]], proposals[proposer], tracks.normalised[judge])
        error /= tracks.sigma[judge]
        gain = np.maximum(1.0 - (error / limit) ** 2, 0.0)
        score[begin:end] = np.bincount(proposer - begin, weights=gain, minlength=end - begin)
        begin = end
    angle = _angles(centres[tracks.view[centre[point]]], centres[tracks.view[rows]], proposals)
    # Two views a hair apart agree with everything: a proposal needs some parallax to count in full.
    score *= np.clip(angle / max(min_parallax, 1e-9), 0.05, 1.0)
    score[within[rows] == 0] = -1.0
    best = np.lexsort((rows, -score, point))
    return proposals[best[np.searchsorted(point[best], np.arange(len(tracks)))]]


def _angles(first: Array, second: Array, points: Array) -> Array:
    a, b = first - points, second - points
    return np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), np.einsum('ij,ij->i', a, b))


def _least_squares(tracks: Tracks, table: Array, points: Array, good: NDArray[np.bool_]) -> Array:
    """One Gauss-Newton step (P, 3) on the reprojection errors of the good observations."""
    point, view, seen = tracks.point[good], tracks.view[good], tracks.normalised[good]
    rotation = table[view][:, :3, :3]
    local = np.einsum('kij,kj->ki', rotation, points[point]) + table[view][:, :3, 3]
    z = local[:, 2]
    residual = local[:, :2] / z[:, None] - seen
    jacobian = rotation[:, :2] / z[:, None, None] - (local[:, :2] / z[:, None] ** 2)[:, :, None] * rotation[:, 2:3]
    weight = 1.0 / tracks.sigma[good]
    residual, jacobian = weight[:, None] * residual, weight[:, None, None] * jacobian
    normal = sum_by(point, jacobian.transpose(0, 2, 1) @ jacobian, len(points))
    right = sum_by(point, np.einsum('kri,kr->ki', jacobian, residual), len(points))
    trace = np.trace(normal, axis1=1, axis2=2)
    # What is far away in the unit of the map is near where a drift has made that of its views as large.
    least = np.clip(1e-6 * np.median(trace), 1e-60, 1e-12)
    normal += (1e-9 * trace + least)[:, None, None] * np.eye(3)
    step = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
    enough = np.bincount(point, minlength=len(points)) >= 2
    return np.where(enough[:, None], points - step, points)


def _parallax(tracks: Tracks, table: Array, points: Array, good: NDArray[np.bool_]) -> Array:
    """Largest angle (P,) between the ray of the centre and that of any good observation."""
    centres = -np.einsum('vji,vj->vi', table[:, :3, :3], table[:, :3, 3])
    base = tracks.centre[tracks.point]
    angle = _angles(centres[tracks.view[base]], centres[tracks.view], points[tracks.point])
    result = np.zeros(len(tracks))
    np.maximum.at(result, tracks.point, np.where(good, angle, 0.0))
    return result
