# SPDX-License-Identifier: Apache-2.0
import numpy as np
from scipy.spatial.transform import Rotation

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.events import FramePosed, KeyframeAdded, KeyframeState
from dark3r_ros.nodes import convert
from dark3r_ros.nodes.path import PathKeeper
from dark3r_ros.storage.result import empty_cloud

RNG = np.random.default_rng(5)


def random_pose() -> np.ndarray:
    return se3.make(Rotation.random(random_state=RNG).as_matrix(), RNG.normal(size=3))


def posed(stamp: int, pose: np.ndarray) -> FramePosed:
    return FramePosed(stamp, 'cam', pose, np.zeros((6, 6)), 1, 1, 0.0, False)


def keyframe(number: int, stamp: int, pose: np.ndarray) -> KeyframeAdded:
    return KeyframeAdded(number, stamp, 'cam', pose, empty_cloud(), 0.0, 0)


def poses(path: PathKeeper) -> dict[int, np.ndarray]:
    messages = path.messages(lambda pose: pose, 'map')
    stamps = [convert.stamp_to_ns(message.header.stamp) for message in messages]
    assert stamps == sorted(stamps)
    return {stamp: convert.pose_from_message(item.pose) for stamp, item in zip(stamps, messages, strict=True)}


def test_frames_follow_their_keyframe_when_it_moves():
    path = PathKeeper(100)
    a, b, between, after = (random_pose() for _ in range(4))
    for stamp, pose, number in ((10, a, 0), (20, between, None), (30, b, 7), (40, after, None)):
        path.posed(posed(stamp, pose))
        if number is not None:
            path.keyframe_added(keyframe(number, stamp, pose))
    for stamp, pose in poses(path).items():
        np.testing.assert_allclose(pose, {10: a, 20: between, 30: b, 40: after}[stamp], atol=1e-12)
    assert not path.changed
    moved = random_pose()
    path.keyframes_moved([KeyframeState(7, 30, moved, 0.0, 0), KeyframeState(99, 1, moved, 0.0, 0)])
    assert path.changed
    result = poses(path)
    np.testing.assert_allclose(result[20], between, atol=1e-12)
    np.testing.assert_allclose(result[30], moved, atol=1e-12)
    np.testing.assert_allclose(result[40], moved @ se3.inverse(b) @ after, atol=1e-12)


def test_late_frames_and_refined_poses_take_their_place():
    path = PathKeeper(100)
    path.posed(posed(30, random_pose()))
    path.keyframe_added(keyframe(0, 30, random_pose()))
    late, refined, unknown = random_pose(), random_pose(), random_pose()
    path.posed(posed(10, late))
    np.testing.assert_allclose(poses(path)[10], late, atol=1e-12)
    path.replace([10, 20, 30], [late, unknown, refined])
    result = poses(path)
    assert list(result) == [10, 20, 30]
    np.testing.assert_allclose(result[20], unknown, atol=1e-12)
    np.testing.assert_allclose(result[30], refined, atol=1e-12)


def test_memory_is_bounded_by_the_newest_frames():
    path = PathKeeper(50)
    for stamp in range(2000):
        path.posed(posed(stamp, np.eye(4)))
        path.keyframe_added(keyframe(stamp, stamp, np.eye(4)))
    assert list(poses(path)) == list(range(1950, 2000))
    assert len(path._keyframes) <= 300


def test_the_base_is_what_the_path_shows():
    path = PathKeeper(10)
    camera, map_from_world, camera_from_base = random_pose(), random_pose(), random_pose()
    path.posed(posed(1, camera))
    message = path.messages(lambda pose: map_from_world @ pose @ camera_from_base, 'map')[0]
    np.testing.assert_allclose(
        convert.pose_from_message(message.pose), map_from_world @ camera @ camera_from_base, atol=1e-12
    )


def test_a_new_unit_reaches_every_pose_and_frames_can_be_asked_for():
    path = PathKeeper(10)
    first, second = random_pose(), random_pose()
    path.posed(posed(1, first))
    path.keyframe_added(keyframe(0, 1, first))
    path.posed(posed(2, second))
    assert len(poses(path)) == 2 and not path.changed
    path.rescaled()
    assert path.changed
    doubled = {convert.stamp_to_ns(m.header.stamp): m.pose.position.x for m in path.messages(lambda p: p * 2.0, 'map')}
    np.testing.assert_allclose([doubled[1], doubled[2]], [2 * first[0, 3], 2 * second[0, 3]])
    np.testing.assert_allclose(path.world_from_camera(2), second, atol=1e-12)
    assert path.world_from_camera(3) is None
