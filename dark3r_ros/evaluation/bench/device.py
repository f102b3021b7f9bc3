# SPDX-License-Identifier: Apache-2.0
"""Speed of every part on one device, each beside the measured ceiling of that device.

    python -m dark3r_ros.evaluation.bench.device -o out/gpu

runs from a bare checkout with PyTorch, numpy, SciPy, OpenCV and safetensors: no ROS, no built interfaces. What does not
fit into the memory of the card is left out and said.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dark3r_ros.errors import Dark3rError
from dark3r_ros.evaluation.bench import speed
from dark3r_ros.evaluation.bench.layout import markdown_table
from dark3r_ros.evaluation.bench.machine import ceilings, describe
from dark3r_ros.matching.reciprocal import reciprocal_dense
from dark3r_ros.model.benchmark import best_seconds
from dark3r_ros.sfm.canonical import canonical_view
from dark3r_ros.sfm.global_align import AlignmentConfig, GlobalAlignment, PairMatches
from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.result import jsonable

SIZES = ((320, 240), (512, 384))
_ALIGNED_VIEWS, _ALIGNED_MATCHES = 20, 400

Rows = Iterator[dict[str, Any]]


def _network_rows(device: str, quick: bool, flops: float) -> Rows:
    precision = speed.default_precision(device)
    for name in ('mini', 'mini-2m') if quick else ('mini', 'mini-2m', 'compact-10m', 'mast3r-large'):
        for size in SIZES[:1] if quick else SIZES:
            used = 'fp32' if name == 'mini' else precision
            if name == 'mini':
                works = speed.time_mini(device, size)
            else:
                works = speed.time_network(name, device, size, precision)
            for part, work in works.items():
                limit = speed.limit_ms(work, flops)
                yield {
                    'what': f'{name} {part}, {size[0]}x{size[1]}, {used}',
                    'measured': f'{work.ms:.2f} ms',
                    'ceiling': f'{limit:.2f} ms by arithmetic',
                    'value': work.ms,
                }


def _rate_row(what: str, work: speed.Work, unit: str, flops: float) -> dict[str, Any]:
    rate = 1e3 / work.ms
    return {
        'what': what,
        'measured': f'{rate:,.1f} {unit}',
        'ceiling': f'{1e3 / speed.limit_ms(work, flops):,.0f} {unit} by arithmetic',
        'value': rate,
    }


def _window_rows(device: str, quick: bool, flops: float) -> Rows:
    keyframes = 4 if quick else 10
    work = speed.time_window(device, SIZES[0], keyframes)
    yield _rate_row(f'window: one encode and {keyframes} pairs, mini, 320x240', work, 'keyframes/s', flops)


def _training_rows(device: str, quick: bool, flops: float) -> Rows:
    work = speed.time_training(device, 4 if quick else 100, 8 if quick or device == 'cpu' else 64)
    yield _rate_row('distill --mode full, mini, 192x160', work, 'pairs/s', flops)


def _field_rows(device: str, quick: bool, flops: float) -> Rows:
    yield _rate_row('nerf train, preview', speed.time_radiance(device, 5 if quick else 60), 'rays/s', flops)


def _matching_rows(device: str, quick: bool, flops: float) -> Rows:
    side = (60, 80) if quick else (120, 160)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.nn.functional.normalize(torch.randn(*side, 24, generator=generator), dim=-1) for _ in range(2)]
    a, b = (item.to(device) for item in maps)
    ms = 1e3 * best_seconds(lambda: reciprocal_dense(a, b), 3, torch.device(device))
    count = side[0] * side[1]
    limit = 1e3 * 2 * 2 * count * count * 24 / flops
    yield {
        'what': f'reciprocal matches of all {side[1]}x{side[0]} descriptors of 24 numbers',
        'measured': f'{ms:.1f} ms',
        'ceiling': f'{limit:.2f} ms by arithmetic',
        'value': ms,
    }


def _alignment_rows(device: str, quick: bool, flops: float) -> Rows:
    steps = 5 if quick else 100
    config = AlignmentConfig(coarse_steps=steps, fine_steps=steps)
    views = 4 if quick else _ALIGNED_VIEWS
    problem = alignment_problem(views, config, device)
    seconds = best_seconds(problem, 1, torch.device(device))
    yield {
        'what': f'global alignment, {views} views, {_ALIGNED_MATCHES} matches a pair',
        'measured': f'{2 * steps / seconds:.1f} steps/s',
        'ceiling': '',
        'value': 2 * steps / seconds,
    }


PARTS: dict[str, Callable[[str, bool, float], Rows]] = {
    'networks': _network_rows,
    'window': _window_rows,
    'matching': _matching_rows,
    'alignment': _alignment_rows,
    'training': _training_rows,
    'field': _field_rows,
}


def alignment_problem(count: int, config: AlignmentConfig, device: str) -> Callable[[], object]:
    """An alignment of `count` views of 512x384 of one wavy wall, each matched to the next; call it to solve."""
    height, width, focal = 384, 512, 400.0
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    views, matches = [], []
    for number in range(count):
        depth = 4.0 + 0.5 * np.sin(x / 60.0 + 0.3 * number) + 0.3 * np.cos(y / 45.0)
        points = np.stack([(x - width / 2) / focal * depth, (y - height / 2) / focal * depth, depth], axis=-1)
        views.append(canonical_view([points], [np.full((height, width), 2.0)]))
        if number:
            pixels = np.column_stack(
                [rng.integers(20, width - 20, _ALIGNED_MATCHES), rng.integers(0, height, _ALIGNED_MATCHES)]
            ).astype(np.int64)
            matches.append(
                PairMatches(number - 1, number, pixels, pixels - np.array([5, 0]), np.full(_ALIGNED_MATCHES, 10.0))
            )
    alignment = GlobalAlignment(views, matches, config=config, device=device, dtype=torch.float32)
    return alignment.run


def measure(device: str, quick: bool, parts: Sequence[str], told: Callable[[str], None]) -> dict[str, Any]:
    """All rows, the ceilings of the device, and what it is; a part that fails is a row that says why."""
    precision = speed.default_precision(device)
    limits = ceilings(torch.device(device), precision)
    rows: list[dict[str, Any]] = []
    for part in parts:
        began = time.perf_counter()
        try:
            for row in PARTS[part](device, quick, limits['flops']):
                rows.append(row)
                told(f'{row["what"]}: {row["measured"]}')
        except (torch.OutOfMemoryError, Dark3rError) as error:
            rows.append({'what': part, 'measured': f'failed: {str(error).splitlines()[0]}', 'ceiling': ''})
        told(f'{part} took {time.perf_counter() - began:.0f} s')
    return {'device': device, 'precision': precision, 'ceilings': limits, 'rows': rows, 'provenance': describe(0)}


def markdown(result: dict[str, Any]) -> str:
    """Table of a measurement."""
    limits, facts = result['ceilings'], result['provenance']
    name = facts['gpu'] if result['device'] == 'cuda' else facts['processor']
    head = (
        f'{name}: {limits["flops"] / 1e12:.2f} TFLOP/s in a large {result["precision"]} matrix product, '
        f'{limits["bytes"] / 1e9:.0f} GB/s in a copy; torch {facts["torch"]}, commit {facts["commit"] or "unknown"}'
    )
    rows = [[row['what'], row['measured'], row['ceiling']] for row in result['rows']]
    return f'{head}\n\n{markdown_table(["what", "measured", "ceiling"], rows)}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write `device.md` and `device.json`."""
    parser = argparse.ArgumentParser(
        prog='python -m dark3r_ros.evaluation.bench.device',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('-o', '--output', type=Path, default=Path('out/device'))
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'), help='default: %(default)s')
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=tuple(PARTS), help='default: all')
    parser.add_argument('--quick', action='store_true', help='small problems, to see that all parts run')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        print('dark3r: error: PyTorch finds no CUDA device here: use --device cpu, or another machine', file=sys.stderr)
        return 2
    result = measure(args.device, args.quick, args.parts, lambda line: print(line, file=sys.stderr, flush=True))
    try:
        write_text(args.output / 'device.json', json.dumps(jsonable(result), indent=1) + '\n')
        write_text(args.output / 'device.md', markdown(result))
    except Dark3rError as error:
        print(f'dark3r: error: {error}', file=sys.stderr)
        return 2
    print(markdown(result))
    return 0


if __name__ == '__main__':
    sys.exit(main())
