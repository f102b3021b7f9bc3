# SPDX-License-Identifier: Apache-2.0
"""`dark3r simulate` and `dark3r darken` from the command line to the files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dark3r_ros.cli.main import main
from dark3r_ros.cli.recording import depth_counts
from dark3r_ros.errors import OutputError
from dark3r_ros.raw.noise import preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.raw.snr import estimate_snr
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.bag import BagReader
from dark3r_ros.storage.sequence import read_cameras_json
from dark3r_ros.storage.source import open_source
from dark3r_ros.storage.trajectory import read_tum

SMALL = ['--size', '320x240', '--seconds', '0.6', '--rate', '5', '--snr', '6', '--seed', '3']


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_bag_holds_the_frames_and_the_truth_beside_it(tmp_path: Path, capsys, storage: str) -> None:
    bag = tmp_path / 'bag'
    assert main(['simulate', 'tunnel', '-o', str(bag), *SMALL, '--odometry', '--storage', storage, '--json']) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((bag / 'simulation.json').read_text())
    assert summary['frames'] == 3 and summary['settings']['seed'] == 3
    assert summary['snr_db'] == pytest.approx(6.0, abs=0.3)
    made = list(simulate(SimulationConfig(width=320, height=240, seconds=0.6, rate=5.0, snr_db=6.0, seed=3)))
    frames = list(open_source(bag))
    assert [f.stamp_ns for f in frames] == [m.frame.stamp_ns for m in made]
    for frame, truth in zip(frames, made, strict=True):
        assert np.array_equal(frame.mosaic, truth.frame.mosaic)
        assert frame.cfa == 'rggb' and frame.black_level == truth.frame.black_level
        assert frame.camera is not None and frame.camera.fx == pytest.approx(truth.frame.camera.fx, abs=1e-9)
        planes = to_planes(frame, 2)
        assert estimate_snr(planes, preset('starvis')).db > 0.0
    trajectory = read_tum(bag / 'truth.tum')
    assert list(trajectory.stamps_ns) == [f.stamp_ns for f in frames]
    np.testing.assert_allclose(trajectory.world_from_camera, [m.world_from_camera for m in made], atol=1e-6)
    info = read_cameras_json(bag / 'truth_cameras.json')
    assert info.metric and info.depth_unit == 1000.0 and len(info.images) == 3
    depth = cv2.imread(str(bag / info.images[1].depth), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(depth / 1000.0, made[1].depth, atol=6e-4)
    with BagReader(bag) as reader:
        topics = {message.topic for message in reader.messages()}
    assert {'/odom', '/tf_static', '/camera/image_raw', '/camera/camera_info'} <= topics
    assert not [p for p in tmp_path.iterdir() if p != bag]


def test_folder_can_be_read_back_and_is_not_overwritten_by_accident(tmp_path: Path, capsys) -> None:
    folder = tmp_path / 'sequence'
    command = ['simulate', 'room', '-o', str(folder), *SMALL, '--format', 'folder', '--cfa', 'gbrg', '--light', 'both']
    assert main(command) == 0
    capsys.readouterr()
    frames = list(open_source(folder))
    assert len(frames) == 3 and frames[0].cfa == 'gbrg' and frames[0].black_level[0] == preset('starvis').black_level
    info = read_cameras_json(folder)
    assert all(image.world_from_camera is not None for image in info.images)
    assert main(command) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert main([*command, '--overwrite']) == 0


def clean_sequence(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    folder.mkdir()
    images = []
    for number in range(3):
        picture = cv2.resize(rng.integers(40, 220, (24, 32, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        images.append({'file': f'{number}.png', 'c2w': np.eye(4).tolist() if number else None})
    head = {'width': 160, 'height': 120, 'fx': 150, 'fy': 150, 'cx': 79.5, 'cy': 59.5, 'scale': 'arbitrary'}
    (folder / 'cameras.json').write_text(json.dumps({**head, 'images': images}))
    return folder


def test_darken_writes_a_bag_at_the_asked_snr(tmp_path: Path, capsys) -> None:
    sequence, bag = clean_sequence(tmp_path / 'clean'), tmp_path / 'dark'
    assert main(['darken', str(sequence), '-o', str(bag), '--snr', '-4', '--rate', '4']) == 0
    assert '3 frames at -4.00 dB' in capsys.readouterr().out
    frames = list(open_source(bag))
    assert [f.stamp_ns - frames[0].stamp_ns for f in frames] == [0, 250_000_000, 500_000_000]
    assert frames[0].size == (1280, 960) and frames[0].camera.fx == pytest.approx(1200.0)
    assert frames[0].camera.cx == pytest.approx(639.5)
    assert len(read_tum(bag / 'truth.tum')) == 2
    assert not read_cameras_json(bag / 'truth_cameras.json').metric
    clean = tmp_path / 'bright'
    assert main(['darken', str(sequence), '-o', str(clean), '--clean', '--format', 'folder']) == 0
    assert 'without noise' in capsys.readouterr().out
    assert json.loads((clean / 'simulation.json').read_text())['snr_db'] is None


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['simulate', 'moon'], "unknown scene 'moon'"),
        (['simulate', 'tunnel', '--size', '1281x960'], 'multiple of 8'),
        (['simulate', 'tunnel', '--seconds', '-1'], 'seconds'),
        (['simulate', 'tunnel', '--snr', '-99'], 'snr_db'),
        (['simulate', 'tunnel', '--preset', 'kodachrome'], 'kodachrome'),
        (['simulate', 'no_such_file.glb'], 'no_such_file.glb'),
        (['simulate', 'tunnel', '--odometry', '--format', 'folder'], 'odometry'),
        (['darken', 'no_such_folder'], 'no_such_folder'),
        (['darken', '.', '--snr', '200'], '200'),
        (['darken', '.', '--rate', '0'], 'rate'),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path: Path, capsys, arguments: list[str], message: str) -> None:
    assert main([*arguments, '-o', str(tmp_path / 'out')]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported_and_leaves_no_rubbish(tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(path: Path, image: np.ndarray) -> None:
        raise OutputError(f'cannot write {path.name}: the disk is full: free space or choose another place')

    monkeypatch.setattr('dark3r_ros.cli.recording.write_png', fail)
    target = tmp_path / 'folder'
    assert main(['simulate', 'tunnel', '-o', str(target), *SMALL, '--format', 'folder']) == 2
    assert 'disk is full' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_depth_counts_are_millimetres_and_zero_where_unknown() -> None:
    depth = np.array([[1.2345, np.inf], [np.nan, 70.0]], np.float32)
    assert depth_counts(depth).tolist() == [[1234, 0], [0, 0]]


@pytest.mark.parametrize('form', ['bag', 'folder'])
def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch, form: str) -> None:
    calls = []

    def interrupted(depth: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return depth_counts(depth)

    monkeypatch.setattr('dark3r_ros.cli.recording.depth_counts', interrupted)
    assert main(['simulate', 'tunnel', '-o', str(tmp_path / 'out'), *SMALL, '--format', form]) == 130
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []
