# SPDX-License-Identifier: Apache-2.0
"""Tracks: which places of the views show the same point.

Star tracks belong to predictors with fixed keypoints (anchors) whose partner may lie anywhere: an anchor is one point,
seen at its own pixel and at every place where it was found. Ordinary tracks join matches that share keypoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# Error of a star's centre over that of its observations: a fifth to three tenths of their variance is common to all.
_COMMON = 0.65


def expected_error(confidence: Array) -> Array:
    """Error in pixels, along each axis, that right matches of `mini` of a confidence (N,) have.

    A straight line through what matches show in a simulated room, corridor and tunnel at -4 dB: 1.5 to 1.7 px at 0.15,
    1.2 at 0.3, 0.9 at 0.5, 0.6 to 0.7 at 0.7; beyond that little is known, and it is not believed to be less.
    """
    return np.asarray(np.maximum(1.75 - 1.55 * confidence, 0.6))


@dataclass(frozen=True, eq=False)
class Tracks:
    """Observations, sorted by point; the first of each point is its centre.

    Attributes
    ----------
    point, view: (K,) numbers. pixels: (K, 2) of the planes. normalised: (K, 2) undistorted.
    sigma: (K,) expected error of each observation in pixels, 1 where nothing is known: the unit of bounds.
    anchor: (P,) keypoint number of the centre within its view, -1 for ordinary tracks.

    """

    point: Index
    view: Index
    pixels: Array
    normalised: Array
    sigma: Array
    anchor: Index

    def __len__(self) -> int:
        return len(self.anchor)

    @cached_property
    def centre(self) -> Index:
        """Row (P,) of the first observation of each point."""
        return np.searchsorted(self.point, np.arange(len(self)))

    def select(self, rows: NDArray[np.bool_]) -> Tracks:
        """Observations of a mask (K,), without points that lose their centre or have fewer than two left."""
        kept = rows & rows[self.centre][self.point]
        counts = np.bincount(self.point[kept], minlength=len(self))
        kept &= counts[self.point] >= 2
        points, renumbered = np.unique(self.point[kept], return_inverse=True)
        return Tracks(
            renumbered.astype(np.int64),
            self.view[kept],
            self.pixels[kept],
            self.normalised[kept],
            self.sigma[kept],
            self.anchor[points],
        )


def _drained(parts: list[NDArray], like: NDArray) -> NDArray:
    """The parts one behind the other; they are gone then, for of millions of observations both are too much."""
    result = np.concatenate(parts) if parts else like
    parts.clear()
    return result


def make_tracks(
    views: Sequence[View],
    centre_view: Index,
    anchor: Index,
    centre_pixels: Array,
    seen: tuple[Index, Index, Array, Array],
) -> Tracks:
    """Star tracks from centres (P,) and observations `seen`: point (K,), view (K,), pixels (K, 2), sigma (K,)."""
    count = len(anchor)
    point = np.concatenate([np.arange(count), seen[0]])
    view = np.concatenate([centre_view, seen[1]])
    pixels = np.concatenate([centre_pixels, seen[2]])
    sigma = np.concatenate([_centre_sigma(seen[0], seen[3], count), seen[3]])
    order = np.lexsort((view, np.arange(len(point)) >= count, point))
    point, view, pixels = point[order].astype(np.int64), view[order].astype(np.int64), pixels[order]
    return Tracks(point, view, pixels, normalise_pixels(views, view, pixels), sigma[order], anchor.astype(np.int64))


def _centre_sigma(point: Index, sigma: Array, count: int) -> Array:
    """Sigma (P,) of centres: the share of the errors of a star that all its observations have in common."""
    number = np.maximum(np.bincount(point, minlength=count), 1)
    return _COMMON * np.bincount(point, weights=sigma, minlength=count) / number


def normalise_pixels(views: Sequence[View], view: Index, pixels: Array) -> Array:
    """Undistorted normalised coordinates (K, 2) of pixels (K, 2) of several views (K,)."""
    result = np.zeros_like(pixels)
    for number, mine in rows_by(view):
        result[mine] = views[number].normalised(pixels[mine])
    return result


def rows_by(index: Index) -> Iterator[tuple[int, Index]]:
    """Numbers that occur in an index (K,), rising, each with its rows, rising as well: one sort for all of them."""
    order = np.argsort(index, kind='stable')
    numbers, begins = np.unique(index[order], return_index=True)
    bounds = itertools.pairwise([*begins.tolist(), len(order)])
    for number, (begin, end) in zip(numbers.tolist(), bounds, strict=True):
        yield number, order[begin:end]


def build_tracks(views: Sequence[View], pairs: Sequence[VerifiedPair], verified: bool = False) -> Tracks:
    """Star tracks of all matches where the pairs have anchors; ordinary ones of those that agree with their geometry.

    A wrong match spoils one observation of a star, but joins two ordinary tracks for good. With `verified`, stars too
    are made of those that agree alone.
    """
    if all(pair.star for pair in pairs):
        return _star_tracks(views, pairs, verified)
    return _joined_tracks(views, [pair.verified() for pair in pairs])


def _star_tracks(views: Sequence[View], pairs: Sequence[VerifiedPair], verified: bool) -> Tracks:
    here, there, counts = [], [], []
    anchors, centres, places, sigmas = [], [], [], []
    for pair in pairs:
        pixels_first, pixels_second, confidence = pair.pixels_first, pair.pixels_second, pair.confidence
        asked = pair.agrees if verified else np.ones(len(pair), dtype=bool)
        sides = (
            (pair.first, pair.identity_first, pixels_first, pair.second, pixels_second),
            (pair.second, pair.identity_second, pixels_second, pair.first, pixels_first),
        )
        for own, identity, pixels, other, found in sides:
            rows = (identity >= 0) & asked
            here.append(own)
            there.append(other)
            counts.append(int(rows.sum()))
            anchors.append(identity[rows])
            centres.append(pixels[rows])
            places.append(found[rows])
            sigmas.append(expected_error(confidence[rows]))
    number = _drained(anchors, np.zeros(0, np.int64))
    base = int(number.max(initial=0)) + 1
    number += np.repeat(np.array(here, dtype=np.int64), counts) * base
    keys, first, point = np.unique(number, return_index=True, return_inverse=True)
    del number
    flat = np.zeros((0, 2))
    centre = _drained(centres, flat)[first]
    partner = np.repeat(np.array(there, dtype=np.int64), counts)
    seen = point.astype(np.int64), partner, _drained(places, flat), _drained(sigmas, np.zeros(0))
    return make_tracks(views, keys // base, keys % base, centre, seen)


def merge_stars(views: Sequence[View], first: Tracks, second: Tracks) -> Tracks:
    """Union of two sets of star tracks; of an observation in both, the first counts."""
    count = len(first)
    keys, place = np.unique(np.concatenate([_star_keys(first), _star_keys(second)]), axis=0, return_inverse=True)
    point = np.concatenate([place[:count][first.point], place[count:][second.point]])
    view = np.concatenate([first.view, second.view])
    order = np.lexsort((view, point))  # stable: the first set before the second
    point, view = point[order], view[order]
    fresh = np.ones(len(point), dtype=bool)
    fresh[1:] = (np.diff(point) != 0) | (np.diff(view) != 0)
    order, point, view = order[fresh], point[fresh], view[fresh]
    pixels = np.concatenate([first.pixels, second.pixels])[order]
    sigma = np.concatenate([first.sigma, second.sigma])[order]
    own = view == keys[point, 0]
    centre_pixels = np.zeros((len(keys), 2))
    centre_pixels[point[own]] = pixels[own]
    return make_tracks(
        views, keys[:, 0], keys[:, 1], centre_pixels, (point[~own], view[~own], pixels[~own], sigma[~own])
    )


def _star_keys(tracks: Tracks) -> Index:
    return np.column_stack([tracks.view[tracks.centre], tracks.anchor])


def _joined_tracks(views: Sequence[View], pairs: Sequence[VerifiedPair]) -> Tracks:
    """Connected components of matched keypoints; a component with two keypoints in one view contradicts itself."""
    base = 1 + max((int(max(p.identity_first.max(), p.identity_second.max())) for p in pairs), default=0)
    left = np.concatenate([pair.first * base + pair.identity_first for pair in pairs])
    right = np.concatenate([pair.second * base + pair.identity_second for pair in pairs])
    pixels = np.concatenate([p.pixels_first for p in pairs] + [p.pixels_second for p in pairs])
    nodes, first, node = np.unique(np.concatenate([left, right]), return_index=True, return_inverse=True)
    half = len(left)
    graph = coo_matrix((np.ones(half), (node[:half], node[half:])), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    view = nodes // base
    _, occurrence, counts = np.unique(component * len(views) + view, return_inverse=True, return_counts=True)
    broken = np.zeros(int(component.max(initial=0)) + 1, dtype=bool)
    broken[component[counts[occurrence] > 1]] = True
    kept = np.flatnonzero(~broken[component])
    _, point = np.unique(component[kept], return_inverse=True)
    order = np.lexsort((view[kept], point))
    kept, point = kept[order], point[order].astype(np.int64)
    place = pixels[first[kept]]
    count = int(point.max(initial=-1)) + 1
    return Tracks(
        point,
        view[kept],
        place,
        normalise_pixels(views, view[kept], place),
        np.ones(len(point)),
        np.full(count, -1, dtype=np.int64),
    )
