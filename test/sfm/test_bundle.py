# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment and resection against a plain dense solver and exact truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.sparse import csc_matrix

from dark3r_ros.geometry import se3
from dark3r_ros.sfm import equations, schur
from dark3r_ros.sfm.bundle import adjust, focal_step, moved
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.priors import DistancePrior, PlacePrior
from dark3r_ros.sfm.resection import refine_pose, resect

FOCAL = 300.0


def make_problem(frames=6, points=60, noise_px=0.4, disturb=0.02, seed=0, outliers=0):
    rng = np.random.default_rng(seed)
    truth = np.stack([se3.exp(np.r_[-0.3 * i, rng.normal(0, 0.1, 2), rng.normal(0, 0.05, 3)]) for i in range(frames)])
    world = rng.uniform([-2, -2, 4], [4, 2, 9], (points, 3))
    seen = rng.random((frames, points)) < 0.7
    seen[:2] |= seen.sum(axis=0) < 2  # a point of a single view has no depth
    frame, point = np.nonzero(seen)
    local = np.einsum('kij,kj->ki', truth[frame][:, :3, :3], world[point]) + truth[frame][:, :3, 3]
    observed = local[:, :2] / local[:, 2:] + rng.normal(0, noise_px / FOCAL, (len(frame), 2))
    observed[:outliers] += 30.0 / FOCAL
    start = truth.copy()
    for i in range(2, frames):
        start[i] = se3.exp(rng.normal(0, disturb, 6)) @ start[i]
    free = np.arange(frames) >= 2
    problem = BundleProblem(
        start, free, world + rng.normal(0, disturb, world.shape), frame, point, observed, FOCAL, 1e9
    )
    return problem, truth, world


def dense_solution(problem):
    """The same minimum by scipy's general solver over all parameters at once."""
    free = np.flatnonzero(problem.pose_free)

    def residuals(x):
        poses = problem.cameras_from_world.copy()
        for number, frame in enumerate(free):
            poses[frame] = se3.exp(x[6 * number : 6 * number + 6]) @ poses[frame]
        points = problem.points + x[6 * len(free) :].reshape(-1, 3)
        local = np.einsum('kij,kj->ki', poses[problem.frame_index][:, :3, :3], points[problem.point_index])
        local += poses[problem.frame_index][:, :3, 3]
        return (problem.focal * (local[:, :2] / local[:, 2:] - problem.observations)).ravel()

    start = np.zeros(6 * len(free) + 3 * len(problem.points))
    return least_squares(residuals, start, method='trf', x_scale='jac', xtol=1e-12, ftol=1e-12, gtol=1e-12)


def test_reaches_the_minimum_of_a_dense_solver():
    problem, _, _ = make_problem(frames=5, points=25)
    result = adjust(problem, 50, 1e-12)
    reference = dense_solution(problem)
    assert result.cost_after == pytest.approx(reference.cost, rel=1e-6)
    assert result.cost_after < 0.1 * result.cost_before


@pytest.mark.parametrize('ordered', [True, False])
def test_normal_equations_are_those_of_numeric_derivatives(ordered):
    problem, _, _ = make_problem(frames=4, points=12)
    rng = np.random.default_rng(3)
    order = np.arange(len(problem.frame_index)) if ordered else rng.permutation(len(problem.frame_index))
    problem = replace(
        problem,
        frame_index=problem.frame_index[order],
        point_index=problem.point_index[order],
        observations=problem.observations[order],
        weights=rng.uniform(0.2, 1.0, len(order)),
    )
    step = 1e-6

    def residuals(twists, moves):
        free = problem.pose_free[:, None]
        trial = moved(problem, np.where(free, twists, 0.0), moves)
        return equations._residuals(trial, equations.local_points(trial))[0].ravel()

    poses, points = np.zeros((4, 6)), np.zeros((12, 3))
    columns = []
    for values in (poses, points):
        for place in np.ndindex(values.shape):
            values[place] = step
            ahead = residuals(poses, points)
            values[place] = -step
            columns.append((ahead - residuals(poses, points)) / (2 * step))
            values[place] = 0.0
    derivative = np.stack(columns, axis=1)
    normal, gradient = derivative.T @ derivative, derivative.T @ residuals(poses, points)
    found = equations.linearise(problem)
    coupling = np.zeros((4, 12, 6, 3))
    np.add.at(coupling, (problem.frame_index, problem.point_index), found.coupling)
    scale = np.abs(normal).max()
    for frame in range(4):
        own = slice(6 * frame, 6 * frame + 6)
        np.testing.assert_allclose(found.hessian_poses[frame], normal[own, own], atol=1e-6 * scale)
        np.testing.assert_allclose(found.gradient_poses[frame], gradient[own], atol=1e-5 * np.abs(gradient).max())
        for point in range(12):
            across = slice(24 + 3 * point, 27 + 3 * point)
            np.testing.assert_allclose(coupling[frame, point], normal[own, across], atol=1e-6 * scale)
            np.testing.assert_allclose(found.hessian_points[point], normal[across, across], atol=1e-6 * scale)
            np.testing.assert_allclose(
                found.gradient_points[point], gradient[across], atol=1e-5 * np.abs(gradient).max()
            )


