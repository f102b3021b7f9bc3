# SPDX-License-Identifier: Apache-2.0
"""Time of an encode and of a pair beside the arithmetic limit: `python -m dark3r_ros.model.benchmark`.

The limit is the number of floating point operations of the matrix products, convolutions and attentions, counted on
the graph, over the rate that one large matrix product reaches on the same device in the same precision. A pair is the
decoding of two encoded frames in one order, heads included; matching is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dark3r_ros.model.backend import PRECISIONS, TorchBackend, choose_device, choose_precision
from dark3r_ros.model.config import PRESETS, NetworkConfig, preset
from dark3r_ros.model.network import TwoViewNetwork, initialise

SIZES = ((320, 240), (512, 384))


@dataclass(frozen=True)
class Timing:
    """One row of the table: milliseconds measured, and floating point operations."""

    name: str
    parameters: int
    size: tuple[int, int]
    encode_ms: float
    encode_flops: int
    pair_ms: float
    pair_flops: int


def count_flops(config: NetworkConfig, width: int, height: int) -> tuple[int, int]:
    """Floating point operations (two a multiply-add) of one encode and of one pair; no memory is touched."""
    with torch.device('meta'):
        network = TwoViewNetwork(config).eval()
        image = torch.empty(1, config.in_channels, height, width)
    grid = network.grid(height, width)
    counts = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            tokens = network.encode(image)
        counts.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            network.decode_raw(tokens, tokens, grid, grid)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def best_seconds(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Shortest of several runs after one to warm up; the shortest is what other load disturbs least."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, precision: str, side: int = 0) -> float:
    """Operations a second of a square matrix product in a precision."""
    side = side or (1536 if device.type == 'cpu' else 8192)
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = precision == 'tf32'
        return 2 * side**3 / best_seconds(lambda: a @ b, 20, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure(name: str, size: tuple[int, int], backend: TorchBackend, repeats: int) -> Timing:
    """Time one network at one frame size (width, height)."""
    width, height = size
    network = backend.network
    grid = network.grid(height, width)
    image: Tensor = torch.randn(1, backend.config.in_channels, height, width)
    tokens = backend.encode(image)
    encode_flops, pair_flops = count_flops(backend.config, width, height)
    return Timing(
        name,
        sum(parameter.numel() for parameter in network.parameters()),
        size,
        best_seconds(lambda: backend.encode(image), repeats, backend.device) * 1e3,
        encode_flops,
        best_seconds(lambda: backend.decode(tokens, tokens, grid, grid), repeats, backend.device) * 1e3,
        pair_flops,
    )


def table(rows: Sequence[Timing], rate: float) -> str:
    """Rows as a Markdown table; `rate` in operations a second gives the limits."""
    lines = [
        '| network | parameters | frame | encode ms | limit ms | pair ms | limit ms |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        lines.append(
            f'| {row.name} | {row.parameters / 1e6:.1f} M | {row.size[0]}x{row.size[1]} | {row.encode_ms:.1f} '
            f'| {row.encode_flops / rate * 1e3:.1f} | {row.pair_ms:.1f} | {row.pair_flops / rate * 1e3:.1f} |'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table for the chosen networks, with seeded random weights."""
    parser = argparse.ArgumentParser(prog='python -m dark3r_ros.model.benchmark', description=__doc__.splitlines()[0])
    parser.add_argument('networks', nargs='*', default=list(PRESETS), help=f'of {", ".join(PRESETS)} (default: all)')
    parser.add_argument('--device', default='auto', help='auto, cpu or cuda')
    parser.add_argument('--precision', default='auto', choices=PRECISIONS)
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: those of PyTorch)')
    parser.add_argument('--repeats', type=int, default=5, help='runs of which the shortest counts')
    parser.add_argument('--compile', dest='compile_mode', default='', choices=('', 'default', 'cuda-graphs'))
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    rate, rows = matmul_rate(device, precision), []
    for name in args.networks:
        network = initialise(TwoViewNetwork(preset(name)), seed=0)
        backend = TorchBackend(network, device=args.device, precision=precision, compile_mode=args.compile_mode)
        for size in SIZES:
            rows.append(measure(name, size, backend, args.repeats))
            # Measured between the rows as well, since other load on the machine comes and goes; the best counts.
            rate = max(rate, matmul_rate(device, precision))
            print(f'{name} {size[0]}x{size[1]} done', file=sys.stderr, flush=True)
    where = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'{where}, {precision}, torch {torch.__version__}, matrix product {rate / 1e9:.0f} GFLOP/s\n')
    print(table(rows, rate))
    return 0


if __name__ == '__main__':
    sys.exit(main())
