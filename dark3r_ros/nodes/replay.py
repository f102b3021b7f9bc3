# SPDX-License-Identifier: Apache-2.0
"""Play a bag or a folder of frames over DDS with its own stamps, as a camera would.

A bag's messages leave as they are, byte for byte; frames of a folder become `bayer_*16` images. Playing waits for a
subscriber. DDS cannot make a publisher wait for a slow reader, so `lockstep` looks at the mapping node's ~/status and
stays at most so many frames ahead of it: then nothing is dropped, however slow the machine is.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.node import Node

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.nodes import convert, interface, parameters, qos, runtime
from dark3r_ros.nodes.transforms import TF_STATIC_TOPIC, TF_TOPIC
from dark3r_ros.storage.bag_reader import BagReader, is_bag
from dark3r_ros.storage.ros_messages import CAMERA_INFO, IMAGE, ODOMETRY, TF, deserialize, serialized_stamp_ns
from dark3r_ros.storage.source import open_source

STATUS_TOPIC = 'dark3r_mapping/status'
_POLL_SECONDS, _LONGEST_SLEEP = 0.005, 0.1
_JUMP_NS = 1_000_000_000  # stamps that go back by more begin anew, as where a bag holds two recordings


@dataclass(frozen=True)
class ReplayConfig(Config):
    """Settings of the replay node."""

    bag: str = setting('', 'Bag (folder, .mcap, .db3), sequence folder with cameras.json, or folder of raw files.')
    rate: float = setting(1.0, 'Speed relative to the recording.', minimum=0.01, maximum=100.0)
    image_topic: str = setting('', 'Image topic of the bag; empty takes the only one.')
    info_topic: str = setting('', 'CameraInfo topic of the bag; empty takes the only one.')
    image_reliability: str = setting('reliable', 'Reliability offered.', choices=('best_effort', 'reliable'))
    wait_for_subscriber: float = setting(
        30.0, 'Time to wait for somebody who subscribes to the images.', unit='s', minimum=0.0, maximum=3600.0
    )
    lockstep: int = setting(
        0,
        "Frames that may be ahead of the mapping node's status; 0 plays without looking. The node should then ask for "
        'reliable images and have a queue_length of at least this.',
        minimum=0,
        maximum=1000,
    )
    lockstep_patience: float = setting(
        20.0, 'Time after which a frame without status counts as lost.', unit='s', minimum=0.1, maximum=3600.0
    )
    image_delay: float = setting(
        0.0,
        'Largest of random delays of the images, as on a busy network: each is late by anything up to it. Images keep '
        'their order, all other messages are on time.',
        unit='s',
        minimum=0.0,
        maximum=60.0,
    )
    play_tf: bool = setting(True, 'Play /tf of the bag; switch it off when the bag holds map -> odom already.')
    odom_tf: bool = setting(False, 'Also publish the odometry of the bag as transforms odom -> base.')
    progress: float = setting(5.0, 'Time between two lines about the progress.', unit='s', minimum=0.1)
    linger: float = setting(1.0, 'Time to stay after the last frame so that it is delivered.', unit='s', minimum=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lockstep and self.image_reliability != 'reliable':
            raise ConfigError('lockstep needs image_reliability reliable: a lost frame would hold everything up')


@dataclass(frozen=True, eq=False)
class Item:
    """One message to publish: topic, header stamp, and what makes it (bytes are sent as they are)."""

    topic: str
    stamp_ns: int
    message: Any


TOPICS = {
    'image_raw': (interface.IMAGE.type, 'image'),
    'camera_info': (interface.CAMERA_INFO.type, 'latched'),
    'odom': (interface.ODOM.type, 'reliable'),
    TF_TOPIC: (interface.TF.type, 'reliable'),
    TF_STATIC_TOPIC: (interface.TF.type, 'latched'),
}


def bag_items(path: Path, config: ReplayConfig, warn: Callable[[str], None]) -> Iterator[Item]:
    """Messages of a bag in the order of recording, without parsing the images."""
    with BagReader(path) as reader:
        renamed = {
            reader.find_topic(IMAGE, config.image_topic): 'image_raw',
            TF_STATIC_TOPIC: TF_STATIC_TOPIC,
        }
        if config.play_tf:
            renamed[TF_TOPIC] = TF_TOPIC
        kinds = {topic.type for topic in reader.topics if topic.count}
        if CAMERA_INFO in kinds:
            renamed[reader.find_topic(CAMERA_INFO, config.info_topic)] = 'camera_info'
        else:
            warn(f'{path} holds no CameraInfo: the mapping node will wait for calibration')
        odometry = [topic.name for topic in reader.topics if topic.type == ODOMETRY and topic.count]
        if len(odometry) == 1:
            renamed[odometry[0]] = 'odom'
        elif odometry:
            warn(f'{path} holds several odometry topics ({", ".join(odometry)}): none is played')
        chosen = [topic.name for topic in reader.topics if topic.name in renamed]
        given = 0
        for message in reader.messages(chosen):
            topic = renamed[message.topic]
            stamp_ns = message.log_ns
            if message.type in (IMAGE, CAMERA_INFO, ODOMETRY):
                try:
                    stamp_ns = serialized_stamp_ns(message.data)
                except DataError as error:
                    warn(f'a message of {message.topic} is left out: {error}')
                    continue
            elif message.type != TF:
                continue
            given += topic == 'image_raw'
            yield Item(topic, stamp_ns, message.data)
        for sentence in reader.warnings:
            warn(sentence)
        if not given:
            raise DataError(f'{path} holds no image that can be played')


def folder_items(path: Path, warn: Callable[[str], None]) -> Iterator[Item]:
    """Frames of a folder as messages, each with its calibration before it."""
    source = open_source(path)
    for frame in source:
        if frame.camera is not None:
            yield Item(
                'camera_info',
                frame.stamp_ns,
                convert.camera_info_message(frame.camera, frame.stamp_ns, frame.frame_id),
            )
        yield Item('image_raw', frame.stamp_ns, convert.image_message(frame))
    for sentence in source.warnings:
        warn(sentence)


def scheduled(items: Iterable[Item], delay: float, seed: int = 0) -> Iterator[tuple[int, Item]]:
    """When each message leaves, in nanoseconds of the recording; images are up to `delay` seconds late.

    Without a delay messages leave in the order of recording. With one, images keep theirs, and so does what lies before
    and after a jump back in time.
    """
    if delay <= 0:
        yield from ((item.stamp_ns, item) for item in items)
        return
    random = np.random.default_rng(seed)
    waiting: list[tuple[int, int, Item]] = []
    image_ns = before_ns = 0
    for number, item in enumerate(items):
        due_ns, jumped = item.stamp_ns, item.stamp_ns < before_ns - _JUMP_NS
        # Nothing that is still to come leaves before it was taken.
        while waiting and (jumped or waiting[0][0] <= item.stamp_ns):
            yield _next_due(waiting)
        if item.topic == 'image_raw':
            late_ns = due_ns + int(1e9 * delay * random.random())
            image_ns = due_ns = late_ns if jumped else max(image_ns, late_ns)
        heapq.heappush(waiting, (due_ns, number, item))
        before_ns = item.stamp_ns
    while waiting:
        yield _next_due(waiting)


def _next_due(waiting: list[tuple[int, int, Item]]) -> tuple[int, Item]:
    due_ns, _, item = heapq.heappop(waiting)
    return due_ns, item


class Lockstep:
    """How many published frames the mapping has not answered yet."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, float]] = deque()

    def published(self, stamp_ns: int, now: float) -> None:
        """Note a frame that left."""
        self._waiting.append((stamp_ns, now))

    def answered(self, stamp_ns: int) -> None:
        """Note the stamp of a status: that frame and all published before it are done."""
        stamps = [stamp for stamp, _ in self._waiting]
        if stamp_ns in stamps:
            for _ in range(stamps.index(stamp_ns) + 1):
                self._waiting.popleft()

    def give_up(self, now: float, patience: float) -> int:
        """Forget frames that have waited too long; return how many."""
        count = 0
        while self._waiting and now - self._waiting[0][1] > patience:
            self._waiting.popleft()
            count += 1
        return count

    def __len__(self) -> int:
        return len(self._waiting)


