# SPDX-License-Identifier: Apache-2.0
"""`dark3r train-depth`: teach a network to read depth from what `mini` sees in several views."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from dark3r_ros.cli.common import add_config_arguments, config_from_arguments, parse_size, print_json
from dark3r_ros.errors import ConfigError
from dark3r_ros.model.sweep_depth import SweepDepthConfig
from dark3r_ros.training.depth import WEIGHTS, DepthLossConfig, DepthSession, DepthSessionConfig
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.loop import LoopConfig
from dark3r_ros.training.sweeps import SweepPoolConfig

NAME = 'train-depth'
HELP = 'train the network that reads depth maps from the descriptors of several views'
EXAMPLE = 'dark3r train-depth --textures photos -o out/depth --span-minutes 60'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder; continued where it was begun')
    parser.add_argument(
        '--weights', default='mini', metavar='FILE', help='of mini, which stay as they are (default: mini)'
    )
    parser.add_argument('--start', default='', metavar='FILE', help='depth weights to begin with (default: none)')
    parser.add_argument(
        '--textures', nargs='+', default=[], metavar='FOLDER', help='photographs for the surfaces of rendered scenes'
    )
    parser.add_argument('--minutes', type=float, default=math.inf, help='stop after this time (default: all steps)')
    parser.add_argument(
        '--size', type=parse_size, default=(256, 192), metavar='WxH', help='of a view (default: 256x192)'
    )
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default: auto)')
    parser.add_argument('--validation', type=int, default=12, help='views to score; 0: none (default: 12)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: as many as PyTorch takes)')
    parser.add_argument('--json', action='store_true', help='print the header of the weights at the end')
    add_config_arguments(parser, LoopConfig, 'optimisation')
    add_config_arguments(parser, DepthLossConfig, 'losses', 'loss')
    add_config_arguments(parser, SweepDepthConfig, 'network', 'network')
    add_config_arguments(parser, ExposureConfig, 'exposure')
    add_config_arguments(parser, SweepPoolConfig, 'rendered views', 'sim')


def run(args: argparse.Namespace) -> int:
    """Train, then write the weights."""
    if not args.minutes > 0:
        raise ConfigError(f'--minutes {args.minutes} must be positive')
    if args.threads:
        torch.set_num_threads(args.threads)
    config = DepthSessionConfig(
        weights=args.weights,
        start=args.start,
        textures=tuple(args.textures),
        width=args.size[0],
        height=args.size[1],
        device=args.device,
        validation=args.validation,
        network=config_from_arguments(args, SweepDepthConfig, 'network'),
        loop=config_from_arguments(args, LoopConfig),
        losses=config_from_arguments(args, DepthLossConfig, 'loss'),
        exposure=config_from_arguments(args, ExposureConfig),
        pool=config_from_arguments(args, SweepPoolConfig, 'sim'),
    )
    session = DepthSession(config, args.output, _show)
    try:
        if session.group.leads:
            _show(
                f'{session.network.parameter_count()} values are trained on {session.device}, '
                f'from step {session.trainer.step}'
            )
        done = session.run(args.minutes)
        if session.group.leads:
            state = 'finished' if done else 'stopped'
            _show(f'{state} at step {session.trainer.step}; weights in {args.output / WEIGHTS}')
            if args.json:
                print_json(session.header())
    finally:
        session.close()
    return 0


def _show(line: str) -> None:
    print(line, flush=True)
