# SPDX-License-Identifier: Apache-2.0
"""Adjustment by all that the pictures say: poses and points that pool the evidence of weak matches.

A match is a decision: the best place in a window, taken for one descriptor alone, and in the dark most of them are
wrong. Here nothing is decided for one place. How well each place of a window fits is kept as a surface of likelihood,
and poses and points move to where the sum of all surfaces is highest: places that none of them would find alone count
together, an edge holds its place across but not along, and what fits nowhere says nothing.

The robust likelihood follows the mixture of Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, section 3.3;
surfaces in place of positions follow Lindenberger et al., Pixel-Perfect Structure-from-Motion, 2021, section 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.sfm.bundle import moved
from dark3r_ros.sfm.equations import BundleProblem, Linearised, local_points, sum_by
from dark3r_ros.sfm.progress import Progress, ordered_map, quiet
from dark3r_ros.sfm.rectify import relief_of, smooth_depths
from dark3r_ros.sfm.refine import most_seen
from dark3r_ros.sfm.rematch import neighbours
from dark3r_ros.sfm.schur import Schur
from dark3r_ros.sfm.surfaces import Surfaces, looked_for
from dark3r_ros.sfm.triangulation import Structure, pose_table
from dark3r_ros.sfm.views import View, median_focal

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class PooledOptions:
    """How evidence is pooled.

    Attributes
    ----------
    neighbours: views that each anchor is looked for in. radius: half side of a window in fine pixels.
    steps: most steps towards the summit. per_view: points centred in each view, `fewest` where there are so many views
    that all of them would make more than `surfaces`. Fewer make poses worse than their matches do.
    rounds: most rounds with rectified pictures. settled: pixels by which the turns between views change in the median
    (times the focal length), below which no further round is made. pictures: rectified ones of all rounds together,
    unless the first round alone takes more.

    """

    neighbours: int = 12
    radius: int = 4
    steps: int = 8
    per_view: int = 600
    fewest: int = 400
    surfaces: int = 1_000_000
    rounds: int = 8
    settled: float = 0.1
    pictures: int = 2_000

    @property
    def most_views(self) -> int:
        """So many views can be pooled."""
        return self.surfaces // (self.neighbours * self.fewest)

    def points(self, views: int) -> int:
        """Points of each of so many views that are pooled; 0 where there are too many views."""
        most = min(self.per_view, self.surfaces // (self.neighbours * max(views, 1)))
        return most if most >= self.fewest else 0


_CENTRE_SIGMA = 0.1  # an anchor lies where it lies: expected error in pixels
_LEAST_CURVATURE = 1e-6
_FAR_OFF = 1e3  # residual of an anchor whose point came to lie behind it: no step may do that
_ASIDE = 1e-4  # step of numerical derivatives in normalised coordinates
_BEHIND = -1e6  # pixels of what lies behind a camera: outside of every window


@dataclass(frozen=True, eq=False)
class _Scene:
    """Points and where they are looked for; the first P observations are the anchors at their own pixels.

    Attributes
    ----------
    problem: poses, points and, as observations (P, 2), the anchors. views: of all.
    frame: (K,) view of each surface. surfaces: in the order of these.

    """

    problem: BundleProblem
    views: Sequence[View]
    frame: Index
    surfaces: Surfaces


def pooled_in_rounds(
    views: Sequence[View],
    poses: Mapping[int, Array],
    structure: Structure,
    predictor: MiniPredictor,
    triangulated: Callable[[dict[int, Array]], Structure],
    *,
    options: PooledOptions | None = None,
    workers: int = 1,
    progress: Progress = quiet,
) -> tuple[dict[int, Array], Structure, int] | None:
    """Poses pooled in rectified pictures, again and again, as each round makes the next one's pictures better.

    `triangulated` gives the structure of poses. Returns poses, structure and the number of rounds; None as `pooled`.
    """
    options = options or PooledOptions()
    rounds = options.rounds if all(views[number].planes is not None for number in poses) else 1
    focal, pictures, done = median_focal(views, poses), 0, 0
    current = dict(poses)
    while done < rounds:
        pictures += sum(map(len, neighbours(structure, current, options.neighbours).values()))
        if done and pictures > options.pictures:
            break
        found = pooled(views, current, structure, predictor, options, rectify=True, workers=workers, progress=progress)
        if found is None:
            break
        change = focal * _turned(current, found)
        current, structure, done = found, triangulated(found), done + 1
        if change < options.settled:
            break
    return (current, structure, done) if done else None


def _turned(before: Mapping[int, Array], after: Mapping[int, Array]) -> float:
    """Median angle in radians by which the turns from each view to the next one changed."""
    numbers = sorted(before)
    changed = [
        (after[b] @ se3.inverse(after[a]) @ before[a] @ se3.inverse(before[b]))[:3, :3]
        for a, b in itertools.pairwise(numbers)
    ]
    return float(np.median([se3.rotation_angle(one) for one in changed])) if changed else 0.0


def pooled(
    views: Sequence[View],
    poses: Mapping[int, Array],
    structure: Structure,
    predictor: MiniPredictor,
    options: PooledOptions | None = None,
    *,
    rectify: bool = False,
    workers: int = 1,
    progress: Progress = quiet,
) -> dict[int, Array] | None:
    """Poses (camera_from_world by view) moved to where the pictures fit each other best, points with them.

    Only points centred on anchors take part. The gauge is held by the damping: nothing drifts far in a few steps.
    With `rectify`, and where views have their planes, each picture is searched as the view of the anchors would see it.
    None where there are no such points, or more views than the options allow.
    """
    options = options or PooledOptions()
    per_view = options.points(len(poses))
    chosen = _anchored(structure, per_view)
    graph = neighbours(structure, poses, options.neighbours)
    if not len(chosen) or not any(graph.values()):
        return None
    inverse = smooth_depths(views, poses, structure) if rectify else {}
    tracks = structure.tracks
    home = tracks.view[tracks.centre[chosen]]
    mine = {number: np.flatnonzero(home == number) for number in sorted(poses)}

    def search(number: int) -> list[tuple[Index, Surfaces]]:
        """Rows of the anchors of a view that fall into each of its partners, and their surfaces there."""
        rows = mine[number]
        anchor, points = tracks.anchor[chosen[rows]], structure.points[chosen[rows]]
        relief = relief_of(views[number], inverse[number]) if number in inverse else None
        parts = [
            looked_for(views, poses, (number, other), anchor, points, predictor, options.radius, relief)
            for other in graph[number]
        ]
        return [(rows[seen], surfaces) for seen, surfaces in parts]

    pairs = [(number, other) for number in mine for other in graph[number]]
    found = [part for parts in progress(ordered_map(search, mine, workers), len(mine), 'pooling') for part in parts]
    problem = _climb(_scene(views, poses, structure, chosen, pairs, found), options.steps)
    return {number: se3.normalised(problem.cameras_from_world[number]) for number in sorted(poses)}


def _anchored(structure: Structure, per_view: int) -> Index:
    """Points (P,) centred on anchors, those of each view that most views see."""
    tracks = structure.tracks
    counts = np.bincount(tracks.point, minlength=len(tracks))
    anchored = tracks.anchor >= 0
    return np.flatnonzero(anchored & most_seen(tracks, np.where(anchored, counts, -1), per_view))


def _scene(
    views: Sequence[View],
    poses: Mapping[int, Array],
    structure: Structure,
    chosen: Index,
    pairs: Sequence[tuple[int, int]],
    found: Sequence[tuple[Index, Surfaces]],
) -> _Scene:
    """Chosen points, and the surfaces of those (rows into the chosen) that were looked for in each pair of views."""
    tracks = structure.tracks
    centre = tracks.centre[chosen]
    count = max(poses) + 1
    free = np.zeros(count, dtype=bool)
    free[list(poses)] = True
    frame = np.concatenate([np.full(len(rows), pair[1]) for pair, (rows, _) in zip(pairs, found, strict=True)])
    problem = BundleProblem(
        pose_table(poses, count),
        free,
        structure.points[chosen],
        np.concatenate([tracks.view[centre], frame]),
        np.concatenate([np.arange(len(chosen)), *(rows for rows, _ in found)]),
        tracks.normalised[centre],
        median_focal(views, poses),
    )
    return _Scene(problem, views, frame, Surfaces.joined([part for _, part in found]))


def _climb(scene: _Scene, steps: int) -> BundleProblem:
    """Levenberg-Marquardt towards the highest likelihood."""
    problem, damping = scene.problem, 1e-4
    cost = _cost(scene, problem)
    schur = Schur(problem, _linearise(scene, problem))
    for _ in range(steps):
        step = schur.step(damping)
        if step is not None:
            trial = moved(problem, *step)
            trial_cost = _cost(scene, trial)
        if step is None or not trial_cost < cost:
            damping *= 8.0
            continue
        gained = cost - trial_cost
        problem, cost, damping = trial, trial_cost, max(damping / 4.0, 1e-9)
        if gained < 1e-5 * abs(cost):
            break
        schur = Schur(problem, _linearise(scene, problem))
    return problem


@dataclass(frozen=True, eq=False)
class _Seen:
    """Pixels (K, 2) of points in views, and their derivatives (K, 2, 3) by the point in the frame of the camera."""

    pixels: Array
    by_local: Array
    local: Array


def _projected(scene: _Scene, problem: BundleProblem) -> _Seen:
    frame, local = scene.frame, local_points(problem)[len(problem.points) :]
    front = local[:, 2] > 1e-6
    safe = np.where(front[:, None], local, (0.0, 0.0, 1.0))
    flat = np.column_stack([safe[:, :2] / safe[:, 2:], np.ones(len(safe))])
    pixels, by_flat = np.zeros((len(frame), 2)), np.zeros((len(frame), 2, 2))
    for number in np.unique(frame):
        mine = frame == number
        camera = scene.views[number].camera
        assert camera is not None
        pixels[mine], by_flat[mine] = _bent(camera, flat[mine])
    pixels[~front] = _BEHIND
    return _Seen(pixels, by_flat @ _flattened(safe), local)


def _bent(camera: Camera, flat: Array) -> tuple[Array, Array]:
    """Pixels (K, 2) of rays (K, 3) with z one, and their derivatives (K, 2, 2) by x and y."""
    pixels = camera.project(flat)
    if not camera.distorted:
        return pixels, np.broadcast_to(np.diag([camera.fx, camera.fy]), (len(flat), 2, 2))
    aside = [camera.project(flat + _ASIDE * np.eye(3)[axis]) - pixels for axis in range(2)]
    return pixels, np.stack(aside, axis=2) / _ASIDE


def _flattened(local: Array) -> Array:
    """Derivatives (K, 2, 3) of x/z and y/z by points (K, 3)."""
    inverse = 1.0 / local[:, 2]
    result = np.zeros((len(local), 2, 3))
    result[:, 0, 0] = result[:, 1, 1] = inverse
    result[:, :, 2] = -local[:, :2] * inverse[:, None] ** 2
    return result


def _centre_residual(problem: BundleProblem) -> tuple[Array, _Seen]:
    """How far points project from their anchors, in units of the expected error (P, 2)."""
    local = local_points(problem)[: len(problem.points)]
    front = local[:, 2] > 1e-6
    safe = np.where(front[:, None], local, (0.0, 0.0, 1.0))
    scale = problem.focal / _CENTRE_SIGMA
    residual = scale * (safe[:, :2] / safe[:, 2:] - problem.observations)
    residual[~front] = _FAR_OFF
    return residual, _Seen(residual, scale * _flattened(safe), local)


def _cost(scene: _Scene, problem: BundleProblem) -> float:
    value, _, _ = scene.surfaces.look(_projected(scene, problem).pixels)
    residual, _ = _centre_residual(problem)
    return 0.5 * float((residual**2).sum()) - float(value.sum())


def _linearise(scene: _Scene, problem: BundleProblem) -> Linearised:
    """Normal equations: what a step of Newton needs, with curvatures made positive."""
    seen = _projected(scene, problem)
    _, gradient, curvature = scene.surfaces.look(seen.pixels)
    residual, centre = _centre_residual(problem)
    count = len(residual)
    information = np.concatenate([np.broadcast_to(np.eye(2), (count, 2, 2)), _positive(-curvature)])
    slope = np.concatenate([residual, -gradient])
    by_local = np.concatenate([centre.by_local, seen.by_local])
    local = np.concatenate([centre.local, seen.local])
    by_pose = np.concatenate([by_local, -by_local @ se3.hat(local)], axis=2)
    by_pose *= problem.pose_free[problem.frame_index][:, None, None]
    by_point = by_local @ problem.cameras_from_world[problem.frame_index][:, :3, :3]
    pose_t, point_t = by_pose.transpose(0, 2, 1), by_point.transpose(0, 2, 1)
    frames, points = len(problem.cameras_from_world), len(problem.points)
    bent = information @ by_point
    return Linearised(
        sum_by(problem.frame_index, pose_t @ information @ by_pose, frames),
        sum_by(problem.point_index, point_t @ bent, points),
        pose_t @ bent,
        sum_by(problem.frame_index, (pose_t @ slope[:, :, None])[:, :, 0], frames),
        sum_by(problem.point_index, (point_t @ slope[:, :, None])[:, :, 0], points),
    )


def _positive(matrices: Array) -> Array:
    """Symmetric matrices (K, 2, 2) with eigenvalues below zero made next to nothing."""
    values, vectors = np.linalg.eigh(matrices)
    return np.asarray((vectors * np.maximum(values, _LEAST_CURVATURE)[:, None]) @ vectors.transpose(0, 2, 1))
