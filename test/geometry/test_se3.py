# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.linalg import expm

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
