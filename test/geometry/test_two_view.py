# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.geometry.two_view import (
    essential_matrix,
    parallax_angles,
    reprojection_errors,
    sampson_distance,
    triangulate,
)


@pytest.fixture
def scene():
    rng = np.random.default_rng(4)
    points = rng.uniform([-2, -2, 3], [2, 2, 9], (50, 3))
    poses = np.stack([np.eye(4), se3.exp([0.4, -0.1, 0.05, 0.02, -0.1, 0.03]), se3.exp([-0.3, 0.2, 0.1, 0, 0.1, 0])])
    local = np.einsum('vij,nj->nvi', poses[:, :3, :3], points) + poses[:, :3, 3]
    return points, poses, local[..., :2] / local[..., 2:]


def test_triangulation_recovers_exact_points(scene):
    points, poses, observed = scene
    np.testing.assert_allclose(triangulate(poses, observed), points, atol=1e-9)
    each = np.broadcast_to(poses[:2], (len(points), 2, 4, 4))
    np.testing.assert_allclose(triangulate(each, observed[:, :2]), points, atol=1e-9)


def test_exact_matches_lie_on_the_epipolar_lines(scene):
    _, poses, observed = scene
    assert sampson_distance(poses[1], observed[:, 0], observed[:, 1]).max() < 1e-12
    essential = essential_matrix(poses[1])
    assert np.linalg.matrix_rank(essential, tol=1e-9) == 2


def test_sampson_distance_is_the_pixel_shift_to_first_order(scene):
    _, poses, observed = scene
    essential = essential_matrix(poses[1])
    line = np.column_stack([observed[:, 0], np.ones(50)]) @ essential.T
    normal = line[:, :2] / np.linalg.norm(line[:, :2], axis=1, keepdims=True)
    shifted = observed[:, 1] + 1e-4 * normal
    # A shift across the line in one picture is shared by both: the distance lies between d/2 and d.
    distance = sampson_distance(poses[1], observed[:, 0], shifted)
    assert (distance > 0.4e-4).all()
    assert (distance < 1.0001e-4).all()


def test_parallax_and_points_behind(scene):
    points, poses, observed = scene
    angle = parallax_angles(np.zeros(3), [1.0, 0, 0], [[0.5, 0.0, 0.5]])
    assert np.degrees(angle[0]) == pytest.approx(90.0)
    errors = reprojection_errors(poses[1], points, observed[:, 1])
    assert errors.max() < 1e-12
    assert np.isinf(reprojection_errors(poses[1], -points, observed[:, 1])).all()


@pytest.mark.parametrize('with_scale', [True, False])
def test_umeyama_recovers_a_similarity(with_scale):
    rng = np.random.default_rng(5)
    source = rng.normal(size=(30, 3))
    pose = se3.exp([1, 2, 3, 0.5, -1.0, 2.0])
    scale = 2.5 if with_scale else 1.0
    target = scale * source @ pose[:3, :3].T + pose[:3, 3]
    found_scale, rotation, translation = umeyama(source, target, with_scale)
    assert found_scale == pytest.approx(scale)
    np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-12)
    np.testing.assert_allclose(translation, pose[:3, 3], atol=1e-12)


def test_umeyama_never_mirrors():
    source = np.random.default_rng(6).normal(size=(10, 3))
    _, rotation, _ = umeyama(source, source * [1, 1, -1])
    assert np.linalg.det(rotation) == pytest.approx(1.0)
