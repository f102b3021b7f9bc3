# SPDX-License-Identifier: Apache-2.0
"""`dark3r inspect` on good and bad recordings."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from storage_helpers import START_NS, STEP_NS, make_frame

from dark3r_ros.cli.main import main
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.noise import preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.raw.snr import snr_db
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.inspection import timing
from dark3r_ros.types import Frame

CAMERA = Camera(320, 240, 250.0, 250.0, 159.5, 119.5)


def write_recording(path, count=20, missing=(7, 8), storage='mcap'):
    """Frames of a textured scene through the sensor model, two of them missing; returns the true SNR in dB."""
    noise = preset('pregius')
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.random((240, 320)), (0, 0), 4)
    signal = 20.0 + 600.0 * (texture - texture.min())
    with BagWriter(path, storage) as writer:
        for index in range(count):
            if index in missing:
                continue
            mosaic = noise.sample(signal, np.random.default_rng(index))
            black = (noise.black_level,) * 3
            frame = Frame(START_NS + index * STEP_NS, mosaic, 'rggb', black, noise.white_level, CAMERA, 'optical')
            writer.write_frame(frame)
            writer.write_camera_info(CAMERA, frame.stamp_ns, 'optical')
    clean = np.rint(signal + noise.black_level).astype(np.uint16)
    planes = to_planes(Frame(0, clean, 'rggb', (noise.black_level,) * 3, noise.white_level), 2)
    return snr_db(planes.signal(), noise.mean_planes_variance(planes))


def inspect(capsys, *arguments):
    status = main(['inspect', *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_report_of_a_recording(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    true_snr = write_recording(tmp_path / 'bag')
    status, out, err = inspect(capsys, tmp_path / 'bag', '--json')
    report = json.loads(out)
    assert status == 0
    assert [topic['count'] for topic in report['bag']['topics']] == [18, 18]
    assert report['bag']['topics'][1]['rate_hz'] == pytest.approx(10, rel=1e-3)
    assert report['image']['encoding'] == 'bayer_rggb16'
    assert report['timing']['rate_hz'] == pytest.approx(10, rel=1e-3)
    assert report['timing']['gaps'] == [
        {'at_s': pytest.approx(0.6, rel=1e-3), 'length_s': pytest.approx(0.3, rel=1e-3)}
    ]
    assert report['camera']['fx'] == 250.0
    assert report['snr_db']['median'] == pytest.approx(true_snr, abs=1.5)
    assert report['sampled_frames'] == 9
    assert report['guess']['black_at_least'] < preset('pregius').black_level + 60
    sheet = cv2.imread(str(tmp_path / 'bag_inspect.png'))
    assert sheet is not None
    assert sheet.std() > 10
    assert 'contact sheet: bag_inspect.png' in err


def test_text_for_people(tmp_path, capsys):
    write_recording(tmp_path / 'bag', storage='sqlite3')
    status, out, _ = inspect(capsys, tmp_path / 'bag', '--no-sheet', '--samples', '3')
    assert status == 0
    for part in (
        '/camera/image_raw', 'sensor_msgs/msg/CameraInfo', '18 messages', 'best effort', 'bayer_rggb16', '320x240',
        'gaps: 1, longest 0.3 s at 0.60 s', '3 sampled frames', 'calibration: 320x240, fx 250.00', 'SNR min',
    ):  # fmt: skip
        assert part in out, part
    assert list(tmp_path.glob('*.png')) == []


def test_samples_are_read_without_the_rest_on_long_bags(tmp_path, capsys, monkeypatch):
    from dark3r_ros.cli import inspect as module

    write_recording(tmp_path / 'bag')
    monkeypatch.setattr(module, '_FULL_PASS_BYTES', 0)
    _, out, _ = inspect(capsys, tmp_path / 'bag', '--no-sheet', '--json')
    report = json.loads(out)
    assert 'times of recording' in report['timing']['from']
    assert report['timing']['gaps'][0]['length_s'] == pytest.approx(0.3, rel=1e-3)
    assert report['sampled_frames'] == 9


def test_damaged_bag_says_what_was_lost(tmp_path, capsys):
    write_recording(tmp_path / 'bag')
    file = tmp_path / 'bag' / 'bag.mcap'
    os.truncate(file, file.stat().st_size // 2)
    status, out, _ = inspect(capsys, tmp_path / 'bag', '--no-sheet')
    assert status == 0
    assert 'bag.mcap is damaged' in out
    assert 'of 18 messages of /camera/image_raw are lost' in out


def test_bag_without_images_shows_its_topics_and_fails(tmp_path, capsys):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_odometry(START_NS, np.eye(4))
    status, out, err = inspect(capsys, tmp_path / 'bag')
    assert status == 2
    assert '/odom' in out
    assert err.startswith('dark3r: error: ')
    assert 'no Image message' in err
    assert err.count('\n') == 1


def test_empty_bag_unreadable_bag_and_nothing(tmp_path, capsys):
    with BagWriter(tmp_path / 'empty'):
        pass
    status, out, err = inspect(capsys, tmp_path / 'empty')
    assert (status, err.count('\n')) == (2, 1)
    assert 'topics: none' in out
    assert 'is empty' in err
    (tmp_path / 'x.mcap').write_bytes(b'garbage')
    for path in ('x.mcap', 'nowhere'):
        status, _, err = inspect(capsys, tmp_path / path)
        assert (status, err.count('\n')) == (2, 1)


def test_missing_topic_lists_the_topics(tmp_path, capsys):
    write_recording(tmp_path / 'bag', 2, ())
    status, _, err = inspect(capsys, tmp_path / 'bag', '--image-topic', '/rear', '--no-sheet')
    assert status == 2
    assert 'no topic /rear; topics: /camera/camera_info' in err


def test_unwritable_sheet(tmp_path, capsys):
    write_recording(tmp_path / 'bag', 2, ())
    (tmp_path / 'file').write_text('')
    status, _, err = inspect(capsys, tmp_path / 'bag', '-o', tmp_path / 'file' / 'x.png')
    assert status == 2
    assert 'cannot write' in err


def test_folder_of_mosaics(tmp_path, capsys):
    for index in range(3):
        cv2.imwrite(str(tmp_path / f'{index}.png'), make_frame(index).mosaic)
    status, out, _ = inspect(
        capsys, tmp_path, '--no-sheet', '--encoding-override', 'bayer_grbg16', '--black-level', 256
    )
    assert status == 0
    assert 'images: 3 of 64x48, grbg mosaic' in out
    assert 'assumed, the files carry no times' in out
    assert 'calibration: none' in out


def test_one_frame_has_no_rate(tmp_path, capsys):
    write_recording(tmp_path / 'bag', count=1, missing=())
    status, output, _ = inspect(capsys, tmp_path / 'bag', '--no-sheet')
    assert status == 0
    assert 'no rate over 0.00 s' in output
    assert 'nan' not in output


def test_timing_by_hand():
    measured = timing(np.array([0, 100, 200, 200, 150, 600, 700]) * 10**6)
    assert measured.rate_hz == pytest.approx(10.0)
    assert measured.gaps == ((0.15, 0.45),)
    assert (measured.repeated, measured.backward) == (1, 1)
    assert measured.duration_s == pytest.approx(0.7)
    assert np.isnan(timing(np.array([5])).rate_hz)
