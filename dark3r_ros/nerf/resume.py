# SPDX-License-Identifier: Apache-2.0
"""Stop and go on: the whole state of a training in one file, and new poses for a training under way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.nerf.box import SceneBox
from dark3r_ros.nerf.fieldfile import CHECKPOINT_FILE, read_tensors, write_tensors
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.nerf.views import Views

# Settings that may differ between a training and its continuation.
_FREE = {'steps', 'checkpoint_every', 'preview_every', 'rays'}
# Share of the steps that is done again when the poses have changed.
_REPEATED = 0.4


def fingerprint(views: Views) -> dict[str, str]:
    """Hashes that tell whether frames and poses are those of an earlier training."""
    frames = hashlib.sha256()
    for part in (views.stamps_ns, views.held_out, np.array(views.values.shape), views.values[:, :, ::7, ::7]):
        frames.update(np.ascontiguousarray(part).tobytes())
    return {'frames': frames.hexdigest(), 'poses': hashlib.sha256(views.world_from_camera.tobytes()).hexdigest()}


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write everything that the next step depends on; OutputError when that fails, the old checkpoint then stays."""
    tensors: dict[str, Tensor] = {}
    for name, value, mean in zip(trainer.names, trainer.parameters, trainer.average, strict=True):
        tensors[f'value.{name}'], tensors[f'average.{name}'] = value, mean
        for key, part in trainer.optimiser.state.get(value, {}).items():
            tensors[f'{key}.{name}'] = torch.as_tensor(part)
    header = {
        'step': trainer.step_number,
        'skipped': trainer.skipped,
        'rays': trainer.rays,
        'elapsed': trainer.elapsed,
        'history': trainer.history,
        'config': to_mapping(trainer.config),
        'box': {'centre': trainer.box.centre, 'half': trainer.box.half, 'margin': trainer.box.margin},
        'data': fingerprint(trainer.views),
    }
    write_tensors(folder / CHECKPOINT_FILE, tensors, header)


def has_checkpoint(folder: Path) -> bool:
    """Whether a training can be continued there."""
    return (folder / CHECKPOINT_FILE).is_file()


def resumed_trainer(folder: Path, views: Views, config: Any, *, device: str = 'cpu') -> Trainer:
    """Go on from a checkpoint, exactly where the frames and poses are the same.

    With other poses of the same frames (a loop closure, a new bundle adjustment) the field is kept, pose corrections
    start anew and the last two fifths of the schedule are done again. ConfigError when the settings differ in anything
    but the number of steps, DataError when the frames differ.
    """
    tensors, header = read_tensors(folder / CHECKPOINT_FILE)
    try:
        old, data, box = header['config'], header['data'], header['box']
        step, history = int(header['step']), [tuple(row) for row in header['history']]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{folder / CHECKPOINT_FILE} is no checkpoint of this version ({error})') from error
    different = sorted(key for key, value in to_mapping(config).items() if key not in _FREE and old.get(key) != value)
    if different:
        raise ConfigError(
            f'{folder} holds a training with {different[0]} = {old.get(different[0])!r}: give the same settings to go '
            'on, or --overwrite to start anew'
        )
    now = fingerprint(views)
    if now['frames'] != data['frames']:
        raise DataError(f'{folder} holds a training of other frames: use --overwrite to start anew')
    trainer = Trainer(
        views, config, device=device, box=SceneBox(tuple(box['centre']), tuple(box['half']), box['margin'])
    )
    moved = now['poses'] != data['poses']
    _restore(trainer, tensors, folder, fresh={'frames.twist'} if moved else set())
    trainer.history = history
    trainer.skipped, trainer.elapsed = int(header['skipped']), float(header['elapsed'])
    trainer.rays = min(config.rays, int(header['rays'])) if old.get('rays') == config.rays else config.rays
    trainer.step_number = min(step, round(config.steps * (1.0 - _REPEATED))) if moved else min(step, config.steps)
    return trainer


def _restore(trainer: Trainer, tensors: dict[str, Tensor], folder: Path, fresh: set[str]) -> None:
    try:
        with torch.no_grad():
            for name, value, mean in zip(trainer.names, trainer.parameters, trainer.average, strict=True):
                if name in fresh:
                    continue
                value.copy_(tensors[f'value.{name}'])
                mean.copy_(tensors[f'average.{name}'])
                state = {key: tensors.get(f'{key}.{name}') for key in ('step', 'exp_avg', 'exp_avg_sq')}
                if all(part is not None for part in state.values()):
                    trainer.optimiser.state[value] = {
                        key: part.clone().to(value.device) for key, part in state.items() if part is not None
                    }
    except (KeyError, RuntimeError) as error:
        raise DataError(f'{folder / CHECKPOINT_FILE} does not fit: {" ".join(str(error).split())[:200]}') from error


def read_history(folder: Path) -> list[tuple[float, ...]]:
    """Losses over the steps as the checkpoint has them; empty without one."""
    if not has_checkpoint(folder):
        return []
    return [tuple(row) for row in read_tensors(folder / CHECKPOINT_FILE)[1].get('history', [])]
