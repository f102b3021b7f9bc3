# SPDX-License-Identifier: Apache-2.0
"""The training loop: can be killed at any time and continues from its last checkpoint as if nothing had happened.

Every random choice of step n comes from the seed and n alone, so that a checkpoint holds weights, moments and a number.
A step consists of `parts`, batches of their own whose gradients are averaged. They may lie on several processes or come
one after the other in one: the result is the same, as is that of batch statistics, whose running values are averaged
over the parts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.training.parallel import Group
from dark3r_ros.training.record import Record

CHECKPOINT = 'checkpoint.pt'
_MOST_LEFT_OUT = 50  # steps in a row without a usable gradient

B = TypeVar('B')


class Task(Protocol[B]):
    """What is trained, on what batches, by which losses."""

    @property
    def network(self) -> nn.Module:
        """Its parameters that need a gradient are trained."""

    @property
    def device(self) -> torch.device:
        """Where."""

    def make(self, number: int, count: int) -> B:
        """Training pairs, or what else is learnt from, of a part of a step."""

    def losses(self, batch: B, generator: torch.Generator, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss to minimise and figures for the log."""


class Observer(Protocol):
    """Looks at the averaged weights now and then, while the network holds them in evaluation mode."""

    def figures(self) -> Mapping[str, float]:
        """Scores for the log."""

    def picture(self) -> NDArray[np.uint8]:
        """Picture (H, W, 3) of what the network matches."""


@dataclass(frozen=True)
class LoopConfig(Config):
    """Settings of the optimisation."""

    steps: int = setting(2000, 'Steps of the whole training; the learning rate falls to zero over them.', minimum=1)
    span_minutes: float = setting(
        0.0, 'Training time after which it is done at the latest, the learning rate having fallen; 0: by steps only.',
        unit='min', minimum=0.0,
    )  # fmt: skip
    batch: int = setting(8, 'Pairs a step, of all processes together.', minimum=1)
    parts: int = setting(0, 'Parts of a step, each a batch of its own; 0: one a process.', minimum=0)
    learning_rate: float = setting(1.5e-3, 'Highest learning rate.', minimum=0.0)
    warm_up: int = setting(50, 'Steps over which the learning rate rises.', minimum=0)
    weight_decay: float = setting(0.02, 'Of AdamW.', minimum=0.0)
    clip: float = setting(1.0, 'Largest norm of the gradient.', minimum=0.0)
    average: float = setting(0.995, 'Decay of the averaged weights a step.', minimum=0.0, maximum=1.0)
    freeze_statistics: bool = setting(False, 'Keep the statistics of batch normalisation as they are.')
    seed: int = setting(0, 'Of weights and data.', minimum=0)
    checkpoint_s: float = setting(60.0, 'Time between checkpoints.', unit='s', minimum=0.0)
    log_every: int = setting(10, 'Steps between lines of the log.', minimum=1)
    validate_every: int = setting(200, 'Steps between validations.', minimum=1)
    picture_every: int = setting(400, 'Steps between pictures of matches; 0: none.', minimum=0)


def learning_rate(config: LoopConfig, step: int, share: float) -> float:
    """Learning rate of a step, a share of the training being over: linear rise, then half a cosine."""
    rise = min(1.0, (step + 1) / (config.warm_up + 1))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


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


