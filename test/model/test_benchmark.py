# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of the benchmark, counted by hand for one small network."""

import torch

from dark3r_ros.model.backend import TorchBackend
from dark3r_ros.model.benchmark import Timing, count_flops, main, matmul_rate, measure, table
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.network import TwoViewNetwork, initialise

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=3, dec_num_heads=2,
    head='linear', output_stride=4, desc_dim=6, local_ratio=1.0,
)  # fmt: skip


def test_flops_equal_those_counted_by_hand():
    n, e, d = 12, 32, 24  # tokens of a 64x48 frame, widths
    encode = 2 * n * (3 * 256 * e + 2 * (12 * e * e + 2 * n * e))
    block = 3 * d * d + d * d + 4 * d * d + 8 * d * d + 4 * n * d
    heads = d * 4 * 16 + (e + d) ** 2 + (e + d) * 7 * 16
    pair = 2 * 2 * n * (e * d + 3 * block + heads)
    assert count_flops(TINY, 64, 48) == (encode, pair)


def test_measured_times_are_not_below_the_limit():
    torch.manual_seed(0)
    backend = TorchBackend(initialise(TwoViewNetwork(TINY), 0), device='cpu')
    rate = matmul_rate(torch.device('cpu'), 'fp32', side=256)
    row = measure('tiny', (64, 48), backend, repeats=2)
    assert row.encode_ms > row.encode_flops / rate * 1e3 > 0
    assert row.pair_ms > row.pair_flops / rate * 1e3 > 0


def test_table_and_command(capsys):
    text = table([Timing('x', 2_300_000, (320, 240), 12.34, 10**9, 56.78, 2 * 10**9)], rate=1e12)
    assert text.splitlines()[2] == '| x | 2.3 M | 320x240 | 12.3 | 1.0 | 56.8 | 2.0 |'
    assert main(['mini-2m', '--device', 'cpu', '--repeats', '1']) == 0
    out = capsys.readouterr().out
    assert 'GFLOP/s' in out
    assert out.count('| mini-2m |') == 2
