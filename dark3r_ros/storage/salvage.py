# SPDX-License-Identifier: Apache-2.0
"""Reading what is left of damaged bag files: an mcap without footer or with broken chunks, a broken sqlite3 database.

The mcap records are walked in file order (https://mcap.dev/spec), so that neither index nor footer is needed.
"""

from __future__ import annotations

import io
import sqlite3
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dark3r_ros.errors import DataError, DependencyError

MAGIC = b'\x89MCAP0\r\n'
_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _DATA_END = 0x03, 0x04, 0x05, 0x06, 0x07, 0x0F
_PLAIN_RECORDS = range(0x01, 0x10)
_CHUNK_HEADER = struct.Struct('<QQQI')
# Rows probed one by one behind a break of an sqlite3 table before giving up.
_MAX_FAILED_ROWS = 10_000


class RawMessage(NamedTuple):
    """One serialised message and the time it was recorded at."""

    topic: str
    type: str
    log_ns: int
    data: bytes


class Damage(Exception):  # noqa: N818
    """Internal signal: the records cannot be followed any further."""


def _string(data: bytes, offset: int) -> tuple[str, int]:
    (size,) = struct.unpack_from('<I', data, offset)
    if offset + 4 + size > len(data):
        raise Damage('a string exceeds its record')
    return data[offset + 4 : offset + 4 + size].decode(), offset + 4 + size


def _decompress(data: bytes, compression: str) -> bytes:
    """Decompress as far as the data goes."""
    if compression == '':
        return data
    try:
        if compression == 'zstd':
            import zstandard

            return _read_available(zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)))
        if compression == 'lz4':
            import lz4.frame

            return _read_available(lz4.frame.LZ4FrameFile(io.BytesIO(data)))
    except ImportError as error:
        raise DependencyError(f'this bag is compressed with {compression}: pip install "dark3r_ros[bags]"') from error
    raise Damage(f'unknown compression {compression!r}')


def _read_available(stream: BinaryIO) -> bytes:
    parts = []
    try:
        while part := stream.read(1 << 20):
            parts.append(part)
    except Exception as error:  # each decompressor has its own exception for cut or broken data
        if not parts:
            raise Damage(f'a chunk cannot be decompressed ({error})') from error
    return b''.join(parts)


