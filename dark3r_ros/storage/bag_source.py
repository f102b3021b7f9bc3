# SPDX-License-Identifier: Apache-2.0
"""Frames and odometry of a bag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import CalibrationError, DataError, EncodingError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.camera_info import camera_from_info, roi_offset
from dark3r_ros.raw.decode import DecodeOptions, FrameDecoder
from dark3r_ros.storage.bag_reader import BagMessage, BagReader
from dark3r_ros.storage.ros_messages import (
    CAMERA_INFO,
    IMAGE,
    ODOMETRY,
    deserialize,
    message_stamp_ns,
    serialized_stamp_ns,
)
from dark3r_ros.storage.selection import Selection, spread
from dark3r_ros.types import Float64Array, Frame

_COMPRESSED = 'sensor_msgs/msg/CompressedImage'

_BROKEN = 'image messages are cut or broken and left out'

# Intrinsics of the image, and the offset of its top-left pixel within the full sensor.
_Calibration = tuple[Camera | None, tuple[int, int]]
_Levels = tuple[tuple[float, float, float], float]


@dataclass(frozen=True, eq=False)
class OdometryTrack:
    """Odometry of a bag: stamps (N,) ns, world_from_body (N, 4, 4), velocities (N, 3) in the body, frame names."""

    stamps_ns: NDArray[np.int64]
    world_from_body: Float64Array
    linear: Float64Array
    angular: Float64Array
    frame_id: str
    child_frame_id: str
    warnings: tuple[str, ...] = ()


class BagSource:
    """Frames of one image topic, each with the camera that its CameraInfo topic states at that time.

    The first CameraInfo is looked for ahead, wherever it stands in the bag, and serves the frames before it. Frames
    whose message is cut are left out and counted, and so is, after the first good frame, what suddenly has another
    size or encoding; stamps that repeat or go back are handed on and counted.
    """

    def __init__(
        self,
        path: Path,
        image_topic: str = '',
        info_topic: str = '',
        decode: DecodeOptions | None = None,
        selection: Selection | None = None,
        camera: Camera | None = None,
    ) -> None:
        self._reader = BagReader(path)
        self._decode = DecodeOptions() if decode is None else decode
        self._selection = Selection() if selection is None else selection
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []
        self._decoder = FrameDecoder(self._decode)
        self.image_topic = self._find_image_topic(image_topic)
        self.info_topic = '' if camera is not None else self._find_info_topic(info_topic)
        self._first: _Calibration = (camera, (0, 0)) if camera is not None else self._look_ahead()

    def _find_image_topic(self, name: str) -> str:
        try:
            return self._reader.find_topic(IMAGE, name)
        except DataError as error:
            compressed = [topic.name for topic in self._reader.topics if topic.type == _COMPRESSED]
            if compressed and not any(topic.type == IMAGE for topic in self._reader.topics):
                raise EncodingError(
                    f'{self._reader.path} holds only compressed images ({", ".join(compressed)}): '
                    'compression destroys raw values, record the raw image topic'
                ) from error
            raise

    def _find_info_topic(self, name: str) -> str:
        infos = [topic.name for topic in self._reader.topics if topic.type == CAMERA_INFO and topic.count]
        beside = self.image_topic.rsplit('/', 1)[0] + '/camera_info'
        if name:
            return self._reader.find_topic(CAMERA_INFO, name, '--info-topic')
        if beside in infos:
            return beside
        if infos:
            return self._reader.find_topic(CAMERA_INFO, '', '--info-topic')
        self._notes.append('the bag holds no CameraInfo: give the intrinsics as a cameras.json')
        return ''

    def _look_ahead(self) -> _Calibration:
        if self.info_topic:
            for message in self._reader.messages([self.info_topic]):
                return self._calibration(message)
        return None, (0, 0)

    def _calibration(self, message: BagMessage) -> _Calibration:
        info = deserialize(message.data, CAMERA_INFO)
        try:
            return camera_from_info(info, self._decode.sensor_binning), roi_offset(info)
        except CalibrationError as error:
            raise CalibrationError(f'{self._reader.path}, {message.topic}: {error}') from error

    @property
    def camera(self) -> Camera | None:
        """Camera of the first frame, or None where the bag has no CameraInfo."""
        return self._first[0]

    @property
    def warnings(self) -> list[str]:
        """What was lost, mislabelled or assumed so far."""
        counted = [f'{count} {text}' for text, count in self._counts.items()]
        everything = [*self._reader.warnings, *self._notes, *self._decoder.warnings, *counted]
        return list(dict.fromkeys(everything))

    def __len__(self) -> int:
        total = next(topic.count for topic in self._reader.topics if topic.name == self.image_topic)
        span_s = (self._reader.end_ns - self._reader.start_ns) / 1e9
        if span_s > 0 and (self._selection.start or self._selection.duration):
            left = max(0.0, span_s - self._selection.start)
            taken = min(left, self._selection.duration) if self._selection.duration else left
            total = min(total, round(total * taken / span_s))
        return -(-total // self._selection.stride)

    def close(self) -> None:
        """Close the bag."""
        self._reader.close()

    def __iter__(self) -> Iterator[Frame]:
        self._counts.clear()
        options, levels = self._options()
        self._decoder = FrameDecoder(options)
        calibration, cursor, given = self._first, self._selection.cursor(), 0
        previous: int | None = None
        failure: DataError | None = None
        for message in self._reader.messages([topic for topic in (self.image_topic, self.info_topic) if topic]):
            try:
                if message.topic == self.info_topic:
                    calibration = self._calibration(message)
                    continue
                stamp = serialized_stamp_ns(message.data)
                if not cursor.takes(stamp):
                    if cursor.finished:
                        break
                    continue
                frame = self._frame(message, stamp, calibration, levels)
            except (EncodingError, CalibrationError) as error:
                self._refuse(error, given > 0)
                continue
            except DataError as error:
                failure = error
                self._counts[_BROKEN] += 1
                continue
            self._count_order(stamp, previous)
            previous = stamp if previous is None else max(previous, stamp)
            given += 1
            yield frame
        if not given:
            raise failure or DataError(f'{self._reader.path}: no frame is left after start, duration and stride')

    def sample(self, count: int) -> Iterator[Frame]:
        """At most `count` frames, evenly spread over the whole bag; broken ones are left out and counted."""
        options, levels = self._options()
        self._decoder = FrameDecoder(options)
        given = 0
        for message in self._sampled_messages(count):
            try:
                frame = self._frame(message, serialized_stamp_ns(message.data), self._first, levels)
            except (EncodingError, CalibrationError) as error:
                self._refuse(error, given > 0)
                continue
            except DataError:
                self._counts[_BROKEN] += 1
                continue
            given += 1
            yield frame

    def _refuse(self, error: EncodingError | CalibrationError, underway: bool) -> None:
        """Raise what is wrong from the start; once frames were handed on, a message less must not cost them."""
        if not underway:
            raise error
        self._counts[f'messages are left out: {error}'] += 1

    def _sampled_messages(self, count: int) -> Iterator[BagMessage]:
        if self._reader.indexed:
            times = self.log_times_ns
            for index in spread(len(times), count):
                time = int(times[index])
                yield from islice(self._reader.messages([self.image_topic], time, time + 1), 1)
            return
        total = next(topic.count for topic in self._reader.topics if topic.name == self.image_topic)
        chosen = set(spread(total, count))
        for index, message in enumerate(self._reader.messages([self.image_topic])):
            if index in chosen:
                yield message

    @property
    def reader(self) -> BagReader:
        """The bag behind the frames."""
        return self._reader

    @property
    def log_times_ns(self) -> NDArray[np.int64]:
        """Times at which the images were recorded."""
        return self._reader.log_times().get(self.image_topic, np.zeros(0, np.int64))

    @property
    def stamps_ns(self) -> NDArray[np.int64]:
        """Header stamps of all images; reads the whole bag."""
        messages = self._reader.messages([self.image_topic])
        return np.array([serialized_stamp_ns(item.data) for item in messages if len(item.data) >= 12], dtype=np.int64)

    def _count_order(self, stamp: int, previous: int | None) -> None:
        if previous is not None and stamp == previous:
            self._counts['images repeat the stamp before them'] += 1
        elif previous is not None and stamp < previous:
            self._counts['images go back in time'] += 1

    def _options(self) -> tuple[DecodeOptions, _Levels | None]:
        """Decoding options completed by the levels that the bag's own metadata states."""
        stated = self._reader.levels.get(self.image_topic)
        options = self._decode
        if stated is None or options.black_level >= 0 or options.white_level >= 0:
            return options, None
        black, white = [float(value) for value in stated['black_level']], float(stated['white_level'])
        options = replace(options, black_level=min(black), white_level=white)
        if options.alignment == 'auto' and not options.significant_bits:
            options = replace(options, alignment='lsb', significant_bits=max(8, int(white).bit_length()))
        return options, ((black[0], black[1], black[2]), white)

    def _frame(self, message: BagMessage, stamp_ns: int, calibration: _Calibration, levels: _Levels | None) -> Frame:
        camera, offset = calibration
        try:
            frame = self._decoder.decode(deserialize(message.data, IMAGE), stamp_ns, camera, roi_offset=offset)
        except (EncodingError, CalibrationError) as error:
            raise type(error)(f'{self._reader.path}, {message.topic}: {error}') from error
        if levels is not None and not frame.processed:
            frame = replace(frame, black_level=levels[0], white_level=levels[1])
        return frame


