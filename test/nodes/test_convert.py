# SPDX-License-Identifier: Apache-2.0
import struct
from array import array

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nodes import convert
from dark3r_ros.raw.camera_info import camera_from_info
from dark3r_ros.raw.decode import decode_ros_image
from dark3r_ros.types import Frame, PointCloud


def random_pose(rng) -> np.ndarray:
    return se3.make(Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3))


@pytest.mark.parametrize('stamp', [0, 1, 999_999_999, 1_000_000_000, 1795188284742737969, -1])
def test_stamps_survive_to_the_nanosecond(stamp):
    message = convert.stamp_from_ns(stamp)
    assert 0 <= message.nanosec < 10**9
    assert convert.stamp_to_ns(message) == stamp


def test_optical_axes_become_rep103_axes():
    right, down, forward = np.eye(3)
    rotation = se3.BODY_FROM_OPTICAL[:3, :3]
    np.testing.assert_array_equal(rotation @ forward, [1, 0, 0])
    np.testing.assert_array_equal(rotation @ right, [0, -1, 0])
    np.testing.assert_array_equal(rotation @ down, [0, 0, -1])


def test_poses_and_transforms_come_back():
    rng = np.random.default_rng(1)
    for _ in range(20):
        pose = random_pose(rng)
        np.testing.assert_allclose(convert.pose_from_message(convert.pose_to_message(pose)), pose, atol=1e-12)
        message = convert.transform_to_message(pose, 123, 'map', 'base_link')
        assert (message.header.frame_id, message.child_frame_id) == ('map', 'base_link')
        np.testing.assert_allclose(convert.transform_from_message(message), pose, atol=1e-12)


def test_nan_and_zero_quaternions_are_refused():
    message = convert.pose_to_message(np.eye(4))
    message.position.y = float('nan')
    with pytest.raises(DataError, match='NaN'):
        convert.pose_from_message(message)
    transform = convert.transform_to_message(np.eye(4), 1, 'odom', 'base_link')
    transform.transform.rotation.w = 0.0
    with pytest.raises(DataError, match=r'odom -> base_link.*zero quaternion'):
        convert.transform_from_message(transform)


def test_body_covariance_equals_that_of_sampled_motions():
    rng = np.random.default_rng(2)
    map_from_world, world_from_camera, camera_from_base = (random_pose(rng) for _ in range(3))
    root = rng.normal(size=(6, 6)) * 1e-4
    covariance = root @ root.T
    map_from_base = map_from_world @ world_from_camera @ camera_from_base
    samples = []
    for x in rng.multivariate_normal(np.zeros(6), covariance, size=20000):
        moved = world_from_camera.copy()
        moved[:3, :3] = se3.exp_so3(x[3:]) @ world_from_camera[:3, :3]
        moved[:3, 3] += x[:3]
        base = map_from_world @ moved @ camera_from_base
        turn = se3.log_so3(base[:3, :3] @ map_from_base[:3, :3].T)
        samples.append(np.concatenate([base[:3, 3] - map_from_base[:3, 3], turn]))
    expected = np.cov(np.array(samples).T)
    actual = convert.body_covariance(covariance, map_from_world, world_from_camera, camera_from_base)
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_odometry_covariance_is_row_major_and_the_twist_unknown():
    covariance = np.arange(36.0).reshape(6, 6)
    message = convert.odometry_message(np.eye(4), covariance, 5, 'map', 'base_link')
    assert message.pose.covariance[6 * 1 + 4] == covariance[1, 4]
    assert (message.header.frame_id, message.child_frame_id) == ('map', 'base_link')
    assert min(message.twist.covariance[7 * i] for i in range(6)) >= 1e6


def test_cloud_has_the_layout_of_pcl():
    cloud = PointCloud(
        np.array([[1, 2, 3], [np.nan] * 3], np.float32), np.array([[10, 20, 30], [1, 2, 3]], np.uint8),
        np.array([0.5, 0.25], np.float32),
    )  # fmt: skip
    message = convert.cloud_message(cloud, 7, 'map')
    assert isinstance(message.data, array)
    assert (message.point_step, message.row_step, message.width, message.height) == (32, 64, 2, 1)
    assert {field.name: field.offset for field in message.fields}.items() >= {'x': 0, 'y': 4, 'z': 8, 'rgb': 16}.items()
    assert struct.unpack_from('<fff', message.data, 0) == (1.0, 2.0, 3.0)
    # PCL packs blue, green, red from the lowest byte up.
    assert bytes(message.data[16:20]) == bytes([30, 20, 10, 0])
    assert not message.is_dense
    back = convert.cloud_from_message(message)
    np.testing.assert_array_equal(back.points, cloud.points)
    np.testing.assert_array_equal(back.colors, cloud.colors)
    np.testing.assert_array_equal(back.confidence, cloud.confidence)


def test_a_truncated_cloud_is_refused():
    cloud = PointCloud(np.zeros((3, 3), np.float32), np.zeros((3, 3), np.uint8), np.ones(3, np.float32))
    message = convert.cloud_message(cloud, 7, 'map')
    message.data = message.data[:50]
    with pytest.raises(DataError, match='50 bytes for 3 points'):
        convert.cloud_from_message(message)


@pytest.mark.parametrize('cfa', ['rggb', 'bggr', 'gbrg', 'grbg', 'mono'])
def test_images_decode_to_the_same_mosaic(cfa):
    mosaic = np.random.default_rng(3).integers(0, 65536, (6, 8)).astype(np.uint16)
    frame = Frame(123456789012345678, mosaic, cfa, (512.0,) * 3, 65535.0, frame_id='cam')
    message = convert.image_message(frame)
    assert isinstance(message.data, array)
    assert message.encoding == ('mono16' if cfa == 'mono' else f'bayer_{cfa}16')
    if cfa == 'mono':
        return
    back = decode_ros_image(message, convert.stamp_to_ns(message.header.stamp))
    np.testing.assert_array_equal(back.mosaic, mosaic)
    assert (back.cfa, back.stamp_ns, back.frame_id) == (cfa, frame.stamp_ns, 'cam')


@pytest.mark.parametrize(
    ('model', 'coefficients'),
    [('none', ()), ('plumb_bob', (0.1, -0.2, 0.001, 0.002, 0.03)), ('equidistant', (0.1, 0.2, 0.3, 0.4))],
)
def test_camera_info_gives_the_same_camera(model, coefficients):
    camera = Camera(640, 480, 500.5, 501.5, 319.25, 240.75, model, coefficients)
    assert camera_from_info(convert.camera_info_message(camera, 1, 'cam')) == camera