class McapSalvage:
    """Messages of an mcap file in file order, up to where the records break.

    After `messages` is exhausted, `damage` says where the file broke (empty when it did not) and `broken_chunks` how
    many chunks inside were unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ''
        self.broken_chunks = 0
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}

    def _records(self, stream: BinaryIO, end: int) -> Iterator[tuple[int, bytes, int]]:
        """Yield (opcode, content, missing bytes); only a chunk may come incomplete, as the last one."""
        while (position := stream.tell()) < end:
            head = stream.read(9)
            if len(head) < 9 or (head[0] not in _PLAIN_RECORDS and head[0] < 0x80):
                raise Damage(f'no record begins at byte {position}')
            (size,) = struct.unpack_from('<Q', head, 1)
            missing = max(0, position + 9 + size - end)
            if missing and head[0] != _CHUNK:
                raise Damage(f'the data ends inside a record at byte {position}')
            yield head[0], stream.read(size - missing), missing
            if missing:
                raise Damage(f'the data ends inside a chunk at byte {position}')

    def _learn(self, opcode: int, content: bytes) -> None:
        if opcode == _SCHEMA:
            self._schemas[struct.unpack_from('<H', content)[0]] = _string(content, 2)[0]
        elif opcode == _CHANNEL:
            channel, schema = struct.unpack_from('<HH', content)
            self._channels[channel] = (_string(content, 4)[0], self._schemas.get(schema, ''))

    def _message(self, content: bytes) -> RawMessage | None:
        channel, _, log_ns, _ = struct.unpack_from('<HIQQ', content)
        if channel not in self._channels:
            return None
        return RawMessage(*self._channels[channel], log_ns, content[22:])

    def _chunk(self, content: bytes, complete: bool) -> Iterator[RawMessage]:
        _, _, size, crc = _CHUNK_HEADER.unpack_from(content)
        compression, offset = _string(content, _CHUNK_HEADER.size)
        data = _decompress(content[offset + 8 :], compression)
        if complete and (len(data) != size or (crc and zlib.crc32(data) != crc)):
            raise Damage('a chunk fails its checksum')
        for opcode, inner, _ in self._records(io.BytesIO(data), len(data)):
            self._learn(opcode, inner)
            if opcode == _MESSAGE and (message := self._message(inner)) is not None:
                yield message

    def messages(self) -> Iterator[RawMessage]:
        """Every message that can still be read; memory holds one chunk."""
        self.damage, self.broken_chunks = '', 0
        end = self.path.stat().st_size
        with self.path.open('rb') as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise DataError(f'{self.path} is not an mcap file: it does not begin with its magic bytes')
            try:
                for opcode, content, missing in self._records(stream, end):
                    if opcode == _DATA_END:
                        return
                    self._learn(opcode, content)
                    if opcode == _MESSAGE and (message := self._message(content)) is not None:
                        yield message
                    elif opcode == _CHUNK:
                        try:
                            yield from self._chunk(content, not missing)
                        except (Damage, struct.error, UnicodeDecodeError):
                            self.broken_chunks += 0 if missing else 1
                self.damage = 'the file ends before its index'
            except (Damage, struct.error, UnicodeDecodeError) as error:
                self.damage = str(error)


def mcap_log_times(path: Path) -> dict[str, list[int]]:
    """Recording times per topic from the chunks' message indices, without reading the messages of indexed chunks."""
    scan = McapSalvage(path)
    times: dict[int, list[int]] = {}
    end = path.stat().st_size
    with path.open('rb') as stream:
        stream.seek(len(MAGIC))
        while stream.tell() < end:
            head = stream.read(9)
            if len(head) < 9:
                break
            (size,) = struct.unpack_from('<Q', head, 1)
            if head[0] in (_CHUNK, _MESSAGE, _DATA_END):
                stream.seek(size, io.SEEK_CUR)
                continue
            content = stream.read(size)
            scan._learn(head[0], content)
            if head[0] == _MESSAGE_INDEX:
                channel, length = struct.unpack_from('<HI', content)
                entries = struct.unpack_from(f'<{length // 8}Q', content, 6)
                times.setdefault(channel, []).extend(entries[::2])
    names = {channel: scan._channels[channel][0] for channel in times if channel in scan._channels}
    return {name: sorted(times[channel]) for channel, name in names.items()}


class SqliteSalvage:
    """Messages of a damaged sqlite3 bag in the order they were written; rows on broken pages are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage = ''
        self.broken_rows = 0

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f'file:{self.path}?mode=ro&immutable=1', uri=True)
        # Lets sqlite open a file that is shorter than its header says; the connection stays read-only.
        connection.execute('PRAGMA writable_schema=ON')
        return connection

    def messages(self) -> Iterator[RawMessage]:
        """Every message that can still be read; memory holds one message."""
        self.damage, self.broken_rows = '', 0
        connection = self._connect()
        try:
            try:
                rows = connection.execute('SELECT id, name, type FROM topics')
                topics: dict[int, tuple[str, str]] = {row[0]: (row[1], row[2]) for row in rows}
            except sqlite3.DatabaseError as error:
                raise DataError(f'{self.path} is not a readable sqlite3 bag ({error})') from error
            last = 0
            try:
                for row in connection.execute('SELECT id, topic_id, timestamp, data FROM messages ORDER BY id'):
                    last = row[0]
                    if row[1] in topics:
                        yield RawMessage(*topics[row[1]], row[2], row[3])
                return
            except sqlite3.DatabaseError as error:
                self.damage = str(error)
            yield from self._row_by_row(connection, topics, last + 1)
        finally:
            connection.close()

    def _row_by_row(
        self, connection: sqlite3.Connection, topics: dict[int, tuple[str, str]], first: int
    ) -> Iterator[RawMessage]:
        failed = 0
        for number in range(first, 2**62):
            try:
                query = 'SELECT topic_id, timestamp, data FROM messages WHERE id = ?'
                row = connection.execute(query, (number,)).fetchone()
            except sqlite3.DatabaseError:
                row = None
                self.broken_rows += 1
            failed = 0 if row else failed + 1
            if failed > _MAX_FAILED_ROWS:
                return
            if row and row[0] in topics:
                yield RawMessage(*topics[row[0]], row[1], row[2])


def wanted(messages: Iterator[RawMessage], topics: Collection[str] | None) -> Iterator[RawMessage]:
    """Messages of the given topics, or all."""
    return (message for message in messages if topics is None or message.topic in topics)
