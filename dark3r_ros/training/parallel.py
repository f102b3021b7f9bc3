# SPDX-License-Identifier: Apache-2.0
"""Data parallel training under `torchrun`: every process makes its own pairs, gradients are averaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from dark3r_ros.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """The processes of a training; one alone needs no communication."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def mean(self, values: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message a type."""
        if self.world == 1:
            return
        for kind in {value.dtype for value in values}:
            chosen = [value for value in values if value.dtype == kind]
            flat = torch.cat([value.reshape(-1) for value in chosen])
            distributed.all_reduce(flat)
            flat /= self.world
            for value, piece in zip(chosen, flat.split([value.numel() for value in chosen]), strict=True):
                value.copy_(piece.view_as(value))

    def agree(self, stop: bool, device: torch.device) -> bool:
        """Whether the leading process says stop: clocks differ, and all must stop after the same step."""
        if self.world == 1:
            return stop
        flag = torch.tensor([float(stop)], device=device)
        distributed.broadcast(flag, 0)
        return bool(flag.item())

    def spread(self, values: Iterable[Tensor]) -> None:
        """Give every process the values of the leading one."""
        if self.world > 1:
            for value in values:
                distributed.broadcast(value, 0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            distributed.barrier()


def connect(device: str) -> tuple[Group, torch.device]:
    """The group that `torchrun` started (else this process alone) and the device of this process.

    Raises ConfigError for a device that is not there.
    """
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    if device.startswith('cuda'):
        if not torch.cuda.is_available():
            raise ConfigError('no CUDA device is available: use --device cpu')
        if device == 'cuda' and world > 1:
            device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f'{device!r} is no device; use cpu or cuda') from error
    if world > 1 and not distributed.is_initialized():
        if chosen.type == 'cuda':
            torch.cuda.set_device(chosen)
        distributed.init_process_group('nccl' if chosen.type == 'cuda' else 'gloo')
    return Group(rank, world), chosen


def disconnect(group: Group) -> None:
    """Leave the group."""
    if group.world > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
