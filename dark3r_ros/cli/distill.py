# SPDX-License-Identifier: Apache-2.0
"""`dark3r distill`: teach a network to see in the dark what its teacher sees in the light."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from dark3r_ros.cli.common import (
    add_config_arguments,
    add_decode_arguments,
    config_from_arguments,
    decode_options,
    parse_size,
    print_json,
)
from dark3r_ros.errors import ConfigError
from dark3r_ros.model.lora import KINDS, LoraConfig
from dark3r_ros.training.distill import DistillConfig
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.folders import FolderConfig
from dark3r_ros.training.loop import LoopConfig
from dark3r_ros.training.pool import PoolConfig
from dark3r_ros.training.session import MODES, PRECISIONS, STUDENT, Session, SessionConfig

NAME = 'distill'
HELP = 'train a student that sees in the dark what its teacher sees in the light'
EXAMPLE = 'dark3r distill --data sim textures:photos@0.5 --teacher mini-teacher -o out/student --mode full --minutes 60'
# From nothing the loop's own rate serves; what was trained already is changed more gently.
_RATES = {'lora': 1e-3, 'full': 3e-4, 'supervised': 3e-4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        '--data', nargs='+', default=['sim'], metavar='SOURCE[@WEIGHT]',
        help='sim (rendered), textures, textures:FOLDER, a folder with clean/ and noisy*/ exposures, or a clean '
        'sequence, bag or raw folder (default: sim)',
    )  # fmt: skip
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder; continued where it was begun')
    parser.add_argument('--teacher', default='mini-teacher', metavar='FILE', help='weights (default: mini-teacher)')
    parser.add_argument(
        '--student', default='', metavar='FILE', help='weights to start from, mini, or new:NAME (default: the teacher)'
    )
    parser.add_argument('--mode', choices=MODES, default='lora', help='what is trained (default: lora)')
    parser.add_argument('--minutes', type=float, default=math.inf, help='stop after this time (default: all steps)')
    parser.add_argument(
        '--size', type=parse_size, default=(192, 160), metavar='WxH', help='of a crop (default: 192x160)'
    )
    parser.add_argument('--procedural', type=int, default=40, help='textures made for `textures` (default: 40)')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default: auto)')
    parser.add_argument('--precision', choices=PRECISIONS, default='auto', help='of the forward pass (default: auto)')
    parser.add_argument('--validation', type=int, default=8, help='rendered pairs to score; 0: none (default: 8)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: as many as PyTorch takes)')
    parser.add_argument('--json', action='store_true', help='print the header of the weights at the end')
    add_config_arguments(parser, LoopConfig, 'optimisation')
    add_config_arguments(parser, DistillConfig, 'losses', 'loss')
    parser.add_argument('--encoder-layers', nargs='+', default=[], help='encoder layers compared (default: the last)')
    parser.add_argument('--decoder-layers', nargs='+', type=int, default=[], help='decoder blocks compared')
    add_config_arguments(parser, LoraConfig, 'adapters', 'lora')
    parser.add_argument('--lora-kinds', nargs='+', default=list(KINDS), choices=KINDS, help='layers with adapters')
    parser.add_argument('--lora-layers', nargs='+', type=int, default=[], help='blocks with adapters (default: all)')
    add_config_arguments(parser, ExposureConfig, 'exposure')
    add_config_arguments(parser, PoolConfig, 'rendered pairs', 'sim')
    add_config_arguments(parser, FolderConfig, 'recorded pairs', 'recorded')
    add_decode_arguments(parser)


def session_config(args: argparse.Namespace) -> SessionConfig:
    """Build the settings of a command line; ConfigError outside the ranges."""
    loop = config_from_arguments(args, LoopConfig)
    if args.learning_rate is None and not args.student.startswith('new:'):
        loop = replace(loop, learning_rate=_RATES[args.mode])
    losses = config_from_arguments(args, DistillConfig, 'loss')
    lora = config_from_arguments(args, LoraConfig, 'lora')
    return SessionConfig(
        mode=args.mode,
        teacher=args.teacher,
        student=args.student,
        data=tuple(args.data),
        width=args.size[0],
        height=args.size[1],
        procedural=args.procedural,
        device=args.device,
        precision=args.precision,
        validation=args.validation,
        loop=loop,
        losses=replace(losses, encoder_layers=tuple(args.encoder_layers), decoder_layers=tuple(args.decoder_layers)),
        lora=replace(lora, kinds=tuple(args.lora_kinds), layers=tuple(args.lora_layers)),
        exposure=config_from_arguments(args, ExposureConfig),
        pool=config_from_arguments(args, PoolConfig, 'sim'),
        folder=config_from_arguments(args, FolderConfig, 'recorded'),
        decode=decode_options(args),
    )


def run(args: argparse.Namespace) -> int:
    """Train, then write the weights."""
    if not args.minutes > 0:
        raise ConfigError(f'--minutes {args.minutes} must be positive')
    if args.threads:
        torch.set_num_threads(args.threads)
    session = Session(session_config(args), args.output, _show)
    try:
        if session.group.leads:
            count = sum(p.numel() for p in session.trainer.task.network.parameters() if p.requires_grad)
            _show(f'{count} values are trained on {session.device}, from step {session.trainer.step}')
        done = session.run(args.minutes)
        if session.group.leads:
            state = 'finished' if done else 'stopped'
            _show(f'{state} at step {session.trainer.step}; weights in {args.output / STUDENT}')
            if args.json:
                print_json(session.header())
    finally:
        session.close()
    return 0


def _show(line: str) -> None:
    print(line, flush=True)