def test_many_poses_are_solved_as_few_are(monkeypatch):
    problem, _, _ = make_problem(frames=40, points=300)
    dense = adjust(problem, 6, 0.0)
    monkeypatch.setattr(schur, '_DENSE_POSES', 10)
    full = adjust(problem, 6, 0.0)  # every two views share points: sparse sums, one dense factor
    monkeypatch.setattr(schur, '_DENSE_SHARE', 1.0)
    sparse = adjust(problem, 6, 0.0)
    for result in (full, sparse):
        np.testing.assert_allclose(result.cameras_from_world, dense.cameras_from_world, atol=1e-9)
        np.testing.assert_allclose(result.points, dense.points, atol=1e-8)
        assert result.cost_after == pytest.approx(dense.cost_after, rel=1e-10)
    again = adjust(problem, 6, 0.0)
    np.testing.assert_array_equal(again.cameras_from_world, sparse.cameras_from_world)


def test_observations_in_parts_make_the_same_equations(monkeypatch):
    problem, _, _ = make_problem(frames=12, points=100, outliers=5)
    problem = replace(problem, weights=np.linspace(0.5, 2.0, len(problem.frame_index)))
    whole, cost = equations.linearise(problem), equations.cost_of(problem)
    monkeypatch.setattr(equations, '_AT_ONCE', 97)
    parts = equations.linearise(problem)
    for name in ('hessian_poses', 'hessian_points', 'coupling', 'gradient_poses', 'gradient_points'):
        expected = getattr(whole, name)
        np.testing.assert_allclose(getattr(parts, name), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    again = equations.cost_of(problem)
    assert again[0] == cost[0]
    np.testing.assert_array_equal(again[1], cost[1])


def test_a_sparse_system_that_is_not_positive_is_refused():
    matrix = csc_matrix(np.diag(np.r_[np.ones(5), -1.0]))
    assert schur._factored(matrix) is None


def test_exact_observations_give_exact_poses_and_points():
    problem, truth, world = make_problem(noise_px=0.0)
    result = adjust(problem, 60, 0.0)
    np.testing.assert_allclose(result.cameras_from_world, truth, atol=1e-6)
    np.testing.assert_allclose(result.points, world, atol=1e-5)
    assert result.residuals.max() < 1e-4


def test_fixed_poses_and_the_input_stay_untouched():
    problem, truth, _ = make_problem()
    before = problem.cameras_from_world.copy(), problem.points.copy()
    result = adjust(problem)
    np.testing.assert_array_equal(problem.cameras_from_world, before[0])
    np.testing.assert_array_equal(problem.points, before[1])
    np.testing.assert_allclose(result.cameras_from_world[:2], truth[:2], atol=1e-12)


def test_huber_keeps_outliers_from_bending_the_poses():
    problem, truth, _ = make_problem(frames=6, points=120, outliers=25)
    robust = adjust(BundleProblem(**{**vars(problem), 'robust_width': 1.0}), 40)
    plain = adjust(problem, 40)

    def error(result):
        return np.linalg.norm((result.cameras_from_world - truth)[:, :3, 3], axis=1).max()

    assert error(robust) < 0.05
    assert error(robust) < 0.3 * error(plain)


def test_covariance_matches_the_spread_over_many_noises():
    errors, predicted = [], []
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        problem, truth, _ = make_problem(frames=4, points=60, noise_px=0.0, disturb=0.0)
        noisy = problem.observations + rng.normal(0, 0.5 / FOCAL, problem.observations.shape)
        result = adjust(BundleProblem(**{**vars(problem), 'observations': noisy}), 20, 1e-9, with_covariance=True)
        errors.append(se3.log(result.cameras_from_world[3] @ se3.inverse(truth[3])))
        predicted.append(np.diag(result.pose_covariance[3]))
    measured = np.mean(np.square(errors), axis=0)
    ratio = measured / np.mean(predicted, axis=0)
    assert (ratio > 0.55).all(), ratio
    assert (ratio < 1.7).all(), ratio


def test_points_only_adjustment_moves_no_pose():
    problem, _, _ = make_problem()
    still = BundleProblem(**{**vars(problem), 'pose_free': np.zeros(6, dtype=bool)})
    result = adjust(still, 10)
    np.testing.assert_allclose(result.cameras_from_world, problem.cameras_from_world, atol=1e-12)
    assert result.cost_after < result.cost_before


def test_the_same_problem_gives_the_same_bits():
    problem, _, _ = make_problem(outliers=5)
    first, second = adjust(problem), adjust(problem)
    np.testing.assert_array_equal(first.cameras_from_world, second.cameras_from_world)
    np.testing.assert_array_equal(first.points, second.points)


def resection_case(outlier_share, seed=0, noise_px=0.3):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-3, -2, 3], [3, 2, 9], (150, 3))
    truth = se3.exp(np.r_[0.3, -0.2, 0.5, rng.normal(0, 0.2, 3)])
    local = points @ truth[:3, :3].T + truth[:3, 3]
    observed = local[:, :2] / local[:, 2:] + rng.normal(0, noise_px / FOCAL, (150, 2))
    wrong = rng.random(150) < outlier_share
    observed[wrong] = rng.uniform(-0.6, 0.6, (int(wrong.sum()), 2))
    return points, observed, truth, wrong


