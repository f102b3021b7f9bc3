# SPDX-License-Identifier: Apache-2.0
"""Depth of every view by a sweep through what `mini` sees in the others.

For each place of a view the depths along its ray are tried; the evidence of all partner views is added up, so that what
noise hides from any one of them still shows in their sum. Coarse descriptors decide first, over the whole range and
smoothed over neighbouring places; fine ones then decide around that. Depths that other views do not
confirm are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.special import softmax

from dark3r_ros.geometry import se3
from dark3r_ros.matching.guided import GuidedPair, Queries, grid_queries
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor
from dark3r_ros.sfm.rematch import covisible, depth_ranges, peak_depths, project
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View
from dark3r_ros.types import DepthMap

Array = NDArray[np.float64]

_CHUNK = 2048


@dataclass(frozen=True)
class DenseOptions:
    """How depths are found: partners of a view, depths tried over the range and around the first answer, agreement."""

    partners: int = 6
    depths: int = 64
    steps: int = 11
    coarse_smoothing: int = 5
    fine_smoothing: int = 5
    agreement: float = 0.05


def partner_views(structure: Structure, poses: Mapping[int, Array], most: int, least: int = 15) -> dict[int, list[int]]:
    """Views that share many points with each view and see them from a different place."""
    shared = covisible(structure, max(poses) + 1)
    centres = {number: se3.inverse(pose)[:3, 3] for number, pose in poses.items()}
    result: dict[int, list[int]] = {}
    ranges = depth_ranges(structure, poses)
    for number in sorted(poses):
        limits = ranges.get(number)
        if limits is None:
            result[number] = []
            continue
        scored = []
        row = slice(*shared.indptr[number : number + 2])
        for other, count in zip(shared.indices[row].tolist(), shared.data[row].tolist(), strict=True):
            if other in poses and count >= least:
                angle = float(np.linalg.norm(centres[number] - centres[other])) / float(np.sqrt(limits[0] * limits[1]))
                scored.append((-count * min(angle / 0.1, 1.0), other))
        result[number] = [other for _, other in sorted(scored)[:most]]
    return result


def depth_maps(
    views: Sequence[View],
    poses: Mapping[int, Array],
    structure: Structure,
    predictor: MiniPredictor,
    options: DenseOptions | None = None,
    progress: Callable[[Iterable[int], int, str], Iterator[int]] | None = None,
) -> dict[int, DepthMap]:
    """Confirmed depth of every posed view that has partners, at the size of its planes."""
    options = options or DenseOptions()
    partners = partner_views(structure, poses, options.partners)
    numbers = [number for number in sorted(poses) if partners[number]]
    raw, ranges = {}, depth_ranges(structure, poses)
    for number in progress(numbers, len(numbers), 'depth') if progress else numbers:
        raw[number] = sweep_view(number, partners[number], ranges[number], views, poses, predictor, options)
    return {number: _confirmed(number, raw, partners, views, poses, options.agreement) for number in raw}


class _Rays:
    """Places of a view at depths, seen in other views."""

    def __init__(self, view: View, camera_from_world: Array, pixels: Array) -> None:
        rays = np.column_stack([view.normalised(pixels), np.ones(len(pixels))])
        world = se3.inverse(camera_from_world)
        self._directions, self._origin = rays @ world[:3, :3].T, world[:3, 3]

    def seen(self, other: View, camera_from_world: Array, inverse: Array, rows: slice) -> Array:
        """Pixels (M, D, 2) of another view for inverse depths (M or 1, D) of some rays."""
        points = self._origin + self._directions[rows, None] / inverse[..., None]
        return np.nan_to_num(project(other, camera_from_world, points), nan=-1e4).clip(-1e4, 1e5)


def sweep_view(
    number: int,
    partners: Sequence[int],
    limits: tuple[float, float],
    views: Sequence[View],
    poses: Mapping[int, Array],
    predictor: MiniPredictor,
    options: DenseOptions,
) -> DepthMap:
    """Depth of one view between two limits, not yet confirmed by others."""
    features = cast(MiniFeatures, views[number].features)
    pairs = {other: GuidedPair(predictor, features, cast(MiniFeatures, views[other].features)) for other in partners}
    inverse = np.linspace(1.0 / limits[1], 1.0 / limits[0], options.depths)
    coarse, shape = grid_queries(features, 2)
    rays = _Rays(views[number], poses[number], coarse.pixels)
    evidence = np.zeros((len(coarse), options.depths))
    for other, pair in pairs.items():
        for rows in _chunks(len(coarse)):
            places = rays.seen(views[other], poses[other], inverse[None], rows)
            evidence[rows] += pair.evidence(pair.coarse_chances(coarse.pixels[rows]), places)
    chance = softmax(_smoothed(evidence, shape, options.coarse_smoothing), axis=1)
    depth, mass = peak_depths(chance, inverse)
    fine, fine_shape = grid_queries(features, 1)
    start = _resized(1.0 / depth.reshape(shape), fine_shape)
    refined = _refined(number, fine, fine_shape, start, float(inverse[1] - inverse[0]), pairs, views, poses, options)
    size = features.size
    return DepthMap(
        _to_planes(1.0 / refined, size).astype(np.float32),
        _to_planes(_resized(mass.reshape(shape), fine_shape), size).astype(np.float32),
    )


def _refined(
    number: int,
    queries: Queries,
    shape: tuple[int, int],
    start: Array,
    step: float,
    pairs: Mapping[int, GuidedPair],
    views: Sequence[View],
    poses: Mapping[int, Array],
    options: DenseOptions,
) -> Array:
    """Inverse depth (rows, columns) from fine descriptors within one and a half steps around a start."""
    offsets = np.linspace(-1.5, 1.5, options.steps) * step
    tried = np.maximum(start.reshape(-1, 1) + offsets, 0.2 * start.min())
    rays = _Rays(views[number], poses[number], queries.pixels)
    evidence = np.zeros(tried.shape)
    for other, pair in pairs.items():
        for rows in _chunks(len(queries)):
            places = rays.seen(views[other], poses[other], tried[rows], rows)
            evidence[rows] += pair.fine_evidence(queries.fine[rows], places)
    chance = softmax(_smoothed(evidence, shape, options.fine_smoothing), axis=1)
    return (chance * tried).sum(axis=1).reshape(shape)


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _smoothed(evidence: Array, shape: tuple[int, int], size: int) -> Array:
    """Mean over neighbouring places of evidence (M, D), with the number of them as far as noise is concerned."""
    volume = evidence.reshape(*shape, -1)
    return np.asarray(uniform_filter(volume, (size, size, 1), mode='nearest')).reshape(evidence.shape) * size


def _resized(values: Array, shape: tuple[int, int]) -> Array:
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), dtype=np.float64)


def _to_planes(values: Array, size: tuple[int, int]) -> Array:
    """Values of fine pixels (two a plane pixel each way, padding included) at the size of the planes."""
    doubled = _resized(values, (2 * values.shape[0], 2 * values.shape[1]))
    return doubled[: size[1], : size[0]]


def _confirmed(
    number: int,
    maps: Mapping[int, DepthMap],
    partners: Mapping[int, Sequence[int]],
    views: Sequence[View],
    poses: Mapping[int, Array],
    tolerance: float,
) -> DepthMap:
    """Confidence times the share of partners whose own depth agrees; what none confirms is dropped."""
    own = maps[number]
    height, width = own.depth.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(np.float64)
    local = np.column_stack([views[number].normalised(pixels), np.ones(len(pixels))]) * own.depth.reshape(-1, 1)
    points = se3.transform_points(se3.inverse(poses[number]), local)
    agreed = np.zeros(len(points))
    judged = np.zeros(len(points))
    for other in partners[number]:
        if other not in maps:
            continue
        theirs = maps[other].depth
        place = np.nan_to_num(project(views[other], poses[other], points), nan=-1.0)
        cell = np.rint(place).astype(np.int64)
        inside = (cell >= 0).all(axis=1) & (cell < (theirs.shape[1], theirs.shape[0])).all(axis=1)
        seen = theirs[cell[inside, 1], cell[inside, 0]]
        expected = points[inside] @ poses[other][2, :3] + poses[other][2, 3]
        agreed[inside] += np.abs(expected - seen) < tolerance * expected
        judged[inside] += 1.0
    share = (agreed / np.maximum(judged, 1.0)).reshape(height, width)
    confidence = (own.confidence * share).astype(np.float32)
    return DepthMap(np.where(confidence > 0, own.depth, np.float32(0)), confidence)
