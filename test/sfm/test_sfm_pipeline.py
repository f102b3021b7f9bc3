# SPDX-License-Identifier: Apache-2.0
"""The offline pipeline against exact poses: noise, outliers, bad frames, kills, repeated runs."""

from dataclasses import replace

import numpy as np
import pytest
from star_world import CAMERA, MisledPredictor, StarPredictor, WallPredictor, camera_path, centre_error, frames

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import supported
from dark3r_ros.sfm.pipeline import SfmRun

COUNT = 8
CONFIG = SfmConfig(network_width=160)


@pytest.fixture(scope='module')
def truth():
    return camera_path(COUNT)


@pytest.fixture(scope='module')
def result(truth):
    run = SfmRun(CONFIG, StarPredictor(truth))
    return run(frames(COUNT)), run


def posed(reconstruction):
    return np.stack([frame.world_from_camera for frame in reconstruction.frames if frame.world_from_camera is not None])


def test_noise_and_outliers_are_averaged_out(result, truth):
    reconstruction, run = result
    # Half a pixel of noise moves a camera four metres off by 0.9 % of the extent; only averages come below half of it.
    assert centre_error(posed(reconstruction), truth) < 0.004
    assert run.notes['pairs'] == {'tried': 28, 'verified': 28, 'resumed': 0, 'matches': run.notes['pairs']['matches']}
    assert run.notes['start']['method'] == 'ordered'


def test_observations_reproject_where_they_were_seen(result):
    reconstruction, _ = result
    seen = reconstruction.observations
    pose = np.stack([se3.inverse(frame.world_from_camera) for frame in reconstruction.frames])[seen.frame_index]
    points = seen.points[seen.point_index]
    local = np.einsum('kij,kj->ki', pose[:, :3, :3], points) + pose[:, :3, 3]
    error = np.linalg.norm(reconstruction.camera.project(local) - seen.pixels, axis=1)
    assert error.max() < 2.0 * CONFIG.max_error + 0.1  # the mosaic has twice the pixels of the planes
    assert np.median(error) < 1.5


def test_poses_known_before_stand_for_election(truth):
    given = {number: se3.inverse(pose) for number, pose in enumerate(truth)}
    twisted = {number: se3.exp(np.array([0, 0, 0, 0, 0.05 * number, 0])) @ pose for number, pose in given.items()}
    run = SfmRun(replace(CONFIG, dense=False), StarPredictor(truth))
    found = run.solve(run._views(frames(COUNT), COUNT), {'given': given, 'twisted': twisted})
    tried = run.notes['start']['tried']
    assert tried['twisted']['agreeing_share'] < 0.5 < tried['given']['agreeing_share']
    assert run.notes['start']['method'] in ('given', 'ordered')
    poses = np.stack([se3.inverse(found.poses[number]) for number in range(COUNT)])
    assert centre_error(poses, truth) < 0.004


@pytest.mark.parametrize('mapper', ['own', 'global', 'incremental', 'ordered'])
def test_the_other_starts_reach_the_same(mapper, truth):
    reconstruction = SfmRun(replace(CONFIG, mapper=mapper), StarPredictor(truth))(frames(COUNT))
    assert len(posed(reconstruction)) == COUNT
    assert centre_error(posed(reconstruction), truth) < 0.003


def test_point_maps_give_a_start(truth):
    config = replace(CONFIG, mapper='pointmaps', min_inlier_share=0.05)
    run = SfmRun(config, WallPredictor(truth, noise=0.2, outliers=0.05))
    reconstruction = run(frames(COUNT))
    assert run.notes['start']['method'] == 'pointmaps'
    assert len(posed(reconstruction)) == COUNT
    assert centre_error(posed(reconstruction), truth) < 0.02


@pytest.mark.parametrize('factor', [0.8, 1.2])
def test_a_wrong_focal_length_is_said_with_the_right_one(factor, truth):
    wrong = replace(CAMERA, fx=factor * CAMERA.fx, fy=factor * CAMERA.fy)
    run = SfmRun(CONFIG, StarPredictor(truth))
    run(frames(COUNT, wrong))
    (line,) = run.warnings
    assert f'{wrong.fx:.1f} px' in line
    assert run.notes['focal']['wanted_scale'] * factor == pytest.approx(1.0, abs=0.02)


