# SPDX-License-Identifier: Apache-2.0
"""`dark3r calibrate-noise`: noise model of a camera from its own recordings."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import add_decode_arguments, decode_options, print_json, progress
from dark3r_ros.config import to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.calibrate import Calibration, calibrate
from dark3r_ros.raw.calibration_plot import plot_calibration
from dark3r_ros.raw.noise import save_yaml
from dark3r_ros.storage.source import open_source
from dark3r_ros.types import Frame

NAME = 'calibrate-noise'
HELP = 'measure the noise model of a camera from dark frames and flats, or from a static scene'
# Noise needs neither times nor intrinsics.
_BESIDE_THE_POINT = ('the files carry no times', 'no calibration', 'the bag holds no CameraInfo')

EXAMPLE = 'dark3r calibrate-noise --dark capped.mcap --flat flats.mcap --output noise.yaml'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    what = 'bag, sequence folder or folder of raw files'
    parser.add_argument('--dark', nargs='+', default=[], metavar='PATH', help=f'lens cap on, 20 frames or more: {what}')
    parser.add_argument(
        '--flat',
        nargs='+',
        default=[],
        metavar='PATH',
        help=f'even surface at several exposures, two frames or more at each: {what}, one or many',
    )
    parser.add_argument('--static', default='', metavar='PATH', help=f'any scene without motion, 20 frames: {what}')
    parser.add_argument('-o', '--output', default='noise.yaml', metavar='FILE', help='model to write (noise.yaml)')
    parser.add_argument('--plot', default='', metavar='FILE', help='plot of the fit (default: beside the model, .png)')
    parser.add_argument('--name', default='', help='name of camera and gain setting, kept in the model')
    parser.add_argument('--image-topic', default='', help='image topic of the bags (default: the only one there is)')
    parser.add_argument('--max-frames', type=int, default=200, metavar='N', help='frames read per input (200; 0: all)')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    add_decode_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, write model and plot, print the table."""
    if not (args.dark or args.flat or args.static):
        raise ConfigError('nothing to calibrate from: give --dark and --flat, or --static')
    output = Path(args.output)
    plot = Path(args.plot) if args.plot else output.with_suffix('.png')
    result = calibrate(
        darks=_frames(args.dark, args, 'dark') if args.dark else None,
        flats=[_frames([path], args, 'flat') for path in args.flat],
        static=_frames([args.static], args, 'static') if args.static else None,
        name=args.name or output.stem,
    )
    report = result.report()
    report['inputs'] = {'dark': args.dark, 'flat': args.flat, 'static': args.static}
    save_yaml(result.noise, output, {'calibration': _finite(report)})
    plot_calibration(result, plot)
    if args.json:
        print_json({'noise': to_mapping(result.noise), **report, 'output': output, 'plot': plot})
    else:
        print(table(result))
        print(f'\nwritten: {output}, {plot}')
    return 0


def _frames(paths: Sequence[str], args: argparse.Namespace, label: str) -> Iterator[Frame]:
    """Frames of several inputs one after the other; what the reader has to say goes to standard error once."""
    for path in paths:
        source = open_source(path, image_topic=args.image_topic, decode=decode_options(args))
        limit = args.max_frames or None
        empty = True
        for frame in progress(itertools.islice(source, limit), limit or len(source), f'{label} {Path(path).name}'):
            empty = False
            yield frame
        for warning in source.warnings:
            if warning.startswith(_BESIDE_THE_POINT):
                continue
            print(f'dark3r: warning: {path}: {warning}', file=sys.stderr)
        if empty:
            raise DataError(f'{path} holds no image')


def table(result: Calibration) -> str:
    """Lines for people: the model, the quality of the fit, and advice."""
    noise, line, darks = result.noise, result.line, result.darks
    electrons = f'{noise.read_sigma / noise.gain:.3g} e-'
    rows = [
        ('gain', f'{noise.gain:.5g} +- {line.gain_sigma:.2g} DN/e-'),
        ('read noise', f'{noise.read_sigma:.4g} DN = {electrons}'),
        ('row noise', f'{noise.row_sigma:.3g} DN'),
        ('offset noise', f'{noise.offset_sigma:.3g} DN' if darks else 'not measured (needs dark frames)'),
        ('tails', _tails(result)),
        ('black, white', f'{noise.black_level:.5g}, {noise.white_level:.5g} DN'),
        ('step of codes', f'{noise.quantisation_step:g} DN'),
        ('R^2', f'{line.r_squared:.5f}'),
        ('reduced chi^2', f'{line.reduced_chi2:.2f} over {len(result.points)} tiles of {result.pairs} pairs'),
    ]
    if darks:
        rows.append(('dark frames', f'{darks.frames}, {darks.zero_share:.3%} of the pixels at code zero'))
    lines = [f'{name:<14} {value}' for name, value in rows]
    return '\n'.join([*lines, *(f'advice: {text}' for text in result.warnings)])


def _tails(result: Calibration) -> str:
    if result.darks is None or math.isnan(result.darks.ppcc):
        return 'not measured (needs 8 or more dark frames)'
    if math.isnan(result.noise.tukey_lambda):
        return f'Gaussian (probability plot correlation {result.darks.gaussian_ppcc:.5f})'
    return f'Tukey lambda {result.noise.tukey_lambda:.3f} (probability plot correlation {result.darks.ppcc:.5f})'


def _finite(value: Any) -> Any:
    """Plain Python numbers, as YAML writes them readably."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return float(value) if isinstance(value, float) else value
