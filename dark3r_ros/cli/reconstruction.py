# SPDX-License-Identifier: Apache-2.0
"""What `dark3r map` and `dark3r sfm` share: options, input, and what a report says of where it comes from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import add_input_arguments, decode_options
from dark3r_ros.config import Config, to_mapping
from dark3r_ros.matching.registry import PREDICTORS
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.storage.bag_reader import is_bag
from dark3r_ros.storage.bag_source import read_odometry
from dark3r_ros.storage.sequence import read_cameras_json
from dark3r_ros.storage.source import open_source
from dark3r_ros.storage.trajectory import read_tum
from dark3r_ros.types import FrameSource, Trajectory


def add_reconstruction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add input, output, matcher, noise and the kinds of report."""
    add_input_arguments(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, help='result folder')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier result')
    parser.add_argument(
        '--predictor',
        default=PREDICTORS[0],
        metavar='NAME|FILE',
        help='matcher: mini, classical, a weight file or a folder of export-engine (default: %(default)s)',
    )
    parser.add_argument('--noise', default='', metavar='NAME|FILE', help='noise preset or YAML of calibrate-noise')
    parser.add_argument('--no-report', action='store_true', help='leave out report.html and its pictures')
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')


def open_input(args: argparse.Namespace) -> FrameSource:
    """Frames of the input that `add_input_arguments` and `add_decode_arguments` describe."""
    return _open(args, args.input, args.image_topic, args.info_topic, args.camera)


def open_second(args: argparse.Namespace) -> FrameSource:
    """Frames of the second camera of a rig: another topic of the same bag, or another input."""
    if is_bag(Path(args.input)) and not Path(args.second_camera).exists():
        return _open(args, args.input, args.second_camera, '', args.second_calibration)
    return _open(args, args.second_camera, '', '', args.second_calibration)


def odometry_of(path: Path) -> Trajectory:
    """Poses of a TUM file, or of the odometry topic of a bag."""
    if path.is_dir() or path.suffix in ('.mcap', '.db3'):
        track = read_odometry(path)
        return Trajectory(track.stamps_ns, track.world_from_body)
    return read_tum(path)


def _open(args: argparse.Namespace, path: str, image_topic: str, info_topic: str, calibration: str) -> FrameSource:
    """Frames of a camera, decoded and cut as the arguments say for all of them."""
    return open_source(
        path,
        image_topic=image_topic,
        info_topic=info_topic,
        decode=decode_options(args),
        start=args.start,
        duration=args.duration,
        stride=args.stride,
        camera=read_cameras_json(calibration).camera if calibration else None,
    )


def provenance(
    args: argparse.Namespace,
    predictor: Predictor,
    noise: NoiseModel | None,
    configs: dict[str, Config],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Part of report.json that says what was reconstructed, with what, and under which settings."""
    return {
        'predictor': predictor.name,
        'predictor_fingerprint': predictor.fingerprint,
        'weights_sha256': None if predictor.name == 'classical' else predictor.fingerprint,
        'config': {
            **{name: to_mapping(config) for name, config in configs.items()},
            'decode': to_mapping(decode_options(args)),
            'noise': to_mapping(noise) if noise else None,
        },
        'input': Path(args.input).name,
        'input_path': str(Path(args.input).absolute()),
        'warnings': list(warnings),
    }
