# SPDX-License-Identifier: Apache-2.0
"""Writing rosbag2 bags without a ROS installation."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from dark3r_ros.errors import OutputError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage import ros_messages
from dark3r_ros.storage.files import check_target, output_error, swap_in
from dark3r_ros.types import Frame

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, Qos

IMAGE_TOPIC = '/camera/image_raw'
INFO_TOPIC = '/camera/camera_info'
ODOM_TOPIC = '/odom'

# Key of the bag's own metadata under which the levels lie that sensor_msgs/Image cannot carry.
LEVELS_KEY = 'dark3r_levels'

QOS_RELIABLE = 'reliable'
QOS_SENSOR = 'sensor'
QOS_LATCHED = 'latched'

# A killed writer loses at most so many messages of an sqlite3 bag; mcap is flushed chunk by chunk anyway.
_COMMIT_EVERY = 20


def qos_profile(name: str) -> Qos:
    """Quality of service recorded for a topic: reliable (depth 10), sensor (best effort, 5), latched (depth 1)."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    depth, reliability, durability = {
        QOS_RELIABLE: (10, QosReliability.RELIABLE, QosDurability.VOLATILE),
        QOS_SENSOR: (5, QosReliability.BEST_EFFORT, QosDurability.VOLATILE),
        QOS_LATCHED: (1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL),
    }[name]
    forever = QosTime(9223372036, 854775807)  # what rosbag2 writes for "no limit"
    return Qos(
        QosHistory.KEEP_LAST, depth, reliability, durability, forever, forever, QosLiveliness.AUTOMATIC, forever, False
    )


class BagWriter:
    """Write a bag folder as a context manager; the bag appears under its name only when it is complete.

    While it is written, and after a crash, it lies in `NAME.partial/NAME`, which `BagReader` can read up to the end
    of the last complete chunk. Each message is recorded at its header stamp.

    Parameters
    ----------
    path: the bag folder to create.
    storage: `mcap` or `sqlite3`.
    overwrite: replace a bag of that name once the new one is complete.
    compress: compress mcap chunks with zstd (about a third of the speed, half the size for dark frames).

    Raises OutputError when the place cannot be written, also in the middle (full disk).

    """

    def __init__(
        self, path: Path | str, storage: str = 'mcap', *, overwrite: bool = False, compress: bool = False
    ) -> None:
        ros_messages.typestore()
        if storage not in ('mcap', 'sqlite3'):
            raise OutputError(f'bag storage {storage!r} is not one of mcap, sqlite3')
        self.path = Path(os.path.abspath(path))
        self._overwrite = overwrite
        self._connections: dict[str, Connection] = {}
        self._levels: dict[str, Any] = {}
        self.message_count = 0
        check_target(self.path, overwrite=overwrite, marker='metadata.yaml')
        self._partial = self._free_partial_folder()
        self._open(storage, compress)

    def _free_partial_folder(self) -> Path:
        """First unused name: what an interrupted run left behind is not touched."""
        for number in range(1, 1000):
            folder = self.path.with_name(f'{self.path.name}.partial' + ('' if number == 1 else f'-{number}'))
            if not folder.exists():
                return folder
        raise OutputError(f'{self.path.name}.partial* in {self.path.parent}: too many unfinished bags, delete them')

    def _open(self, storage: str, compress: bool) -> None:
        from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

        plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
        self._storage = storage
        try:
            self._partial.mkdir(parents=True)
            self._writer = Writer(self._partial / self.path.name, version=9, storage_plugin=plugin)
            if compress and storage == 'mcap':
                self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
            self._writer.open()
        except OSError as error:
            with suppress(OSError):
                self._partial.rmdir()
            raise output_error(self.path, error) from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def close(self) -> None:
        """Finish the bag and give it its name."""
        try:
            if self._levels:
                self._writer.set_custom_data(LEVELS_KEY, json.dumps(self._levels))
            if not self.message_count:
                # rosbags would write the time 2^63, which rosbag2 refuses, into an empty bag.
                self._writer.min_timestamp = self._writer.max_timestamp = 0
            self._writer.close()
            swap_in(self._partial / self.path.name, self.path)
            self._partial.rmdir()
        except Exception as error:
            self.abort()
            raise self._failure(error) from error

    def abort(self) -> None:
        """Stop without finishing; messages already written stay readable in the `.partial` folder."""
        with suppress(Exception):
            if self._storage == 'sqlite3' and self._writer.storage is not None:
                self._commit()
            self._writer.abort()
        if not self.message_count:
            shutil.rmtree(self._partial, ignore_errors=True)

    def discard(self) -> None:
        """Stop and delete what was written."""
        self.message_count = 0
        self.abort()

    def _failure(self, error: Exception) -> Exception:
        import sqlite3

        if isinstance(error, OSError):
            cause = output_error(self.path, error)
        elif isinstance(error, sqlite3.OperationalError):  # how sqlite3 reports a full disk
            cause = OutputError(f'cannot write {self.path}: {error}')
        else:
            return error
        return OutputError(f'{cause}; {self.message_count} messages are kept in {self._partial}')

    def _commit(self) -> None:
        connection = getattr(self._writer.storage, 'conn', None)
        if connection is not None:
            connection.commit()

    def write_message(self, topic: str, message: Any, stamp_ns: int, qos: str = QOS_RELIABLE) -> None:
        """Write any message built by `ros_messages`; `qos` is recorded with the first one of a topic."""
        try:
            connection = self._connections.get(topic)
            if connection is None:
                connection = self._connections[topic] = self._writer.add_connection(
                    topic,
                    message.__msgtype__,
                    typestore=ros_messages.typestore(),
                    offered_qos_profiles=[qos_profile(qos)],
                )
            self._writer.write(connection, int(stamp_ns), ros_messages.serialize(message))
            self.message_count += 1
            if self._storage == 'sqlite3' and self.message_count % _COMMIT_EVERY == 0:
                self._commit()
        except Exception as error:
            failure = self._failure(error)
            if failure is error:
                raise
            raise failure from error

    def write_frame(self, frame: Frame, topic: str = IMAGE_TOPIC, *, bits: int = 16, qos: str = QOS_SENSOR) -> None:
        """Write the mosaic as sensor_msgs/Image at its stamp; its levels go into the bag's metadata."""
        if topic not in self._levels:
            self._levels[topic] = {'black_level': list(frame.black_level), 'white_level': frame.white_level}
        self.write_message(topic, ros_messages.image_message(frame, bits), frame.stamp_ns, qos)

    def write_camera_info(
        self, camera: Camera, stamp_ns: int, frame_id: str = '', topic: str = INFO_TOPIC, *, qos: str = QOS_SENSOR
    ) -> None:
        """Write the intrinsics as sensor_msgs/CameraInfo."""
        self.write_message(topic, ros_messages.camera_info_message(camera, stamp_ns, frame_id), stamp_ns, qos)

    def write_odometry(self, stamp_ns: int, world_from_body: ArrayLike, topic: str = ODOM_TOPIC, **fields: Any) -> None:
        """Write nav_msgs/Odometry; `fields` as in `ros_messages.odometry_message`, axes as the caller gives them."""
        self.write_message(topic, ros_messages.odometry_message(stamp_ns, world_from_body, **fields), stamp_ns)

    def write_static_transforms(self, stamp_ns: int, transforms: list[tuple[str, str, ArrayLike]]) -> None:
        """Write /tf_static from (parent, child, parent_from_child (4, 4)) triples."""
        message = ros_messages.transforms_message(stamp_ns, transforms)
        self.write_message('/tf_static', message, stamp_ns, QOS_LATCHED)
