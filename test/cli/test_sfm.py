# SPDX-License-Identifier: Apache-2.0
"""`dark3r sfm` from a recording to the result folder, and its answers to bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import error_line

from dark3r_ros.cli.main import main
from dark3r_ros.storage.cloud import read_ply
from dark3r_ros.storage.colmap import read_observations
from dark3r_ros.storage.sequence import read_cameras_json, read_depth
from dark3r_ros.storage.trajectory import read_tum


@pytest.fixture(scope='module')
def bag(tmp_path_factory) -> Path:
    """Two seconds in a room at +10 dB."""
    path = tmp_path_factory.mktemp('sfm') / 'room'
    size = ['--size', '640x480', '--seconds', '2', '--rate', '4', '--snr', '10', '--light', 'ambient']
    assert main(['simulate', 'room', '-o', str(path), *size]) == 0
    return path


@pytest.fixture(scope='module')
def result(bag, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('sfm_result') / 'room'
    assert main(['sfm', str(bag), '-o', str(folder), '--no-report']) == 0
    return folder


def test_a_room_is_posed_and_scored(bag, result, capsys):
    report = json.loads((result / 'report.json').read_text())
    assert report['posed'] == report['frames'] == 8
    assert report['sfm']['pairs']['tried'] == 28
    assert not list(result.parent.glob('.room.sfm'))
    assert main(['evaluate', str(result), '--truth', str(bag / 'truth.tum'), '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['ate_relative'] < 0.03


def test_the_colmap_model_opens_in_pycolmap_with_the_same_error(result):
    pycolmap = pytest.importorskip('pycolmap')
    model = pycolmap.Reconstruction(str(result / 'colmap'))
    assert model.num_reg_images() == 8
    assert model.num_points3D() == json.loads((result / 'report.json').read_text())['landmarks']
    stated = np.mean([point.error for point in model.points3D.values()])
    model.update_point_3d_errors()
    assert np.mean([point.error for point in model.points3D.values()]) == pytest.approx(stated, rel=1e-4)
    assert (
        sum(len(seen) for seen, _ in read_observations(result / 'colmap').values()) == model.compute_num_observations()
    )


@pytest.mark.slow
def test_two_worker_processes_give_the_same_trajectory(bag, result, tmp_path):
    folder = tmp_path / 'room'
    command = [sys.executable, '-m', 'dark3r_ros.cli.main', 'sfm', str(bag), '-o', str(folder), '--no-report']
    environment = {
        **os.environ,
        'WORLD_SIZE': '2',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': '29517',
        'OMP_NUM_THREADS': str(torch.get_num_threads()),  # as many as made the other one, or sums differ
    }
    workers = [subprocess.Popen(command, env={**environment, 'RANK': str(rank)}) for rank in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    assert (folder / 'trajectory.tum').read_bytes() == (result / 'trajectory.tum').read_bytes()


def test_one_frame_is_refused_with_one_line(bag, tmp_path, capsys):
    assert main(['sfm', str(bag), '-o', str(tmp_path / 'one'), '--duration', '0.1', '--no-report']) == 2
    assert 'one frame alone' in error_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_recording_keeps_its_stamps(bag, result, tmp_path):
    folder = tmp_path / 'part'
    assert main(['sfm', str(bag), '-o', str(folder), '--no-report', '--stride', '2', '--mapper', 'own']) == 0
    part, whole = read_tum(folder / 'trajectory.tum'), read_tum(result / 'trajectory.tum')
    assert part.stamps_ns.tolist() == whole.stamps_ns[::2].tolist()


def test_depth_confidence_scale_and_sigmas_are_written(bag, tmp_path):
    folder = tmp_path / 'metric'
    command = ['sfm', str(bag), '-o', str(folder), '--no-report', '--scale-odometry', str(bag / 'truth.tum')]
    assert main([*command, '--mapper', 'own']) == 0
    report = json.loads((folder / 'report.json').read_text())
    assert report['metric_scale'] and report['metres_per_unit'] > 0
    sigmas = sorted(one['position'] for one in report['pose_sigma'].values())
    assert sigmas[:2] == [0.0, 0.0] and 0 < sigmas[2] <= sigmas[-1] < 0.1
    info = read_cameras_json(folder)
    assert info.metric
    truth = read_tum(bag / 'truth.tum').world_from_camera[:, :3, 3]
    own = read_tum(folder / 'trajectory.tum').world_from_camera[:, :3, 3]
    assert np.linalg.norm(own[-1] - own[0]) == pytest.approx(np.linalg.norm(truth[-1] - truth[0]), rel=0.05)
    for image in info.images:
        with np.load(folder / 'depth' / f'{Path(image.file).stem}.npz') as stored:
            depth, confidence = stored['depth'], stored['confidence']
        assert depth.shape == confidence.shape == (240, 320)
        assert 0 < confidence.max() <= 1 and ((confidence > 0) == (depth > 0)).all()
        assert np.abs(read_depth(info, image) - depth).max() < 2.0 / info.depth_unit
    assert len(read_ply(folder / 'cloud.ply')) > 2000


def test_bad_scales_are_refused_with_one_line(bag, tmp_path, capsys):
    command = ['sfm', str(bag), '-o', str(tmp_path / 'bad'), '--no-report', '--dense', 'false', '--stride', '2']
    for options, words in (
        (['--scale-distance', '0', '1', 'far'], 'no number'),
        (['--scale-distance', '0', '99', '1'], 'no frame'),
        (['--scale-odometry', str(tmp_path / 'none.tum')], 'none.tum'),
        (['--scale-baseline', '0.1'], '--second-camera'),
        (['--second-calibration', 'right.json'], '--second-camera'),
        (['--second-camera', str(bag), '--scale-baseline', 'wide'], 'no number'),
        (['--second-camera', str(bag), '--scale-baseline', '-0.1'], 'positive'),
        (['--second-camera', str(bag), '--scale-baseline'], 'does not join'),
        (['--second-camera', '/nowhere'], '/nowhere'),
    ):
        assert main([*command, *options]) == 2
        assert words in error_line(capsys)
