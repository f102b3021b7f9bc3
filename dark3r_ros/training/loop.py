# SPDX-License-Identifier: Apache-2.0
"""The training loop: can be killed at any time and continues from its last checkpoint as if nothing had happened.

Every random choice of step n comes from the seed and n alone, so that a checkpoint holds weights, moments and a number.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.model.mini import MiniNetwork
from dark3r_ros.training.losses import compute_losses
from dark3r_ros.training.pairs import PairMaker

CHECKPOINT = 'checkpoint.pt'
LOG = 'log.jsonl'
Validator = Callable[[MiniNetwork], Mapping[str, float]]


@dataclass(frozen=True)
class LoopConfig(Config):
    """Settings of the optimisation."""

    steps: int = setting(2000, 'Steps of the whole training; the learning rate falls to zero over them.', minimum=1)
    batch: int = setting(8, 'Pairs a step.', minimum=1, maximum=1024)
    learning_rate: float = setting(1.5e-3, 'Highest learning rate.', minimum=0.0)
    warm_up: int = setting(50, 'Steps over which the learning rate rises.', minimum=0)
    weight_decay: float = setting(0.02, 'Of AdamW.', minimum=0.0)
    clip: float = setting(1.0, 'Largest norm of the gradient.', minimum=0.0)
    average: float = setting(0.995, 'Decay of the averaged weights a step.', minimum=0.0, maximum=1.0)
    seed: int = setting(0, 'Of weights and data.', minimum=0)
    checkpoint_s: float = setting(60.0, 'Time between checkpoints.', unit='s', minimum=0.0)
    log_every: int = setting(10, 'Steps between lines of the log.', minimum=1)
    validate_every: int = setting(200, 'Steps between validations.', minimum=1)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Learning rate of a step: linear rise, then half a cosine."""
    rise = min(1.0, (step + 1) / (config.warm_up + 1))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Save with torch so that the file is whole at any moment; OutputError where it cannot be written."""
    temporary = path.with_suffix('.new')
    try:
        with temporary.open('wb') as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f'cannot write the checkpoint {path}: {error.strerror}') from error


class Trainer:
    """Trains `mini` in a folder that holds its checkpoint and log.

    Parameters
    ----------
    maker: of training pairs. network: where it starts, on the device of the maker. config: of the optimisation.
    folder: of this training; continued where it holds a checkpoint. validate: figures for the log.

    """

    def __init__(
        self,
        maker: PairMaker,
        network: MiniNetwork,
        config: LoopConfig,
        folder: Path,
        validate: Validator | None = None,
    ) -> None:
        self.maker, self.network, self.config, self.folder, self.validate = maker, network, config, folder, validate
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        groups = [{'params': decayed, 'weight_decay': config.weight_decay}, {'params': plain, 'weight_decay': 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.step = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._restore()

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        device = self.maker.textures.device
        try:
            saved = torch.load(path, map_location=device, weights_only=True)
            self.network.load_state_dict(saved['network'])
            self.average.load_state_dict(saved['average'])
            self.optimiser.load_state_dict(saved['optimiser'])
            self.step, self.seconds = saved['step'], saved['seconds']
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise DataError(
                f'cannot continue from {path}: {str(error).splitlines()[0]}; remove it to start anew'
            ) from error

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            'network': self.network.state_dict(),
            'average': self.average.state_dict(),
            'optimiser': self.optimiser.state_dict(),
            'step': self.step,
            'seconds': self.seconds,
            'config': to_mapping(self.config),
        }
        write_atomically(self.folder / CHECKPOINT, content)

    def run(self, minutes: float = math.inf) -> bool:
        """Train until all steps are done (True) or the time is over (False); the checkpoint is written at the end."""
        began = saved = time.monotonic()
        self.network.train()
        while self.step < self.config.steps and time.monotonic() - began < 60.0 * minutes:
            figures = self.train_step()
            if self.step % self.config.log_every == 0:
                self._log(figures)
            if self.validate is not None and (
                self.step % self.config.validate_every == 0 or self.step == self.config.steps
            ):
                self._log({f'validation_{key}': value for key, value in self.validate(self.average).items()})
            if time.monotonic() - saved >= self.config.checkpoint_s:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.step >= self.config.steps

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; returns figures for the log."""
        config = self.config
        began = time.monotonic()
        pairs = self.maker.make(self.step, config.batch)
        data_s = time.monotonic() - began
        generator = torch.Generator(device=pairs.image_a.device).manual_seed(config.seed * 1_000_003 + self.step)
        rate = learning_rate(config, self.step)
        for group in self.optimiser.param_groups:
            group['lr'] = rate
        self.optimiser.zero_grad(set_to_none=True)
        losses = compute_losses(self.network, pairs, generator)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        # A batch without a usable gradient is left out rather than spread into the weights.
        if bool(norm.isfinite()):
            self.optimiser.step()
            self._follow()
        self.step += 1
        elapsed = time.monotonic() - began
        self.seconds += elapsed
        parts: dict[str, Tensor] = dict(vars(losses))
        return {
            **{key: round(value.item(), 4) for key, value in parts.items()},
            'gradient': round(float(norm), 4),
            'learning_rate': rate,
            'pairs_per_s': round(config.batch / elapsed, 2),
            'data_share': round(data_s / elapsed, 3),
        }

    def _follow(self) -> None:
        """Move the averaged weights; early on they follow faster."""
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            present = self.network.state_dict()
            for name, value in self.average.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(present[name], 1 - decay)

    def _log(self, figures: Mapping[str, float]) -> None:
        line = {'step': self.step, 'pairs': self.step * self.config.batch, 'seconds': round(self.seconds, 1), **figures}
        with (self.folder / LOG).open('a') as file:
            file.write(json.dumps(line) + '\n')
