# SPDX-License-Identifier: Apache-2.0
"""Reading rosbag2 bags (mcap, sqlite3; folders and single files), healthy or damaged."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, DependencyError
from dark3r_ros.storage import ros_messages
from dark3r_ros.storage.bag_writer import LEVELS_KEY
from dark3r_ros.storage.salvage import McapSalvage, RawMessage, SqliteSalvage, mcap_log_times, wanted

BagMessage = RawMessage
STORAGE_SUFFIXES = ('.mcap', '.db3')


@dataclass(frozen=True)
class TopicSummary:
    """One topic of a bag: its name, ROS type, number of readable messages and recorded quality of service."""

    name: str
    type: str
    count: int
    qos: str = ''


def natural_key(name: str) -> tuple[Any, ...]:
    """Sort key that puts `bag_10` after `bag_9`."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name))


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: a storage file, or a folder that holds one or a metadata.yaml."""
    if path.is_file():
        return path.name.removesuffix('.zstd').endswith(STORAGE_SUFFIXES)
    return path.is_dir() and ((path / 'metadata.yaml').is_file() or bool(storage_files(path)))


def storage_files(folder: Path) -> list[Path]:
    """Storage files of a bag folder in natural order."""
    found = [item for item in folder.iterdir() if item.name.removesuffix('.zstd').endswith(STORAGE_SUFFIXES)]
    return sorted(found, key=lambda item: natural_key(item.name))


def _checked_metadata(document: Any) -> dict[str, Any]:
    """Bag information of a parsed metadata.yaml; KeyError, TypeError or ValueError where its shape is wrong."""
    information = document['rosbag2_bagfile_information']
    if not isinstance(information, dict) or not isinstance(information['relative_file_paths'], list):
        raise ValueError('it does not describe a bag')
    if not isinstance(information.get('topics_with_message_count') or [], list):
        raise ValueError('its list of topics is broken')
    return information


class _Part:
    """One storage file: through rosbags while it is sound, through `salvage` from where it is not."""

    def __init__(self, path: Path, warnings: list[str]) -> None:
        self.path = path
        self._warnings = warnings
        self.topics: list[TopicSummary] = []
        self._reader: Any = None
        self.start_ns, self.end_ns = 2**63 - 1, 0
        if path.stat().st_size == 0:
            raise DataError(f'{path} is an empty file')
        try:
            self._open()
        except Exception as error:  # rosbags lets assertion, index, struct and unicode errors through
            self._reader = None
            self._survey(error)

    def _open(self) -> None:
        from rosbags.rosbag2 import Reader

        reader = Reader(self.path)
        reader.open()
        self._reader = reader
        self.start_ns, self.end_ns = reader.start_time, reader.end_time
        counts: Counter[str] = Counter()
        for connection in reader.connections:
            counts[connection.topic] += connection.msgcount
        for connection in {item.topic: item for item in reader.connections}.values():
            qos = '; '.join(_qos_text(item) for item in getattr(connection.ext, 'offered_qos_profiles', ())[:1])
            self.topics.append(TopicSummary(connection.topic, connection.msgtype, counts[connection.topic], qos))

    def _salvage(self) -> McapSalvage | SqliteSalvage:
        return McapSalvage(self.path) if self.path.suffix == '.mcap' else SqliteSalvage(self.path)

    def _survey(self, cause: Exception) -> None:
        """Count what a damaged file still holds."""
        scan = self._salvage()
        counts: Counter[tuple[str, str]] = Counter()
        for message in scan.messages():
            counts[message.topic, message.type] += 1
            self.start_ns, self.end_ns = min(self.start_ns, message.log_ns), max(self.end_ns, message.log_ns + 1)
        self.topics = [TopicSummary(name, kind, count) for (name, kind), count in sorted(counts.items())]
        reason = scan.damage or str(cause)
        self._warnings.append(
            f'{self.path.name} is damaged ({reason}); {sum(counts.values())} messages before the damage are used'
            + _broken(scan)
        )

    def messages(
        self, topics: Collection[str] | None, start_ns: int | None, stop_ns: int | None
    ) -> Iterator[RawMessage]:
        if self._reader is None:
            yield from _between(wanted(self._salvage().messages(), topics), start_ns, stop_ns)
            return
        chosen = [item for item in self._reader.connections if topics is None or item.topic in topics]
        if not chosen:
            return
        expected, given = sum(item.msgcount for item in chosen), 0
        last = -1
        at_last: set[str] = set()
        try:
            for connection, log_ns, data in self._reader.messages(chosen, start_ns, stop_ns):
                at_last = {*(at_last if log_ns == last else ()), connection.topic}
                last = log_ns
                given += 1
                yield RawMessage(connection.topic, connection.msgtype, log_ns, bytes(data))
            return
        except Exception as error:  # see _open
            reason = str(error) or type(error).__name__
        scan = self._salvage()
        for message in _between(wanted(scan.messages(), topics), start_ns, stop_ns):
            if message.log_ns > last or (message.log_ns == last and message.topic not in at_last):
                given += 1
                yield message
        whole = start_ns is None and stop_ns is None
        lost = f'{expected - given} of {expected} messages are lost' if whole else 'messages are lost'
        self._warnings.append(f'{self.path.name} is damaged ({reason}): {lost}{_broken(scan)}')

    @property
    def sound(self) -> bool:
        return self._reader is not None

    def log_times(self) -> dict[str, list[int]]:
        if self._reader is not None and self.path.suffix == '.mcap' and (times := mcap_log_times(self.path)):
            return times
        if self._reader is not None and self.path.suffix == '.db3':
            query = 'SELECT topics.name, timestamp FROM messages JOIN topics ON topic_id = topics.id ORDER BY timestamp'
            with sqlite3.connect(f'file:{self.path}?mode=ro&immutable=1', uri=True) as connection:
                rows: Any = connection.execute(query).fetchall()
        else:
            rows = ((message.topic, message.log_ns) for message in self.messages(None, None, None))
        result: dict[str, list[int]] = {}
        for topic, stamp in rows:
            result.setdefault(topic, []).append(stamp)
        return result

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


def _broken(scan: McapSalvage | SqliteSalvage) -> str:
    if isinstance(scan, McapSalvage):
        return f'; {scan.broken_chunks} unreadable chunks left out' if scan.broken_chunks else ''
    return f'; {scan.broken_rows} unreadable rows left out' if scan.broken_rows else ''


def _between(messages: Iterator[RawMessage], start_ns: int | None, stop_ns: int | None) -> Iterator[RawMessage]:
    for message in messages:
        if (start_ns is None or message.log_ns >= start_ns) and (stop_ns is None or message.log_ns < stop_ns):
            yield message


def _qos_text(profile: Any) -> str:
    words = [profile.reliability.name, profile.durability.name, f'{profile.history.name} {profile.depth}']
    return ', '.join(word.lower().replace('_', ' ') for word in words)


class BagReader:
    """Read a bag folder or a single storage file, as a context manager or until `close`.

    Damaged files are read up to the damage (an mcap also behind broken chunks); `warnings` says what was lost.
    Memory stays constant however long the bag is. Raises DataError when nothing can be read.

    Attributes
    ----------
    topics: what can be read, by name.
    warnings: one sentence each; grows while damaged messages are met.
    start_ns, end_ns: first and last recording time (exclusive); 0, 0 for an empty bag.

    """

    def __init__(self, path: Path | str) -> None:
        ros_messages.typestore()
        self.path = Path(path)
        self.warnings: list[str] = []
        self._metadata: dict[str, Any] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[_Part] = []
        if not self.path.exists():
            raise DataError(f'{self.path} does not exist')
        files = [self.path] if self.path.is_file() else self._folder_files()
        failures = []
        for file in files:
            try:
                self._parts.append(_Part(self._decompressed(file), self.warnings))
            except (DataError, OSError) as error:
                failures.append(str(error))
        if not self._parts:
            raise DataError(f'{self.path} is not a readable bag: {"; ".join(failures)}')
        self.warnings += [f'left out: {failure}' for failure in failures]
        self.topics = self._merge_topics()
        self.start_ns = min(part.start_ns for part in self._parts)
        self.end_ns = max(part.end_ns for part in self._parts)
        if not any(topic.count for topic in self.topics):
            self.start_ns = self.end_ns = 0
        self._compare_with_metadata()

    def _folder_files(self) -> list[Path]:
        present = storage_files(self.path)
        import yaml  # here, so that training on folders of images works where only bags would need it

        metadata = self.path / 'metadata.yaml'
        try:
            self._metadata = _checked_metadata(yaml.safe_load(metadata.read_text()))
            listed = [self.path / Path(name).name for name in self._metadata['relative_file_paths']]
        except FileNotFoundError:
            self.warnings.append('metadata.yaml is missing; the storage files are read in the order of their names')
            listed = present
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            self._metadata = {}
            reason = ' '.join(str(error).split())
            self.warnings.append(f'metadata.yaml is unreadable ({reason}); storage files are read by name')
            listed = present
        for missing in [item for item in listed if not item.exists()]:
            self.warnings.append(f'{missing.name} is missing from the bag')
        files = [item for item in listed if item.exists()]
        if not files:
            raise DataError(f'{self.path} holds no readable bag: no .mcap or .db3 file is there')
        return files

    def _decompressed(self, file: Path) -> Path:
        """Unpack a file-compressed storage file into a temporary folder, as far as it goes."""
        if file.suffix != '.zstd':
            return file
        try:
            import zstandard
        except ImportError as error:
            raise DependencyError(f'{file.name} is compressed: pip install "dark3r_ros[bags]"') from error
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix='dark3r_bag_')
        target = Path(self._temporary.name) / file.stem
        with file.open('rb') as source, target.open('wb') as sink:
            try:
                shutil.copyfileobj(zstandard.ZstdDecompressor().stream_reader(source), sink, 1 << 20)
            except zstandard.ZstdError as error:
                self.warnings.append(f'{file.name} cannot be decompressed to its end ({error})')
        return target

    def _merge_topics(self) -> tuple[TopicSummary, ...]:
        merged: dict[str, TopicSummary] = {}
        for topic in (topic for part in self._parts for topic in part.topics):
            before = merged.get(topic.name)
            count = topic.count + (before.count if before else 0)
            merged[topic.name] = TopicSummary(topic.name, topic.type, count, topic.qos)
        return tuple(merged[name] for name in sorted(merged))

    def _compare_with_metadata(self) -> None:
        """Say how many messages the metadata promises beyond what the files hold."""
        counts = {topic.name: topic.count for topic in self.topics}
        for entry in self._metadata.get('topics_with_message_count') or ():
            try:
                name, expected = entry['topic_metadata']['name'], int(entry['message_count'])
            except (KeyError, TypeError, ValueError):
                continue
            if (lost := expected - counts.get(name, 0)) > 0:
                self.warnings.append(f'{lost} of {expected} messages of {name} are lost')

    @property
    def levels(self) -> dict[str, dict[str, Any]]:
        """Black and white levels by image topic, where the bag was written by this package."""
        try:
            stated = json.loads((self._metadata.get('custom_data') or {})[LEVELS_KEY])
            return {
                str(topic): {
                    'black_level': [float(v) for v in item['black_level']],
                    'white_level': float(item['white_level']),
                }
                for topic, item in stated.items()
                if len(item['black_level']) == 3
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            return {}

    def __enter__(self) -> BagReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and delete what was unpacked."""
        for part in self._parts:
            part.close()
        self._parts = []
        if self._temporary is not None:
            self._temporary.cleanup()

    def messages(
        self, topics: Collection[str] | None = None, start_ns: int | None = None, stop_ns: int | None = None
    ) -> Iterator[BagMessage]:
        """Messages of the topics (default all) recorded in [start_ns, stop_ns), in order of recording."""
        packed = str(self._metadata.get('compression_mode', '')).lower() == 'message'
        for part in self._parts:
            for message in part.messages(topics, start_ns, stop_ns):
                yield message._replace(data=self._unpacked(message.data)) if packed else message

    def _unpacked(self, data: bytes) -> bytes:
        try:
            import zstandard
        except ImportError as error:
            raise DependencyError('the messages are compressed: pip install "dark3r_ros[bags]"') from error
        try:
            with zstandard.ZstdDecompressor().stream_reader(data) as stream:
                return stream.read()
        except zstandard.ZstdError as error:
            raise DataError(f'{self.path}: a compressed message cannot be unpacked ({error})') from error

    @property
    def indexed(self) -> bool:
        """Whether every file is sound, so that `messages` finds a time window without reading all before it."""
        return all(part.sound for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Size of the storage files (unpacked ones where they were compressed)."""
        return sum(part.path.stat().st_size for part in self._parts)

    def log_times(self) -> dict[str, NDArray[np.int64]]:
        """Recording times of every message by topic; reads the indices only, where there are any."""
        times: dict[str, list[int]] = {}
        for part in self._parts:
            for topic, values in part.log_times().items():
                times.setdefault(topic, []).extend(values)
        return {topic: np.array(values, dtype=np.int64) for topic, values in times.items()}

    def describe_topics(self) -> str:
        """List the topics in one line for error messages."""
        return ', '.join(f'{topic.name} ({topic.type}, {topic.count})' for topic in self.topics) or 'none'

    def find_topic(self, type_name: str, wanted_name: str = '', option: str = '--image-topic') -> str:
        """Name of the topic of a type: the named one, or the only one with messages. DataError lists what there is."""
        short = type_name.rsplit('/', 1)[-1]
        if wanted_name:
            for topic in self.topics:
                if topic.name.lstrip('/') == wanted_name.lstrip('/'):
                    if topic.type != type_name:
                        raise DataError(f'{self.path}: topic {topic.name} is {topic.type}, not {type_name}')
                    return topic.name
            raise DataError(f'{self.path} has no topic {wanted_name}; topics: {self.describe_topics()}')
        if not any(topic.count for topic in self.topics):
            raise DataError(f'{self.path} is empty: it holds no message; topics: {self.describe_topics()}')
        found = [topic.name for topic in self.topics if topic.type == type_name and topic.count]
        if not found:
            raise DataError(f'{self.path} holds no {short} message; topics: {self.describe_topics()}')
        if len(found) > 1:
            raise DataError(f'{self.path} holds several {short} topics: {", ".join(found)}; choose one with {option}')
        return found[0]
