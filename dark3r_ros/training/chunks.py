# SPDX-License-Identifier: Apache-2.0
"""A pool of rendered chunks, slowly renewed: what is costly to render serves for many batches.

Chunk k depends on k alone (and the seed of the training), and batch n draws from the chunks that belong to n, so that a
training that was stopped finds the same pool again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import OutputError

C = TypeVar('C')


@dataclass(frozen=True)
class RefreshConfig(Config):
    """How many chunks are drawn from, and how fast they are renewed."""

    chunks: int = setting(12, 'Chunks that are drawn from at a time.', minimum=1)
    first_chunks: int = setting(4, 'Chunks that are rendered before the first batch.', minimum=1)
    refresh: int = setting(80, 'Batches after which the oldest chunk is replaced.', minimum=1)


class ChunkPool(Generic[C]):
    """Chunks of a dataclass of tensors.

    Parameters
    ----------
    kind: the dataclass. make: renders chunk k. config: how many, and how fast they are renewed. device: of the tensors.
    cache: folder that keeps the chunks in use, so that a continued training need not render them again; None keeps them
        in memory only. name: of the files there: what the chunks depend on besides k.

    """

    def __init__(
        self,
        kind: type[C],
        make: Callable[[int], C],
        config: RefreshConfig,
        device: torch.device,
        cache: Path | None,
        name: str,
    ) -> None:
        self._kind, self._make, self._config, self._device = kind, make, config, device
        self._cache, self._name = cache, name
        self._chunks: dict[int, C] = {}

    def of(self, number: int) -> list[C]:
        """The chunks of a batch; those that no later batch needs are given up."""
        config = self._config
        newest = min(config.first_chunks, config.chunks) - 1 + number // config.refresh
        oldest = max(0, newest - config.chunks + 1)
        for old in [known for known in self._chunks if not oldest <= known <= newest]:
            del self._chunks[old]
            if self._cache is not None and old < oldest:
                self._file(old).unlink(missing_ok=True)
        return [self._chunk(k) for k in range(oldest, newest + 1)]

    def _chunk(self, k: int) -> C:
        if k not in self._chunks:
            known = self._read(k)
            if known is None:
                known = self._make(k)
                self._write(k, known)
            self._chunks[k] = known
        return self._chunks[k]

    def _file(self, k: int) -> Path:
        assert self._cache is not None
        return self._cache / f'{self._name}_{k:06d}.safetensors'

    def _read(self, k: int) -> C | None:
        if self._cache is None or not self._file(k).exists():
            return None
        try:
            return self._kind(**load_file(self._file(k), device=str(self._device)))
        except (OSError, SafetensorError, TypeError):
            return None  # damaged: rendered again

    def _write(self, k: int, chunk: Any) -> None:
        if self._cache is None:
            return
        path = self._file(k)
        temporary = path.with_suffix(f'.{os.getpid()}')
        parts: dict[str, Tensor] = {part.name: getattr(chunk, part.name).contiguous() for part in fields(chunk)}
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            save_file(parts, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f'cannot keep rendered chunks in {self._cache}: {error}') from error
