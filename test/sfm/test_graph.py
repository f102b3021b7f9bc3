# SPDX-License-Identifier: Apache-2.0
"""Pair graphs: complete for few views, connected and near linear in cost for many."""

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dark3r_ros.matching.mini import MiniFeatures
from dark3r_ros.matching.retrieval import similarity
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.graph import farthest_points, pair_graph, poor_views
from dark3r_ros.sfm.views import View


def features(place: float, reliability: float = 0.5) -> MiniFeatures:
    """Descriptors that change slowly with a place on a loop of length one."""
    rng = np.random.default_rng(0)
    waves = rng.integers(1, 8, 32)[:, None, None] * (2 * np.pi)
    phase = rng.random((32, 6, 8)) * 2 * np.pi
    coarse = torch.from_numpy(np.sin(waves * place + phase)).half()
    nothing = torch.zeros(0).half()
    return MiniFeatures(
        coarse,
        torch.zeros(24 * 32, 4).half(),
        torch.arange(48),
        torch.full((48,), reliability).half(),
        nothing,
        nothing,
        (24, 32),
        (64, 48),
    )


def loop(count: int) -> list[View]:
    return [View(number, '', features=features(number / count)) for number in range(count)]


def test_a_few_views_are_all_paired():
    pairs = pair_graph(loop(10), SfmConfig())
    assert sorted(pairs) == [(a, b) for a in range(10) for b in range(a + 1, 10)]


def test_pairs_grow_about_linearly_and_hold_the_set_together():
    counts = {}
    for count in (80, 320):
        pairs = pair_graph(loop(count), SfmConfig())
        rows, columns = np.array(pairs).T
        assert (rows < columns).all()
        graph = coo_matrix((np.ones(len(pairs)), (rows, columns)), shape=(count, count))
        assert connected_components(graph, directed=False)[0] == 1
        counts[count] = len(pairs)
    assert counts[320] < 5.0 * counts[80]
    assert counts[320] < 16 * 320


def test_retrieval_closes_the_loop():
    views = loop(100)
    likeness = similarity([view.features for view in views])
    assert likeness[0, 99] > likeness[0, 50] + 0.2
    pairs = set(pair_graph(views, SfmConfig(temporal_window=1)))
    assert {(0, 99), (0, 98), (1, 99)} & pairs


def test_farthest_points_spread():
    angle = 2 * np.pi * np.arange(60) / 60
    chosen = farthest_points(np.cos(angle[:, None] - angle).astype(np.float32), 4)
    assert np.diff([*chosen, chosen[0] + 60]).tolist() == [15] * 4


def test_poor_views_are_found():
    views = [*loop(10), View(10, '', features=features(0.5, 0.05)), View(11, '', problem='black')]
    assert poor_views(views, 0.25) == {10}
