# SPDX-License-Identifier: Apache-2.0
"""Trajectory metrics against hand-computed values and the invariances that their definitions promise."""

from __future__ import annotations

import numpy as np
import pytest

from dark3r_ros.evaluation.trajectory_metrics import (
    associate,
    largest_distance,
    pairwise_rotation_errors,
    relative_pose_errors,
    score_trajectory,
)
from dark3r_ros.geometry import se3


def make_path(count=30, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.cumsum(rng.normal(0, 0.3, (count, 3)), axis=0)
    turns = rng.normal(0, 0.4, (count, 3))
    return np.stack([se3.make(se3.exp_so3(turn), centre) for turn, centre in zip(turns, centres, strict=True)])


def stamps_of(poses, step=100_000_000):
    return np.arange(len(poses)) * step


def similar(poses, scale, twist):
    change = se3.exp(twist)
    result = poses.copy()
    result[:, :3, 3] *= scale
    return change @ result


def disturbed(poses, sigma=0.02, seed=5):
    rng = np.random.default_rng(seed)
    return np.stack([pose @ se3.exp(rng.normal(0, sigma, 6)) for pose in poses])


def test_a_similar_trajectory_has_no_error():
    truth = make_path()
    estimate = similar(truth, 0.37, [1, -2, 3, 0.4, 0.5, -0.6])
    scores = score_trajectory(stamps_of(truth), estimate, truth, metric=True)
    assert scores.ate.rmse < 1e-12
    assert scores.rpe_translation.maximum < 1e-12
    assert scores.rpe_rotation.maximum < 1e-5
    assert scores.rotation_pairs_median < 1e-5
    assert scores.scale == pytest.approx(1 / 0.37)
    assert scores.ate_rigid.rmse > 0.1  # the scale is not forgiven there
    assert scores.degenerate == ''


def test_scores_do_not_depend_on_the_frame_or_scale_of_the_estimate():
    truth = make_path()
    estimate = disturbed(truth)
    first = score_trajectory(stamps_of(truth), estimate, truth)
    second = score_trajectory(stamps_of(truth), similar(estimate, 7.0, [1, 2, 3, 0.1, 1.2, 0.3]), truth)
    for name in ('ate', 'rpe_translation', 'rpe_rotation'):
        assert getattr(first, name).rmse > 0.003
        assert getattr(first, name).rmse == pytest.approx(getattr(second, name).rmse, rel=1e-6)
    assert first.rotation_pairs_median == pytest.approx(second.rotation_pairs_median, rel=1e-6)


def test_relative_error_does_not_depend_on_the_scale_of_the_truth():
    truth = make_path()
    estimate = disturbed(truth)
    bigger = similar(truth, 5.0, np.zeros(6))
    first = score_trajectory(stamps_of(truth), estimate, truth)
    second = score_trajectory(stamps_of(truth), estimate, bigger)
    assert first.ate_relative == pytest.approx(second.ate_relative)
    assert second.ate.rmse == pytest.approx(5 * first.ate.rmse)


def test_ate_by_hand():
    # Corners of a square of side 2, the estimate a cross that is stretched by 10 % in x and shrunk by 10 % in y: the
    # best similarity is the identity, so every centre is off by 0.1 in both axes.
    corners = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]], dtype=float)
    truth = np.stack([se3.make(np.eye(3), corner) for corner in corners])
    estimate = np.stack([se3.make(np.eye(3), corner * (1.1, 0.9, 1)) for corner in corners])
    scores = score_trajectory(stamps_of(truth), estimate, truth, metric=True)
    # Scale of Umeyama: sum(target . source) / sum(source . source) = (1.1 + 0.9) / (1.21 + 0.81).
    scale = 2.0 / 2.02
    expected = np.hypot(1.1 * scale - 1, 0.9 * scale - 1)
    assert scores.scale == pytest.approx(scale)
    assert scores.ate.rmse == pytest.approx(expected)
    assert scores.ate.median == pytest.approx(expected)
    assert scores.ate_rigid.rmse == pytest.approx(np.hypot(0.1, 0.1))
    assert scores.extent == pytest.approx(np.sqrt(8))
    assert scores.ate_relative == pytest.approx(expected / np.sqrt(8))


