# SPDX-License-Identifier: Apache-2.0
"""Matches of pairs of views, and which of them agree with a two-view geometry.

A pair alone is often explained by a wrong geometry as well as by the right one, where the scene is nearly flat and
matches are coarse. So its other matches are kept as well: the poses of all views together decide in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.matching.verify import TwoViewGeometry, estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.views import View
from dark3r_ros.types import Correspondences

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_CELL = 16.0  # pixels; errors of `mini` at -4 dB correlate by 0.1 to 0.2 over this distance, 0.4 over half of it
_STILL_PX = 0.5  # matches that move less show no motion of the camera


@dataclass(frozen=True, eq=False)
class VerifiedPair:
    """Matches of two views, and a relative pose that explains many of them.

    Attributes
    ----------
    first, second: numbers of the views. tried: matches that the predictor gave.
    pixels_first, pixels_second: (N, 2) pixels of the planes.
    identity_first, identity_second: (N,) numbers of keypoints within their view, -1 where a side is none.
    star: whether identities name anchors: one side of a match is a keypoint, the other a measurement of its own.
    confidence: (N,). agrees: (N,) whether a match agrees with the relative pose.
    second_from_first: (4, 4), translation of unit length. parallax: median triangulation angle in radians.

    """

    first: int
    second: int
    pixels_first: Array
    pixels_second: Array
    identity_first: Index
    identity_second: Index
    star: bool
    confidence: Array
    agrees: NDArray[np.bool_]
    second_from_first: Array
    parallax: float
    tried: int

    def __len__(self) -> int:
        return len(self.pixels_first)

    def select(self, rows: NDArray[np.bool_]) -> VerifiedPair:
        """Matches of a mask; the geometry stays."""
        return VerifiedPair(
            self.first,
            self.second,
            self.pixels_first[rows],
            self.pixels_second[rows],
            self.identity_first[rows],
            self.identity_second[rows],
            self.star,
            self.confidence[rows],
            self.agrees[rows],
            self.second_from_first,
            self.parallax,
            self.tried,
        )

    @property
    def support(self) -> int:
        """Number of matches that agree with the relative pose."""
        return int(self.agrees.sum())

    def verified(self) -> VerifiedPair:
        """Those matches alone."""
        return self.select(self.agrees)


def thin_pairs(pairs: Sequence[VerifiedPair], per_view: int) -> list[VerifiedPair]:
    """Matches of the keypoints that most pairs found, at most `per_view` a view: what a start needs, at less cost."""
    held: dict[int, list[Index]] = {}
    for pair in pairs:
        held.setdefault(pair.first, []).append(pair.identity_first)
        held.setdefault(pair.second, []).append(pair.identity_second)
    chosen = {number: _most_frequent(np.concatenate(parts), per_view) for number, parts in held.items()}
    result = []
    for pair in pairs:
        rows = np.isin(pair.identity_first, chosen[pair.first]) | np.isin(pair.identity_second, chosen[pair.second])
        if rows.sum() >= 8:
            result.append(pair.select(rows))
    return result


def _most_frequent(identities: Index, most: int) -> Index:
    values, counts = np.unique(identities[identities >= 0], return_counts=True)
    return values[np.lexsort((values, -counts))[:most]]


def _pixel_identity(pixels: Array, width: int) -> Index:
    """Number of the nearest pixel: predictors on the pixel grid repeat it exactly."""
    xy = np.rint(pixels).astype(np.int64)
    return xy[:, 1] * width + xy[:, 0]


def identities(matches: Correspondences, first: View, second: View) -> tuple[Index, Index, bool]:
    """Keypoint numbers of both sides, and whether they are anchors of star tracks."""
    if matches.anchor_a is not None and matches.anchor_b is not None:
        return matches.anchor_a, matches.anchor_b, True
    if matches.index_a is not None and matches.index_b is not None:
        return matches.index_a, matches.index_b, False
    assert first.camera is not None and second.camera is not None
    return (
        _pixel_identity(matches.points_a, first.camera.width),
        _pixel_identity(matches.points_b, second.camera.width),
        False,
    )


def verify(
    pair: tuple[int, int], views: Sequence[View], matches: Correspondences, config: SfmConfig
) -> VerifiedPair | None:
    """Find a relative pose that the matches agree with, or None where too few do."""
    first, second = views[pair[0]], views[pair[1]]
    if len(matches) < config.min_inliers:
        return None
    geometry = _geometry(first, second, matches, config)
    if geometry is None or geometry.inliers.sum() < config.min_inlier_share * len(matches):
        return None
    sides = matches.points_a[geometry.inliers], matches.points_b[geometry.inliers]
    if min(cells_hit(pixels) for pixels in sides) < config.min_cells:
        return None
    return make_pair(pair, views, matches, geometry, config.pair_matches)


def cells_hit(pixels: Array) -> int:
    """Number of cells of 16 pixels that hold one of some pixels (N, 2).

    Matches of a small patch agree with any motion of the camera, and errors of near ones in the dark are alike: cells
    count how many independent ones there are.
    """
    return len(np.unique(np.floor_divide(pixels, _CELL), axis=0))


def _geometry(first: View, second: View, matches: Correspondences, config: SfmConfig) -> TwoViewGeometry | None:
    threshold = 2.0 * config.max_error / (first.focal + second.focal)
    return estimate_two_view(
        first.normalised(matches.points_a), second.normalised(matches.points_b), threshold, config.min_inliers
    )


def make_pair(
    pair: tuple[int, int], views: Sequence[View], matches: Correspondences, geometry: TwoViewGeometry, most: int = 0
) -> VerifiedPair:
    """Matches with a geometry: all, or the `most` confident, those that agree first."""
    rows = np.arange(len(matches))
    if 0 < most < len(matches):
        rows = np.sort(np.lexsort((-matches.confidence, ~geometry.inliers))[:most])
    kept = matches.select(rows)
    identity_first, identity_second, star = identities(kept, views[pair[0]], views[pair[1]])
    return VerifiedPair(
        pair[0],
        pair[1],
        kept.points_a,
        kept.points_b,
        identity_first,
        identity_second,
        star,
        kept.confidence,
        geometry.inliers[rows],
        geometry.second_from_first,
        geometry.median_parallax,
        len(matches),
    )


def match_pair(
    pair: tuple[int, int], views: Sequence[View], predictor: Predictor, config: SfmConfig
) -> VerifiedPair | None:
    """Match and verify two views; None where they do not see the same."""
    matches = predictor.match([(views[pair[0]].features, views[pair[1]].features)])[0]
    return verify(pair, views, matches, config)


def all_still(pairs: Sequence[VerifiedPair]) -> bool:
    """Whether all views that share matches were taken from one place."""
    return bool(pairs) and all(_still(pair) for pair in pairs)


def _still(pair: VerifiedPair) -> bool:
    """Whether the two views are one: their matches do not move."""
    moved = np.linalg.norm(pair.pixels_first - pair.pixels_second, axis=1)[pair.agrees]
    return bool(np.median(moved) < _STILL_PX)
