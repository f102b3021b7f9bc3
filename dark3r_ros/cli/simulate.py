# SPDX-License-Identifier: Apache-2.0
"""`dark3r simulate`: a robot with a lamp drives through a dark place, recorded with exact truth."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from dark3r_ros.cli.common import parse_size, print_json
from dark3r_ros.cli.recording import FORMATS, STORAGES, check_output, record, report
from dark3r_ros.config import to_mapping
from dark3r_ros.errors import ConfigError
from dark3r_ros.raw.cfa import BAYER_PATTERNS
from dark3r_ros.simulation.build import LIGHTS
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.simulation.world import PATHS, SCENES

NAME = 'simulate'
HELP = 'simulate a raw recording with exact truth'
EXAMPLE = 'dark3r simulate tunnel -o tunnel_bag --snr -4 --seconds 20 --rate 10 --size 1280x960 --odometry'


def parse_snr(text: str) -> float:
    """Decibels of a text, infinity for `clean`."""
    if text.lower() in ('clean', 'inf'):
        return math.inf
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number of decibels nor clean')
    return value


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where and how a recording is written."""
    parser.add_argument('-o', '--output', required=True, type=Path, metavar='BAG', help='bag or folder to create')
    parser.add_argument('--format', choices=FORMATS, default='bag', help='rosbag2 or sequence folder (default: bag)')
    parser.add_argument('--storage', choices=STORAGES, default='mcap', help='kind of bag (default: mcap)')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing recording')
    parser.add_argument('--json', action='store_true', help='print the summary as JSON')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    default = SimulationConfig()
    parser.add_argument('scene', help=f'{", ".join(SCENES)} or the path of a .glb mesh')
    add_output_arguments(parser)
    group = parser.add_argument_group('recording')
    group.add_argument('--snr', type=parse_snr, default=default.snr_db, metavar='DB',
                       help=f'SNR at network resolution, or `clean` (default: {default.snr_db:g})')  # fmt: skip
    group.add_argument('--seconds', type=float, default=default.seconds, help=f'default: {default.seconds:g}')
    group.add_argument('--rate', type=float, default=default.rate, help=f'frames per second, default: {default.rate:g}')
    group.add_argument('--size', type=parse_size, default=(default.width, default.height), metavar='WxH',
                       help=f'mosaic size (default: {default.width}x{default.height})')  # fmt: skip
    group.add_argument('--light', choices=LIGHTS, default=default.light, help=f'default: {default.light}')
    group.add_argument(
        '--path',
        choices=PATHS,
        default=default.path,
        help='camera path; loop returns to its start, turn is a drive with a turn on the spot in its middle',
    )
    group.add_argument('--speed', type=float, default=default.speed, help=f'm/s, default: {default.speed:g}')
    group.add_argument(
        '--turn',
        type=float,
        default=default.turn_deg,
        metavar='DEG',
        help=f'degrees that the path turn turns to the left (default: {default.turn_deg:g})',
    )
    group.add_argument(
        '--turn-rate',
        type=float,
        default=default.turn_rate,
        metavar='DEG/S',
        help=f'speed of that turn (default: {default.turn_rate:g})',
    )
    group.add_argument('--turn-lever', type=float, default=default.turn_lever, metavar='M',
                       help=f'metres from its axis ahead to the camera (default: {default.turn_lever:g})')  # fmt: skip
    group.add_argument('--preset', default=default.preset, help=f'noise preset or YAML (default: {default.preset})')
    group.add_argument('--cfa', choices=(*BAYER_PATTERNS, 'mono'), default=default.cfa, help=f'default: {default.cfa}')
    group.add_argument('--seed', type=int, default=default.seed, help='of scene, path and noise (default: 0)')
    group.add_argument('--blur', type=int, default=default.blur, metavar='N', help='sub-poses of motion blur')
    group.add_argument('--full', action='store_true', help='one ray per mosaic site instead of one per 2x2 quad')
    group.add_argument('--dark-at', type=float, default=default.dark_at, metavar='S',
                       help='when the light goes out (default: at once)')  # fmt: skip
    group.add_argument('--dark-seconds', type=float, default=default.dark_seconds, metavar='S',
                       help='how long it stays out (default: it does not go out)')  # fmt: skip
    group.add_argument('--auto-exposure', action='store_true', help='every frame gets the asked SNR')
    group.add_argument('--odometry', action='store_true', help='add noisy wheel odometry')
    group.add_argument('--no-depth', action='store_true', help='leave out the true depth')


def run(args: argparse.Namespace) -> int:
    """Simulate and write."""
    clean = math.isinf(args.snr) and args.snr > 0
    config = SimulationConfig(
        scene=args.scene,
        seconds=args.seconds,
        rate=args.rate,
        width=args.size[0],
        height=args.size[1],
        snr_db=SimulationConfig().snr_db if clean else args.snr,
        clean=clean,
        dark_at=args.dark_at,
        dark_seconds=args.dark_seconds,
        auto_exposure=args.auto_exposure,
        preset=args.preset,
        cfa=args.cfa,
        light=args.light,
        seed=args.seed,
        path=args.path,
        speed=args.speed,
        turn_deg=args.turn,
        turn_rate=args.turn_rate,
        turn_lever=args.turn_lever,
        blur=args.blur,
        full=args.full,
        depth=not args.no_depth,
        odometry=args.odometry,
    )
    if args.odometry and args.format == 'folder':
        raise ConfigError('a sequence folder has no place for odometry: write a bag')
    check_output(args.output, args.format, args.overwrite)
    simulation = simulate(config)
    summary = record(
        simulation,
        len(simulation),
        args.output,
        form=args.format,
        storage=args.storage,
        overwrite=args.overwrite,
        metric=True,
        settings={**to_mapping(config), 'samples_per_value': simulation.sensor.samples(config.binning),
                  'counts_per_radiance': simulation.exposure.scale},
    )  # fmt: skip
    print_json(summary) if args.json else print(report(summary))
    return 0
