# SPDX-License-Identifier: Apache-2.0
"""Landmarks by themselves, against exact truth and against the bundle adjustment of the same problem."""

from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.settling import Sightings, settled
from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.priors import DistancePrior

FOCAL = 250.0


def scene(noise_px=0.0, wrong=0, count=200, seed=0):
    """Points, five cameras on a way past them that see most of them, and the first guess of the points."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-2.0, -1.0, 3.0], [2.0, 1.0, 7.0], (count, 3))
    poses = np.stack(
        [se3.make(se3.exp_so3([0.0, 0.03 * k, 0.01 * k]), [-0.3 * k, 0.02 * k, -0.05 * k]) for k in range(5)]
    )
    frame, point = np.nonzero(rng.random((5, count)) < 0.8)
    local = np.einsum('kij,kj->ki', poses[frame, :3, :3], points[point]) + poses[frame, :3, 3]
    observations = local[:, :2] / local[:, 2:] + rng.normal(0.0, noise_px / FOCAL, (len(frame), 2))
    observations[rng.permutation(len(frame))[:wrong]] += 0.1
    seen = Sightings(poses, frame, point, observations, FOCAL, 1.0)
    return points, seen, points + rng.normal(0.0, 0.05, points.shape)


def test_points_are_found_exactly():
    points, seen, guess = scene()
    often = np.bincount(seen.point_index, minlength=len(points)) >= 2
    np.testing.assert_allclose(settled(guess, seen, 25)[often], points[often], atol=1e-5)


def problem_of(seen, points):
    fixed = np.zeros(len(seen.cameras_from_world), dtype=bool)
    views = seen.frame_index, seen.point_index, seen.observations
    return BundleProblem(seen.cameras_from_world, fixed, points, *views, seen.focal, seen.robust_width)


def test_the_result_is_that_of_the_bundle_adjustment():
    _, seen, guess = scene(0.5)
    expected, found = adjust(problem_of(seen, guess), 100, 1e-12), settled(guess, seen, 100)
    assert adjust(problem_of(seen, found), 0).cost_before == pytest.approx(expected.cost_after, rel=1e-6)
    often = np.bincount(seen.point_index, minlength=len(guess)) >= 3
    np.testing.assert_allclose(found[often], expected.points[often], atol=2e-3)


def test_wrong_views_cost_no_more_than_in_the_bundle_adjustment():
    _, seen, guess = scene(0.5, 20)
    expected, found = adjust(problem_of(seen, guess), 100, 1e-12), settled(guess, seen, 100)
    assert adjust(problem_of(seen, found), 0).cost_before < 1.000001 * expected.cost_after


def test_no_step_costs():
    _, seen, guess = scene(0.5, 100)
    guess[:20, 2] = -1.0  # behind the cameras
    costs = [adjust(problem_of(seen, settled(guess, seen, rounds)), 0).cost_before for rounds in range(4)]
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_the_start_is_left_as_it_is_and_nothing_is_needed():
    _, seen, guess = scene()
    before = guess.copy()
    settled(guess, seen, 3)
    np.testing.assert_array_equal(guess, before)
    none = np.zeros(0, np.int64)
    empty = replace(seen, frame_index=none, point_index=none, observations=np.zeros((0, 2)))
    np.testing.assert_array_equal(settled(guess, empty, 2), guess)


def test_expected_distances_weigh_as_in_the_bundle_adjustment():
    _, seen, guess = scene(0.5)
    few = np.arange(20)
    prior = DistancePrior(few, np.zeros((20, 3)), 1.3 * np.linalg.norm(guess[few], axis=1), 0.1)
    seen = replace(seen, prior=prior)
    expected, found = adjust(replace(problem_of(seen, guess), prior=prior), 100, 1e-12), settled(guess, seen, 100)
    cost = adjust(replace(problem_of(seen, found), prior=prior), 0).cost_before
    assert cost == pytest.approx(expected.cost_after, rel=1e-6)
