# SPDX-License-Identifier: Apache-2.0
"""Layers against plain float64 loops and the properties that define them."""

import math

import numpy as np
import pytest
import torch

from dark3r_ros.model.layers import CrossAttention, SelfAttention, rope_tables, rotate


def turn_by_loop(vector, row, column, base):
    """Rotary embedding of one head vector by complex numbers: channel k goes with channel k + n/2 of its axis."""
    out = np.empty_like(vector)
    n = len(vector) // 2
    for axis, position in enumerate((row, column)):
        for k in range(n // 2):
            i, j = axis * n + k, axis * n + k + n // 2
            turned = complex(vector[i], vector[j]) * np.exp(1j * position * base ** (-2 * k / n))
            out[i], out[j] = turned.real, turned.imag
    return out


def test_rotate_equals_complex_multiplication():
    rng = np.random.default_rng(3)
    height, width, dim = 3, 5, 12
    x = rng.normal(size=(height * width, dim))
    got = rotate(torch.from_numpy(x)[None, None], rope_tables(height, width, dim, 100.0))[0, 0].numpy()
    expected = [turn_by_loop(x[i], i // width, i % width, 100.0) for i in range(len(x))]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rotation_keeps_lengths_and_depends_on_offsets_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 16, dtype=torch.float64)
    tables = rope_tables(6, 7, 16, 100.0)
    turned_q = rotate(query.expand(1, 1, 42, 16), tables)[0, 0]
    turned_k = rotate(key.expand(1, 1, 42, 16), tables)[0, 0]
    torch.testing.assert_close(turned_q.norm(dim=-1), query.norm().expand(42), rtol=1e-6, atol=0)
    score = (turned_q @ turned_k.T).reshape(6, 7, 6, 7)
    # The same step of (2 rows, 3 columns) from two places, and a different step.
    assert score[0, 0, 2, 3] == pytest.approx(score[3, 2, 5, 5].item(), rel=1e-5)
    assert abs(score[0, 0, 2, 3] - score[0, 0, 3, 2]) > 1e-3


def attention_by_loop(query, key, value, heads):
    """Softmax attention of (N, C), (M, C), (M, C) in float64, one query and head at a time."""
    out = np.zeros_like(query)
    dim = query.shape[1] // heads
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        for i in range(len(query)):
            score = np.array([query[i, part] @ k for k in key[:, part]]) / math.sqrt(dim)
            weight = np.exp(score - score.max())
            out[i, part] = (weight / weight.sum()) @ value[:, part]
    return out


def turned_heads(x, heads, grid):
    dim = x.shape[1] // heads
    rows = [
        np.concatenate([turn_by_loop(head, i // grid[1], i % grid[1], 100.0) for head in row.reshape(heads, dim)])
        for i, row in enumerate(x)
    ]
    return np.stack(rows)


def linear(layer, x):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def test_self_attention_equals_plain_loop():
    torch.manual_seed(1)
    layer, grid = SelfAttention(24, 3).double(), (2, 3)
    x = np.random.default_rng(1).normal(size=(6, 24))
    query, key, value = np.split(linear(layer.qkv, x), 3, axis=1)
    expected = linear(layer.proj, attention_by_loop(turned_heads(query, 3, grid), turned_heads(key, 3, grid), value, 3))
    got = layer(torch.from_numpy(x)[None], rope_tables(*grid, 8, 100.0))[0].detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_cross_attention_equals_plain_loop_for_grids_of_different_shape():
    torch.manual_seed(2)
    layer, grid, other = CrossAttention(16, 2).double(), (2, 3), (4, 2)
    rng = np.random.default_rng(2)
    x, memory = rng.normal(size=(6, 16)), rng.normal(size=(8, 16))
    expected = linear(
        layer.proj,
        attention_by_loop(
            turned_heads(linear(layer.projq, x), 2, grid),
            turned_heads(linear(layer.projk, memory), 2, other),
            linear(layer.projv, memory),
            2,
        ),
    )
    tables, other_tables = rope_tables(*grid, 8, 100.0), rope_tables(*other, 8, 100.0)
    got = layer(torch.from_numpy(x)[None], torch.from_numpy(memory)[None], tables, other_tables)
    np.testing.assert_allclose(got[0].detach().numpy(), expected, atol=1e-6)


def test_golden_positions(shared_root):
    """Token positions of the published model, read back from the angles of the tables (frequency 1 is the first)."""
    for case in ('landscape', 'odd'):
        arrays = np.load(shared_root / 'reference' / 'mast3r_small' / f'{case}.npz')
        height, width = (n // 16 for n in arrays['img1'].shape[2:])
        cosine, sine = rope_tables(height, width, 8, 100.0)
        position = torch.atan2(sine, cosine)[:, :, 0].numpy() % (2 * np.pi)
        np.testing.assert_allclose(position, arrays['pos_1'][0], atol=1e-6)
        np.testing.assert_array_equal(arrays['pos_1'], arrays['pos_2'])
