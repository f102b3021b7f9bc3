# SPDX-License-Identifier: Apache-2.0
"""Stop and go on: the whole state of a training in one file, and new poses for a training under way."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


def in_frame_of(views: Views, old: NDArray[np.float64]) -> tuple[Views, float]:
    """Views whose poses and depths are moved into the world of earlier poses (V, 4, 4) of them, and the scale of that.

    The rotation comes from the cameras' own rotations, so that cameras on a line are no special case.
    """
    new = views.world_from_camera
    u, _, vt = np.linalg.svd(np.einsum('nij,nkj->ik', old[:, :3, :3], new[:, :3, :3]))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    turned, target = new[:, :3, 3] @ rotation.T, old[:, :3, 3]
    spread = turned - turned.mean(axis=0)
    power = float((spread**2).sum())
    scale = float((spread * (target - target.mean(axis=0))).sum()) / power if power > 0 else 1.0
    if not scale > 0:
        raise DataError('the new poses have nothing in common with those of the field: use --overwrite to start anew')
    moved = np.tile(np.eye(4), (len(new), 1, 1))
    moved[:, :3, :3] = rotation @ new[:, :3, :3]
    moved[:, :3, 3] = scale * (turned - turned.mean(axis=0)) + target.mean(axis=0)
    return _with_poses(views, moved, scale), scale


def _with_poses(views: Views, poses: NDArray[np.float64], scale: float) -> Views:
    depth = None if views.depth is None else (views.depth * scale).astype(np.float32)
    return dataclasses.replace(views, world_from_camera=poses, depth=depth)


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Write everything that the next step depends on; OutputError when that fails, the old checkpoint then stays."""
    tensors: dict[str, Tensor] = {'poses': torch.from_numpy(trainer.views.world_from_camera)}
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
        'data': trainer.origin or fingerprint(trainer.views),
        'scale': trainer.scale,
    }
    write_tensors(folder / CHECKPOINT_FILE, tensors, header)


def has_checkpoint(folder: Path) -> bool:
    """Whether a training can be continued there."""
    return (folder / CHECKPOINT_FILE).is_file()


def resumed_trainer(folder: Path, views: Views, config: Any, *, device: str = 'cpu') -> Trainer:
    """Go on from a checkpoint, exactly where the frames and poses are the same.

    With other poses of the same frames (a loop closure, a new bundle adjustment) the field is kept: the new poses are
    moved into its frame and scale, pose corrections start anew and the last two fifths of the schedule are done again.
    ConfigError when the settings differ in anything but the number of steps, DataError when the frames differ.
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
    moved, scale = now['poses'] != data['poses'], float(header['scale'])
    if moved:
        views, scale = in_frame_of(views, tensors['poses'].numpy())
    elif scale != 1.0:
        views = _with_poses(views, tensors['poses'].numpy(), scale)
    trainer = Trainer(
        views, config, device=device, box=SceneBox(tuple(box['centre']), tuple(box['half']), box['margin'])
    )
    trainer.origin, trainer.scale = now, scale
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