def test_the_right_focal_length_raises_no_alarm(result):
    assert result[1].warnings == []
    assert result[1].notes['focal']['wanted_scale'] == pytest.approx(1.0, abs=0.02)


def test_the_focal_length_of_uncalibrated_frames_is_found(truth):
    given = [replace(frame, camera=None) for frame in frames(COUNT)]
    refused = SfmRun(CONFIG, StarPredictor(truth))
    with pytest.raises(ReconstructionError, match='calibration'):
        refused(given)
    reconstruction = SfmRun(replace(CONFIG, fix_intrinsics=False), StarPredictor(truth))(given)
    assert reconstruction.camera.fx == pytest.approx(CAMERA.fx, rel=0.03)
    assert centre_error(posed(reconstruction), truth) < 0.01


def test_the_same_frames_give_the_same_bits(result, truth):
    again = SfmRun(CONFIG, StarPredictor(truth))(frames(COUNT))
    assert posed(again).tobytes() == posed(result[0]).tobytes()


def test_a_black_frame_and_a_stranger_are_set_aside_with_a_reason(truth):
    given = frames(COUNT)
    given[3] = replace(given[3], mosaic=np.full_like(given[3].mosaic, 60))
    reconstruction = SfmRun(CONFIG, MisledPredictor(truth, stranger=5))(given)
    rows = reconstruction.frames
    assert 'black' in rows[3].reason
    assert rows[5].reason
    assert [row.world_from_camera is None for row in rows] == [number in (3, 5) for number in range(COUNT)]


def test_frames_from_one_place_say_so(truth):
    same = np.repeat(truth[:1], 4, axis=0)
    reconstruction = SfmRun(CONFIG, StarPredictor(same, noise=0.2))(frames(4))
    assert all('one place' in frame.reason for frame in reconstruction.frames)


def test_two_frames_are_enough_and_one_is_not(truth):
    two = SfmRun(CONFIG, StarPredictor(truth))([frames(COUNT)[number] for number in (0, 3)])
    assert len(posed(two)) == 2
    one = SfmRun(CONFIG, StarPredictor(truth))(frames(1))
    assert [frame.reason for frame in one.frames] == ['no view sees the same']
    with pytest.raises(ReconstructionError, match='calibration'):
        SfmRun(CONFIG, StarPredictor(truth))([])


def test_pairs_of_a_killed_run_are_not_made_again(result, truth, tmp_path):
    class Killed(Exception):
        pass

    class Dying(StarPredictor):
        def match(self, pairs):
            if self.calls == 11:
                raise Killed
            return super().match(pairs)

    with pytest.raises(Killed):
        SfmRun(CONFIG, Dying(truth), work=tmp_path)(frames(COUNT))
    (stored,) = tmp_path.glob('pairs-*.bin')
    stored.write_bytes(stored.read_bytes()[:-7])  # the last record was being written
    predictor = StarPredictor(truth)
    run = SfmRun(CONFIG, predictor, work=tmp_path)
    reconstruction = run(frames(COUNT))
    assert run.notes['pairs']['resumed'] == 10
    assert predictor.calls == 18
    assert posed(reconstruction).tobytes() == posed(result[0]).tobytes()


def test_pairs_of_other_settings_are_not_reused(truth, tmp_path):
    SfmRun(CONFIG, StarPredictor(truth), work=tmp_path)(frames(4))
    run = SfmRun(replace(CONFIG, max_error=1.5), StarPredictor(truth), work=tmp_path)
    run(frames(4))
    assert run.notes['pairs']['resumed'] == 0


def test_a_view_whose_matches_disagree_with_its_pose_is_dropped(truth):
    run = SfmRun(CONFIG, StarPredictor(truth))
    found = run.solve(run._views(frames(COUNT), COUNT))
    poses, rest = found.poses, (found.structure, found.views, CONFIG)
    assert supported(found.pairs, poses, *rest) == set(range(COUNT))
    wrong = {**poses, 2: se3.exp([0.0, 0.0, 0.0, 0.0, 0.1, 0.0]) @ poses[2]}
    assert supported(found.pairs, wrong, *rest) == set(range(COUNT)) - {2}
