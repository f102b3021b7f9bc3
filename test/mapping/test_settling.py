# SPDX-License-Identifier: Apache-2.0
"""Landmarks by themselves, against exact truth and against the bundle adjustment of the same problem."""

from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.settling import settled
from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.priors import DistancePrior

FOCAL = 250.0


def scene(noise_px=0.0, wrong=0, count=200, seed=0):
    """Points, and five cameras on a way past them that see most of them, with a first guess of the points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2.0, -1.0, 3.0], [2.0, 1.0, 7.0], (count, 3))
    poses = np.stack(
        [se3.make(se3.exp_so3([0.0, 0.03 * k, 0.01 * k]), [-0.3 * k, 0.02 * k, -0.05 * k]) for k in range(5)]
    )
    frame, point = np.nonzero(rng.random((5, count)) < 0.8)
    local = np.einsum('kij,kj->ki', poses[frame, :3, :3], points[point]) + poses[frame, :3, 3]
    observations = local[:, :2] / local[:, 2:] + rng.normal(0.0, noise_px / FOCAL, (len(frame), 2))
    observations[rng.permutation(len(frame))[:wrong]] += 0.1
    guess = points + rng.normal(0.0, 0.05, points.shape)
    return points, BundleProblem(poses, np.zeros(5, bool), guess, frame, point, observations, FOCAL, 1.0)


def cost_of(problem, points=None):
    return adjust(problem if points is None else replace(problem, points=points), 0).cost_before


def test_points_are_found_exactly():
    points, problem = scene()
    often = np.bincount(problem.point_index, minlength=len(points)) >= 2
    np.testing.assert_allclose(settled(problem, 25)[often], points[often], atol=1e-5)


def test_the_result_is_that_of_the_bundle_adjustment():
    _, problem = scene(0.5)
    expected, found = adjust(problem, 100, 1e-12), settled(problem, 100)
    assert cost_of(problem, found) == pytest.approx(expected.cost_after, rel=1e-6)
    often = np.bincount(problem.point_index, minlength=len(found)) >= 3
    np.testing.assert_allclose(found[often], expected.points[often], atol=2e-3)


def test_wrong_views_cost_no_more_than_in_the_bundle_adjustment():
    _, problem = scene(0.5, 20)
    expected, found = adjust(problem, 100, 1e-12), settled(problem, 100)
    assert cost_of(problem, found) < 1.000001 * expected.cost_after


def test_no_step_costs():
    _, problem = scene(0.5, 100)
    problem.points[:20, 2] = -1.0  # behind the cameras
    costs = [cost_of(problem, settled(problem, rounds)) for rounds in range(4)]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_the_start_is_left_as_it_is_and_nothing_is_needed():
    _, problem = scene()
    before = problem.points.copy()
    settled(problem, 3)
    np.testing.assert_array_equal(problem.points, before)
    none = np.zeros(0, np.int64)
    empty = replace(problem, frame_index=none, point_index=none, observations=np.zeros((0, 2)))
    np.testing.assert_array_equal(settled(empty, 2), before)


def test_expected_distances_weigh_as_in_the_bundle_adjustment():
    _, problem = scene(0.5)
    few = np.arange(20)
    prior = DistancePrior(few, np.zeros((20, 3)), 1.3 * np.linalg.norm(problem.points[few], axis=1), 0.1)
    problem = replace(problem, prior=prior)
    expected, found = adjust(problem, 100, 1e-12), settled(problem, 100)
    assert cost_of(problem, found) == pytest.approx(expected.cost_after, rel=1e-6)
