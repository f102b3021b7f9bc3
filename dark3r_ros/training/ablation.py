# SPDX-License-Identifier: Apache-2.0
"""Train the variants of the distillation for the same number of steps and compare their matches in the dark.

    python -m dark3r_ros.training.ablation -o out/ablation --data sim textures:photos --steps 1000

Each variant has a folder of its own, as `dark3r distill` makes it, and goes on where it was stopped; all see the same
pairs. The table, `ablation.md` and `ablation.json`, holds right matches a pair and the share of matches within 2 px on
rendered rooms that none has seen.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dark3r_ros.errors import ConfigError, Dark3rError
from dark3r_ros.model.lora import LoraConfig
from dark3r_ros.training.batch import TrainingPairs
from dark3r_ros.training.distill import DistillConfig, supervised
from dark3r_ros.training.loop import LoopConfig
from dark3r_ros.training.networks import load_model
from dark3r_ros.training.session import STUDENT, Session, SessionConfig
from dark3r_ros.training.validation import held_out_rooms, score

LEVELS = (-4.0, -8.0)
TABLE = 'ablation'
_PROCEDURAL = 40  # textures
_RATES = {'lora': 1e-3, 'full': 3e-4}


def variants(base: SessionConfig) -> dict[str, SessionConfig]:
    """The variants by name; all but the named difference is that of `base`, whose mode is `lora` or `full`."""
    losses, other = base.losses, 'full' if base.mode == 'lora' else 'lora'
    return {
        base.mode: base,
        other: with_mode(base, other),
        'encoder-only': replace(with_mode(base, 'lora'), lora=replace(base.lora, part='encoder')),
        'no-clean-term': replace(base, losses=replace(losses, clean=0.0)),
        'distil-and-match': replace(base, losses=replace(losses, matching=1.0)),
        'direct': replace(base, losses=supervised(losses)),
        'clipped-at-black': replace(base, exposure=replace(base.exposure, clip_black=True)),
    }


def with_mode(config: SessionConfig, mode: str) -> SessionConfig:
    """The same with other weights trained, at their usual rate."""
    return replace(config, mode=mode, loop=replace(config.loop, learning_rate=_RATES[mode]))


def measure(weights: str, pairs: TrainingPairs, *, clip_black: bool = False) -> dict[str, float]:
    """Right matches a pair and share of right ones at each level, whatever the network thinks of them.

    A threshold of confidence would compare how bold the variants are.
    """
    predictor = load_model(weights, torch.device('cpu')).predictor(every=True)
    figures = {}
    for level in LEVELS:
        found = score(predictor, pairs, level, clip_black=clip_black)
        figures[f'{level:+g} dB right'] = round(found.matches * found.within_2px, 2)
        figures[f'{level:+g} dB share'] = round(found.within_2px, 4)
    return figures


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown of the results."""
    columns = list(next(iter(results.values())))
    lines = ['| variant | ' + ' | '.join(columns) + ' |', '| --- ' * (len(columns) + 1) + '|']
    lines += [f'| {name} | ' + ' | '.join(f'{row[key]:g}' for key in columns) + ' |' for name, row in results.items()]
    return '\n'.join(lines) + '\n'


def run(base: SessionConfig, names: Sequence[str], folder: Path, minutes: float, pairs: int) -> bool:
    """Train and measure; True when all variants are complete."""
    chosen = variants(base)
    unknown = [name for name in names if name not in chosen]
    if unknown:
        raise ConfigError(f'unknown variant {unknown[0]!r}; known: {", ".join(chosen)}')
    began = time.monotonic()
    held_out = held_out_rooms(pairs)
    results = {'teacher': measure(base.teacher, held_out)}
    complete = True
    for name in names or chosen:
        print(f'{name}:', flush=True)
        session = Session(chosen[name], folder / name, functools.partial(print, flush=True), pool=folder / 'pool')
        left = minutes - (time.monotonic() - began) / 60
        complete = session.run(max(left, 0.0)) and complete
        clipped = chosen[name].exposure.clip_black
        results[name] = measure(str(folder / name / STUDENT), held_out, clip_black=clipped)
        results[name] |= {'steps': session.trainer.step, 'minutes': round(session.trainer.seconds / 60, 1)}
        results['teacher'] |= {'steps': 0, 'minutes': 0.0}
        (folder / f'{TABLE}.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
        (folder / f'{TABLE}.md').write_text(table(results), encoding='utf-8')
    print(table(results))
    return complete


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog='python -m dark3r_ros.training.ablation',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder of all variants')
    parser.add_argument('--teacher', default='mini-teacher', help='weights of the teacher (default: %(default)s)')
    parser.add_argument('--data', nargs='+', default=['sim', 'textures'], help='as of dark3r distill')
    parser.add_argument('--mode', choices=tuple(_RATES), default='lora', help='of the base (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=1000, help='of every variant (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=8, help='pairs a step (default: %(default)s)')
    parser.add_argument('--variants', nargs='+', default=[], help='only these (default: all)')
    parser.add_argument('--minutes', type=float, default=math.inf, help='stop after this time; go on later')
    parser.add_argument('--pairs', type=int, default=24, help='held-out pairs to score (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=(192, 160), metavar=('W', 'H'), help='of a crop')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of weights and data (default: %(default)s)')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        base = SessionConfig(
            teacher=args.teacher,
            data=tuple(args.data),
            width=args.size[0],
            height=args.size[1],
            device=args.device,
            procedural=_PROCEDURAL,
            validation=0,
            loop=LoopConfig(steps=args.steps, batch=args.batch, warm_up=min(50, args.steps // 10), seed=args.seed),
            losses=DistillConfig(),
            lora=LoraConfig(),
        )
        run(with_mode(base, args.mode), args.variants, args.output, args.minutes, args.pairs)
    except Dark3rError as error:
        print(f'dark3r: error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
