# SPDX-License-Identifier: Apache-2.0
"""Reciprocal nearest neighbours between two dense descriptor maps.

`reciprocal_dense` looks at every descriptor of both maps; `reciprocal_fast` is the iterative search of MASt3R (Leroy et
al. 2024, section 3.3), which starts from a sparse grid and walks to and fro until it meets a mutual pair. Similarity is
the dot product. Indices are linear, y * width + x; on equal similarity the lowest index wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import DataError

IndexArray = NDArray[np.int64]
# Similarities held at a time; a chunk that stays in the cache is three times faster than one matrix.
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, eq=False)
class Matches:
    """Index pairs between maps a and b.

    Attributes
    ----------
    index_a, index_b: (M,) int64 linear indices, no pair twice, sorted by a, then b.
    successor: (H_a * W_a,) int64, for every pixel of a that the search visited the pixel of a where one round trip from
        it ends, -1 elsewhere; None unless asked for.

    """

    index_a: IndexArray
    index_b: IndexArray
    successor: IndexArray | None = None

    def __len__(self) -> int:
        return len(self.index_a)


def linear_to_xy(index: IndexArray, width: int) -> IndexArray:
    """Linear indices (M,) -> pixels (M, 2) as (x, y)."""
    return np.stack((index % width, index // width), axis=1)


def flatten_map(descriptors: Tensor) -> Tensor:
    """Descriptor map (H, W, D) -> (H * W, D); DataError for another number of axes or values that are not finite."""
    if descriptors.ndim != 3 or 0 in descriptors.shape:
        raise DataError(f'a descriptor map has shape (height, width, channels), got {tuple(descriptors.shape)}')
    if not bool(descriptors.isfinite().all()):
        raise DataError('a descriptor map holds values that are not finite: check the frame and the weights')
    return descriptors.reshape(-1, descriptors.shape[-1])


def nearest(queries: Tensor, memory: Tensor) -> Tensor:
    """Index (N,) of the most similar row of memory (M, D) for each query (N, D), found in chunks."""
    step = max(1, _CHUNK_VALUES // len(memory))
    parts = [(queries[start : start + step] @ memory.T).argmax(1) for start in range(0, len(queries), step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=queries.device)


def reciprocal_dense(map_a: Tensor, map_b: Tensor) -> Matches:
    """All mutual nearest neighbours of two maps (H_a, W_a, D), (H_b, W_b, D); each similarity is computed once."""
    a, b = flatten_map(map_a), flatten_map(map_b)
    step = max(1, _CHUNK_VALUES // len(b))
    to_b = torch.empty(len(a), dtype=torch.int64, device=a.device)
    best = torch.full((len(b),), -torch.inf, dtype=a.dtype, device=a.device)
    to_a = torch.zeros(len(b), dtype=torch.int64, device=a.device)
    for start in range(0, len(a), step):
        similarity = a[start : start + step] @ b.T
        to_b[start : start + step] = similarity.argmax(1)
        value, index = similarity.max(0)
        better = value > best
        best = torch.where(better, value, best)
        to_a = torch.where(better, index + start, to_a)
    mutual = (to_a[to_b] == torch.arange(len(a), device=a.device)).nonzero()[:, 0]
    return Matches(mutual.cpu().numpy(), to_b[mutual].cpu().numpy())


def start_grid(height: int, width: int, subsample: int) -> IndexArray:
    """Linear indices of the pixels S//2, S//2 + S, .. of both axes."""
    rows = np.arange(subsample // 2, height, subsample)
    columns = np.arange(subsample // 2, width, subsample)
    return (rows[:, None] * width + columns).ravel()


def reciprocal_fast(
    map_a: Tensor,
    map_b: Tensor,
    subsample: int = 8,
    *,
    starts: IndexArray | None = None,
    iterations: int = 10,
    track: bool = False,
) -> Matches:
    """Mutual neighbours that a walk from a sparse grid of pixels of a reaches.

    Parameters
    ----------
    map_a, map_b: (H_a, W_a, D), (H_b, W_b, D).
    subsample: distance of the start pixels of a, in pixels of the map.
    starts: linear indices of a to start from instead of the grid.
    iterations: round trips after which a start that has not settled is dropped.
    track: also return where each visited pixel of a leads.

    """
    a, b = flatten_map(map_a), flatten_map(map_b)
    if starts is None:
        starts = start_grid(map_a.shape[0], map_a.shape[1], subsample)
    successor = torch.full((len(a),), -1, dtype=torch.int64, device=a.device) if track else None
    moving = torch.from_numpy(np.unique(starts)).to(a.device)
    settled_a, settled_b = [moving[:0]], [moving[:0]]
    for _ in range(iterations):
        to_b = nearest(a[moving], b)
        back = nearest(b[to_b], a)
        if successor is not None:
            successor[moving] = back
        done = back == moving
        settled_a.append(moving[done])
        settled_b.append(to_b[done])
        # Walks that met go on as one.
        moving = back[~done].unique()
        if not len(moving):
            break
    pairs_a, pairs_b = torch.cat(settled_a).cpu().numpy(), torch.cat(settled_b).cpu().numpy()
    matches, _ = _unique_pairs(pairs_a, pairs_b, len(b))
    return Matches(matches.index_a, matches.index_b, None if successor is None else successor.cpu().numpy())


def round_trip(map_a: Tensor, map_b: Tensor, starts: IndexArray, pixel_tolerance: float) -> Matches:
    """Matches of given pixels of a that come back within less than a tolerance after one round trip.

    Parameters
    ----------
    map_a, map_b: (H_a, W_a, D), (H_b, W_b, D).
    starts: linear indices of a; those kept are reported as they are.
    pixel_tolerance: Euclidean distance in pixels of a.

    """
    a, b = flatten_map(map_a), flatten_map(map_b)
    width = map_a.shape[1]
    starts = np.unique(starts)
    begin = torch.from_numpy(starts).to(a.device)
    to_b = nearest(a[begin], b)
    back = nearest(b[to_b], a).cpu().numpy()
    offset = linear_to_xy(back, width) - linear_to_xy(starts, width)
    near = (offset.astype(np.float64) ** 2).sum(1) < pixel_tolerance**2
    return _unique_pairs(starts[near], to_b.cpu().numpy()[near], len(b))[0]


def _unique_pairs(index_a: IndexArray, index_b: IndexArray, count_b: int) -> tuple[Matches, IndexArray]:
    """Pairs without repetition, sorted by a then b, and the position of their first occurrence."""
    _, first = np.unique(index_a * count_b + index_b, return_index=True)
    return Matches(index_a[first], index_b[first]), first


@dataclass(frozen=True, eq=False)
class DescribedPair:
    """Descriptors and their confidences of both images as one decoding gave them.

    Attributes
    ----------
    map_a, map_b: (H_a, W_a, D), (H_b, W_b, D) descriptors.
    confidence_a, confidence_b: (H_a, W_a), (H_b, W_b).

    """

    map_a: Tensor
    map_b: Tensor
    confidence_a: Tensor
    confidence_b: Tensor


def reciprocal_both_ways(
    decodings: list[DescribedPair], subsample: int = 8, *, pixel_tolerance: float = 0.0, combine: str = 'geometric'
) -> tuple[Matches, NDArray[np.float64]]:
    """Merge the searches a -> b and b -> a over one or two decodings of a pair.

    Two decodings, (a, b) and (b, a), with `geometric` combination is what MASt3R-SfM does; one decoding with `minimum`
    is its localisation variant. Of a pair found twice the first occurrence counts, in the order of the decodings.

    Parameters
    ----------
    decodings: what is known of the pair; `map_a` always belongs to image a.
    subsample: distance of the start pixels.
    pixel_tolerance: when positive, one round trip with this tolerance replaces the walk.
    combine: `geometric` for sqrt(q_a q_b), `minimum` for min(q_a, q_b).

    Returns
    -------
    Matches and their confidence (M,).

    """
    all_a, all_b, all_confidence = [], [], []
    for one in decodings:
        forward = _search(one.map_a, one.map_b, subsample, pixel_tolerance)
        backward = _search(one.map_b, one.map_a, subsample, pixel_tolerance)
        index_a = np.concatenate((forward.index_a, backward.index_b))
        index_b = np.concatenate((forward.index_b, backward.index_a))
        all_a.append(index_a)
        all_b.append(index_b)
        all_confidence.append(pair_confidence(one.confidence_a, one.confidence_b, index_a, index_b, combine))
    count_b = decodings[0].map_b.shape[0] * decodings[0].map_b.shape[1]
    matches, first = _unique_pairs(np.concatenate(all_a), np.concatenate(all_b), count_b)
    return matches, np.concatenate(all_confidence)[first]


def _search(map_a: Tensor, map_b: Tensor, subsample: int, pixel_tolerance: float) -> Matches:
    if pixel_tolerance > 0:
        return round_trip(map_a, map_b, start_grid(map_a.shape[0], map_a.shape[1], subsample), pixel_tolerance)
    return reciprocal_fast(map_a, map_b, subsample)


def pair_confidence(
    confidence_a: Tensor, confidence_b: Tensor, index_a: IndexArray, index_b: IndexArray, combine: str = 'geometric'
) -> NDArray[np.float64]:
    """Confidence (M,) of matches from the maps (H, W) of both sides: `geometric` mean or `minimum`."""
    a = confidence_a.reshape(-1).double().cpu().numpy()[index_a]
    b = confidence_b.reshape(-1).double().cpu().numpy()[index_b]
    if combine == 'geometric':
        return np.sqrt(a * b)
    if combine == 'minimum':
        return np.minimum(a, b)
    raise ValueError(f'combine must be geometric or minimum, got {combine!r}')
