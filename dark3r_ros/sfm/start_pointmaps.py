# SPDX-License-Identifier: Apache-2.0
"""First poses from the point maps of a predictor that gives them, by sparse global alignment.

The verified pairs are decoded once more, in both orders, since point maps are too large to be kept for every pair.
Intrinsics are known here, and are held by default.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dark3r_ros.geometry import se3
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.canonical import BLOCK, CanonicalView, canonical_view
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.global_align import AlignmentConfig, GlobalAlignment, PairMatches
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.views import View
from dark3r_ros.types import Correspondences

Array = NDArray[np.float64]

_MOST_PARTNERS = 6


def gives_point_maps(predictor: Predictor) -> bool:
    """Whether matches of a predictor come with point maps, by its settings."""
    return bool(getattr(getattr(predictor, 'config', None), 'pointmaps', False))


def align_point_maps(
    views: Sequence[View], pairs: Sequence[VerifiedPair], predictor: Predictor, config: SfmConfig
) -> dict[int, Array]:
    """Poses camera_from_world (4, 4) by view, of the largest group of connected views."""
    chosen = _strongest(pairs)
    numbers = _largest_group(chosen)
    chosen = [pair for pair in chosen if pair.first in numbers]
    if len(numbers) < 2:
        return {}
    maps: dict[int, list[tuple[Array, Array]]] = {number: [] for number in numbers}
    matches = []
    place = {number: row for row, number in enumerate(numbers)}
    for pair in chosen:
        a, b = views[pair.first].features, views[pair.second].features
        forward, backward = predictor.match([(a, b), (b, a)])
        maps[pair.first].append(_own_map(forward))
        maps[pair.second].append(_own_map(backward))
        matches.append(_matches(pair, place, views))
    canonical = [_canonical(maps[number]) for number in numbers]
    known = np.stack([_intrinsics(views[number]) for number in numbers])
    settings = AlignmentConfig(
        match_confidence=0.0,
        fix_intrinsics=config.fix_intrinsics,
        move_centre=False,
        focal_prior=config.focal_prior,
    )
    _, fine = GlobalAlignment(canonical, matches, config=settings, intrinsics=known).run()
    return {number: se3.inverse(fine.world_from_camera[row]) for row, number in enumerate(numbers)}


def _strongest(pairs: Sequence[VerifiedPair]) -> list[VerifiedPair]:
    """Pairs that are among those with most matches of either of their views."""
    ranks: dict[int, int] = {}
    chosen = []
    for pair in sorted(pairs, key=lambda pair: (-len(pair), pair.first, pair.second)):
        if min(ranks.get(pair.first, 0), ranks.get(pair.second, 0)) < _MOST_PARTNERS:
            chosen.append(pair)
            for number in (pair.first, pair.second):
                ranks[number] = ranks.get(number, 0) + 1
    return chosen


def _largest_group(pairs: Sequence[VerifiedPair]) -> list[int]:
    if not pairs:
        return []
    numbers = np.unique([(pair.first, pair.second) for pair in pairs])
    rows = np.searchsorted(numbers, [pair.first for pair in pairs])
    columns = np.searchsorted(numbers, [pair.second for pair in pairs])
    graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(len(numbers), len(numbers)))
    _, group = connected_components(graph, directed=False)
    return [int(number) for number in numbers[group == np.bincount(group).argmax()]]


def _cut(values: NDArray[np.float32]) -> Array:
    """Whole blocks of a map (h, w, ...), from the top left."""
    height, width = (side // BLOCK * BLOCK for side in values.shape[:2])
    return values[:height, :width].astype(np.float64)


def _own_map(found: Correspondences) -> tuple[Array, Array]:
    assert found.pointmap_a is not None and found.pointmap_confidence_a is not None
    return _cut(found.pointmap_a), np.maximum(_cut(found.pointmap_confidence_a), 1.0)


def _canonical(maps: Sequence[tuple[Array, Array]]) -> CanonicalView:
    return canonical_view([points for points, _ in maps], [confidence for _, confidence in maps])


def _matches(pair: VerifiedPair, place: dict[int, int], views: Sequence[View]) -> PairMatches:
    """Matches at whole, undistorted pixels inside the blocks."""
    sides = []
    inside = np.ones(len(pair), dtype=bool)
    for number, pixels in ((pair.first, pair.pixels_first), (pair.second, pair.pixels_second)):
        camera = views[number].camera
        assert camera is not None
        xy = np.rint(camera.undistorted_pixels(pixels)).astype(np.int64)
        limit = (camera.width // BLOCK * BLOCK, camera.height // BLOCK * BLOCK)
        inside &= (xy >= 0).all(axis=1) & (xy < limit).all(axis=1)
        sides.append(xy)
    return PairMatches(
        place[pair.first], place[pair.second], sides[0][inside], sides[1][inside], pair.confidence[inside]
    )


def _intrinsics(view: View) -> Array:
    assert view.camera is not None
    return view.camera.matrix