class Trainer(Generic[B]):
    """Trains a network in a folder that holds checkpoint and log.

    Parameters
    ----------
    task: what is trained. config: of the optimisation. folder: of this training; continued where it holds a
        checkpoint.
    observer: scores and pictures for the log. group: the processes. progress: is given a line now and then.

    """

    def __init__(
        self,
        task: Task[B],
        config: LoopConfig,
        folder: Path,
        observer: Observer | None = None,
        group: Group | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.task, self.config, self.folder, self.observer = task, config, folder, observer
        self.group = group or Group()
        self.progress = progress or (lambda line: None)
        self.parts = config.parts or self.group.world
        if config.batch % self.parts or self.parts % self.group.world:
            raise ConfigError(
                f'{config.batch} pairs a step in {self.parts} parts on {self.group.world} processes leave a rest'
            )
        self._parameters = {n: p for n, p in task.network.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ConfigError('nothing of the network is to be trained: choose other targets')
        self._statistics = {} if config.freeze_statistics else _statistics(task.network)
        self.group.spread([p.data for p in self._parameters.values()])
        self.average = {name: value.detach().clone() for name, value in self._trained().items()}
        decayed = [p for p in self._parameters.values() if p.ndim > 1]
        plain = [p for p in self._parameters.values() if p.ndim <= 1]
        groups = [{'params': decayed, 'weight_decay': config.weight_decay}, {'params': plain, 'weight_decay': 0.0}]
        self.optimiser = torch.optim.AdamW([g for g in groups if g['params']], lr=config.learning_rate)
        self.step = 0
        self.seconds = 0.0
        self._left_out = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f'cannot make the folder {folder}: {error.strerror}') from error
        if (folder / CHECKPOINT).exists():
            self._restore()
        first = torch.tensor([self.step], dtype=torch.float64, device=task.device)
        self.group.spread([first])
        if int(first) != self.step:
            raise DataError(f'the processes find different checkpoints in {folder}: it must be shared by all machines')
        self._record = Record(folder, self.step) if self.group.leads else None

    def _trained(self) -> dict[str, Tensor]:
        """Every value that training changes."""
        return {**{name: p.data for name, p in self._parameters.items()}, **self._statistics}

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT
        try:
            saved = torch.load(path, map_location=self.task.device, weights_only=True)
            for target, values in ((self._trained(), saved['trained']), (self.average, saved['average'])):
                if set(target) != set(values):
                    name = sorted(set(target) ^ set(values))[0]
                    raise ValueError(f'{name} is in one of network and checkpoint only')
                for name, value in target.items():
                    if value.shape != values[name].shape:
                        raise ValueError(f'{name} has another shape')
                    value.copy_(values[name])
            self.optimiser.load_state_dict(saved['optimiser'])
            self.step, self.seconds = saved['step'], saved['seconds']
        except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f'cannot continue from {path}: {reason}; remove it to start anew') from error

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.group.leads:
            return
        content = {
            'trained': self._trained(),
            'average': self.average,
            'optimiser': self.optimiser.state_dict(),
            'step': self.step,
            'seconds': self.seconds,
            'config': to_mapping(self.config),
        }
        write_atomically(self.folder / CHECKPOINT, content)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network holds the averaged weights, in evaluation mode."""
        present = self._trained()
        kept = {name: value.clone() for name, value in present.items()}
        training = self.task.network.training
        try:
            for name, value in present.items():
                value.copy_(self.average[name])
            self.task.network.eval()
            yield
        finally:
            for name, value in present.items():
                value.copy_(kept[name])
            self.task.network.train(training)

    def run(self, minutes: float = math.inf) -> bool:
        """Train until all steps are done (True) or the time is over (False); the checkpoint is written at the end."""
        config = self.config
        began = saved = time.monotonic()
        while self.share() < 1.0:
            if self.group.agree(time.monotonic() - began >= 60.0 * minutes, self.task.device):
                break
            figures = self.train_step()
            last = self.share() >= 1.0
            if self.step % config.log_every == 0 or last:
                self._log(figures, minutes - (time.monotonic() - began) / 60.0)
            if self.observer is not None and self._record is not None:
                self._observe(self.observer, last)
            if time.monotonic() - saved >= config.checkpoint_s:
                self.save()
                saved = time.monotonic()
        self.save()
        self.group.wait()
        return self.share() >= 1.0

    def share(self) -> float:
        """How much of the training is over, by steps or time, the same in all processes."""
        share, span_s = self.step / self.config.steps, 60.0 * self.config.span_minutes
        if not span_s:
            return share
        timed = torch.tensor([max(share, self.seconds / span_s)], device=self.task.device)
        self.group.spread([timed])
        return float(timed)

    def _observe(self, observer: Observer, last: bool) -> None:
        config = self.config
        scores = last or self.step % config.validate_every == 0
        picture = config.picture_every > 0 and (last or self.step % config.picture_every == 0)
        if not scores and not picture:
            return
        assert self._record is not None
        with self.averaged(), torch.no_grad():
            if scores:
                found = {f'validation_{key}': value for key, value in observer.figures().items()}
                self._record.write(self.step, found)
                self.progress('  '.join([f'step {self.step}', *(f'{key} {value:.4g}' for key, value in found.items())]))
            if picture:
                self._record.picture(self.step, observer.picture())

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; returns figures for the log."""
        config = self.config
        began = time.monotonic()
        self._train_mode()
        rate = learning_rate(config, self.step, self.share())
        for group in self.optimiser.param_groups:
            group['lr'] = rate
        self.optimiser.zero_grad(set_to_none=True)
        data_s, parts = self._gather()
        self.group.mean([p.grad for p in self._parameters.values() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(list(self._parameters.values()), config.clip)
        # A batch without a usable gradient is left out rather than spread into the weights.
        if bool(norm.isfinite()):
            self.optimiser.step()
            self._follow()
            self._left_out = 0
        else:
            self._left_out += 1
        if self._left_out == _MOST_LEFT_OUT:
            raise DataError(
                f'the losses of {_MOST_LEFT_OUT} steps in a row were not finite: go on from '
                f'{self.folder / CHECKPOINT} with a lower learning rate, or look for bad values in the data'
            )
        self.step += 1
        elapsed = time.monotonic() - began
        self.seconds += elapsed
        return {
            **{key: round(value.item(), 4) for key, value in parts.items()},
            'gradient': round(float(norm), 4),
            'learning_rate': rate,
            'pairs_per_s': round(config.batch / elapsed, 2),
            'data_share': round(data_s / elapsed, 3),
        }

    def _train_mode(self) -> None:
        network = self.task.network
        if not network.training:
            network.train()
        if self.config.freeze_statistics:
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _gather(self) -> tuple[float, dict[str, Tensor]]:
        """Gradients of all parts of this process; returns the seconds that data took and the mean figures."""
        config, device = self.config, self.task.device
        own = range(self.group.rank, self.parts, self.group.world)
        data_s = 0.0
        sums: dict[str, Tensor] = {}
        before = {name: value.clone() for name, value in self._statistics.items()}
        after = {name: torch.zeros_like(value) for name, value in self._statistics.items()}
        for part in own:
            began = time.monotonic()
            number = self.step * self.parts + part
            batch = self.task.make(number, config.batch // self.parts)
            data_s += time.monotonic() - began
            generator = torch.Generator(device=device).manual_seed(config.seed * 1_000_003 + number)
            for name, value in self._statistics.items():
                value.copy_(before[name])
            total, figures = self.task.losses(batch, generator)
            (total / len(own)).backward()
            for name, value in {'total': total, **figures}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float() / len(own)
            for name, value in self._statistics.items():
                after[name] += value / len(own)
        for name, value in self._statistics.items():
            value.copy_(after[name])
        self.group.mean([*self._statistics.values(), *sums.values()])
        return data_s, sums

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights; early on they follow faster."""
        decay = min(self.config.average, (self.step + 1) / (self.step + 10))
        for name, value in self._trained().items():
            self.average[name].lerp_(value, 1 - decay)

    def _log(self, figures: Mapping[str, float], minutes_left: float) -> None:
        if self._record is None:
            return
        config = self.config
        line = {'pairs': self.step * config.batch, 'seconds': round(self.seconds, 1), **figures}
        self._record.write(self.step, line)
        left = min(minutes_left, (config.steps - self.step) * config.batch / max(figures['pairs_per_s'], 1e-6) / 60.0)
        if config.span_minutes > 0:
            left = min(left, config.span_minutes - self.seconds / 60.0)
        self.progress(
            f'step {self.step}/{config.steps}  loss {figures["total"]:.4f}  {figures["pairs_per_s"]:.1f} pairs/s  '
            f'data {100 * figures["data_share"]:.0f} %  {left:.1f} min left'
        )


def _statistics(network: nn.Module) -> dict[str, Tensor]:
    """Running statistics of batch normalisation, which a training changes without a gradient."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            for key in ('running_mean', 'running_var'):
                value = getattr(module, key)
                if value is not None:
                    found[f'{name}.{key}'] = value
    return found
