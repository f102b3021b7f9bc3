# SPDX-License-Identifier: Apache-2.0
"""`dark3r inspect --pair` on a recording whose frames are moved by a known number of pixels."""

import json

import cv2
import numpy as np
import pytest

from dark3r_ros.cli.inspect_pair import match_pair, read_pair
from dark3r_ros.cli.main import main
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.source import open_source
from dark3r_ros.types import Frame

CAMERA = Camera(320, 240, 250.0, 250.0, 159.5, 119.5)
STEP_PX = 8


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp('pair') / 'moving'
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.random((240, 400)), (0, 0), 3)
    texture = (texture - texture.min()) / np.ptp(texture)
    with BagWriter(path) as writer:
        for index in range(4):
            window = texture[:, index * STEP_PX : index * STEP_PX + 320]
            mosaic = (512 + 4000 * window + rng.normal(0, 10, window.shape)).astype(np.uint16)
            frame = Frame(10**9 + index * 10**8, mosaic, 'rggb', (512.0,) * 3, 16383.0, CAMERA, 'optical')
            writer.write_frame(frame)
            writer.write_camera_info(CAMERA, frame.stamp_ns, 'optical')
    return path


def test_matches_are_those_of_the_two_frames_asked_for(recording):
    with_width = dict(network_width=160)
    for numbers in ((0, 3), (3, 0), (1, 2)):
        first, second = read_pair(open_source(recording), numbers, **with_width)
        found = match_pair(first, second, make_predictor('classical'))
        shift = STEP_PX / first.binning * (numbers[0] - numbers[1])
        assert len(found.matches) > 30
        offset = np.median(found.matches.points_b - found.matches.points_a, axis=0)
        np.testing.assert_allclose(offset, (shift, 0), atol=0.1)
        assert found.verified
        assert found.inliers.sum() > 0.8 * len(found.matches)


def test_command_writes_a_picture_and_figures(recording, tmp_path, capsys):
    output = tmp_path / 'out.png'
    assert main(['inspect', str(recording), '--pair', '0', '2', '-o', str(output), '--json']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['frames'] == [0, 2]
    assert figures['inliers'] <= figures['matches']
    picture = cv2.imread(str(output))
    assert picture.shape[1] > 1.9 * picture.shape[0]
    green = (picture == (80, 200, 40)).all(-1).sum()
    assert green > 100
    assert main(['inspect', str(recording), '--pair', '0', '2', '-o', str(output)]) == 0
    assert 'frames 0 and 2, mini' in capsys.readouterr().out


@pytest.mark.parametrize('numbers', [('0', '4'), ('9', '1')])
def test_frames_beyond_the_recording(recording, tmp_path, capsys, numbers):
    assert main(['inspect', str(recording), '--pair', *numbers, '-o', str(tmp_path / 'x.png')]) == 2
    assert 'frames 0 to 3' in capsys.readouterr().err
    assert not (tmp_path / 'x.png').exists()
