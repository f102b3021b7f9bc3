# SPDX-License-Identifier: Apache-2.0
"""The compiled adjustment of few views, beside the plain one in float64 of the same problem."""

from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.compact import adjust_small, is_small
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.priors import DistancePrior, PlacePrior

FOCAL = 250.0


def window(noise_px=0.5, fixed=(1, 4), views=6, count=150, seed=0):
    """Views on a way past points, some of them fixed and in any order, with poses and points a little off."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2.0, -1.0, 3.0], [2.0, 1.0, 7.0], (count, 3))
    poses = np.stack(
        [se3.make(se3.exp_so3([0.0, 0.03 * k, 0.01 * k]), [-0.3 * k, 0.02 * k, -0.05 * k]) for k in range(views)]
    )
    frame, point = np.nonzero(rng.random((views, count)) < 0.8)
    shuffled = rng.permutation(len(frame))
    frame, point = frame[shuffled], point[shuffled]
    local = np.einsum('kij,kj->ki', poses[frame, :3, :3], points[point]) + poses[frame, :3, 3]
    observations = local[:, :2] / local[:, 2:] + rng.normal(0.0, noise_px / FOCAL, (len(frame), 2))
    observations[:30] += rng.normal(0.0, 20.0 / FOCAL, (30, 2))
    free = ~np.isin(np.arange(views), fixed)
    start = se3.exp(rng.normal(0.0, 0.02, (views, 6)) * free[:, None]) @ poses
    weights = rng.uniform(0.5, 1.5, len(frame))
    guess = points + rng.normal(0.0, 0.05, points.shape)
    return BundleProblem(start, free, guess, frame, point, observations, FOCAL, 1.0, weights)


def check(problem, steps=8):
    expected, found = adjust(problem, steps, 1e-9), adjust_small(problem, steps, 1e-9)
    assert found.iterations == expected.iterations > 3
    assert found.cost_before == pytest.approx(expected.cost_before, rel=1e-12)
    assert found.cost_after == pytest.approx(expected.cost_after, rel=1e-9) and found.cost_after < found.cost_before
    np.testing.assert_allclose(found.cameras_from_world, expected.cameras_from_world, atol=1e-8)
    np.testing.assert_allclose(found.points, expected.points, atol=1e-6)
    np.testing.assert_allclose(found.residuals, expected.residuals, atol=1e-5)


def test_it_takes_the_steps_of_the_plain_adjustment():
    check(window())


def test_without_weights_and_without_fixed_poses():
    check(replace(window(), weights=None))
    check(window(fixed=(0, 5), seed=3))


def test_a_point_behind_its_camera():
    problem = window()
    problem.points[:3, 2] = -5.0
    expected, found = adjust(problem, 3), adjust_small(problem, 3)
    np.testing.assert_array_equal(np.isinf(found.residuals), np.isinf(expected.residuals))
    assert np.isinf(found.residuals).any()


def test_expected_distances_and_places():
    problem = window()
    few = np.arange(20)
    lengths = 1.2 * np.linalg.norm(problem.points[few], axis=1)
    distances = DistancePrior(few, np.zeros((20, 3)), lengths, 0.1)
    centres = se3.inverse(problem.cameras_from_world)[[2, 3, 5], :3, 3] + 0.05
    check(replace(problem, prior=distances))
    check(replace(problem, places=PlacePrior(np.array([2, 3, 5]), centres, 0.02)))


def test_a_place_expected_of_a_fixed_pose_changes_nothing():
    problem = window()
    free = adjust_small(problem, 5)
    found = adjust_small(replace(problem, places=PlacePrior(np.array([1]), np.ones((1, 3)), 0.01)), 5)
    np.testing.assert_array_equal(found.cameras_from_world, free.cameras_from_world)


def test_fixed_poses_stay_and_the_input_too():
    problem = window()
    poses, points = problem.cameras_from_world.copy(), problem.points.copy()
    found = adjust_small(problem, 4)
    fixed = ~problem.pose_free
    np.testing.assert_allclose(found.cameras_from_world[fixed], poses[fixed], atol=1e-15)
    np.testing.assert_array_equal(problem.cameras_from_world, poses)
    np.testing.assert_array_equal(problem.points, points)


def test_covariance():
    problem = window()
    expected = adjust(problem, 10, 1e-9, with_covariance=True).pose_covariance
    found = adjust_small(problem, 10, 1e-9, with_covariance=True).pose_covariance
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


def test_the_same_problem_gives_the_same_bits():
    first, second = adjust_small(window()), adjust_small(window())
    np.testing.assert_array_equal(first.cameras_from_world, second.cameras_from_world)
    np.testing.assert_array_equal(first.points, second.points)


def test_a_view_without_observations():
    problem = window()
    seen = problem.frame_index != 3
    problem = replace(
        problem,
        frame_index=problem.frame_index[seen],
        point_index=problem.point_index[seen],
        observations=problem.observations[seen],
        weights=problem.weights[seen],
    )
    found = adjust_small(problem, 5)
    assert found.cost_after < found.cost_before
    np.testing.assert_allclose(found.cameras_from_world[3], problem.cameras_from_world[3], atol=1e-9)


def test_only_few_views_are_small():
    problem = window()
    assert is_small(problem)
    many = np.repeat(problem.points, 200, axis=0)
    assert not is_small(replace(problem, points=many, pose_free=np.ones(60, bool)))
