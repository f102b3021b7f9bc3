# SPDX-License-Identifier: Apache-2.0
import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.landmarks import KeypointTable, LandmarkTable
from dark3r_ros.mapping.records import BoundedCloud, PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap


def test_named_keypoints_keep_their_rows():
    table = KeypointTable()
    rows = table.lookup(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([5, 2]))
    assert rows.tolist() == [5, 2]
    assert len(table) == 6
    table.landmark[5] = 40
    assert table.landmarks_at(np.zeros((3, 2)), np.array([5, 2, 99])).tolist() == [40, -1, -1]
    assert table.lookup(np.array([[9.0, 9.0]]), np.array([5])).tolist() == [5]
    assert table.pixels[5].tolist() == [1.0, 2.0]  # the first position stays


def test_positions_within_a_pixel_are_one_point_and_looking_adds_nothing():
    table = KeypointTable()
    first = table.lookup(np.array([[10.2, 20.4], [50.0, 60.0]]), None)
    again = table.lookup(np.array([[9.8, 19.9], [51.0, 60.0]]), None)
    assert again[0] == first[0]
    assert again[1] not in first
    table.landmark[first[0]] = 7
    size = len(table), table.nbytes
    assert table.landmarks_at(np.array([[10.4, 20.0], [200.0, 100.0]]), None).tolist() == [7, -1]
    assert (len(table), table.nbytes) == size


def test_compaction_keeps_observations_only():
    table = KeypointTable()
    table.lookup(np.random.default_rng(0).uniform(0, 100, (20, 2)), np.arange(20))
    table.landmark[[3, 8]] = [1, 2]
    pixels = table.pixels[[3, 8]].copy()
    table.compact()
    assert table.landmark.tolist() == [1, 2]
    np.testing.assert_array_equal(table.pixels, pixels)


def test_landmark_rows_are_reused_and_capacity_stays():
    table = LandmarkTable()
    rows = table.add(np.arange(30.0).reshape(10, 3), np.zeros((10, 3), np.uint8))
    table.remove(rows[[2, 5]])
    table.remove(rows[[2]])  # twice does no harm
    assert len(table) == 8
    fresh = table.add(np.full((3, 3), -1.0), np.full((3, 3), 9, np.uint8))
    assert set(fresh[:2].tolist()) == {2, 5}
    assert table.capacity == 11
    assert table.points[4].tolist() == [12.0, 13.0, 14.0]


def make_map(observations):
    """A map whose keyframes see the given landmarks, one keypoint each, in order."""
    sparse_map = SparseMap()
    camera = Camera(100, 100, 80.0, 80.0, 49.5, 49.5)
    count = 1 + max(max(seen) for seen in observations)
    sparse_map.landmarks.add(
        np.column_stack([np.zeros((count, 2)), np.arange(1.0, count + 1)]), np.zeros((count, 3), 'u1')
    )
    for number, seen in enumerate(observations):
        keyframe = Keyframe(number, number, 'camera', camera, np.eye(4), 0.0, None)
        keyframe.table.lookup(np.full((len(seen), 2), 49.5), np.arange(len(seen)))
        keyframe.table.landmark[:] = seen
        sparse_map.keyframes.append(keyframe)
    return sparse_map


def test_merging_follows_chains_and_never_sees_a_landmark_twice():
    sparse_map = make_map([[0, 1, 4], [1, 2, 3], [2, 0, 3]])
    sparse_map.merge(np.array([0, 1]), np.array([1, 2]))  # 2 -> 1 -> 0
    seen = [keyframe.table.landmark.tolist() for keyframe in sparse_map.keyframes]
    assert seen[0] == [0, -1, 4]
    assert seen[1] == [0, -1, 3]
    assert seen[2] == [-1, 0, 3]
    assert sparse_map.landmarks.alive.tolist() == [True, False, False, True, True]


def test_landmarks_of_a_single_keyframe_are_removed():
    sparse_map = make_map([[0, 1], [1, 2]])
    sparse_map.remove_unsupported()
    assert [keyframe.table.landmark.tolist() for keyframe in sparse_map.keyframes] == [[-1, 1], [1, -1]]
    assert sparse_map.landmarks.alive.tolist() == [False, True, False]


def test_retired_keyframes_are_counted_once_and_merged_all_the_same():
    sparse_map = make_map([[0, 1], [1, 2], [2, 3], [4, 3]])
    sparse_map.retire(sparse_map.keyframes[:2])
    assert sparse_map.support().tolist() == [1, 2, 2, 2, 1]
    sparse_map.merge(np.array([3]), np.array([4]))
    assert sparse_map.keyframes[3].table.landmark.tolist() == [-1, 3]
    assert sparse_map.support().tolist()[:4] == [1, 2, 2, 2]
    sparse_map.merge(np.array([0]), np.array([1]))  # seen by retired keyframes only
    assert sparse_map.keyframes[0].table.landmark.tolist() == [0, -1]
    assert sparse_map.keyframes[1].table.landmark.tolist() == [0, 2]
    sparse_map.remove_unsupported()
    assert sparse_map.landmarks.alive.tolist() == [True, False, True, True, False]
    sparse_map.revive(sparse_map.keyframes)
    assert sparse_map.support().tolist() == [2, 0, 2, 2, 0]


def test_culling_drops_what_reprojects_badly():
    sparse_map = make_map([[0, 1], [0, 1], [0, 1]])
    sparse_map.keyframes[2].table.pixels[1] += 5.0
    sparse_map.cull(sparse_map.keyframes, 2.0)
    assert sparse_map.keyframes[2].table.landmark.tolist() == [0, -1]
    assert sparse_map.keyframes[0].table.landmark.tolist() == [0, 1]


def test_covisible_keyframes_come_in_order_of_what_they_share():
    sparse_map = make_map([[0, 1], [2, 3], [0, 1], [0, 4]])
    order = sparse_map.covisible(np.array([0, 1]), sparse_map.keyframes)
    assert [keyframe.keyframe_id for keyframe in order] == [2, 0, 3]


def test_logged_poses_follow_their_keyframe():
    sparse_map = make_map([[0], [0]])
    log = PoseLog()
    for stamp in (30, 10, 20):
        log.add(stamp, f'{stamp}.png', 1.5, 'not reached')
    keyframe = sparse_map.keyframes[0]
    offset = se3.exp([0.1, 0.2, 0.3, 0.01, 0.02, 0.03])
    log.pose(20, keyframe, offset @ keyframe.camera_from_world, 5, 9, False)
    keyframe.camera_from_world = se3.exp([1, 2, 3, 0.5, 0, 0])
    records = log.records(sparse_map.keyframes)
    assert [record.stamp_ns for record in records] == [10, 20, 30]
    assert records[1].name == '20.png'
    np.testing.assert_allclose(
        records[1].world_from_camera, se3.inverse(offset @ keyframe.camera_from_world), atol=1e-12
    )
    assert records[0].world_from_camera is None
    assert records[0].reason == 'not reached'
    assert log.posed == 1
    log.discard_poses('given up', sparse_map.keyframes)
    assert log.posed == 0
    assert log.records(sparse_map.keyframes)[1].reason == 'given up'


def test_the_cloud_of_forgotten_points_stays_within_its_limit():
    cloud = BoundedCloud(500)
    rng = np.random.default_rng(0)
    for part in range(20):
        cloud.add(rng.uniform(0, 10, (100, 3)) + [part, 0, 0], np.zeros((100, 3), np.uint8))
        assert len(cloud.cloud()) <= 500
    points = cloud.cloud().points
    assert len(points) > 100
    assert points[:, 0].min() < 2
    assert points[:, 0].max() > 26