class Replay(Node):
    """Publishes image_raw, camera_info, odom, /tf and /tf_static; `finished` once everything was sent."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('dark3r_replay', **kwargs)
        groups: dict[str, type[Config]] = {'': ReplayConfig}
        parameters.declare(self, groups)
        parameters.refuse_unknown(parameters.given_names(self), groups)
        self.config = parameters.read(self, '', ReplayConfig)
        if not self.config.bag:
            raise ConfigError('parameter bag is empty: name a bag or a folder, as in --ros-args -p bag:=tunnel')
        path = Path(self.config.bag).expanduser()
        if not path.exists():
            raise DataError(f'{path} does not exist')
        items = bag_items(path, self.config, self._warn) if is_bag(path) else folder_items(path, self._warn)
        self._items = scheduled(items, self.config.image_delay)
        self._next: tuple[int, Item] | None = next(self._items, None)
        if self._next is None:
            raise DataError(f'{path} holds no frames')
        self._publishers_by_topic = {
            name: self.create_publisher(interface.load(kind), name, self._profile(use))
            for name, (kind, use) in TOPICS.items()
        }
        self._lockstep = Lockstep()
        if self.config.lockstep:
            self.create_subscription(
                interface.load(interface.STATUS.type), STATUS_TOPIC, self._on_status, qos.reliable(1000)
            )
        self._born = self._told = time.monotonic()
        self._started: float | None = None
        self._first_ns = 0
        self._done_at: float | None = None
        self.frames = 0
        self._failures = 0
        self._timer = self.create_timer(_POLL_SECONDS, self._step, clock=runtime.STEADY)

    def _warn(self, sentence: str) -> None:
        self.get_logger().warning(sentence)

    def _profile(self, use: str) -> Any:
        if use == 'image':
            return qos.image(self.config.image_reliability, 10)
        return qos.latched(1) if use == 'latched' else qos.reliable(100)

    # ------------------------------------------------------------------ playing

    def _step(self) -> None:
        """Send what is due, and sleep until the next message is."""
        now = time.monotonic()
        if self._started is None:
            self._wait(now)
            return
        given_up = self._lockstep.give_up(now, self.config.lockstep_patience)
        if given_up:
            self._warn(f'{given_up} frames got no status within {self.config.lockstep_patience:g} s: going on')
        while self._next is not None and self._due(*self._next, now):
            self._send(self._next[1], now)
            self._next = next(self._items, None)
            now = time.monotonic()
        if self._done_at is None and now - self._told > self.config.progress:
            self._told = now
            self.get_logger().info(f'{self.frames} frames played')
        if self._next is None and self._done_at is None and not len(self._lockstep):
            self._done_at = now
            self.get_logger().info(f'{self.frames} frames played in {now - self._started:.1f} s')
        self._sleep(now)

    def _sleep(self, now: float) -> None:
        """Wake when the next message is due, or soon where one is that waits for an answer to others."""
        wait = _LONGEST_SLEEP if self._next is None else self._time_of(self._next[0]) - now
        self._timer.timer_period_ns = int(1e9 * (min(wait, _LONGEST_SLEEP) if wait > 0 else _POLL_SECONDS))
        self._timer.reset()

    def _time_of(self, due_ns: int) -> float:
        """When a message leaves, by the monotonic clock."""
        assert self._started is not None
        return self._started + (due_ns - self._first_ns) / 1e9 / self.config.rate

    def _wait(self, now: float) -> None:
        """Start once the images have a reader, and, in lockstep, its status reaches us."""
        image = self._publishers_by_topic['image_raw']
        ready = image.get_subscription_count() > 0
        if self.config.lockstep:
            ready = ready and self.count_publishers(self.resolve_topic_name(STATUS_TOPIC)) > 0
        if ready:
            assert self._next is not None
            # Matched does not yet mean that the other side has opened its end of the connection.
            self._started, self._first_ns = now + 0.5, self._next[0]
            self.get_logger().info(f'playing {self.config.bag} on {image.topic_name}')
        elif now - self._born > self.config.wait_for_subscriber:
            raise DataError(
                f'nobody subscribes to {image.topic_name} after {self.config.wait_for_subscriber:g} s: start the '
                'mapping node, and use the same ROS_DOMAIN_ID and topic name'
            )

    def _due(self, due_ns: int, item: Item, now: float) -> bool:
        if now < self._time_of(due_ns):
            return False
        full = self.config.lockstep and len(self._lockstep) >= self.config.lockstep
        return not (full and item.topic == 'image_raw')

    def _send(self, item: Item, now: float) -> None:
        try:
            self._publishers_by_topic[item.topic].publish(item.message)
        except Exception as error:  # rclpy raises RCLError, a private class, when the middleware is out of room
            self._failures += 1
            if self._failures in (1, 10, 100, 1000):
                self._warn(f'{self._failures} messages could not be published ({item.topic}: {error})')
            return
        if item.topic == 'image_raw':
            self.frames += 1
            if self.config.lockstep:
                self._lockstep.published(item.stamp_ns, now)
        elif item.topic == 'odom' and self.config.odom_tf:
            self._send_odom_tf(item)

    def _send_odom_tf(self, item: Item) -> None:
        message = deserialize(item.message, ODOMETRY)
        transform = convert.transform_to_message(
            convert.pose_from_message(message.pose.pose),
            item.stamp_ns,
            message.header.frame_id,
            message.child_frame_id,
        )
        self._publishers_by_topic[TF_TOPIC].publish(interface.load(interface.TF.type)(transforms=[transform]))

    def _on_status(self, status: Any) -> None:
        self._lockstep.answered(convert.stamp_to_ns(status.header.stamp))

    # ------------------------------------------------------------------ program

    @property
    def finished(self) -> bool:
        """Whether everything was sent and had time to arrive."""
        return self._done_at is not None and time.monotonic() - self._done_at > self.config.linger

    def close(self) -> int:
        """Exit status: 0 when everything was played."""
        if self._next is not None:
            self.get_logger().warning(f'stopped after {self.frames} frames')
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the program."""
    return runtime.run(Replay, arguments)


if __name__ == '__main__':
    sys.exit(main())
