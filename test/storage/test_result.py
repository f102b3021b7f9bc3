# SPDX-License-Identifier: Apache-2.0
"""Result folders: complete, all or nothing, never at the cost of what was there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from storage_helpers import make_reconstruction

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.storage import result as result_module
from dark3r_ros.storage.result import read_result, write_result
from dark3r_ros.storage.trajectory import read_tum

FILES = {
    'trajectory.tum', 'keyframes.tum', 'cloud.ply', 'cameras.json', 'colmap', 'transforms.json', 'report.json',
}  # fmt: skip
REPORT = {'wall_s': 1.5, 'stages_s': {'decode': np.float32(0.5)}, 'weights_sha256': None, 'config': {'binning': 4}}


def snapshot(folder):
    return {str(item.relative_to(folder)): item.read_bytes() for item in folder.rglob('*') if item.is_file()}


def test_every_file_is_there_and_reads_back(tmp_path):
    truth = make_reconstruction()
    write_result(tmp_path / 'out', truth, REPORT)
    assert {item.name for item in (tmp_path / 'out').iterdir()} == FILES
    assert os.listdir(tmp_path) == ['out']
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert (report['frames'], report['posed'], report['keyframes']) == (6, 5, 2)
    assert report['posed_share'] == pytest.approx(5 / 6)
    assert report['snr_db'] == {'min': -4.0, 'median': -1.5, 'max': 1.0}
    assert report['stages_s'] == {'decode': 0.5}
    assert report['config'] == {'binning': 4}
    assert report['peak_memory_mb'] > 10
    saved = read_result(tmp_path / 'out')
    assert saved.reconstruction.camera == truth.camera
    assert saved.reconstruction.metric_scale
    for read, written in zip(saved.reconstruction.frames, truth.frames, strict=True):
        for name in ('stamp_ns', 'keyframe', 'snr_db', 'inliers', 'matches', 'reason', 'name'):
            assert getattr(read, name) == getattr(written, name)
        np.testing.assert_array_equal(read.world_from_camera, written.world_from_camera)
    np.testing.assert_array_equal(saved.reconstruction.cloud.points, truth.cloud.points)
    keyframes = read_tum(tmp_path / 'out' / 'keyframes.tum')
    np.testing.assert_array_equal(keyframes.stamps_ns, truth.trajectory(keyframes_only=True).stamps_ns)


def test_same_input_same_bytes(tmp_path):
    for name in 'ab':
        write_result(tmp_path / name, make_reconstruction(), REPORT)
    first, second = snapshot(tmp_path / 'a'), snapshot(tmp_path / 'b')
    different = {name for name in first if first[name] != second[name]}
    assert different <= {'report.json', 'cameras.json'}  # peak memory, the folder's name


def test_unknown_snr_is_null(tmp_path):
    truth = make_reconstruction()
    truth = replace(truth, frames=tuple(replace(frame, snr_db=float('nan')) for frame in truth.frames))
    write_result(tmp_path / 'out', truth, {})
    report = json.loads((tmp_path / 'out' / 'report.json').read_text())
    assert report['snr_db'] == {'min': None, 'median': None, 'max': None}
    assert np.isnan(read_result(tmp_path / 'out').reconstruction.frames[0].snr_db)


def test_nothing_posed_is_still_a_result(tmp_path):
    truth = make_reconstruction()
    frames = tuple(replace(frame, world_from_camera=None) for frame in truth.frames)
    empty = replace(
        truth, frames=frames, observations=result_module.no_observations(), cloud=result_module.empty_cloud()
    )
    write_result(tmp_path / 'out', empty, {})
    assert read_result(tmp_path / 'out').report['posed_share'] == 0.0


def test_overwrite_rule(tmp_path):
    write_result(tmp_path / 'out', make_reconstruction(), {})
    before = snapshot(tmp_path / 'out')
    with pytest.raises(OutputError, match=r'exists already.*--overwrite'):
        write_result(tmp_path / 'out', make_reconstruction(frames=4), {})
    assert snapshot(tmp_path / 'out') == before
    write_result(tmp_path / 'out', make_reconstruction(frames=4), {}, overwrite=True)
    assert read_result(tmp_path / 'out').report['frames'] == 4
    assert os.listdir(tmp_path) == ['out']


def test_other_folders_and_files_are_never_replaced(tmp_path):
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'letter.txt').write_text('dear')
    with pytest.raises(OutputError, match='is not replaced'):
        write_result(tmp_path / 'home', make_reconstruction(), {}, overwrite=True)
    assert snapshot(tmp_path / 'home') == {'letter.txt': b'dear'}
    with pytest.raises(OutputError, match='a file of that name'):
        write_result(tmp_path / 'home' / 'letter.txt', make_reconstruction(), {}, overwrite=True)
    (tmp_path / 'empty').mkdir()
    write_result(tmp_path / 'empty', make_reconstruction(), {})


def test_failure_half_way_leaves_everything_as_it_was(tmp_path, monkeypatch):
    write_result(tmp_path / 'out', make_reconstruction(), {})
    before = snapshot(tmp_path / 'out')

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(result_module, 'write_transforms', full)
    with pytest.raises(OutputError, match='the disk is full'):
        write_result(tmp_path / 'out', make_reconstruction(frames=4), {}, overwrite=True)
    with pytest.raises(OutputError, match='the disk is full'):
        write_result(tmp_path / 'new', make_reconstruction(frames=4), {})
    assert snapshot(tmp_path / 'out') == before
    assert os.listdir(tmp_path) == ['out']


def test_failing_rename_puts_the_old_result_back(tmp_path, monkeypatch):
    write_result(tmp_path / 'out', make_reconstruction(), {})
    before = snapshot(tmp_path / 'out')
    rename = os.rename

    def failing(source, target):
        if str(target) == str(tmp_path / 'out') and '.old.' not in str(source):
            raise OSError(errno.EACCES, 'Permission denied')
        rename(source, target)

    monkeypatch.setattr(os, 'rename', failing)
    with pytest.raises(OutputError, match='no permission'):
        write_result(tmp_path / 'out', make_reconstruction(frames=4), {}, overwrite=True)
    monkeypatch.undo()
    assert snapshot(tmp_path / 'out') == before
    assert os.listdir(tmp_path) == ['out']


def test_file_size_limit_of_the_system(tmp_path):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})
from storage_helpers import make_reconstruction
from dark3r_ros.storage.result import write_result
write_result({str(tmp_path / 'out')!r}, make_reconstruction(), {{}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
write_result({str(tmp_path / 'out')!r}, make_reconstruction(points=400), {{}}, overwrite=True)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1].startswith('dark3r_ros.errors.OutputError: cannot write')
    assert read_result(tmp_path / 'out').report['landmarks'] == 40
    assert os.listdir(tmp_path) == ['out']


def test_a_folder_that_is_no_result(tmp_path):
    with pytest.raises(DataError, match='no result folder'):
        read_result(tmp_path)
    (tmp_path / 'report.json').write_text('[]')
    with pytest.raises(DataError, match='per_frame'):
        read_result(tmp_path)
    (tmp_path / 'report.json').write_text('{')
    with pytest.raises(DataError, match='not valid JSON'):
        read_result(tmp_path)
