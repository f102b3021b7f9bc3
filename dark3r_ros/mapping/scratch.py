# SPDX-License-Identifier: Apache-2.0
"""Features of old keyframes on disk, in one nameless file that ends with the process, however it ends."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import IO

import torch

from dark3r_ros.errors import DataError
from dark3r_ros.mapping.packing import pack, unpack
from dark3r_ros.model.predictor import Features


class ScratchFile:
    """Blocks of bytes in a temporary file without a name; blocks that were given back are used again.

    `folder` is where the file lies; empty takes the system's place for temporary files.
    """

    def __init__(self, folder: str = '') -> None:
        self._folder = folder or None
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: list[tuple[int, int]] = []  # size, offset

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._end

    def write(self, data: bytes) -> tuple[int, int]:
        """Store bytes; returns their offset and the room taken. Raises OSError (no room, no permission)."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix='dark3r.', dir=self._folder, buffering=0)  # noqa: SIM115
        fitting = min((block for block in self._free if block[0] >= len(data)), default=None)
        if fitting is not None:
            room, offset = fitting
        else:
            room, offset = len(data), self._end
        self._file.seek(offset)
        if self._file.write(data) != len(data):
            raise OSError('the disk is full')
        if fitting is not None:
            self._free.remove(fitting)
        self._end = max(self._end, offset + room)
        return offset, room

    def read(self, offset: int, length: int) -> bytes:
        """Bytes stored at an offset. Raises OSError."""
        if self._file is None:
            raise OSError('nothing is stored')
        self._file.seek(offset)
        return self._file.read(length)

    def release(self, offset: int, room: int) -> None:
        """Let the room of a block be used again."""
        self._free.append((room, offset))

    def close(self) -> None:
        """Give everything back."""
        if self._file is not None:
            self._file.close()
        self._file, self._end, self._free = None, 0, []


@dataclass(frozen=True, eq=False)
class ScratchFeatures:
    """Features of one keyframe in a scratch file."""

    scratch: ScratchFile
    offset: int
    room: int
    length: int
    kind: type
    device: torch.device | str

    @classmethod
    def write(cls, scratch: ScratchFile, features: Features) -> ScratchFeatures:
        """Store features. Raises OSError."""
        data = pack(features)
        devices = [value.device for value in vars(features).values() if isinstance(value, torch.Tensor)]
        offset, room = scratch.write(data)
        return cls(scratch, offset, room, len(data), type(features), devices[0] if devices else 'cpu')

    def read(self) -> Features | None:
        """Read them back; None when the disk fails."""
        try:
            data = self.scratch.read(self.offset, self.length)
            return unpack(data, self.device, {self.kind.__name__: self.kind})
        except (OSError, DataError):
            return None

    def release(self) -> None:
        """Give the room back."""
        self.scratch.release(self.offset, self.room)
