# SPDX-License-Identifier: Apache-2.0
"""Train `mini` from nothing, or go on with a training that was stopped.

    python -m dark3r_ros.training.mini -o out/mini --textures photos/a photos/b --steps 4000 --minutes 30

The same command continues from the checkpoint in the output folder. `mini.safetensors` there holds the averaged
weights of the last stop; `log.jsonl` the losses, the throughput and the scores on held-out textures.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dark3r_ros.errors import Dark3rError
from dark3r_ros.model.mini import MiniNetwork, save_mini
from dark3r_ros.training.batch import PairData, TrainingPairs
from dark3r_ros.training.loop import LoopConfig, Trainer
from dark3r_ros.training.losses import compute_losses
from dark3r_ros.training.networks import Model, commit
from dark3r_ros.training.pairs import PairMaker
from dark3r_ros.training.textures import load_textures
from dark3r_ros.training.validation import Validation, held_out_pairs

WEIGHTS = 'mini.safetensors'


class MatchingTask:
    """Training of `mini` from nothing by the true matches of noisy pairs, for `loop.Trainer`."""

    def __init__(self, network: MiniNetwork, data: PairData) -> None:
        self.network: MiniNetwork = network
        self.data = data
        self.device = data.device

    def make(self, number: int, count: int) -> TrainingPairs:
        """Training pairs of a part of a step."""
        return self.data.make(number, count)

    def losses(self, pairs: TrainingPairs, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Total of a batch and its parts."""
        found = compute_losses(self.network, pairs, generator)
        return found.total, found.figures()


def header(trainer: Trainer, textures: str) -> dict[str, Any]:
    """What the weight file says of its origin."""
    return {
        'commit': commit(),
        'data': f'homography-warped layers with noise made by dark3r_ros.training.pairs; textures: {textures}',
        'licence': 'Apache-2.0',
        'steps': trainer.step,
        'pairs': trainer.step * trainer.config.batch,
        'minutes': round(trainer.seconds / 60, 1),
        'seed': trainer.config.seed,
    }


def main(argv: list[str] | None = None) -> int:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(
        prog='python -m dark3r_ros.training.mini',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of checkpoint, log and weights')
    parser.add_argument('--textures', type=Path, nargs='*', default=[], help='folders of photographs')
    parser.add_argument('--procedural', type=int, default=40, help='procedural textures (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=LoopConfig().steps, help='steps in all (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=LoopConfig().batch, help='pairs a step (default: %(default)s)')
    parser.add_argument('--minutes', type=float, default=math.inf, help='stop after this time')
    parser.add_argument('--validation', type=int, default=12, help='held-out pairs to score (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1, help='CPU threads (default: %(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        textures = load_textures(args.textures, args.procedural, args.seed)
        # Every twelfth texture is held out.
        held_out = torch.arange(len(textures)) % 12 == 7
        torch.manual_seed(args.seed)
        network = MiniNetwork().to(args.device)
        validation = None
        if args.validation and bool(held_out.any()):
            pairs = held_out_pairs(textures[held_out], args.validation)
            validation = Validation(pairs, Model(network, 'signed', 'mini').predictor)
        maker = PairMaker(textures[~held_out].to(args.device), seed=args.seed)
        config = LoopConfig(steps=args.steps, batch=args.batch, seed=args.seed)
        report = functools.partial(print, flush=True)
        trainer = Trainer(MatchingTask(network, maker), config, args.output, validation, progress=report)
        print(f'{network.parameter_count()} parameters, {len(textures)} textures, from step {trainer.step}', flush=True)
        done = trainer.run(args.minutes)
        names = ', '.join([folder.name for folder in args.textures] + [f'{args.procedural} procedural'])
        with trainer.averaged():
            save_mini(args.output / WEIGHTS, network, header(trainer, names))
    except Dark3rError as error:
        print(f'dark3r: error: {error}', file=sys.stderr)
        return 2
    print(f'{"finished" if done else "stopped"} at step {trainer.step}; weights in {args.output / WEIGHTS}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
