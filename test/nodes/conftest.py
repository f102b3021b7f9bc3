# SPDX-License-Identifier: Apache-2.0
"""A small real graph inside the test process, and a pipeline whose answers are known."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from array import array
from pathlib import Path

import numpy as np
import pytest

from dark3r_ros.cli.processes import unused_domain
from dark3r_ros.geometry.camera import Camera as Intrinsics

if 'FASTDDS_DEFAULT_PROFILES_FILE' not in os.environ:
    os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')


def _missing() -> str:
    for name in ('rclpy', 'tf2_msgs', 'dark3r_ros.msg', 'dark3r_ros.srv'):
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return name
    return ''


MISSING = _missing()


class _Skipped(pytest.Module):
    """A test module that needs ROS, where there is none."""

    def collect(self):
        pytest.skip(f'{MISSING} is missing: source environment/activate.sh', allow_module_level=True)


def pytest_collection_modifyitems(items):
    """Try tests with processes of their own again: Fast DDS may cut one off for good on a busy machine.

    It takes a process that does not answer within a second for dead and makes its shared-memory port anew.
    """
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name.startswith('test_process'):
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_pycollect_makemodule(module_path, parent):
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None


# Generous, for machines many times slower; a condition that holds ends the wait at once.
LIMIT = 20.0


class Graph:
    """Nodes of one test, spun by hand in the test's thread."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        self.executor = SingleThreadedExecutor()
        self.nodes = []
        self.helper = rclpy.create_node('helper')
        self.add(self.helper)

    def add(self, node):
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def until(self, condition, timeout: float = LIMIT, why: str = ''):
        end = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f'not within {timeout} s: {why or condition}')
            self.executor.spin_once(timeout_sec=0.02)
        return value

    def listen(self, kind, topic, profile=None) -> list:
        from dark3r_ros.nodes import qos

        received: list = []
        self.helper.create_subscription(kind, topic, received.append, profile or qos.reliable(1000))
        return received

    def call(self, kind, name, request, timeout: float = LIMIT):
        client = self.helper.create_client(kind, name)
        self.until(client.service_is_ready, why=f'{name} is not there')
        future = client.call_async(request)
        self.until(future.done, timeout, why=f'{name} did not answer')
        self.helper.destroy_client(client)
        return future.result()

    def close(self) -> None:
        for node in self.nodes:
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown(timeout_sec=1.0)


@pytest.fixture
def domain(monkeypatch) -> int:
    """A domain of its own, so that neighbours on the same machine are not heard."""
    number = unused_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
    return number


@pytest.fixture
def graph(domain):
    import rclpy

    rclpy.init(domain_id=domain)
    made = Graph()
    yield made
    made.close()
    rclpy.shutdown()