def read_odometry(path: Path | str, topic: str = '') -> OdometryTrack:
    """Read nav_msgs/Odometry of a bag, axes as recorded; values that are not finite are left out and counted.

    DataError lists the topics when there is no odometry or more than one.
    """
    stamps: list[int] = []
    poses: list[Float64Array] = []
    linear: list[tuple[float, float, float]] = []
    angular: list[tuple[float, float, float]] = []
    frames, dropped = ('', ''), 0
    with BagReader(path) as reader:
        name = reader.find_topic(ODOMETRY, topic, '--odom-topic')
        for raw in reader.messages([name]):
            message = deserialize(raw.data, ODOMETRY)
            frames = message.header.frame_id, message.child_frame_id
            position, rotation = message.pose.pose.position, message.pose.pose.orientation
            velocity, rate = message.twist.twist.linear, message.twist.twist.angular
            quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
            vectors = [(item.x, item.y, item.z) for item in (position, velocity, rate)]
            if not np.isfinite([*quaternion, *np.ravel(vectors)]).all() or np.linalg.norm(quaternion) < 0.5:
                dropped += 1
                continue
            stamps.append(message_stamp_ns(message))
            poses.append(se3.from_quaternion(quaternion, vectors[0]))
            linear.append(vectors[1])
            angular.append(vectors[2])
        warnings = [*reader.warnings]
    if dropped:
        warnings.append(f'{dropped} odometry messages of {name} hold NaN or no rotation and are left out')
    if not stamps:
        raise DataError(f'{path}: no odometry message of {name} is usable')
    return OdometryTrack(
        np.array(stamps, dtype=np.int64), np.stack(poses), np.array(linear), np.array(angular), *frames, tuple(warnings)
    )
