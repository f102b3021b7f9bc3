# SPDX-License-Identifier: Apache-2.0
"""Finished pairs on disk: appended one by one, so that a run that was killed goes on where it stood.

A file is a line of JSON that says what it belongs to, then records: length and CRC-32 of the body, little-endian, and
the body, which is a few numbers and the raw arrays. A record that was cut off is dropped with all behind it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.storage.files import output_error

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


def unpack(body: bytes) -> tuple[Pair, VerifiedPair | None]:
    """Reverse of `pack`."""
    first, second, count, star, tried, parallax, *pose = _FIXED.unpack_from(body)
    if count < 0:
        return (first, second), None
    offset = _FIXED.size
    arrays = []
    for kind, width in (('<f4', 2), ('<f4', 2), ('<i4', 1), ('<i4', 1), ('<f4', 1), ('u1', 1)):
        array = np.frombuffer(body, kind, count * width, offset)
        offset += array.nbytes
        arrays.append(array)
    return (first, second), VerifiedPair(
        first,
        second,
        arrays[0].reshape(-1, 2).astype(np.float64),
        arrays[1].reshape(-1, 2).astype(np.float64),
        arrays[2].astype(np.int64),
        arrays[3].astype(np.int64),
        bool(star),
        arrays[4].astype(np.float64),
        arrays[5].astype(bool),
        np.array(pose).reshape(4, 4),
        parallax,
        tried,
    )


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
        """All finished pairs of this run."""
        for path in sorted(self._folder.glob('pairs-*.bin')):
            with path.open('rb') as file:
                if file.readline() == self._line:
                    for body in _bodies(file):
                        yield unpack(body)


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
