# SPDX-License-Identifier: Apache-2.0
"""Guided matching: with poses known, every anchor is looked for again where it must lie.

An anchor whose depth is not known gets one by a sweep: the depth that the coarse descriptors of all neighbours agree
on. Then it is looked for in every neighbour near its projection, which gives a two-dimensional measurement that the
next adjustment can use to correct the poses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax

from dark3r_ros.geometry import se3
from dark3r_ros.matching.guided import GuidedPair, anchor_pixels
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor
from dark3r_ros.sfm.tracks import Tracks, make_tracks, rows_by
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Index = NDArray[np.int64]
# View, anchors, their pixels; row into the anchors, view, pixels and sigma of what was found.
Rematched = tuple[int, Index, Array, Index, Index, Array, Array]

# Expected error in pixels of what is found near a prediction with chance 1, and how it grows as the chance falls.
_SIGMA, _SIGMA_SLOPE = 1.3, 2.0


@dataclass(frozen=True)
class RematchOptions:
    """How anchors are looked for; radius and tolerance in pixels of the planes.

    What is found with less than `min_chance` follows the prediction rather than the picture: in simulated scenes at
    -4 dB it moves by 0.2 to 0.5 of an error of the prediction at a chance of 0.5 to 0.7, by 0.2 to 0.3 at 0.75, by at
    most 0.15 at 0.85 and by nothing above 0.9.
    """

    neighbours: int = 12
    depths: int = 64
    radius: float = 4.0
    tolerance: float = 2.5
    min_chance: float = 0.85
    min_posterior: float = 0.5


def covisible(structure: Structure, count: int) -> sparse.csr_matrix:
    """Number (count, count) of points that two views share, none of a view with itself: most of it is empty."""
    tracks = structure.tracks
    ones = np.ones(len(tracks.view))
    seen = sparse.csr_matrix((ones, (tracks.view, tracks.point)), shape=(count, len(tracks)))
    shared = (seen @ seen.T).tocsr()
    shared.setdiag(0.0)
    shared.eliminate_zeros()
    shared.sort_indices()
    return shared


def neighbours(structure: Structure, poses: Mapping[int, Array], most: int, least: int = 15) -> dict[int, list[int]]:
    """Posed views that share most points with each posed view, most first."""
    shared = covisible(structure, max(poses) + 1)
    result = {}
    for number in poses:
        row = slice(*shared.indptr[number : number + 2])
        others, counts = shared.indices[row], shared.data[row]
        order = np.lexsort((others, -counts))[:most]
        result[number] = [int(others[k]) for k in order if counts[k] >= least and others[k] in poses]
    return result


def depth_ranges(structure: Structure, poses: Mapping[int, Array]) -> dict[int, tuple[float, float]]:
    """Nearest and farthest depth worth a look in each posed view, from the points that it sees: ten or more."""
    tracks = structure.tracks
    result = {}
    for number, rows in rows_by(tracks.view):
        depth = structure.points[tracks.point[rows]] @ poses[number][2, :3] + poses[number][2, 3]
        depth = depth[depth > 0]
        if len(depth) >= 10:
            near, far = np.percentile(depth, (1, 99))
            result[number] = 0.7 * float(near), 1.6 * float(far)
    return result


def project(view: View, camera_from_world: Array, points: Array) -> Array:
    """Pixels (..., 2) of world points (..., 3); NaN behind the camera."""
    assert view.camera is not None
    local = points.reshape(-1, 3) @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    front = local[:, 2] > 1e-9
    pixels = view.camera.project(np.where(front[:, None], local, (0.0, 0.0, 1.0)))
    pixels[~front] = np.nan
    return pixels.reshape(*points.shape[:-1], 2)


def sweep(
    pairs: Mapping[int, GuidedPair],
    pixels: Array,
    view: int,
    views: Sequence[View],
    poses: Mapping[int, Array],
    inverse_depths: Array,
) -> Array:
    """Chance (M, D) of each inverse depth of pixels (M, 2) of a view, from the coarse descriptors of its partners."""
    rays = np.column_stack([views[view].normalised(pixels), np.ones(len(pixels))])
    world = se3.inverse(poses[view])
    points = rays[:, None] / inverse_depths[None, :, None] @ world[:3, :3].T + world[:3, 3]
    total = np.zeros((len(pixels), len(inverse_depths)))
    for other, pair in pairs.items():
        places = np.nan_to_num(project(views[other], poses[other], points), nan=-1e4).clip(-1e4, 1e5)
        total += pair.evidence(pair.coarse_chances(pixels), places)
    return np.asarray(softmax(total, axis=1))


def peak_depths(chance: Array, inverse_depths: Array) -> tuple[Array, Array]:
    """Depth (M,) at the peak of chances (M, D), between the samples, and the chance around it (M,)."""
    best = chance.argmax(axis=1)
    columns = best[:, None] + np.arange(-2, 3)
    inside = (columns >= 0) & (columns < chance.shape[1])
    near = np.take_along_axis(chance, columns.clip(0, chance.shape[1] - 1), axis=1) * inside
    mass = near.sum(axis=1)
    inverse = (near * inverse_depths[columns.clip(0, chance.shape[1] - 1)]).sum(axis=1) / mass
    return 1.0 / inverse, mass


def rematch(
    views: Sequence[View],
    poses: Mapping[int, Array],
    structure: Structure,
    predictor: MiniPredictor,
    options: RematchOptions | None = None,
) -> Iterator[Rematched]:
    """Look for the anchors of every posed view, one view at a time.

    Yields the view, its anchors (A,) and their pixels (A, 2), and the places found: row into the anchors (K,),
    view (K,), pixels (K, 2), sigma (K,).
    """
    options = options or RematchOptions()
    graph = neighbours(structure, poses, options.neighbours)
    limits = depth_ranges(structure, poses)
    depths = _known_depths(structure, poses)
    for number in sorted(poses):
        others, within = graph[number], limits.get(number)
        if others and within is not None:
            known = depths.get(number, (np.zeros(0, np.int64), np.zeros(0)))
            yield _rematch_view(number, others, within, known, views, poses, predictor, options)


def _known_depths(structure: Structure, poses: Mapping[int, Array]) -> dict[int, tuple[Index, Array]]:
    """By view, its anchors (A,) that were triangulated from three views or more, and their depths (A,)."""
    tracks = structure.tracks
    often = np.flatnonzero(np.bincount(tracks.point, minlength=len(tracks)) >= 3)
    result = {}
    for number, rows in rows_by(tracks.view[tracks.centre[often]]):
        pose, mine = poses[number], often[rows]
        result[number] = tracks.anchor[mine], structure.points[mine] @ pose[2, :3] + pose[2, 3]
    return result


def _rematch_view(
    number: int,
    others: Sequence[int],
    limits: tuple[float, float],
    known: tuple[Index, Array],
    views: Sequence[View],
    poses: Mapping[int, Array],
    predictor: MiniPredictor,
    options: RematchOptions,
) -> Rematched:
    features = cast(MiniFeatures, views[number].features)
    pairs = {other: GuidedPair(predictor, features, cast(MiniFeatures, views[other].features)) for other in others}
    own = anchor_pixels(features)
    depth = np.full(len(own), np.nan)
    depth[known[0]] = known[1]
    unknown = np.flatnonzero(np.isnan(depth))
    inverse = np.linspace(1.0 / limits[1], 1.0 / limits[0], options.depths)
    if len(unknown):
        chance = sweep(pairs, own[unknown], number, views, poses, inverse)
        swept, mass = peak_depths(chance, inverse)
        depth[unknown] = np.where(mass >= options.min_posterior, swept, np.nan)
    kept = np.flatnonzero(np.isfinite(depth) & (depth > 0))
    own = own[kept]
    rays = np.column_stack([views[number].normalised(own), np.ones(len(kept))])
    world = se3.inverse(poses[number])
    points = se3.transform_points(world, rays * depth[kept, None])
    rows, seen, pixels, sigma = [], [], [], []
    for other, pair in pairs.items():
        row, found, error = _found(pair, own, views[other], project(views[other], poses[other], points), options)
        rows.append(row)
        seen.append(np.full(len(row), other))
        pixels.append(found)
        sigma.append(error)
    places, errors = np.concatenate(pixels), np.concatenate(sigma)
    return number, kept, own, np.concatenate(rows), np.concatenate(seen), places, errors


def _found(
    pair: GuidedPair, own: Array, view: View, predicted: Array, options: RematchOptions
) -> tuple[Index, Array, Array]:
    """Rows of own pixels (M, 2) found in another view near predicted ones (M, 2), pixels there, and their sigma."""
    assert view.camera is not None
    limit = np.array([view.camera.width, view.camera.height]) - 0.5
    inside = np.flatnonzero((predicted > -0.5).all(axis=1) & (predicted < limit).all(axis=1))
    if not len(inside):
        return inside, np.zeros((0, 2)), np.zeros(0)
    near = pair.search_near(own[inside], predicted[inside], options.radius)
    good = (near.chance >= options.min_chance) & (near.return_error <= options.tolerance)
    good &= (near.pixels > -0.5).all(axis=1) & (near.pixels < limit).all(axis=1)
    return inside[good], near.pixels[good], _SIGMA + _SIGMA_SLOPE * (1.0 - near.chance[good])


def rematched_tracks(views: Sequence[View], results: Iterable[Rematched]) -> Tracks:
    """Star tracks of what `rematch` yields."""
    base = 0
    centre_view, anchor, centre_pixels, point, view, pixels, sigma = [], [], [], [], [], [], []
    for number, anchors, own, rows, seen, found, error in results:
        centre_view.append(np.full(len(anchors), number))
        anchor.append(anchors)
        centre_pixels.append(own)
        point.append(rows + base)
        view.append(seen)
        pixels.append(found)
        sigma.append(error)
        base += len(anchors)
    if not base:
        nothing = np.zeros(0, np.int64)
        return make_tracks(views, nothing, nothing, np.zeros((0, 2)), (nothing, nothing, np.zeros((0, 2)), np.zeros(0)))
    tracks = make_tracks(
        views,
        np.concatenate(centre_view),
        np.concatenate(anchor),
        np.concatenate(centre_pixels),
        (np.concatenate(point), np.concatenate(view), np.concatenate(pixels), np.concatenate(sigma)),
    )
    return tracks.select(np.ones(len(tracks.point), dtype=bool))
