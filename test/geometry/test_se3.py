# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation, Slerp

from dark3r_ros.geometry import se3


def test_many_twists_are_mapped_at_once():
    twists = np.random.default_rng(0).normal(size=(4, 6)) * [[1.0], [1e-3], [1e-7], [0.0]]
    np.testing.assert_allclose(se3.exp(twists), [se3.exp(twist) for twist in twists], atol=1e-15)


@pytest.mark.parametrize('angle', [0.0, 1e-9, 1e-3, 1.0, 3.0])
def test_exp_is_the_matrix_exponential(angle):
    rng = np.random.default_rng(0)
    axis = rng.normal(size=3)
    twist = np.concatenate([rng.normal(size=3), angle * axis / np.linalg.norm(axis)])
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = se3.hat(twist[3:]), twist[:3]
    np.testing.assert_allclose(se3.exp(twist), expm(generator), atol=1e-12)
    np.testing.assert_allclose(se3.log(se3.exp(twist)), twist, atol=1e-9)


def test_inverse_of_many():
    poses = np.stack([se3.exp(twist) for twist in np.random.default_rng(1).normal(size=(5, 6))])
    np.testing.assert_allclose(poses @ se3.inverse(poses), np.broadcast_to(np.eye(4), poses.shape), atol=1e-12)


def test_quaternion_round_trip_has_positive_w():
    poses = np.stack([se3.exp(twist) for twist in np.random.default_rng(2).normal(size=(20, 6)) * 2])
    quaternions = se3.quaternion(poses[:, :3, :3])
    assert (quaternions[:, 3] >= 0).all()
    for pose, quaternion in zip(poses, quaternions, strict=True):
        np.testing.assert_allclose(se3.from_quaternion(quaternion, pose[:3, 3]), pose, atol=1e-12)


def test_interpolation_is_halfway_on_both_parts():
    first, second = np.eye(4), se3.exp([2.0, 0, 0, 0, 0, 1.0])
    middle = se3.interpolate(first, second, 0.5)
    assert se3.rotation_angle(middle[:3, :3]) == pytest.approx(0.5)
    np.testing.assert_allclose(middle[:3, 3], 0.5 * second[:3, 3])


def test_normalised_mends_rounding_and_keeps_handedness():
    pose = se3.exp([1, 2, 3, 0.3, 0.2, 0.1])
    bent = pose.copy()
    bent[:3, :3] += 1e-4 * np.random.default_rng(3).normal(size=(3, 3))
    mended = se3.normalised(bent)[:3, :3]
    np.testing.assert_allclose(mended @ mended.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(mended) == pytest.approx(1.0)


@pytest.mark.parametrize('angle', [0.0, 1e-12, 1e-6, 0.5, 2.0, np.pi - 1e-6, np.pi])
def test_rotations_are_those_of_scipy(angle):
    axes = np.random.default_rng(4).normal(size=(50, 3))
    axes[:6] = [*np.eye(3), *-np.eye(3)]
    vectors = angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)
    expected = Rotation.from_rotvec(vectors)
    matrices = expected.as_matrix()
    np.testing.assert_allclose(se3.exp_so3(vectors), matrices, atol=1e-15)
    np.testing.assert_allclose(se3.exp_so3(se3.log_so3(matrices)), matrices, atol=1e-14)
    quaternions = se3.quaternion(matrices)
    signs = np.sign((quaternions * expected.as_quat()).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(signs * quaternions, expected.as_quat(), atol=1e-15)
    angles = [se3.rotation_angle(matrix) for matrix in matrices]
    np.testing.assert_allclose(angles, angle, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize('turn', [1e-9, 0.1, 2.5])
def test_interpolation_is_spherical(turn):
    first, last = (se3.exp(twist) for twist in np.random.default_rng(5).normal(size=(2, 6)))
    last[:3, :3] = first[:3, :3] @ se3.exp_so3(turn * np.array([0.6, 0.0, 0.8]))
    slerp = Slerp([0.0, 1.0], Rotation.from_matrix(np.stack([first[:3, :3], last[:3, :3]])))
    for fraction in (0.0, 0.3, 1.0):
        expected = slerp([fraction]).as_matrix()[0]
        np.testing.assert_allclose(se3.interpolate(first, last, fraction)[:3, :3], expected, atol=1e-14)
