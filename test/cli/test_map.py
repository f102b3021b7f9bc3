# SPDX-License-Identifier: Apache-2.0
"""`dark3r map` from a recording to the result folder, and its answers to bad input."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from refusals import error_line

from dark3r_ros.cli import map as map_command
from dark3r_ros.cli.main import main
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.cloud import read_ply
from dark3r_ros.storage.source import open_source
from dark3r_ros.storage.trajectory import read_tum, write_tum
from dark3r_ros.types import Trajectory

TRUTH = 'truth.tum'
# At the end no more is matched again than a test needs.
KEYFRAMES_ALONE = ('--rematch-frames', '0')
FAST = ('--no-report', '--rematch-keyframes', '0')


@pytest.fixture(scope='module')
def bag(tmp_path_factory) -> Path:
    """Three seconds of a tunnel at +20 dB."""
    path = tmp_path_factory.mktemp('map') / 'tunnel'
    command = [
        'simulate',
        'tunnel',
        '-o',
        str(path),
        '--size',
        '640x480',
        '--seconds',
        '3',
        '--rate',
        '8',
        '--snr',
        '20',
    ]
    assert main(command) == 0
    return path


@pytest.fixture(scope='module')
def result(bag, tmp_path_factory) -> Path:
    """Its map."""
    folder = tmp_path_factory.mktemp('result') / 'tunnel'
    assert main(['map', str(bag), '-o', str(folder), *KEYFRAMES_ALONE]) == 0
    return folder


def test_every_file_of_a_result_is_there_and_agrees(bag, result, capsys):
    names = {'trajectory.tum', 'keyframes.tum', 'cloud.ply', 'cameras.json', 'colmap', 'transforms.json'}
    names |= {'report.json', 'report.html'}
    assert names <= {path.name for path in result.iterdir()}
    trajectory = read_tum(result / 'trajectory.tum')
    stamps = [frame.stamp_ns for frame in open_source(bag)]
    assert trajectory.stamps_ns.tolist() == stamps
    report = json.loads((result / 'report.json').read_text())
    assert report['posed'] == report['frames'] == len(stamps)
    assert report['keyframes'] == len(read_tum(result / 'keyframes.tum'))
    assert report['snr_db']['median'] == pytest.approx(20.0, abs=4.0)
    assert set(report['stages_s']) >= {'encode', 'track', 'window'}
    assert report['config']['mapping']['window'] == 12
    assert len(read_ply(result / 'cloud.ply')) == report['cloud_points'] > 100
    assert cv2.imread(str(result / 'report' / 'samples.png')) is not None
    assert main(['evaluate', str(result), '--truth', str(bag / TRUTH), '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['posed_share'] == 1.0
    assert figures['ate_relative'] < 0.01


def test_the_same_input_gives_the_same_bytes(bag, result, tmp_path):
    again = tmp_path / 'again'
    assert main(['map', str(bag), '-o', str(again), '--no-report', *KEYFRAMES_ALONE]) == 0
    assert (again / 'trajectory.tum').read_bytes() == (result / 'trajectory.tum').read_bytes()
    assert not (again / 'report.html').exists()
    assert main(['report', str(again)]) == 0
    page = (again / 'report.html').read_text()
    assert 'frames posed' in page
    assert (again / 'report' / 'trajectory.png').stat().st_size > 1000


def test_settings_reach_the_pipeline_and_ranges_are_kept(bag, tmp_path, capsys):
    folder = tmp_path / 'few'
    command = ['map', str(bag), '-o', str(folder), '--no-report', '--json', '--duration', '1.5', '--noise', 'starvis']
    settings = ['--predictor', 'classical', '--classical-max-keypoints', '300', '--window', '5']
    assert main([*command, *settings]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['frames'] == 12
    report = json.loads((folder / 'report.json').read_text())
    assert report['config']['mapping']['window'] == 5
    assert report['config']['classical']['max_keypoints'] == 300
    assert report['config']['decode']['black_level'] == -1.0
    assert (report['predictor'], report['weights_sha256']) == ('classical', None)
    assert report['config']['noise']['name'] == 'starvis'
    assert main(['map', str(bag), '-o', str(tmp_path / 'x'), '--window', '1']) == 2
    assert 'window' in error_line(capsys)


def test_a_saved_map_is_continued_by_a_later_recording(bag, tmp_path, capsys):
    live, first, second = tmp_path / 'live', tmp_path / 'first', tmp_path / 'second'
    quick = ['--no-report', '--predictor', 'classical', '--noise', 'starvis']
    assert main(['map', str(bag), '-o', str(first), '--duration', '2', '--save-map', str(live), *quick]) == 0
    keyframes = json.loads((first / 'report.json').read_text())['keyframes']
    assert main(['map', str(bag), '-o', str(second), '--start', '1', '--continue-from', str(live), *quick]) == 0
    assert f'map of {keyframes} keyframes loaded' in capsys.readouterr().err
    stamps = [frame.stamp_ns for frame in open_source(bag)]
    # Frames of both recordings are in the result, those that both hold once.
    assert read_tum(second / 'trajectory.tum').stamps_ns.tolist() == stamps
    report = json.loads((second / 'report.json').read_text())
    assert len(report['submaps']) == 1
    assert set(report['loops']) == {'proposed', 'verified', 'accepted', 'refused'}
    assert main(['map', str(bag), '-o', str(tmp_path / 'x'), '--continue-from', str(live), '--no-report']) == 2
    assert 'predictor' in error_line(capsys)
    assert main(['map', str(bag), '-o', str(tmp_path / 'x'), '--save-map', str(live), *quick]) == 2
    assert '--overwrite' in error_line(capsys)


def test_an_existing_result_is_kept_unless_asked(bag, result, capsys, tmp_path, monkeypatch):
    before = (result / 'trajectory.tum').read_bytes()
    assert main(['map', str(bag), '-o', str(result)]) == 2
    assert '--overwrite' in error_line(capsys)
    assert (result / 'trajectory.tum').read_bytes() == before
    monkeypatch.setattr(map_command, 'MappingPipeline', None)  # refused before any work
    strange = tmp_path / 'mine'
    strange.mkdir()
    (strange / 'thesis.txt').write_text('years of work')
    assert main(['map', str(bag), '-o', str(strange), '--overwrite', '--no-report']) == 2
    assert 'mine' in error_line(capsys)
    assert (strange / 'thesis.txt').read_text() == 'years of work'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_unwritable_output_is_one_line(bag, tmp_path, capsys):
    locked = tmp_path / 'locked'
    locked.mkdir()
    locked.chmod(0o500)
    assert main(['map', str(bag), '-o', str(locked / 'out'), '--no-report']) == 2
    assert 'locked' in error_line(capsys)


def test_output_below_a_file_is_one_line(bag, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(map_command, 'MappingPipeline', None)  # refused before any work
    (tmp_path / 'file').write_text('')
    assert main(['map', str(bag), '-o', str(tmp_path / 'file' / 'out'), '--no-report', '--duration', '1']) == 2
    assert 'file' in error_line(capsys)


def _bag_of(path: Path, frames, camera=True) -> Path:
    with BagWriter(path) as writer:
        for frame in frames:
            writer.write_frame(frame)
            if camera and frame.camera is not None:
                writer.write_camera_info(frame.camera, frame.stamp_ns, frame.frame_id)
    return path


def test_bag_without_calibration_is_one_line(bag, tmp_path, capsys):
    path = _bag_of(tmp_path / 'bare', list(open_source(bag))[:4], camera=False)
    assert main(['map', str(path), '-o', str(tmp_path / 'out')]) == 2
    assert 'alibration' in error_line(capsys) or 'camera' in error_line(capsys)
    assert not (tmp_path / 'out').exists()


def test_missing_topic_lists_those_there_are(bag, tmp_path, capsys):
    assert main(['map', str(bag), '-o', str(tmp_path / 'out'), '--image-topic', '/thermal']) == 2
    line = error_line(capsys)
    assert '/thermal' in line
    assert '/camera/image_raw' in line


def test_report_of_a_folder_without_result_is_one_line(tmp_path, capsys):
    assert main(['report', str(tmp_path)]) == 2
    assert 'report.json' in error_line(capsys)


def test_input_that_does_not_exist_or_is_empty(tmp_path, capsys):
    assert main(['map', str(tmp_path / 'nowhere'), '-o', str(tmp_path / 'out')]) == 2
    assert 'nowhere' in error_line(capsys)
    (tmp_path / 'empty').mkdir()
    assert main(['map', str(tmp_path / 'empty'), '-o', str(tmp_path / 'out')]) == 2
    assert 'empty' in error_line(capsys)


def test_dark_frames_alone_say_why_nothing_was_posed(bag, tmp_path, capsys):
    rng = np.random.default_rng(0)
    frames = [
        replace(frame, mosaic=rng.normal(240, 5, frame.mosaic.shape).astype(np.uint16))
        for frame in list(open_source(bag))[:5]
    ]
    path = _bag_of(tmp_path / 'dark', frames)
    assert main(['map', str(path), '-o', str(tmp_path / 'out')]) == 2
    assert 'none of 5 frames' in error_line(capsys)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('value', 'reason'), [(4095, 'saturated'), (240, 'black')])
def test_blind_frames_alone_are_named(bag, tmp_path, capsys, value, reason):
    frames = [replace(frame, mosaic=np.full_like(frame.mosaic, value)) for frame in open_source(bag)]
    path = _bag_of(tmp_path / 'blind', frames[:4])
    assert main(['map', str(path), '-o', str(tmp_path / 'out')]) == 2
    line = error_line(capsys)
    assert 'none of 4 frames' in line
    assert f'all pixels are {reason}' in line


def test_truncated_bag_is_mapped_up_to_the_damage(bag, tmp_path, capsys):
    damaged = tmp_path / 'damaged'
    shutil.copytree(bag, damaged)
    file = next(damaged.glob('*.mcap'))
    with file.open('r+b') as stream:
        stream.truncate(int(file.stat().st_size * 0.7))
    assert main(['map', str(damaged), '-o', str(tmp_path / 'out'), *FAST]) == 0
    captured = capsys.readouterr()
    assert 'dark3r: warning:' in captured.err
    assert 8 < len(read_tum(tmp_path / 'out' / 'trajectory.tum')) < 24


def test_a_live_viewer_that_is_not_there_is_one_line_before_any_work(bag, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'rerun', None)
    for target, words in ((), 'dark3r_ros[viewer]'), (('screen',), '.rrd'):
        assert main(['map', str(bag), '-o', str(tmp_path / 'out'), '--live', *target]) == 2
        assert words in error_line(capsys)
    assert not (tmp_path / 'out').exists()


def test_odometry_that_goes_on_long_after_the_last_frame_still_knows_every_keyframe(bag, tmp_path):
    truth = read_tum(bag / TRUTH)
    later = truth.stamps_ns[-1] + 20_000_000 * np.arange(1, 22001)  # more than are kept at a time
    poses = np.concatenate([truth.world_from_camera, np.repeat(truth.world_from_camera[-1:], len(later), axis=0)])
    write_tum(tmp_path / 'wheels.tum', Trajectory(np.concatenate([truth.stamps_ns, later]), poses))
    live = tmp_path / 'live'
    command = ['map', str(bag), '-o', str(tmp_path / 'out'), '--odometry', str(tmp_path / 'wheels.tum'), *FAST]
    assert main([*command, '--duration', '2', '--save-map', str(live)]) == 0
    with np.load(live / 'map.npz') as saved:
        known, stamps, metric = (saved[f'0/{key}'] for key in ('odometry_known', 'stamps_ns', 'odometry'))
    assert len(stamps) >= 3 and known.all()
    rows = np.searchsorted(truth.stamps_ns, stamps)
    np.testing.assert_allclose(metric, truth.world_from_camera[rows], atol=1e-6)


def test_odometry_of_another_unit_scales_the_result(bag, tmp_path, capsys):
    truth = read_tum(bag / TRUTH)
    truth.world_from_camera[:, :3, 3] *= 10.0  # a larger robot in a larger tunnel
    write_tum(tmp_path / 'wheels.tum', truth)
    folder = tmp_path / 'metric'
    assert main(['map', str(bag), '-o', str(folder), '--odometry', str(tmp_path / 'wheels.tum'), *FAST]) == 0
    found = read_tum(folder / 'trajectory.tum').world_from_camera[:, :3, 3]
    length = np.linalg.norm(np.diff(found[:: len(found) - 1], axis=0))
    true = np.linalg.norm(np.diff(truth.world_from_camera[:: len(truth) - 1, :3, 3], axis=0))
    assert abs(length / true - 1) < 0.05
    report = json.loads((folder / 'report.json').read_text())
    assert report['scale']['known'] and report['scale']['deviation'] < 0.02
    assert report['metric_scale']

    truth.world_from_camera[:, :3, 3] = 0.0  # wheels that stand still say nothing
    write_tum(tmp_path / 'wheels.tum', truth)
    command = ['map', str(bag), '-o', str(folder), '--overwrite', '--odometry', str(tmp_path / 'wheels.tum')]
    assert main([*command, *FAST]) == 0
    assert 'the scale stays arbitrary' in capsys.readouterr().err
    assert not json.loads((folder / 'report.json').read_text())['scale']['known']
