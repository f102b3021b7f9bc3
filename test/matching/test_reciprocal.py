# SPDX-License-Identifier: Apache-2.0
"""Reciprocal search against golden results and against plain loops."""

import numpy as np
import pytest
import torch

from dark3r_ros.errors import DataError
from dark3r_ros.matching.reciprocal import (
    DescribedPair,
    linear_to_xy,
    nearest,
    reciprocal_both_ways,
    reciprocal_dense,
    reciprocal_fast,
    round_trip,
    start_grid,
)


@pytest.fixture(scope='module')
def case(shared_root):
    arrays = np.load(shared_root / 'reference' / 'fast_nn_small' / 'case.npz')
    return {key: torch.from_numpy(arrays[key]) if arrays[key].dtype == np.float32 else arrays[key] for key in arrays}


def check_xy(matches, shape_a, shape_b, case, name):
    np.testing.assert_array_equal(linear_to_xy(matches.index_a, shape_a[1]), case[f'{name}_xy1'])
    np.testing.assert_array_equal(linear_to_xy(matches.index_b, shape_b[1]), case[f'{name}_xy2'])


def test_golden_nearest(case):
    a, b = case['desc11'].reshape(-1, 24), case['desc21'].reshape(-1, 24)
    np.testing.assert_array_equal(nearest(a, b).numpy(), case['brute_nn1'])
    np.testing.assert_array_equal(nearest(b, a).numpy(), case['brute_nn2'])


@pytest.mark.parametrize('subsample', [8, 4])
def test_golden_fast(case, subsample):
    a, b = case['desc11'], case['desc21']
    matches = reciprocal_fast(a, b, subsample)
    check_xy(matches, a.shape, b.shape, case, f'fast_s{subsample}')


def test_golden_indices_and_successors(case):
    a, b = case['desc11'], case['desc21']
    matches = reciprocal_fast(a, b, 8, track=True)
    np.testing.assert_array_equal(matches.index_a, case['fast_s8_lin1'])
    np.testing.assert_array_equal(matches.index_b, case['fast_s8_lin2'])
    # The golden array has one slot more, for the index -1.
    np.testing.assert_array_equal(matches.successor, case['fast_s8_basin'][:-1])


def test_golden_round_trip_with_tolerance(case):
    a, b = case['desc11'], case['desc21']
    matches = round_trip(a, b, start_grid(*a.shape[:2], 8), 3)
    check_xy(matches, a.shape, b.shape, case, 'fast_tol3')


def test_golden_merged_searches(case):
    first = DescribedPair(case['desc11'], case['desc21'], case['qonf11'], case['qonf21'])
    second = DescribedPair(case['desc12'], case['desc22'], case['qonf12'], case['qonf22'])
    for name, decodings, options in (
        ('sym', [first, second], {}),
        ('nonsym', [first], {'combine': 'minimum'}),
        ('nonsym_tol5', [first], {'combine': 'minimum', 'pixel_tolerance': 5}),
    ):
        matches, confidence = reciprocal_both_ways(decodings, 8, **options)
        check_xy(matches, first.map_a.shape, first.map_b.shape, case, name)
        np.testing.assert_allclose(confidence, case[f'{name}_conf'].numpy(), rtol=1e-6)


def random_maps(seed, shape_a=(6, 7), shape_b=(5, 9), dim=4):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(*shape, dim, generator=generator) for shape in (shape_a, shape_b)]
    return [m / m.norm(dim=-1, keepdim=True) for m in maps]


def mutual_by_loop(a, b):
    a, b = (m.reshape(-1, m.shape[-1]).double().numpy() for m in (a, b))
    to_b = [max(range(len(b)), key=lambda j: row @ b[j]) for row in a]
    to_a = [max(range(len(a)), key=lambda i: a[i] @ row) for row in b]
    return [(i, j) for i, j in enumerate(to_b) if to_a[j] == i]


@pytest.mark.parametrize('chunk', [1, 100, 10**6])
def test_dense_equals_plain_loop_for_any_chunk(monkeypatch, chunk):
    monkeypatch.setattr('dark3r_ros.matching.reciprocal._CHUNK_VALUES', chunk)
    for seed in range(5):
        a, b = random_maps(seed)
        got = reciprocal_dense(a, b)
        expected = mutual_by_loop(a, b)
        assert 0 < len(expected) < 40
        assert list(zip(got.index_a.tolist(), got.index_b.tolist(), strict=True)) == expected


def test_fast_from_every_pixel_finds_only_and_all_mutual_pairs():
    a, b = random_maps(11)
    fast, dense = reciprocal_fast(a, b, 1), reciprocal_dense(a, b)
    np.testing.assert_array_equal(fast.index_a, dense.index_a)
    np.testing.assert_array_equal(fast.index_b, dense.index_b)


def test_walk_that_needs_more_rounds_than_allowed_is_dropped():
    # On a line of similarities that grow away from the start every round trip moves one pixel on.
    angle = 0.1 * torch.arange(12) ** 0.9
    a = torch.stack((angle.cos(), angle.sin()), -1)[None]
    shifted = 0.1 * (torch.arange(12) + 0.6) ** 0.9
    b = torch.stack((shifted.cos(), shifted.sin()), -1)[None]
    full = reciprocal_fast(a, b, starts=np.array([0]), iterations=40, track=True)
    rounds = int((full.successor >= 0).sum())
    assert len(full) == 1
    assert len(reciprocal_fast(a, b, starts=np.array([0]), iterations=rounds)) == 1
    assert len(reciprocal_fast(a, b, starts=np.array([0]), iterations=rounds - 1)) == 0


def test_no_mutual_pair_and_bad_maps():
    a, b = random_maps(2)
    assert len(round_trip(a, b, np.zeros(0, np.int64), 5)) == 0
    assert len(reciprocal_fast(a, b, starts=np.zeros(0, np.int64))) == 0
    with pytest.raises(DataError, match='shape'):
        reciprocal_dense(a[0], b)
    a[2, 3, 1] = torch.nan
    with pytest.raises(DataError, match='not finite'):
        reciprocal_fast(a, b)