@pytest.mark.parametrize('share', [0.0, 0.4, 0.7])
def test_resection_among_outliers(share):
    points, observed, truth, wrong = resection_case(share)
    found = resect(points, observed, FOCAL, 2.0)
    error = se3.log(found.camera_from_world @ se3.inverse(truth))
    sigma = np.sqrt(np.diag(found.covariance))
    assert np.abs(error).max() < 0.02
    assert (np.abs(error) < 5 * sigma).all()
    assert found.inliers[~wrong].mean() > 0.95
    assert found.inliers[wrong].sum() <= 3


def test_resection_uses_a_good_guess_and_survives_a_bad_one():
    points, observed, truth, _ = resection_case(0.3)
    near = se3.exp([0.01, 0, 0, 0, 0.002, 0]) @ truth
    far = se3.exp([2.0, 1.0, 0, 0, 1.0, 0]) @ truth
    for guess in (near, far):
        found = resect(points, observed, FOCAL, 2.0, guess=guess)
        assert np.abs(se3.log(found.camera_from_world @ se3.inverse(truth))).max() < 0.02


def test_resection_refuses_noise():
    rng = np.random.default_rng(9)
    points, observed = rng.uniform([-3, -2, 3], [3, 2, 9], (80, 3)), rng.uniform(-0.6, 0.6, (80, 2))
    assert resect(points, observed, FOCAL, 2.0) is None
    assert resect(points[:3], observed[:3], FOCAL, 2.0) is None


def test_refined_pose_is_the_least_squares_minimum():
    points, observed, truth, _ = resection_case(0.0)
    refined, _ = refine_pose(se3.exp([0.02, 0, 0, 0.01, 0, 0]) @ truth, points, observed, FOCAL, robust_width=1e9)

    def residuals(twist):
        local = points @ (se3.exp(twist) @ refined)[:3, :3].T + (se3.exp(twist) @ refined)[:3, 3]
        return (FOCAL * (local[:, :2] / local[:, 2:] - observed)).ravel()

    polished = least_squares(residuals, np.zeros(6), xtol=1e-14)
    assert np.abs(polished.x).max() < 1e-5


