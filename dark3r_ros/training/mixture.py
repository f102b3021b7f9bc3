# SPDX-License-Identifier: Apache-2.0
"""Batches drawn from several kinds of training pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dark3r_ros.errors import ConfigError
from dark3r_ros.training.batch import PairData, TrainingPairs, join


class Mixture:
    """Each pair of a batch comes from one of several sources, chosen by their weights.

    Parameters
    ----------
    sources: all on one device, with images of one size. weights: positive. seed: of the choices.

    """

    def __init__(self, sources: Sequence[PairData], weights: Sequence[float], seed: int = 0) -> None:
        if not sources or len(sources) != len(weights) or min(weights) <= 0:
            raise ConfigError('training pairs need sources, each with a positive weight')
        self._sources, self._seed = tuple(sources), seed
        self._shares = np.array(weights, dtype=np.float64) / sum(weights)

    @property
    def device(self) -> torch.device:
        """Where pairs are made."""
        return self._sources[0].device

    @property
    def knows_truth(self) -> bool:
        """Whether any of the pairs can be matched by the truth."""
        return any(source.knows_truth for source in self._sources)

    def make(self, number: int, count: int) -> TrainingPairs:
        """Make batch `number` of `count` pairs."""
        rng = np.random.default_rng([self._seed, number, 79])
        # The whole part of each share is certain, the rest is drawn: batches differ as little as they can.
        expected = self._shares * count
        counts = np.floor(expected + 1e-9).astype(int)
        rest = count - int(counts.sum())
        if rest:
            left = expected - counts
            counts += rng.multinomial(rest, left / left.sum())
        chosen = [(source, int(n)) for source, n in zip(self._sources, counts, strict=True) if n]
        return join([source.make(number, n) for source, n in chosen])
