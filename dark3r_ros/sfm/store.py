# SPDX-License-Identifier: Apache-2.0
"""Finished pairs on disk: appended one by one, so that a run that was killed goes on where it stood.

A file is a line of JSON that says what it belongs to, then records: length and CRC-32 of the body, little-endian, and
the body, which is a few numbers and the raw arrays. A record that was cut off is dropped with all behind it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.storage.files import output_error

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Pair = tuple[int, int]

_HEAD = struct.Struct('<II')
_FIXED = struct.Struct('<qqqqqd16d')


def pack(pair: Pair, result: VerifiedPair | None) -> bytes:
    """Body of a record; None stands for a pair that was tried in vain."""
    if result is None:
        return _FIXED.pack(*pair, -1, 0, 0, 0.0, *([0.0] * 16))
    fixed = _FIXED.pack(
        *pair,
        len(result),
        int(result.star),
        result.tried,
        result.parallax,
        *result.second_from_first.ravel().tolist(),
    )
    arrays = (
        result.pixels_first.astype('<f4'),
        result.pixels_second.astype('<f4'),
        result.identity_first.astype('<i4'),
        result.identity_second.astype('<i4'),
        result.confidence.astype('<f4'),
        result.agrees.astype('u1'),
    )
    return fixed + b''.join(array.tobytes() for array in arrays)


class _OpenFile:
    """A file that is read at any place, and is closed with the last pair that holds it."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        os.close(self._number)

    def read(self, size: int, offset: int) -> bytes:
        """Bytes of the file from an offset on."""
        return os.pread(self._number, size, offset)


class StoredPair(VerifiedPair):
    """A pair whose arrays stay in the file and are read whenever they are asked for.

    So a pair costs memory of a few hundred bytes, however many there are. The file may be deleted meanwhile.
    """

    def __init__(self, file: _OpenFile, offset: int, fixed: tuple[Any, ...]) -> None:
        first, second, count, star, tried, parallax, *pose = fixed
        values = {
            'first': first,
            'second': second,
            'star': bool(star),
            'second_from_first': np.array(pose).reshape(4, 4),
            'parallax': parallax,
            'tried': tried,
            '_count': count,
            '_file': file,
            '_offset': offset,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return int(self._count)  # type: ignore[attr-defined]

    def _read(self, begin: int, kind: str, width: int) -> NDArray[Any]:
        """Array (N, width) that begins so many bytes a match behind the fixed part."""
        count, size = len(self), np.dtype(kind).itemsize * width
        place = self._offset + _FIXED.size + begin * count  # type: ignore[attr-defined]
        return np.frombuffer(self._file.read(size * count, place), kind, count * width)  # type: ignore[attr-defined]

    @property
    def pixels_first(self) -> Array:  # type: ignore[override]
        """As of every pair."""
        return self._read(0, '<f4', 2).reshape(-1, 2).astype(np.float64)

    @property
    def pixels_second(self) -> Array:  # type: ignore[override]
        """As of every pair."""
        return self._read(8, '<f4', 2).reshape(-1, 2).astype(np.float64)

    @property
    def identity_first(self) -> Index:  # type: ignore[override]
        """As of every pair."""
        return self._read(16, '<i4', 1).astype(np.int64)

    @property
    def identity_second(self) -> Index:  # type: ignore[override]
        """As of every pair."""
        return self._read(20, '<i4', 1).astype(np.int64)

    @property
    def confidence(self) -> Array:  # type: ignore[override]
        """As of every pair."""
        return self._read(24, '<f4', 1).astype(np.float64)

    @property
    def agrees(self) -> NDArray[np.bool_]:  # type: ignore[override]
        """As of every pair."""
        return self._read(28, 'u1', 1).astype(bool)


class PairStore:
    """Pairs of one run in a folder, one file for each process that makes them.

    A file that belongs to another run (`identity` differs) is started anew.
    """

    def __init__(self, folder: Path, identity: dict[str, object], shard: int = 0) -> None:
        self._line = (json.dumps(identity, sort_keys=True) + '\n').encode()
        self._folder = folder
        self.path = folder / f'pairs-{shard}.bin'
        with _explained(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()

    def _open(self) -> FileIO:
        end = self._valid_end(self.path)
        if not end:
            # A new file: pairs of the other run may still be read from the old one.
            self.path.unlink(missing_ok=True)
            self.path.write_bytes(self._line)
            end = len(self._line)
        file = self.path.open('r+b', buffering=0)
        file.truncate(end)
        file.seek(end)
        return file

    def _valid_end(self, path: Path) -> int:
        """Where the last whole record of a file ends; 0 for a file of another run."""
        try:
            with path.open('rb') as file:
                if file.readline() != self._line:
                    return 0
                end = file.tell()
                for body in _bodies(file):
                    end += _HEAD.size + len(body)
                return end
        except OSError:
            return 0

    def add(self, pair: Pair, result: VerifiedPair | None) -> None:
        """Append a pair; it is safe from the end of this process on. OutputError where the disk is full."""
        body = pack(pair, result)
        record = memoryview(_HEAD.pack(len(body), zlib.crc32(body)) + body)
        with _explained(self.path):
            while record:
                record = record[self._file.write(record) or 0 :]

    def close(self) -> None:
        """End writing."""
        self._file.close()

    def done(self) -> set[Pair]:
        """Pairs finished by any process of this run."""
        return {pair for pair, _ in self.read()}

    def read(self) -> Iterator[tuple[Pair, VerifiedPair | None]]:
        """All finished pairs of this run; their arrays stay in the files."""
        for path in sorted(self._folder.glob('pairs-*.bin')):
            with path.open('rb') as file:
                if file.readline() != self._line:
                    continue
                offset, held = file.tell(), _OpenFile(os.dup(file.fileno()))
                for body in _bodies(file):
                    offset += _HEAD.size
                    fixed = _FIXED.unpack_from(body)
                    yield fixed[:2], StoredPair(held, offset, fixed) if fixed[2] >= 0 else None
                    offset += len(body)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def _bodies(file: BinaryIO) -> Iterator[bytes]:
    """Bodies of whole, undamaged records."""
    while True:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        length, check = _HEAD.unpack(head)
        body = file.read(length)
        if len(body) < length or zlib.crc32(body) != check:
            return
        yield body
