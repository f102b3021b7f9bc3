# SPDX-License-Identifier: Apache-2.0
"""Real processes: a map is saved at the end of one node, loaded by the next, and the camera is found in it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dark3r_ros.msg import MappingStatus
from dark3r_ros.srv import LoadMap
from nav_msgs.msg import Odometry
from tf2_msgs.msg import TFMessage

from dark3r_ros.geometry import se3
from dark3r_ros.nodes import convert
from dark3r_ros.raw.noise import preset
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.result import read_result

NOISE = 'starvis'
SECONDS, RATE = 5.0, 5.0
LEVELS = preset(NOISE)
PARAMETERS = {
    'queue_length': 50, 'image_depth': 50, 'image_reliability': 'reliable', 'noise_preset': NOISE,
    'decode.black_level': LEVELS.black_level, 'decode.white_level': LEVELS.white_level, 'decode.alignment': 'lsb',
    'decode.significant_bits': 12, 'metric.min_distance': 0.1, 'idle_flush': 5.0,
}  # fmt: skip


CONFIG = SimulationConfig(
    scene='tunnel', seconds=SECONDS, rate=RATE, width=640, height=480, snr_db=25.0, depth=False, preset=NOISE,
    odometry=True, odometry_scale_error=0.0, odometry_noise=0.001, odometry_slip_rate=0.0,
)  # fmt: skip
FRAMES = round(SECONDS * RATE)


@pytest.fixture(scope='module')
def bag(tmp_path_factory) -> Path:
    """A drive along a tunnel with wheel odometry."""
    path = tmp_path_factory.mktemp('bags') / 'tunnel'
    with BagWriter(path) as writer:
        for item in simulate(CONFIG):
            writer.write_camera_info(CONFIG.camera, item.frame.stamp_ns, item.frame.frame_id)
            writer.write_odometry(item.frame.stamp_ns, item.odometry.odom_from_body)
            writer.write_frame(item.frame)
    return path


class Processes:
    """Programs of one test; each is ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen] = []

    def start(self, name: str, **parameters) -> subprocess.Popen:
        words = [word for key, value in parameters.items() for word in ('-p', f'{key.replace("__", ".")}:={value}')]
        log = (self.folder / f'{name}{len(self.running)}.log').open('w')
        process = subprocess.Popen(
            [sys.executable, '-m', f'dark3r_ros.nodes.{name}', '--ros-args', *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        process.log = Path(log.name)
        self.running.append(process)
        return process

    def close(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def processes(domain, tmp_path):
    made = Processes(tmp_path)
    yield made
    made.close()


def end(process) -> str:
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, process.log.read_text()
    return process.log.read_text()


def test_a_map_is_saved_loaded_and_the_camera_is_found_in_it(graph, processes, bag, tmp_path):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    transforms = graph.listen(TFMessage, '/tf')
    first = processes.start('mapping_node', save_on_shutdown=tmp_path / 'map', **PARAMETERS)
    graph.until(lambda: statuses, 120.0, 'the node did not start')
    processes.start('replay', bag=bag, lockstep=3)
    graph.until(lambda: statuses[-1].frames_posed == FRAMES, 180.0, 'not every frame was posed')
    graph.until(lambda: statuses[-1].metric_scale, 60.0, 'the scale is not known')
    scale = statuses[-1].scale
    end(first)
    saved = read_result(tmp_path / 'map')
    assert saved.reconstruction.metric_scale and saved.report['scale']['scale'] == pytest.approx(scale, rel=0.1)
    trajectory = saved.reconstruction.trajectory()
    travelled = np.linalg.norm(np.diff(trajectory.world_from_camera[[0, -1], :3, 3], axis=0))
    simulation = simulate(CONFIG)
    true = np.linalg.norm(simulation.pose(FRAMES - 1)[:3, 3] - simulation.pose(0)[:3, 3])
    assert travelled == pytest.approx(true, rel=0.1)

    for messages in (statuses, odometry):
        messages.clear()
    second = processes.start('mapping_node', **PARAMETERS)
    graph.until(lambda: statuses, 120.0, 'the second node did not start')
    refused = graph.call(LoadMap, '/dark3r_mapping/load_map', LoadMap.Request(path=str(bag)), 60.0)
    assert not refused.success and 'to go on from' in refused.message
    answer = graph.call(LoadMap, '/dark3r_mapping/load_map', LoadMap.Request(path=str(tmp_path / 'map')), 60.0)
    assert answer.success and answer.keyframes > 2, answer.message
    processes.start('replay', bag=bag, lockstep=3)
    graph.until(lambda: statuses[-1].frames_received == FRAMES, 180.0, 'the frames did not arrive')
    graph.until(lambda: len(odometry) > 0.8 * FRAMES, 60.0, 'the camera was not found in the saved map')
    assert statuses[-1].metric_scale and statuses[-1].submap == 0
    again = {convert.stamp_to_ns(m.header.stamp): convert.pose_from_message(m.pose.pose) for m in odometry}
    apart = []
    for stamp, pose in zip(trajectory.stamps_ns.tolist(), trajectory.world_from_camera, strict=True):
        if stamp in again:
            expected = se3.BODY_FROM_OPTICAL @ pose @ se3.BODY_FROM_OPTICAL.T
            apart.append(np.linalg.norm(expected[:3, 3] - again[stamp][:3, 3]))
    assert len(apart) > 0.8 * FRAMES and np.median(apart) < 0.05 * true
    parents: dict[str, set[str]] = {}
    for message in transforms:
        for item in message.transforms:
            parents.setdefault(item.child_frame_id, set()).add(item.header.frame_id)
    assert all(len(names) == 1 for names in parents.values()) and parents['base_link'] == {'map'}
    log = end(second)
    assert 'Traceback' not in log and 'looking for the camera' in log


def test_what_keeps_images_away_is_said_by_the_process(graph, processes):
    """Wrong reliability and silence, as a user meets them in the log."""
    from sensor_msgs.msg import Image

    from dark3r_ros.nodes import qos

    publisher = graph.helper.create_publisher(Image, 'image_raw', qos.sensor(5))
    node = processes.start('mapping_node', image_reliability='reliable', no_data_after=1.0)

    def said(*words: str) -> bool:
        publisher.publish(Image())
        return all(word in node.log.read_text() for word in words)

    graph.until(lambda: said('no message will arrive on /image_raw', 'reliability does not match'), 120.0)
    graph.until(lambda: said('no image for', '/camera_info', 'nobody publishes it'), 60.0)
