# SPDX-License-Identifier: Apache-2.0
"""A whole distillation: networks, data, losses and loop from one description, and the weights that come out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import ConfigError, OutputError
from dark3r_ros.model.lora import AdapterInfo, LoraConfig, add_adapters, save_adapters
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.training.distill import DistillConfig, DistillTask, supervised
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.folders import FolderConfig
from dark3r_ros.training.loop import LoopConfig, Observer, Trainer
from dark3r_ros.training.networks import LICENCE, check_alike, commit, load_model
from dark3r_ros.training.parallel import connect, disconnect
from dark3r_ros.training.pool import PoolConfig
from dark3r_ros.training.sources import SourceConfig, open_data
from dark3r_ros.training.validation import Validation, held_out_rooms

MODES = ('lora', 'full', 'supervised')
STUDENT, ADAPTERS, SETTINGS = 'student.safetensors', 'adapters.safetensors', 'config.json'
POOL = 'pool'
PRECISIONS = ('auto', 'fp32', 'bf16')
LEVELS = (-8.0, -4.0, 20.0)


@dataclass(frozen=True)
class SessionConfig(Config):
    """Everything that a distillation depends on."""

    mode: str = setting(
        'lora', 'What is trained: adapters, all weights, or all weights without a teacher.', choices=MODES
    )
    teacher: str = setting('mini-teacher', 'Weight file of the teacher, or mini-teacher.')
    student: str = setting('', 'Weight file the student starts from, mini, or new:NAME; empty: the teacher.')
    data: tuple[str, ...] = setting(('sim',), 'Sources of training pairs, see `sources.open_data`.')
    width: int = setting(192, 'Width of a crop.', unit='px', minimum=32, maximum=2048)
    height: int = setting(160, 'Height of a crop.', unit='px', minimum=32, maximum=2048)
    procedural: int = setting(40, 'Procedural textures of the source `textures`.', minimum=1, maximum=4096)
    device: str = setting('auto', 'cpu, cuda, or auto.')
    precision: str = setting('auto', 'Of the forward pass; auto is bf16 where CUDA has it.', choices=PRECISIONS)
    validation: int = setting(8, 'Rendered pairs to score; 0: none.', minimum=0, maximum=256)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=3e-4))
    losses: DistillConfig = field(default_factory=DistillConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    folder: FolderConfig = field(default_factory=FolderConfig)
    decode: DecodeOptions = field(default_factory=DecodeOptions)


class Session:
    """A distillation in a folder, begun or continued.

    Parameters
    ----------
    config: all settings. folder: of checkpoint, log, pictures and weights. progress: is given a line now and then.
    pool: folder that keeps rendered pairs, where not in `folder`.

    Raises DataError, ConfigError or OutputError saying what cannot be used.

    """

    def __init__(
        self,
        config: SessionConfig,
        folder: Path,
        progress: Callable[[str], None] | None = None,
        *,
        pool: Path | None = None,
    ) -> None:
        device = ('cuda' if torch.cuda.is_available() else 'cpu') if config.device == 'auto' else config.device
        self.group, self.device = connect(device)
        losses = supervised(config.losses) if config.mode == 'supervised' else config.losses
        self.teacher = load_model(config.teacher, self.device) if losses.distils else None
        self.student = load_model(config.student or config.teacher, self.device, config.loop.seed)
        if self.teacher is not None:
            check_alike(self.teacher, self.student)
        self._check_size(config)
        exposure = replace(config.exposure, normalisation=self.student.normalisation)
        loop = config.loop
        if config.mode == 'lora':
            add_adapters(self.student.network, config.lora, loop.seed)
            # Adapters alone make up the student: what they do not hold must stay as it is.
            loop = replace(loop, freeze_statistics=True)
        self.config = replace(config, exposure=exposure, loop=loop, losses=losses)
        self.folder = folder
        data = open_data(
            config.data,
            SourceConfig(
                width=config.width,
                height=config.height,
                procedural=config.procedural,
                seed=loop.seed,
                exposure=exposure,
                pool=config.pool,
                folder=config.folder,
                decode=config.decode,
            ),
            self.device,
            (pool or folder / POOL) / str(self.group.rank),
        )
        self.task = DistillTask(
            self.student.subject(losses),
            self.teacher.subject(losses) if self.teacher else None,
            data,
            losses,
            exposure,
            precision=_precision(config.precision, self.device),
        )
        self.trainer = Trainer(self.task, loop, folder, self._observer(), self.group, progress)
        if self.group.leads:
            self._write_settings()

    def _check_size(self, config: SessionConfig) -> None:
        step = self.student.step
        if config.width % step or config.height % step:
            raise ConfigError(
                f'crops of {config.width}x{config.height} do not suit {self.student.origin}: '
                f'both sides must be multiples of {step}'
            )

    def _observer(self) -> Observer | None:
        if not self.config.validation or not self.group.leads or self.config.losses.encoder_only:
            return None
        return Validation(
            held_out_rooms(self.config.validation),
            self.student.predictor,
            LEVELS,
            clip_black=self.config.exposure.clip_black,
            reference=self.teacher.predictor if self.teacher else None,
        )

    def _write_settings(self) -> None:
        path = self.folder / SETTINGS
        try:
            path.write_text(json.dumps(to_mapping(self.config), indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            raise OutputError(f'cannot write {path}: {error.strerror}') from error

    def run(self, minutes: float = math.inf) -> bool:
        """Train until all steps are done (True) or the time is over (False), then write the weights."""
        done = self.trainer.run(minutes)
        if self.group.leads:
            self.write_weights()
        self.group.wait()
        return done

    def write_weights(self) -> None:
        """Write the averaged student, merged, and its adapters where it has some."""
        header = self.header()
        with self.trainer.averaged():
            self.student.save(self.folder / STUDENT, header)
            if self.config.mode == 'lora':
                info = AdapterInfo(
                    self.config.lora, header['student'], header['commit'], header['data'], header['licence'], header
                )
                save_adapters(self.folder / ADAPTERS, self.student.network, info)

    def header(self) -> dict[str, Any]:
        """What the weight files say of their origin."""
        loop, config = self.trainer.config, self.config
        return {
            'commit': commit(),
            'data': ', '.join(config.data),
            'licence': LICENCE,
            'mode': config.mode,
            'teacher': f'{self.teacher.origin} {self.teacher.digest()}' if self.teacher else '',
            'student': self.student.origin,
            'steps': self.trainer.step,
            'pairs': self.trainer.step * loop.batch,
            'minutes': round(self.trainer.seconds / 60, 1),
            'seed': loop.seed,
            'snr_db': [config.exposure.snr_low, config.exposure.snr_high],
        }

    def close(self) -> None:
        """Leave the group of processes."""
        disconnect(self.group)


def _precision(name: str, device: torch.device) -> str:
    if name != 'auto':
        return name
    return 'bf16' if device.type == 'cuda' and torch.cuda.is_bf16_supported() else 'fp32'
