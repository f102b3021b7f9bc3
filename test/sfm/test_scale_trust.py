# SPDX-License-Identifier: Apache-2.0
"""What is said of the scale along a chain of views, against the scatter of adjustments with known errors."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import pinvh

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.bundle import adjust
from dark3r_ros.sfm.equations import BundleProblem, jacobians
from dark3r_ros.sfm.scale_trust import ScaleTrust, judge

FOCAL, STEP, REACH = 140.0, 0.3, 6
VIEWS = 24


def tunnel(views: int, seed: int, noise: float, outwards: float = 0.0, per_view: int = 20) -> BundleProblem:
    """Points of a round tunnel of 160x120 pixels, each exact in its first view and found off by noise in others."""
    scene, rng = np.random.default_rng(99), np.random.default_rng(seed)
    frame, point, seen, points = [], [], [], []
    for home in range(views):
        angle, ahead = scene.uniform(0.0, 2.0 * np.pi, per_view), scene.uniform(2.0, 6.0, per_view)
        for place in np.column_stack([1.2 * np.cos(angle), 1.2 * np.sin(angle), STEP * home + ahead]):
            near = [home, *(other for other in range(home - REACH, home + REACH + 1) if other != home)]
            local = {view: place - (0.0, 0.0, STEP * view) for view in near if 0 <= view < views}
            found = {
                view: one[:2] / one[2]
                for view, one in local.items()
                if one[2] > 0.5 and (np.abs(one[:2] / one[2]) < (80 / FOCAL, 60 / FOCAL)).all()
            }
            if home not in found or len(found) < 2:
                continue
            for view, exact in found.items():
                off = rng.normal(0.0, noise, 2) + (view != home) * outwards * exact / np.linalg.norm(exact)
                frame.append(view)
                point.append(len(points))
                seen.append(exact + off / FOCAL)
            points.append(place)
    poses = np.tile(np.eye(4), (views, 1, 1))
    poses[:, 2, 3] = -STEP * np.arange(views)
    index = np.array(frame), np.array(point)
    return BundleProblem(poses, np.arange(views) > 0, np.array(points), *index, np.array(seen), FOCAL)


def adjusted(problem: BundleProblem) -> BundleProblem:
    result = adjust(problem, 15, 1e-5)
    return replace(problem, cameras_from_world=result.cameras_from_world, points=result.points)


def scales(problem: BundleProblem, ends) -> np.ndarray:
    """Logarithms of the scale of all parts but the first relative to it; all steps are equal in truth."""
    centres = se3.inverse(problem.cameras_from_world)[:, :3, 3]
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    means = np.log([steps[a:b].mean() for a, b in itertools.pairwise(ends)])
    return means[1:] - means[0]


def test_the_deviation_is_the_scatter_of_independent_errors():
    scatter, said = [], []
    for seed in range(16):
        problem = adjusted(tunnel(VIEWS, seed, 1.0))
        trust = judge(problem, range(VIEWS))
        scatter.append(scales(problem, trust.ends))
        said.append(trust.noise)
    found, expected = np.sqrt(np.mean(np.square(scatter), axis=(0, 1))), np.sqrt(np.mean(np.square(said), axis=(0, 1)))
    assert found == pytest.approx(expected, rel=0.2)
    assert expected > 0.01


def test_common_errors_move_the_scale_as_said():
    trust = judge(adjusted(tunnel(VIEWS, 0, 0.5)), range(VIEWS))
    moved = adjusted(tunnel(VIEWS, 0, 1e-4, outwards=0.1))
    assert scales(moved, trust.ends)[3:] == pytest.approx(np.array(trust.common)[3:], rel=0.2)


def test_the_deviation_is_that_of_the_whole_matrix():
    problem = adjusted(tunnel(11, 1, 0.2))
    problem = replace(problem, robust_width=1e9)
    trust = judge(problem, range(11))
    found = jacobians(problem)
    rows, count = np.arange(len(found.residual)), len(problem.cameras_from_world)
    by_pose = np.zeros((len(rows), 2, count, 6))
    by_pose[rows, :, problem.frame_index] = found.by_pose
    by_point = np.zeros((len(rows), 2, len(problem.points), 3))
    by_point[rows, :, problem.point_index] = found.by_point
    matrix = np.concatenate([part.reshape(2 * len(rows), -1) for part in (by_pose, by_point)], axis=1)
    free = matrix.shape[1] - 6
    variance = (found.residual**2).sum() / (found.residual.size - free)
    covariance = variance * pinvh(matrix.T @ matrix)
    derivative, step = np.zeros((len(trust.noise), matrix.shape[1])), 1e-6
    for number in range(6, 6 * count):
        twist = np.zeros(6)
        twist[number % 6] = step
        poses = problem.cameras_from_world.copy()
        poses[number // 6] = se3.exp(twist) @ poses[number // 6]
        change = scales(replace(problem, cameras_from_world=poses), trust.ends) - scales(problem, trust.ends)
        derivative[:, number] = change / step
    expected = np.sqrt(np.einsum('mi,ij,mj->m', derivative, covariance, derivative))
    np.testing.assert_allclose(trust.noise, expected, rtol=0.02)


def test_sparse_and_dense_solutions_agree(monkeypatch):
    problem = adjusted(tunnel(VIEWS, 2, 0.5))
    dense = judge(problem, range(VIEWS))
    monkeypatch.setattr('dark3r_ros.sfm.schur._DENSE_POSES', 4)
    monkeypatch.setattr('dark3r_ros.sfm.schur._DENSE_SHARE', 2.0)
    sparse = judge(problem, range(VIEWS))
    np.testing.assert_allclose(sparse.noise, dense.noise, rtol=1e-4)
    np.testing.assert_allclose(sparse.common, dense.common, rtol=1e-4)


def test_common_errors_add_up_along_the_way():
    short, long = (judge(adjusted(tunnel(views, 3, 0.5)), range(views)) for views in (12, 48))
    # Middles of the first and the last part are 7 and 42 steps apart.
    assert long.common[-1] == pytest.approx(42 / 7 * short.common[-1], rel=0.4)
    assert long.worst > short.worst


def test_a_camera_that_stands_is_no_part_of_the_way():
    problem = adjusted(tunnel(VIEWS, 4, 0.5))
    poses = np.concatenate([problem.cameras_from_world, problem.cameras_from_world[-1:]])
    still = replace(
        problem,
        cameras_from_world=poses,
        pose_free=np.append(problem.pose_free, False),
    )
    assert judge(still, range(VIEWS + 1)).noise == pytest.approx(judge(problem, range(VIEWS)).noise)
    assert judge(problem, [0, 0, 0]) is None
    assert judge(problem, range(8)) is None


def test_a_unit_that_drifts_far_leaves_no_part_out():
    problem = tunnel(100, 5, 0.5, per_view=8)
    poses = problem.cameras_from_world.copy()
    poses[:, 2, 3] = -np.cumsum(np.exp(-0.07 * np.arange(100)))
    trust = judge(replace(problem, cameras_from_world=poses), range(100))
    assert np.diff(trust.ends).max() <= 11
    rest = np.concatenate([poses[:40], np.tile(poses[40:41], (60, 1, 1))])
    assert judge(replace(problem, cameras_from_world=rest), range(100)).ends[-1] <= 40


def test_only_a_doubtful_scale_is_said():
    assert ScaleTrust((0, 5, 9), (0.02,), (0.03,)).warning() is None
    assert '+- 13 %' in ScaleTrust((0, 5, 9), (0.08,), (-0.09,)).warning()
    assert 'a factor of 2.7 at best' in ScaleTrust((0, 5, 9), (0.05,), (1.0,)).warning()
    assert 'does not fit' in ScaleTrust((0, 5, 9), (0.08,), (-0.09,)).warning(odometry=True)
