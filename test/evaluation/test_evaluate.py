# SPDX-License-Identifier: Apache-2.0
"""Evaluation of whole results: association, posed share, depth, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluation_helpers import SCALE, START_NS, STEP_NS, WALL, true_pose, without_stamps, write_both

from dark3r_ros.errors import DataError
from dark3r_ros.evaluation.evaluate import evaluate_result, read_evaluation, table, write_evaluation
from dark3r_ros.storage.trajectory import write_tum
from dark3r_ros.types import Trajectory


def write_truth(path, count, step_ns=STEP_NS, offset_ns=0):
    stamps = START_NS + offset_ns + np.arange(count) * step_ns
    poses = np.stack([true_pose(k * step_ns / STEP_NS) for k in range(count)])
    write_tum(path, Trajectory(stamps, poses))
    return path


def test_known_similarity_is_found(tmp_path):
    result, truth = write_both(tmp_path)
    evaluation = evaluate_result(result, truth)
    assert evaluation.by == 'name'
    assert (evaluation.posed, evaluation.true_frames) == (11, 12)
    assert evaluation.posed_share == pytest.approx(11 / 12)
    assert evaluation.trajectory.ate_relative < 1e-9
    assert evaluation.trajectory.scale == pytest.approx(SCALE)
    assert evaluation.aligned is not None
    np.testing.assert_allclose(evaluation.aligned.world_from_camera[0], true_pose(0), atol=1e-9)


def test_names_associate_where_stamps_cannot(tmp_path):
    result, truth = write_both(tmp_path)
    without_stamps(truth)
    assert evaluate_result(result, truth).posed == 11


def test_stamps_associate_where_there_are_no_names(tmp_path):
    result, truth = write_both(tmp_path, named=False)
    evaluation = evaluate_result(result, truth)
    assert (evaluation.by, evaluation.posed) == ('stamp', 11)
    assert evaluation.trajectory.ate_relative < 1e-9
    without_stamps(truth)
    with pytest.raises(DataError, match=r'no pose of the result lies within 0\.02 s'):
        evaluate_result(result, truth)


def test_tum_against_tum_with_tolerance(tmp_path):
    result, _ = write_both(tmp_path)
    truth = write_truth(tmp_path / 'truth.tum', 12, offset_ns=15_000_000)
    evaluation = evaluate_result(result / 'trajectory.tum', truth)
    assert (evaluation.posed, evaluation.true_frames) == (11, 12)
    with pytest.raises(DataError, match='no pose'):
        evaluate_result(result / 'trajectory.tum', truth, tolerance_s=0.01)


def test_dense_truth_does_not_make_frames_out_of_its_poses(tmp_path):
    result, _ = write_both(tmp_path, named=False)
    truth = write_truth(tmp_path / 'truth.tum', 120, step_ns=STEP_NS // 10)
    evaluation = evaluate_result(result, truth)
    assert (evaluation.posed, evaluation.true_frames) == (11, 12)


def test_frames_that_were_never_read_count_as_not_posed(tmp_path):
    result, _ = write_both(tmp_path, named=False)
    truth = write_truth(tmp_path / 'truth.tum', 20)
    evaluation = evaluate_result(result, truth)
    assert (evaluation.posed, evaluation.true_frames) == (11, 20)


def test_metric_asks_for_the_error_without_scale(tmp_path):
    result, truth = write_both(tmp_path)
    assert np.isnan(evaluate_result(result, truth).trajectory.ate_rigid.rmse)
    assert evaluate_result(result, truth, metric=True).trajectory.ate_rigid.rmse > 0.1


def test_depth_of_the_seen_points(tmp_path):
    result, truth = write_both(tmp_path, depth=True)
    depth = evaluate_result(result, truth).depth
    assert depth is not None
    assert depth.pixels > 500
    assert depth.abs_rel < 1e-4
    assert depth.delta == 1.0
    assert depth.scale == pytest.approx(SCALE, rel=1e-4)
    assert depth.rmse < WALL


def test_depth_sees_wrong_points(tmp_path):
    result, truth = write_both(tmp_path, depth=True)
    lines = (result / 'colmap' / 'points3D.txt').read_text().splitlines()
    rng = np.random.default_rng(0)
    for number, line in enumerate(lines[1:], 1):
        fields = line.split()
        fields[1:4] = [str(float(value) + rng.normal(0, 0.5)) for value in fields[1:4]]
        lines[number] = ' '.join(fields)
    (result / 'colmap' / 'points3D.txt').write_text('\n'.join(lines) + '\n')
    assert evaluate_result(result, truth).depth.abs_rel > 0.1


def test_too_few_poses_are_reported_as_such(tmp_path):
    result, truth = write_both(tmp_path, unposed=tuple(range(2, 12)))
    evaluation = evaluate_result(result, truth)
    assert evaluation.posed == 2
    assert any('too few' in value for _, value in table(evaluation))
    path = write_evaluation(result, evaluation, truth)
    figures = json.loads(path.read_text())
    assert figures['ate']['rmse'] is None
    assert 'too few' in figures['degenerate']
    assert read_evaluation(result) == figures


@pytest.mark.parametrize(
    ('content', 'match'),
    [(None, 'does not exist'), ('0 1 2\n', 'line 1'), ('# nothing\n', 'holds no pose')],
)
def test_bad_truth(tmp_path, content, match):
    result, _ = write_both(tmp_path)
    if content is not None:
        (tmp_path / 'truth.tum').write_text(content)
    with pytest.raises(DataError, match=match):
        evaluate_result(result, tmp_path / 'truth.tum')


def test_bad_result(tmp_path):
    _, truth = write_both(tmp_path)
    with pytest.raises(DataError, match='no result folder'):
        evaluate_result(tmp_path, truth)
    with pytest.raises(DataError, match='does not exist'):
        evaluate_result(tmp_path / 'nowhere', truth)
