# SPDX-License-Identifier: Apache-2.0
"""Pairs shared out over processes that torchrun started; without it there is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar('T')


@dataclass(frozen=True)
class Shard:
    """Number of this process and of all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> Shard:
        """What torchrun says in RANK and WORLD_SIZE."""
        return cls(int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1)))

    @property
    def leads(self) -> bool:
        """Whether this process goes on when the pairs are done."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every size-th item, beginning with that of the rank."""
        return list(items[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size == 1:
            return
        import torch.distributed as distributed

        if not distributed.is_initialized():
            distributed.init_process_group('gloo')
        distributed.barrier()
        distributed.destroy_process_group()
