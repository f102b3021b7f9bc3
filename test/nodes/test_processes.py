# SPDX-License-Identifier: Apache-2.0
"""Mapping node, recorder and replay as real processes, with the real pipeline, on a simulated bag."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.raw.noise import preset
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.result import read_result
from dark3r_ros.storage.source import open_source
from dark3r_ros.storage.trajectory import read_tum

FRAMES = 12
NOISE = 'starvis'


@pytest.fixture(scope='module')
def bag(tmp_path_factory) -> Path:
    config = SimulationConfig(
        scene='corridor', seconds=FRAMES / 5, rate=5.0, width=640, height=480, snr_db=25.0, depth=False, preset=NOISE
    )
    path = tmp_path_factory.mktemp('bags') / 'corridor'
    with BagWriter(path) as writer:
        for item in simulate(config):
            writer.write_camera_info(config.camera, item.frame.stamp_ns, item.frame.frame_id)
            writer.write_frame(item.frame)
    return path


@pytest.fixture
def start(domain, tmp_path):
    running = []

    def begin(name: str, **parameters) -> subprocess.Popen:
        arguments = [word for key, value in parameters.items() for word in ('-p', f'{key.replace("__", ".")}:={value}')]
        log = (tmp_path / f'{name}.log').open('w')
        process = subprocess.Popen(
            [sys.executable, '-m', f'dark3r_ros.nodes.{name}', '--ros-args', *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.terminate()  # a killed process would leave its shared memory behind
    for process in running:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_line(log: Path, text: str, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def direct(bag: Path) -> tuple[np.ndarray, np.ndarray]:
    noise = preset(NOISE)
    pipeline = MappingPipeline(MappingConfig(), make_predictor(noise=noise), noise)
    for frame in open_source(bag):
        pipeline.push(frame)
    pipeline.flush()
    trajectory = pipeline.reconstruction().trajectory()
    return trajectory.stamps_ns, trajectory.world_from_camera


def test_the_graph_gives_what_the_pipeline_gives(start, bag, tmp_path):
    levels = preset(NOISE)
    stamps, poses = direct(bag)  # before the recorder begins to wait
    node = start(
        'mapping_node', queue_length=20, image_reliability='reliable', noise_preset=NOISE,
        decode__black_level=levels.black_level, decode__white_level=levels.white_level, decode__alignment='lsb',
        decode__significant_bits=12, save_on_shutdown=tmp_path / 'saved', idle_flush=6.0,
    )  # fmt: skip
    wait_for_line(tmp_path / 'mapping_node.log', 'active')
    recorder = start('recorder', output=tmp_path / 'result', idle=10.0)
    wait_for_line(tmp_path / 'recorder.log', 'recording')
    replay = start('replay', bag=bag, lockstep=3, linger=3.0)  # a late discovery still finds its calibration
    assert len(stamps) == FRAMES
    assert replay.wait(60) == 0, (tmp_path / 'replay.log').read_text()
    assert recorder.wait(60) == 0, (tmp_path / 'recorder.log').read_text()

    saved = read_result(tmp_path / 'result')
    assert saved.report['trajectory_source'] == 'path'
    assert saved.report['counts'] == {'received': FRAMES, 'posed': FRAMES, 'dropped': 0, 'missing': 0}
    assert saved.report['transforms'] == {'map -> base_link': saved.report['topics']['~/odometry']['count']}
    assert saved.report['config']['noise_preset'] == NOISE
    trajectory = saved.reconstruction.trajectory()
    np.testing.assert_array_equal(trajectory.stamps_ns, stamps)
    # Same frames, same code: only the map's axes differ, and nine decimals on file.
    expected = se3.BODY_FROM_OPTICAL @ poses
    assert np.abs(trajectory.world_from_camera - expected).max() < 1e-6
    online = read_tum(tmp_path / 'result' / 'online.tum')
    assert set(online.stamps_ns.tolist()) <= set(stamps.tolist()) and len(online) >= FRAMES // 2
    assert len(saved.reconstruction.cloud) > 100

    # How long the node itself takes is tested inside the process; here the interpreter's end on a busy machine counts.
    node.send_signal(signal.SIGINT)
    assert node.wait(30) == 0, (tmp_path / 'mapping_node.log').read_text()
    own = read_result(tmp_path / 'saved').reconstruction.trajectory()
    np.testing.assert_array_equal(own.stamps_ns, stamps)
    assert np.abs(se3.inverse(own.world_from_camera) @ poses - np.eye(4)).max() < 1e-6
    assert len(saved.reconstruction.trajectory(keyframes_only=True)) >= 2


@pytest.mark.parametrize(
    ('name', 'parameters', 'words'),
    [
        ('mapping_node', {'queue_length': 0}, 'queue_length'),
        ('mapping_node', {'nonsense': 1}, 'nonsense'),
        ('mapping_node', {'noise_preset': 'unknown_camera'}, 'unknown_camera'),
        ('mapping_node', {'predictor': '/does/not/exist.safetensors'}, '/does/not/exist.safetensors'),
        ('replay', {'bag': '/does/not/exist'}, '/does/not/exist'),
        ('recorder', {'output': '/proc/nothing/here'}, '/proc/nothing/here'),
    ],
)
def test_mistakes_are_one_line_and_status_2(start, tmp_path, name, parameters, words):
    process = start(name, **parameters)
    assert process.wait(20) == 2
    log = (tmp_path / f'{name}.log').read_text()
    assert words in log and 'Traceback' not in log


def test_a_missing_parameter_file_is_one_line_and_status_2():
    command = [sys.executable, '-m', 'dark3r_ros.nodes.replay', '--ros-args', '--params-file', '/does/not/exist.yaml']
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if '[rcl]' not in line]  # its own logger speaks as well
    assert line.startswith('error: ') and '/does/not/exist.yaml' in line
