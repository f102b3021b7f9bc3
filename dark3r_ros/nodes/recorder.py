# SPDX-License-Identifier: Apache-2.0
"""Listen to a mapping node and write a result folder from its topics alone.

The folder is that of `dark3r map`, plus `online.tum`: the poses as they were published when they were new, while
`trajectory.tum` has the newest estimate of every frame.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.parameter_client import AsyncParameterClient

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError, Dark3rError, DataError
from dark3r_ros.nodes import interface, parameters, qos, runtime
from dark3r_ros.nodes.recording import Recording
from dark3r_ros.nodes.statistics import Complaints
from dark3r_ros.storage.files import check_target, output_error
from dark3r_ros.storage.result import REPORT_FILE, write_result
from dark3r_ros.storage.trajectory import write_tum

LISTENED = (
    interface.ODOMETRY,
    interface.PATH,
    interface.CLOUD,
    interface.MAP,
    interface.KEYFRAMES,
    interface.STATUS,
    interface.EXTRINSICS,
    interface.TF,
    interface.CAMERA_INFO,
)


@dataclass(frozen=True)
class RecorderConfig(Config):
    """Settings of the recorder node."""

    output: str = setting('', 'Result folder to write.')
    overwrite: bool = setting(False, 'Replace an existing result folder.')
    node: str = setting('dark3r_mapping', 'Name of the mapping node, with its namespace if it has another one.')
    idle: float = setting(
        5.0, 'Time without news after which the recording ends; more than idle_flush of the mapping node.', unit='s',
        minimum=1.0, maximum=3600.0,
    )  # fmt: skip
    patience: float = setting(
        60.0, 'Time to wait for the first frame, and for a busy node that went silent.', unit='s', minimum=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output:
            raise ConfigError('parameter output is empty: name a folder, as in --ros-args -p output:=out/tunnel')


class Recorder(Node):
    """Subscribes to everything a mapping node publishes; `close` writes the folder."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('dark3r_recorder', **kwargs)
        groups: dict[str, type[Config]] = {'': RecorderConfig}
        parameters.declare(self, groups)
        parameters.refuse_unknown(parameters.given_names(self), groups)
        self.config = parameters.read(self, '', RecorderConfig)
        self.folder = Path(self.config.output).expanduser().absolute()
        # An unwritable place must be known before the drive, not after it.
        check_target(self.folder, overwrite=self.config.overwrite, marker=REPORT_FILE)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(self.folder, error) from error
        self.recording = Recording()
        self._warn = Complaints(self._log_warning).add
        self._started = time.monotonic()
        for topic in LISTENED:
            name = topic.name.replace('~', self.config.node, 1)
            profile = qos.sensor(50) if topic.qos == 'image' else qos.reliable(1000)
            profile = qos.latched(10) if topic.qos == 'latched' else profile
            self.create_subscription(interface.load(topic.type), name, self._callback(topic), profile)
        self._latched: Any = None
        self._client = AsyncParameterClient(self, self.config.node)
        self._asked = False
        self.create_timer(0.25, self._ask, clock=runtime.STEADY)
        self.get_logger().info(f'recording {self.config.node} for {self.folder}')

    def _log_warning(self, text: str) -> None:
        self.get_logger().warning(text)

    def _callback(self, topic: interface.Topic) -> Any:
        def receive(message: Any) -> None:
            try:
                self.recording.take(topic, message)
            except Dark3rError as error:
                self._warn(f'{topic.name}: {error}')

        return receive

    def _ask(self) -> None:
        self._ask_calibration()
        self._ask_parameters()

    def _ask_calibration(self) -> None:
        """Hear, until there is a calibration, one that was published once, latched, and did not reach us since."""
        topic = interface.CAMERA_INFO
        if self.recording.calibrated and self._latched is not None:
            self.destroy_subscription(self._latched)
            self._latched = None
        elif not self.recording.calibrated and self._latched is None:
            kind = interface.load(topic.type)
            self._latched = qos.subscribe_if_latched(self, topic.name, kind, self._callback(topic))

    def _ask_parameters(self) -> None:
        """Ask the mapping node once for its configuration, which belongs beside the result."""
        if self._asked or not self._client.services_are_ready():
            return
        self._asked = True

        def listed(future: Any) -> None:
            names = [name for name in future.result().result.names if not name.startswith('qos_overrides')]
            self._client.get_parameters(names, lambda answer: received(names, answer))

        def received(names: list[str], future: Any) -> None:
            from rclpy.parameter import parameter_value_to_python

            values = [parameter_value_to_python(value) for value in future.result().values]
            self.recording.parameters = dict(zip(names, values, strict=True))

        self._client.list_parameters([], 10, listed)

    @property
    def finished(self) -> bool:
        """Whether the stream has ended."""
        if not self.recording.frames_received:
            if time.monotonic() - self._started > self.config.patience:
                raise DataError(
                    f'{self.config.node} reported no frame within {self.config.patience:g} s: is it active, does it '
                    'get images, and is ROS_DOMAIN_ID the same?'
                )
            return False
        if self.recording.silent_for > self.config.patience:
            self._warn(f'{self.config.node} went silent while it was busy')
            return True
        return self.recording.idle_for() > self.config.idle

    def close(self) -> int:
        """Write the folder; a report of nothing is an error."""
        if not self.recording.frames_received:
            raise DataError(f'nothing was recorded: {self.config.node} reported no frame')
        result = self.recording.reconstruction()
        write_result(self.folder, result, self.recording.report(), overwrite=self.config.overwrite)
        write_tum(self.folder / 'online.tum', self.recording.online())
        posed = sum(frame.world_from_camera is not None for frame in result.frames)
        self.get_logger().info(
            f'{posed} of {len(result.frames)} frames posed, {len(result.cloud)} points: written to {self.folder}'
        )
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the program."""
    return runtime.run(Recorder, arguments)


if __name__ == '__main__':
    sys.exit(main())