class FakePipeline:
    """Camera drives along z by `step` a frame; every third frame is a keyframe; `script` changes a frame's fate."""

    def __init__(self) -> None:
        self.script: dict[int, object] = {}
        self.delay = 0.0
        self.step = 0.1
        self.camera = Intrinsics(64, 48, 50.0, 50.0, 32.0, 24.0)
        self.unsavable: Exception | None = None
        self.loaded = 0
        self.gate: threading.Event | None = None
        self.frames: list = []
        self.flushed = 0
        self.resets = 0
        self.reset()

    def save_state(self, folder, *, overwrite=False) -> None:
        if self.unsavable:
            raise self.unsavable
        folder.mkdir()
        (folder / 'fake.txt').write_text(str(len(self.poses)))

    def load_state(self, folder) -> tuple[str, ...]:
        from dark3r_ros.errors import DataError

        try:
            count = int((folder / 'fake.txt').read_text())
        except (OSError, ValueError) as error:
            raise DataError(f'{folder} is damaged: made with other weights') from error
        self.reset()
        self.loaded = count
        self.poses = {1 + number: self.pose(-count + number) for number in range(count)}
        self.keyframes = dict.fromkeys(range(-count, 0, 3), 1)
        return ('the saved map is old',)

    def reset(self) -> None:
        self.resets += 1
        self.count = self.posed = 0
        self.poses: dict[int, np.ndarray] = {}
        self.keyframes: dict[int, int] = {}
        self.state = 0

    def pose(self, number: int) -> np.ndarray:
        pose = np.eye(4)
        pose[2, 3] = self.step * number
        return pose

    def cloud(self, number: int):
        from dark3r_ros.types import PointCloud

        points = np.array([[0, 0, number + 1], [1, 0, number + 1]], np.float32)
        return PointCloud(points, np.array([[255, 0, 0], [0, 0, 255]], np.uint8), np.ones(2, np.float32))

    def push(self, frame):
        from dark3r_ros.mapping import events
        from dark3r_ros.types import MappingState

        self.frames.append(frame)
        if self.gate is not None:
            assert self.gate.wait(10.0)
        time.sleep(self.delay)
        number = self.count
        self.count += 1
        fate = self.script.get(number)
        if isinstance(fate, BaseException):
            raise fate
        if fate == 'lost':
            old, self.state = self.state, MappingState.LOST
            return [
                events.FrameUnposed(frame.stamp_ns, frame.frame_id, 'nothing matches'),
                events.StateChanged(frame.stamp_ns, MappingState(old), MappingState.LOST, 'nothing matches'),
            ]
        if fate == 'discard':
            self.poses.clear()
            self.keyframes.clear()
            return [events.MapDiscarded(frame.stamp_ns, 'the first map was too weak')]
        old, self.state = self.state, MappingState.TRACKING
        self.posed += 1
        pose = self.poses[frame.stamp_ns] = self.pose(number)
        keyframe = number % 3 == 0
        result = [
            events.FramePosed(
                frame.stamp_ns,
                frame.frame_id,
                pose,
                np.diag([1.0, 2, 3, 4, 5, 6]),
                50,
                60,
                7.5,
                keyframe,
                fate == 'late',
            )
        ]
        if keyframe:
            self.keyframes[number] = frame.stamp_ns
            result.append(
                events.KeyframeAdded(number, frame.stamp_ns, frame.frame_id, pose, self.cloud(number), 7.5, 2)
            )
        if old != self.state:
            result.append(events.StateChanged(frame.stamp_ns, MappingState(old), MappingState.TRACKING, 'map started'))
        return result

    def flush(self):
        self.flushed += 1
        return []

    def reconstruction(self):
        from dark3r_ros.errors import ReconstructionError
        from dark3r_ros.storage.result import empty_cloud, no_observations
        from dark3r_ros.types import FrameRecord, PointCloud, Reconstruction

        if not self.frames and not self.loaded:
            raise ReconstructionError('no frame was seen')
        records = tuple(
            FrameRecord(stamp, pose, stamp in self.keyframes.values(), 7.5, 50, 60)
            for stamp, pose in sorted(self.poses.items())
        )
        clouds = [empty_cloud(), *(self.cloud(number) for number in self.keyframes)]
        cloud = PointCloud(
            *(np.concatenate([getattr(item, name) for item in clouds]) for name in ('points', 'colors', 'confidence'))
        )
        camera = self.frames[0].camera if self.frames else self.camera
        return Reconstruction(camera, records, cloud, no_observations())

    def status(self):
        from dark3r_ros.mapping.events import PipelineStatus
        from dark3r_ros.types import MappingState

        return PipelineStatus(
            MappingState(self.state), 'fake', 7.5, 16, 50, 60, len(self.keyframes), 10, self.count, self.posed, 2**20
        )


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline()


class Camera:
    """Publisher of small raw images with calibration."""

    def __init__(self, graph: Graph, *, best_effort: bool = False, width: int = 64, height: int = 48) -> None:
        from sensor_msgs.msg import CameraInfo, Image

        from dark3r_ros.nodes import qos

        profile = qos.sensor(50) if best_effort else qos.reliable(50)
        self.graph, self.width, self.height = graph, width, height
        self.images = graph.helper.create_publisher(Image, 'image_raw', profile)
        self.infos = graph.helper.create_publisher(CameraInfo, 'camera_info', profile)
        self.rng = np.random.default_rng(0)

    def image(self, stamp_ns: int, **changes):
        from sensor_msgs.msg import Image

        from dark3r_ros.nodes import convert

        width, height = changes.pop('width', self.width), changes.pop('height', self.height)
        values = changes.pop('values', None)
        if values is None:
            values = self.rng.integers(600, 3000, (height, width))
        message = Image(
            header=convert.header(stamp_ns, changes.pop('frame_id', 'camera_optical')),
            height=height,
            width=width,
            encoding='bayer_rggb16',
            step=2 * width,
        )
        message.data = array('B', np.asarray(values, dtype='<u2').tobytes())
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def info(self, stamp_ns: int = 1, **changes):
        from dark3r_ros.nodes import convert

        width, height = changes.pop('width', self.width), changes.pop('height', self.height)
        intrinsics = Intrinsics(width, height, 50.0, 50.0, width / 2, height / 2)
        message = convert.camera_info_message(intrinsics, stamp_ns, changes.pop('frame_id', 'camera_optical'))
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def matched(self) -> bool:
        return self.images.get_subscription_count() > 0 and self.infos.get_subscription_count() > 0

    def publish(self, stamp_ns: int, **changes) -> None:
        self.infos.publish(self.info(stamp_ns))
        self.images.publish(self.image(stamp_ns, **changes))


@pytest.fixture
def camera(graph) -> Camera:
    return Camera(graph)


@pytest.fixture
def make_camera(graph):
    return lambda **options: Camera(graph, **options)


@pytest.fixture
def make_node(graph, pipeline):
    """Build the mapping node with the fake pipeline; `node.lines` collects its warnings."""
    from rclpy.parameter import Parameter

    from dark3r_ros.nodes.mapping_node import MappingNode
    from dark3r_ros.nodes.statistics import Complaints

    def make(start: bool = True, **values):
        overrides = [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]
        node = MappingNode(lambda _: pipeline, parameter_overrides=overrides)
        node.lines = []
        node.warn = Complaints(node.lines.append).add
        graph.add(node)
        if start:
            node.autostart()
        return node

    return make