def test_the_step_of_a_common_focal_length_is_that_of_a_dense_solver():
    problem, _, _ = make_problem(frames=5, points=25)
    problem = replace(problem, observations=problem.observations / 1.02)
    done = adjust(problem, 50, 1e-12)
    problem = replace(problem, cameras_from_world=done.cameras_from_world, points=done.points)
    free = np.flatnonzero(problem.pose_free)

    def residuals(x):
        poses = problem.cameras_from_world.copy()
        for number, frame in enumerate(free):
            poses[frame] = se3.exp(x[1 + 6 * number : 7 + 6 * number]) @ poses[frame]
        points = problem.points + x[1 + 6 * len(free) :].reshape(-1, 3)
        local = np.einsum('kij,kj->ki', poses[problem.frame_index][:, :3, :3], points[problem.point_index])
        local += poses[problem.frame_index][:, :3, 3]
        return (problem.focal * (np.exp(x[0]) * local[:, :2] / local[:, 2:] - problem.observations)).ravel()

    start = np.zeros(1 + 6 * len(free) + 3 * len(problem.points))
    jacobian = least_squares(residuals, start, jac='3-point', max_nfev=1).jac
    expected = -np.linalg.lstsq(jacobian, residuals(start), rcond=None)[0][0]
    variance = (residuals(start) ** 2).sum() / (len(jacobian) - len(start) + 1)
    step, deviation = focal_step(problem, damping=1e-12)
    assert step == pytest.approx(expected, rel=1e-4)
    assert deviation == pytest.approx(np.sqrt(variance * np.linalg.inv(jacobian.T @ jacobian)[0, 0]), rel=1e-4)


def with_priors(problem, world):
    """The problem with its first points expected too far from a place, and two of its cameras beside where they are."""
    centres = np.tile([[0.1, -0.2, 0.3]], (10, 1))
    distances = 1.2 * np.linalg.norm(world[:10] - centres, axis=1)
    beside = se3.inverse(problem.cameras_from_world[3:5])[:, :3, 3] + (0.05, -0.02, 0.03)
    return replace(
        problem,
        prior=DistancePrior(np.arange(10), centres, distances, 0.3),
        places=PlacePrior(np.array([3, 4]), beside, 0.004),
    )


def test_what_is_expected_is_weighed_as_by_a_dense_solver():
    problem, _, world = make_problem(frames=5, points=25)
    problem = with_priors(problem, world)
    prior, places = problem.prior, problem.places
    free = np.flatnonzero(problem.pose_free)

    def residuals(x):
        poses = problem.cameras_from_world.copy()
        poses[free] = se3.exp(x[: 6 * len(free)].reshape(-1, 6)) @ poses[free]
        points = problem.points + x[6 * len(free) :].reshape(-1, 3)
        local = np.einsum('kij,kj->ki', poses[problem.frame_index][:, :3, :3], points[problem.point_index])
        local += poses[problem.frame_index][:, :3, 3]
        seen = (problem.focal * (local[:, :2] / local[:, 2:] - problem.observations)).ravel()
        length = np.linalg.norm(points[:10] - prior.centres, axis=1)
        away = (se3.inverse(poses[places.frames])[:, :3, 3] - places.centres).ravel() / places.deviation
        return np.concatenate([seen, np.log(length / prior.distances) / prior.deviation, away])

    start = np.zeros(6 * len(free) + 3 * len(problem.points))
    expected = least_squares(residuals, start, method='trf', x_scale='jac', xtol=1e-12, ftol=1e-12, gtol=1e-12)
    result = adjust(problem, 50, 1e-12)
    assert result.cost_after == pytest.approx(expected.cost, rel=1e-6)
    np.testing.assert_allclose(result.points, problem.points + expected.x[6 * len(free) :].reshape(-1, 3), atol=1e-4)


def test_without_parallax_points_come_out_where_they_are_expected_and_the_camera_where_it_is():
    rng = np.random.default_rng(0)
    poses = np.stack([se3.make(se3.exp_so3([0.0, 0.1 * k, 0.0]), np.zeros(3)) for k in range(4)])
    world = rng.uniform([-1, -1, 3], [1, 1, 6], (40, 3))
    frame, point = (index.ravel() for index in np.indices((4, 40)))
    local = np.einsum('kij,kj->ki', poses[frame][:, :3, :3], world[point])
    start = poses.copy()
    start[1:] = se3.exp(rng.normal(0, 0.01, (3, 6))) @ start[1:]
    expected = 1.5 * world
    prior = DistancePrior(np.arange(40), np.zeros((40, 3)), np.linalg.norm(expected, axis=1), 0.5)
    observed = local[:, :2] / local[:, 2:]
    result = adjust(BundleProblem(start, np.arange(4) > 0, world, frame, point, observed, FOCAL, prior=prior), 50, 1e-9)
    np.testing.assert_allclose(result.points, expected, rtol=0.01)
    np.testing.assert_allclose(result.cameras_from_world, poses, atol=1e-3)
