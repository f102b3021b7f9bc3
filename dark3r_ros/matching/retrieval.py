# SPDX-License-Identifier: Apache-2.0
"""Which views look alike: one vector a view, aggregated from what its predictor remembers of it.

Local descriptors are assigned to words of a small vocabulary made from the set itself; their residuals are summed a
word (VLAD), with signed square roots and unit length. Source: Jegou et al., Aggregating local descriptors into a
compact image representation, 2010; power law: Perronnin et al., 2010.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.matching.classical import ClassicalFeatures
from dark3r_ros.matching.mini import MiniFeatures
from dark3r_ros.model.predictor import Features

Array = NDArray[np.float32]

_WORDS = 32
_SAMPLE = 40_000
_ROUNDS = 8


def local_descriptors(features: Features) -> Array | None:
    """Descriptors (N, D) of a view, or None for a predictor that has none of a single view."""
    if isinstance(features, MiniFeatures):
        return features.coarse.flatten(1).T.float().cpu().numpy()
    if isinstance(features, ClassicalFeatures):
        return features.descriptors.astype(np.float32) / 512.0
    return None


def vocabulary(sample: Array, words: int = _WORDS) -> Array:
    """Centres (words, D) of descriptors (N, D): k-means from spread-out starts, the same for the same input."""
    words = min(words, len(sample))
    centres = sample[np.linspace(0, len(sample) - 1, words).astype(np.int64)].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centres)
        for word in range(words):
            mine = sample[nearest == word]
            if len(mine):
                centres[word] = mine.mean(axis=0)
    return centres


def _nearest(descriptors: Array, centres: Array) -> NDArray[np.int64]:
    return (2.0 * descriptors @ centres.T - (centres**2).sum(axis=1)).argmax(axis=1)


def aggregate(descriptors: Array, centres: Array) -> Array:
    """One vector (words * D,) of unit length for a view; zero without descriptors."""
    total = np.zeros_like(centres)
    if len(descriptors):
        nearest = _nearest(descriptors, centres)
        np.add.at(total, nearest, descriptors - centres[nearest])
    length = np.linalg.norm(total, axis=1, keepdims=True)
    total = total / np.maximum(length, 1e-9)
    flat = (np.sign(total) * np.sqrt(np.abs(total))).ravel()
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-9), dtype=np.float32)


def similarity(features: Sequence[Features]) -> Array | None:
    """Likeness (n, n) of views in [-1, 1], or None where the predictor gives nothing to compare."""
    sizes = []
    for one in features:
        own = local_descriptors(one)
        if own is None:
            return None
        sizes.append(len(own))
    if not sum(sizes):
        return None
    every = max(1, sum(sizes) // _SAMPLE)
    # The descriptors of one view at a time: those of thousands would fill the memory.
    sample = [_known(one)[number % every :: every].copy() for number, one in enumerate(features)]
    centres = vocabulary(np.concatenate(sample))
    vectors = np.stack([aggregate(_known(one), centres) for one in features])
    return np.asarray(vectors @ vectors.T, dtype=np.float32)


def _known(features: Features) -> Array:
    found = local_descriptors(features)
    assert found is not None
    return found
