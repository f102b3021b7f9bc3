# SPDX-License-Identifier: Apache-2.0
"""Methods of others on developed pictures, and the adapter for commands, against simulated truth."""

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
from evaluation_helpers import TRUE_POSES

from dark3r_ros.errors import ConfigError, DataError, ReconstructionError
from dark3r_ros.evaluation.external import ExternalMethod
from dark3r_ros.evaluation.ladder import run_row
from dark3r_ros.evaluation.peer_pictures import KINDS, develop, develop_all, noise_of_picture, without_distortion
from dark3r_ros.evaluation.scenes import SIMULATED, SequenceScene, SimulatedScene, open_scene
from dark3r_ros.evaluation.trajectory_metrics import score_trajectory
from dark3r_ros.evaluation.visual_odometry import VisualOdometry, track_pictures
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.planes import to_planes

SMALL = SimulatedScene(replace(SIMULATED['room'], width=320, height=240, seconds=6.0))


@pytest.fixture(scope='module')
def frames():
    return list(SMALL.photograph(None, 0, 'starvis'))


def test_visual_odometry_follows_a_lit_room(frames):
    result = track_pictures((made.frame for made in frames), 'sift').trajectory()
    truth = np.stack([made.world_from_camera for made in frames])
    by_stamp = {made.frame.stamp_ns: number for number, made in enumerate(frames)}
    mine = truth[[by_stamp[int(stamp)] for stamp in result.stamps_ns]]
    scores = score_trajectory(result.stamps_ns, result.world_from_camera, mine)
    assert len(result) >= 10
    assert scores.ate_relative < 0.05


def test_visual_odometry_says_nothing_of_a_black_camera():
    odometry = VisualOdometry(np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]]))
    assert odometry.push(np.zeros((120, 160, 3), np.uint8)) is None
    with pytest.raises(ConfigError, match='sift, orb'):
        VisualOdometry(np.eye(3), 'surf')


def test_noise_of_a_picture_is_that_of_its_pixels():
    rng = np.random.default_rng(0)
    ramp = np.linspace(60, 180, 160)[None, :, None] + np.zeros((120, 160, 3))
    noisy = np.rint(ramp + rng.normal(0, 8, ramp.shape)).astype(np.uint8)
    assert noise_of_picture(noisy) == pytest.approx(8.0, rel=0.05)


def test_denoising_lowers_the_noise_and_linear_pictures_are_darker():
    dark = next(iter(SMALL.photograph(0.0, 0, 'starvis'))).frame
    planes = to_planes(dark, 2)
    pictures = {kind: develop(planes, kind) for kind in KINDS}
    assert noise_of_picture(pictures['denoised']) < 0.5 * noise_of_picture(pictures['stretched'])
    assert pictures['linear'].mean() < 0.8 * pictures['stretched'].mean()
    with pytest.raises(ConfigError, match='hdr'):
        develop(planes, 'hdr')


def test_pictures_lose_their_distortion():
    camera = Camera(160, 120, 100.0, 100.0, 79.5, 59.5, 'plumb_bob', (-0.25, 0.05, 0.0, 0.0, 0.0))
    points = np.array([[x, y, 1.0] for x in (-0.5, 0.0, 0.5) for y in (-0.4, 0.4)])
    image = np.zeros((120, 160, 3), np.uint8)
    for x, y in camera.project(points):
        cv2.circle(image, (round(x * 16), round(y * 16)), 40, (255, 255, 255), -1, cv2.LINE_AA, 4)
    straight, pinhole = without_distortion(image, camera)
    assert not pinhole.distorted
    _, _, _, centres = cv2.connectedComponentsWithStats((straight[..., 0] > 127).astype(np.uint8))
    expected = pinhole.project(points)
    for found in centres[1:]:
        assert np.linalg.norm(expected - found, axis=1).min() < 0.7


def test_no_frame_is_one_clear_line():
    with pytest.raises(ReconstructionError, match='no frame with calibration'):
        develop_all([])


def test_an_external_command_gets_frames_and_gives_poses(frames, tmp_path):
    script = tmp_path / 'method.py'
    script.write_text(TRUE_POSES)
    method = ExternalMethod(f'{sys.executable} {script} {{frames}} {{output}}')
    result = method(made.frame for made in frames[:5])
    xs = [None if item.world_from_camera is None else item.world_from_camera[0, 3] for item in result.frames]
    assert xs == [0.0, 1.0, None, 3.0, 4.0]
    assert result.frames[2].reason == 'the command gave it no pose'


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        ('sh -c "echo broken >&2; exit 3" {frames} {output}', 'ended with 3: broken'),
        ('true {frames} {output}', 'left no trajectory'),
        ('no-such-method {frames} {output}', 'cannot be run'),
        ('sh -c "sleep 5" {frames} {output}', 'longer than'),
    ],
)
def test_an_external_command_that_fails_says_why(frames, command, words):
    with pytest.raises(ReconstructionError, match=words):
        ExternalMethod(command, timeout_s=0.5)(made.frame for made in frames[:1])


def test_a_command_without_places_is_refused():
    with pytest.raises(ConfigError, match='frames'):
        ExternalMethod('slam')


def test_a_row_is_scored_kept_and_not_computed_again(tmp_path, monkeypatch):
    row = run_row(SMALL, None, 'mini', 0, 'starvis', tmp_path / 'row', 'vo-sift')
    assert row.sequence == 'room' and row.frames == 12 and row.posed >= 10
    assert row.ate_relative < 0.05
    monkeypatch.setattr(SimulatedScene, 'photograph', lambda *_: pytest.fail('photographed again'))
    assert run_row(SMALL, None, 'mini', 0, 'starvis', tmp_path / 'row', 'vo-sift') == row


def test_a_method_that_fails_is_a_row_without_poses(tmp_path):
    def fails(frames):
        list(frames)
        raise ReconstructionError('nothing matches')

    row = run_row(SMALL, -4.0, '', 0, 'starvis', tmp_path / 'row', 'mine', fails)
    assert (row.posed, row.frames, row.ate_relative, row.note) == (0, 12, None, 'nothing matches')


def test_scenes_are_folders_or_names(tmp_path):
    assert open_scene('tunnel').name == 'tunnel'
    (tmp_path / 'cameras.json').write_text('{}')
    assert open_scene(str(tmp_path)) == SequenceScene(tmp_path)
    with pytest.raises(DataError, match='neither a folder'):
        open_scene('moon')
