# SPDX-License-Identifier: Apache-2.0
"""Files of events that TensorBoard reads, without TensorBoard.

A file is a row of records: length (uint64), its masked CRC-32C, content, the masked CRC-32C of the content. The
content is a protocol buffer `Event` (wall_time 1, step 2, file_version 3, summary 5); a `Summary` repeats `Value` (tag
1, simple_value 2, image 4), an `Image` has height 1, width 2, colorspace 3 and the encoded picture 4.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path

from dark3r_ros.errors import OutputError

_POLYNOMIAL = 0x82F63B78  # of Castagnoli, reflected


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of RFC 3720."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """The checksum as records hold it: turned by 15 bits and shifted by a constant."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    result = b''
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def record(content: bytes) -> bytes:
    """One record of a file of events."""
    length = struct.pack('<Q', len(content))
    return length + struct.pack('<I', masked_crc(length)) + content + struct.pack('<I', masked_crc(content))


class EventWriter:
    """Appends scalars and pictures to a new file of events in a folder; OutputError where it cannot be written."""

    def __init__(self, folder: Path) -> None:
        now = time.time()
        self.path = folder / f'events.out.tfevents.{int(now)}.{time.time_ns() % 10**9:09d}.dark3r'
        self._write(struct.pack('<Bd', 1 << 3 | 1, now) + _bytes(3, b'brain.Event:2'))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers of a step."""
        items = b''.join(
            _bytes(1, _bytes(1, tag.encode()) + struct.pack('<Bf', 2 << 3 | 5, value)) for tag, value in values.items()
        )
        self._event(step, items)

    def picture(self, step: int, tag: str, png: bytes, width: int, height: int) -> None:
        """Add an encoded picture of a step."""
        image = _integer(1, height) + _integer(2, width) + _integer(3, 3) + _bytes(4, png)
        self._event(step, _bytes(1, _bytes(1, tag.encode()) + _bytes(4, image)))

    def _event(self, step: int, summary: bytes) -> None:
        self._write(struct.pack('<Bd', 1 << 3 | 1, time.time()) + _integer(2, step) + _bytes(5, summary))

    def _write(self, content: bytes) -> None:
        try:
            with self.path.open('ab') as file:
                file.write(record(content))
        except OSError as error:
            raise OutputError(f'cannot write the log {self.path}: {error.strerror}') from error