def test_rpe_by_hand():
    # Straight steps of 1 m; the estimate turns by 3 degrees and goes 1.2 m in the second step only.
    step = se3.make(np.eye(3), [0, 0, 1.0])
    wrong = se3.make(se3.exp_so3([0, np.deg2rad(3.0), 0]), [0, 0, 1.2])
    truth = np.stack([np.eye(4), step, step @ step, step @ step @ step])
    estimate = np.stack([np.eye(4), step, step @ wrong, step @ wrong @ step])
    translation, rotation = relative_pose_errors(estimate, truth, np.arange(3))
    np.testing.assert_allclose(translation, [0, 0.2, 0], atol=1e-12)
    np.testing.assert_allclose(np.degrees(rotation), [0, 3.0, 0], atol=1e-9)


def test_steps_over_missing_frames_are_not_counted():
    truth = make_path(20)
    stamps = stamps_of(truth)
    keep = np.array([0, 1, 2, 3, 4, 9, 10, 11, 12])
    estimate = disturbed(truth)
    scores = score_trajectory(stamps[keep], estimate[keep], truth[keep])
    aligned = scores.alignment.apply(estimate)
    steps = [k for k in range(19) if k in keep and k + 1 in keep]
    expected, _ = relative_pose_errors(aligned, truth, np.array(steps))
    assert scores.rpe_translation.rmse == pytest.approx(np.sqrt(np.mean(expected**2)))


def test_pairwise_rotation_errors_are_those_of_the_relative_rotations():
    truth = make_path(8)
    estimate = disturbed(truth, 0.1)
    expected = []
    for i in range(8):
        for j in range(i + 1, 8):
            true = truth[i, :3, :3].T @ truth[j, :3, :3]
            found = estimate[i, :3, :3].T @ estimate[j, :3, :3]
            expected.append(se3.rotation_angle(true.T @ found))
    np.testing.assert_allclose(pairwise_rotation_errors(estimate, truth), expected, atol=1e-7)


def test_mirrored_path_is_not_forgiven():
    truth = make_path()
    mirrored = truth.copy()
    mirrored[:, 0, 3] *= -1
    assert score_trajectory(stamps_of(truth), mirrored, truth).ate_relative > 0.05


def test_straight_line_is_scored():
    truth = np.stack([se3.make(np.eye(3), [0, 0, 0.1 * k]) for k in range(10)])
    scores = score_trajectory(stamps_of(truth), similar(truth, 2.0, [0, 0, 0, 0.5, 0, 0]), truth)
    assert scores.ate.rmse < 1e-12
    assert scores.scale == pytest.approx(0.5)


@pytest.mark.parametrize('count', [0, 1, 2])
def test_too_few_poses_are_not_a_perfect_score(count):
    truth = make_path()[:count]
    scores = score_trajectory(stamps_of(truth), truth, truth)
    assert f'{count} associated poses are too few' in scores.degenerate
    assert np.isnan([scores.ate.rmse, scores.ate_relative, scores.scale, scores.rpe_translation.rmse]).all()
    assert scores.alignment is None


def test_poses_in_one_place_are_not_a_perfect_score():
    truth = make_path()
    still = truth.copy()
    still[:, :3, 3] = [100.0, 5.0, 3.0]
    scores = score_trajectory(stamps_of(truth), still, truth)
    assert scores.degenerate == 'the estimated camera does not move'
    assert np.isnan(scores.ate.rmse)
    assert scores.rotation_pairs_median < 1e-5
    scores = score_trajectory(stamps_of(truth), truth, still)
    assert scores.degenerate == 'the true camera does not move'
    assert np.isnan(scores.ate_relative)


def test_association_takes_the_nearest_and_each_once():
    mine, theirs = associate(np.array([0, 100, 205, 400]), np.array([190, 3, 98, 104, 1000]), 20)
    np.testing.assert_array_equal(mine, [0, 1, 2])
    np.testing.assert_array_equal(theirs, [1, 2, 0])
    # Two estimates want the same true pose: the nearer one gets it.
    mine, theirs = associate(np.array([10, 12]), np.array([13]), 20)
    np.testing.assert_array_equal((mine, theirs), ([1], [0]))
    # The bounds are inclusive.
    assert len(associate(np.array([0]), np.array([20]), 20)[0]) == 1
    assert len(associate(np.array([0]), np.array([21]), 20)[0]) == 0


def test_largest_distance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(700, 3))
    expected = max(np.linalg.norm(points - point, axis=1).max() for point in points)
    assert largest_distance(points) == pytest.approx(expected)
    assert largest_distance(points[:1]) == 0.0
