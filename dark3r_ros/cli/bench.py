# SPDX-License-Identifier: Apache-2.0
"""`dark3r bench`: measure every table of docs/benchmarks.md, keep the cells, draw the page."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dark3r_ros.cli.common import print_json
from dark3r_ros.errors import ConfigError

if TYPE_CHECKING:
    from dark3r_ros.evaluation.bench.cells import Measured
    from dark3r_ros.evaluation.bench.layout import Choice

NAME = 'bench'
HELP = 'measure accuracy, speed and memory beside other methods, and draw the tables'
EXAMPLE = 'dark3r bench --quick -o out/bench'

_QUICK_METHODS = ('student, sfm', 'student, map', 'SIFT, map', 'COLMAP', 'SIFT odometry')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('-o', '--output', type=Path, default=Path('out/bench'), help='folder of cells, plots and page')
    parser.add_argument('--quick', action='store_true', help='small scenes, under ten minutes on two cores')
    parser.add_argument('--tables', nargs='+', default=[], metavar='NAME', help='only these tables (default: all)')
    parser.add_argument(
        '--scenes', nargs='+', default=[], metavar='SCENE',
        help='clean sequences (folders with cameras.json), or room, corridor, tunnel (default: the simulated ones)',
    )  # fmt: skip
    parser.add_argument('--snr', nargs='+', default=[], metavar='DB', help='levels of the ladder, or `clean`')
    parser.add_argument('--methods', nargs='+', default=[], metavar='NAME', help='methods of the ladder (default: all)')
    parser.add_argument(
        '--peer', action='append', default=[], metavar='NAME=COMMAND',
        help='another method: a command with {frames} and {output} (docs/benchmarks.md); may be repeated',
    )  # fmt: skip
    parser.add_argument('--preset', default='starvis', help='noise of the camera (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of scenes, noise and training')
    parser.add_argument('--minutes', type=float, default=math.inf, help='begin no further cell after this time')
    parser.add_argument('--renew', action='store_true', help='measure again what other code has measured')
    parser.add_argument('--gpu', action='store_true', help='speed of all parts on a CUDA device, and nothing else')
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.gpu:
        from dark3r_ros.evaluation.bench import device

        return device.main(['-o', str(args.output), *(['--quick'] if args.quick else [])])
    from dark3r_ros.evaluation.bench.cells import CellStore
    from dark3r_ros.evaluation.bench.machine import describe
    from dark3r_ros.evaluation.bench.page import write_pages
    from dark3r_ros.evaluation.bench.tables import TABLES
    from dark3r_ros.storage.files import check_writable

    unknown = [name for name in args.tables if name not in TABLES]
    if unknown:
        raise ConfigError(f'unknown table {unknown[0]!r}; known: {", ".join(TABLES)}')
    check_writable(args.output / 'index.html')
    choice = _choice(args)
    cells = [cell for name in args.tables or TABLES for cell in TABLES[name].cells(choice)]
    store = CellStore(args.output / 'cells', describe(args.seed), renew=args.renew)
    measured: dict[str, list[Measured]] = {name: [] for name in args.tables or TABLES}
    began = time.monotonic()
    left = 0
    try:
        for number, cell in enumerate(cells, 1):
            known = store.known(cell)
            if known is None and time.monotonic() - began > 60.0 * args.minutes:
                left += 1
                continue
            result = known or store.measure(cell)
            measured[cell.table].append(result)
            _tell(number, len(cells), result, known is not None)
            if number < len(cells) and cells[number].table != cell.table:
                write_pages(args.output, measured, TABLES)
    finally:
        # Also when the user has had enough: what was measured is shown.
        page = write_pages(args.output, measured, TABLES)
    if args.json:
        print_json({name: [vars(cell) for cell in rows] for name, rows in measured.items()})
    else:
        print((args.output / 'benchmarks.md').read_text(encoding='utf-8'))
    print(f'{page} written' + (f'; {left} cells are left: the same command goes on' if left else ''), file=sys.stderr)
    return 0


def _choice(args: argparse.Namespace) -> Choice:
    from dark3r_ros.evaluation.bench.layout import Choice
    from dark3r_ros.evaluation.bench.poses import METHODS
    from dark3r_ros.evaluation.external import ExternalMethod
    from dark3r_ros.evaluation.scenes import SIMULATED

    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f'unknown method {unknown[0]!r}; known: {"; ".join(METHODS)}')
    peers = {}
    for text in args.peer:
        name, equals, command = text.partition('=')
        if not name or not equals:
            raise ConfigError(f'--peer {text!r} is not NAME=COMMAND')
        peers[name] = ExternalMethod(command)
    levels = args.snr or (['clean', '-4'] if args.quick else ['clean', '10', '0', '-4', '-8', '-12', '-16'])
    methods = tuple(args.methods) or (_QUICK_METHODS if args.quick else tuple(METHODS))
    scenes = tuple(args.scenes) or (('room',) if args.quick else tuple(SIMULATED))
    return Choice(scenes, tuple(map(_level, levels)), methods, peers, args.seed, args.preset, args.quick)


def _level(text: str) -> float | None:
    if text == 'clean':
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f'--snr {text!r} is neither a number of dB nor `clean`') from None


def _tell(number: int, total: int, result: Measured, known: bool) -> None:
    said = result.failure or ('known' if known else f'{result.seconds:.0f} s')
    print(f'[{number}/{total}] {result.table}: {result.label} ({said})', file=sys.stderr, flush=True)
