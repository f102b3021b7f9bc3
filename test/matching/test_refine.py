# SPDX-License-Identifier: Apache-2.0
"""Refinement against descriptor fields whose true displacement is known."""

import numpy as np
import pytest
import torch

from dark3r_ros.matching.reciprocal import Matches, linear_to_xy, reciprocal_dense
from dark3r_ros.matching.refine import match_coarse_to_fine, pool_descriptors, refine_subpixel


def field(height, width, shift=(0.0, 0.0), period=9.0, dim=24, seed=0):
    """Unit descriptors that vary smoothly: random Fourier features of the position moved by shift (x, y)."""
    rng = np.random.default_rng(seed)
    frequency = rng.normal(size=(dim, 2)) / period
    phase = rng.uniform(0, 2 * np.pi, dim)
    rows, columns = np.mgrid[:height, :width]
    position = np.stack((columns - shift[0], rows - shift[1]), axis=-1)
    values = np.cos(2 * np.pi * (position @ frequency.T) + phase)
    return torch.from_numpy(values / np.linalg.norm(values, axis=-1, keepdims=True)).float()


def displacement(matches, width_a, width_b, offsets=0.0):
    return linear_to_xy(matches.index_b, width_b) + offsets - linear_to_xy(matches.index_a, width_a)


@pytest.mark.parametrize('shift', [(0.3, -0.4), (2.45, 1.2), (-0.1, 0.0)])
def test_subpixel_offset_follows_the_true_displacement(shift):
    a, b = field(24, 32, period=20.0), field(24, 32, shift, period=20.0)
    matches = reciprocal_dense(a, b)
    xy = linear_to_xy(matches.index_b, 32)
    inner = ((xy > 1) & (xy < (30, 22))).all(1)
    coarse = displacement(matches, 32, 32)[inner] - shift
    fine = displacement(matches, 32, 32, refine_subpixel(a, b, matches))[inner] - shift
    assert inner.sum() > 300
    assert np.abs(fine.mean(axis=0)).max() < 0.01
    assert np.sqrt((fine**2).mean()) < 0.04
    assert np.sqrt((coarse**2).mean()) > (0.05 if shift == (-0.1, 0.0) else 0.2)


def test_subpixel_offset_under_noise_is_better_than_none():
    shift = (0.3, -0.4)
    generator = torch.Generator().manual_seed(0)
    a, b = (m + 0.01 * torch.randn(m.shape, generator=generator) for m in (field(24, 32), field(24, 32, shift)))
    matches = reciprocal_dense(a, b)
    fine = displacement(matches, 32, 32, refine_subpixel(a, b, matches)) - shift
    assert np.median(np.abs(fine)) < 0.1


def test_flat_and_one_directional_descriptors_stay_on_the_grid():
    index = np.arange(35)
    flat = torch.ones(5, 7, 3) / 3**0.5
    assert (refine_subpixel(flat, flat, Matches(index, index)) == 0).all()
    edge = field(1, 7).expand(5, 7, 24).contiguous()
    shifted = field(1, 7, (0.3, 0.0)).expand(5, 7, 24).contiguous()
    assert (refine_subpixel(edge, shifted, Matches(index, index)) == 0).all()
    assert (refine_subpixel(field(1, 7), field(1, 7, (0.3, 0)), Matches(index[:7], index[:7])) == 0).all()


def test_offset_beyond_a_pixel_is_not_believed():
    a, b = field(16, 16, period=40.0), field(16, 16, (3.0, 0.0), period=40.0)
    index = np.array([8 * 16 + 8])
    assert (refine_subpixel(a, b, Matches(index, index)) == 0).all()
    b = field(16, 16, (2.6, 0.2), period=40.0)
    assert refine_subpixel(a, b, Matches(index, index + 2))[0] == pytest.approx((0.6, 0.2), abs=0.05)


@pytest.mark.parametrize('factor', [2, 4])
def test_coarse_to_fine_finds_the_pixels_of_the_dense_search(factor):
    shift = (6.3, -4.8)
    a, b = field(64, 80, period=20.0), field(64, 80, shift, period=20.0)
    matches = match_coarse_to_fine(a, b, factor)
    cells = (64 // factor) * (80 // factor)
    assert len(matches) > 0.4 * cells
    dense = reciprocal_dense(a, b)
    known = dict(zip(dense.index_a.tolist(), dense.index_b.tolist(), strict=True))
    same = np.mean([known.get(i) == j for i, j in zip(matches.index_a, matches.index_b, strict=True)])
    assert same > 0.95
    error = displacement(matches, 80, 80, refine_subpixel(a, b, matches)) - shift
    assert np.median(np.abs(error)) < 0.05


def test_coarse_to_fine_of_different_sizes_and_of_unrelated_maps():
    a, b = field(33, 50, period=15.0), field(47, 41, (3.0, 2.0), period=15.0)
    matches = match_coarse_to_fine(a, b, 4)
    error = displacement(matches, 50, 41) - (3.0, 2.0)
    assert len(matches) > 20
    assert np.median(np.abs(error)) == 0
    assert matches.index_a.max() < 33 * 50
    assert matches.index_b.max() < 47 * 41
    unrelated = match_coarse_to_fine(a, field(47, 41, seed=5), 4)
    assert len(unrelated) < len(matches)


def test_maps_smaller_than_a_cell_are_one_cell():
    for size_a, size_b in (((1, 1), (1, 5)), ((2, 3), (9, 3)), ((3, 20), (20, 20))):
        a, b = field(*size_a), field(*size_b)
        matches = match_coarse_to_fine(a, b, 16)
        dense = reciprocal_dense(a, b)
        assert len(matches) > 0
        if size_a == (1, 1):
            assert (matches.index_a.tolist(), matches.index_b.tolist()) == (
                dense.index_a.tolist(),
                dense.index_b.tolist(),
            )


def test_pooled_descriptors_are_cell_means_of_unit_length():
    a = field(9, 11)
    pooled = pool_descriptors(a, 4)
    assert pooled.shape == (2, 2, 24)
    mean = a[4:8, 0:4].reshape(-1, 24).mean(0)
    torch.testing.assert_close(pooled[1, 0], mean / mean.norm())
