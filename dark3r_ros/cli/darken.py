# SPDX-License-Identifier: Apache-2.0
"""`dark3r darken`: a clean 8-bit sequence as a dark raw recording."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dark3r_ros.cli.common import print_json
from dark3r_ros.cli.recording import check_output, record, report
from dark3r_ros.cli.simulate import add_output_arguments, parse_snr
from dark3r_ros.errors import ConfigError
from dark3r_ros.raw.cfa import BAYER_PATTERNS
from dark3r_ros.simulation.darken import MOSAIC_WIDTH, darken_sequence

NAME = 'darken'
HELP = 'turn a clean image sequence into a dark raw recording'
EXAMPLE = 'dark3r darken fox -o fox_dark --snr -4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('sequence', type=Path, help='folder with 8-bit images and cameras.json')
    add_output_arguments(parser)
    group = parser.add_argument_group('recording')
    group.add_argument(
        '--snr', type=parse_snr, default=-4.0, metavar='DB', help='SNR at network resolution (default: -4)'
    )
    group.add_argument('--clean', action='store_true', help='no noise; same as --snr clean')
    group.add_argument('--rate', type=float, default=10.0, help='Hz, for images without timestamps (default: 10)')
    group.add_argument('--width', type=int, default=MOSAIC_WIDTH, help=f'of the mosaic (default: {MOSAIC_WIDTH})')
    group.add_argument('--preset', default='starvis', help='noise preset or YAML file (default: starvis)')
    group.add_argument('--cfa', choices=(*BAYER_PATTERNS, 'mono'), default='rggb', help='default: rggb')
    group.add_argument('--seed', type=int, default=0, help='of the noise (default: 0)')
    group.add_argument('--auto-exposure', action='store_true', help='every frame gets the asked SNR')


def run(args: argparse.Namespace) -> int:
    """Darken and write."""
    if not args.rate > 0:
        raise ConfigError(f'--rate {args.rate} must be positive')
    if not 32 <= args.width <= 16384:
        raise ConfigError(f'--width {args.width} is outside 32..16384')
    if args.seed < 0:
        raise ConfigError(f'--seed {args.seed} must not be negative')
    clean = args.clean or (math.isinf(args.snr) and args.snr > 0)
    if not clean and not -60.0 <= args.snr <= 60.0:
        raise ConfigError(f'--snr {args.snr} is outside -60..60 dB')
    options = {
        'preset': args.preset,
        'cfa': args.cfa,
        'seed': args.seed,
        'rate': args.rate,
        'width': args.width,
        'auto_exposure': args.auto_exposure,
    }
    check_output(args.output, args.format, args.overwrite)
    made = darken_sequence(args.sequence, args.snr, clean=clean, **options)
    summary = record(
        made,
        len(made),
        args.output,
        form=args.format,
        storage=args.storage,
        overwrite=args.overwrite,
        metric=made.metric,
        settings={
            'sequence': str(args.sequence),
            'snr_db': None if clean else args.snr,
            'clean': clean,
            **options,
            'samples_per_value': made.sensor.samples(made.binning),
        },
    )
    print_json(summary) if args.json else print(report(summary))
    return 0
