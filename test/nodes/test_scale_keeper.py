# SPDX-License-Identifier: Apache-2.0
"""From odometry messages to outputs in metres, on a real graph."""

import numpy as np
import pytest
from dark3r_ros.msg import KeyframeArray, MappingStatus
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import events
from dark3r_ros.mapping.metric import MetricConfig, ScaleEstimate
from dark3r_ros.nodes import convert, qos
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.nodes.node_config import NodeConfig
from dark3r_ros.nodes.scale import ScaleKeeper
from dark3r_ros.nodes.transforms import TransformBroadcaster, TransformBuffer
from dark3r_ros.types import MappingState, PointCloud

T0 = 1795188284_000000000
STEP = 100_000_000
METRES_A_FRAME = 0.5
UNITS_A_FRAME = 0.1  # of the fake pipeline


def stamp(number: int) -> int:
    return T0 + number * STEP


def forward(metres: float) -> np.ndarray:
    return se3.make(np.eye(3), [metres, 0.0, 0.0])


def posed(number: int, units: float, **changes) -> events.FramePosed:
    pose = se3.make(np.eye(3), [0.0, 0.0, units])
    return events.FramePosed(stamp(number), 'camera', pose, np.eye(6), 50, 60, 7.0, False, **changes)


def odometry(number: int, metres: float, child: str = 'base_link') -> Odometry:
    return convert.odometry_message(forward(metres), np.eye(6), stamp(number), 'odom', child)


@pytest.fixture
def keeper():
    frame, said = MapFrame(), []
    frame.mount(se3.BODY_FROM_OPTICAL)
    made = ScaleKeeper(NodeConfig(), MetricConfig(), TransformBuffer(), frame, said.append)
    made.frame, made.said = frame, said
    return made


def drive(keeper, first, count, units=UNITS_A_FRAME, **changes):
    for number in range(first, first + count):
        keeper.take_odometry(odometry(number, METRES_A_FRAME * number), forward(METRES_A_FRAME * number))
        keeper.take([posed(number, units * number, **changes)])


def test_the_scale_is_applied_once_and_then_kept(keeper):
    drive(keeper, 0, 30)
    assert keeper.frame.scale == 1.0 and keeper.awaited
    assert 'the scale is known: metric (5' in keeper.update()
    assert keeper.frame.scale == pytest.approx(5.0, rel=1e-3) and not keeper.awaited
    drive(keeper, 30, 30)
    assert keeper.update() == '' and str(keeper.estimate).startswith('metric (5 +- ')


def test_a_scale_that_was_wrong_moves_in_one_step(keeper):
    keeper.restore(ScaleEstimate(4.0, 0.01, known=True, reason=''))
    assert keeper.frame.scale == 4.0
    drive(keeper, 0, 30)
    assert keeper.estimate.scale == 4.0  # what is told and saved is what was published
    assert 'changed by +25.0 %' in keeper.update()
    assert keeper.frame.scale == pytest.approx(5.0, rel=1e-3)
    assert keeper.update() == ''


def floor_seen(number: int, metres_per_unit: float, submap: int = 0) -> events.KeyframeAdded:
    """A keyframe that looks along a floor 0.8 m below it."""
    rng = np.random.default_rng(number)
    floor = np.column_stack([rng.uniform(-1.5, 1.5, 200), np.full(200, 0.8), rng.uniform(1.5, 6.0, 200)])
    pose = se3.make(np.eye(3), [0.0, 0.0, 0.3 * number / metres_per_unit])
    points = se3.transform_points(pose, floor / metres_per_unit).astype(np.float32)
    cloud = PointCloud(points, np.zeros((200, 3), np.uint8), np.ones(200, np.float32))
    return events.KeyframeAdded(number, stamp(number), 'camera', pose, cloud, -4.0, 200, submap)


@pytest.mark.parametrize('use_odometry', [True, False])
def test_without_odometry_the_height_of_the_camera_gives_the_scale(use_odometry):
    frame = MapFrame()
    frame.mount(se3.BODY_FROM_OPTICAL)
    config = NodeConfig(use_odometry=use_odometry)
    keeper = ScaleKeeper(config, MetricConfig(), TransformBuffer(), frame, lambda text: None, 0.8)
    keeper.take([floor_seen(number, 9.0, submap=1) for number in range(30)])
    assert keeper.awaited and keeper.update() == '' and 'ground' in keeper.estimate.reason
    for number in range(30):
        keeper.take([posed(number, 0.1 * number), floor_seen(number, 2.5)])
    assert 'the scale is known' in keeper.update() and not keeper.awaited
    assert frame.scale == pytest.approx(2.5, rel=0.02)
    keeper.take([events.MapDiscarded(stamp(31), 'gone')])
    assert keeper.awaited and frame.scale == 1.0


def test_odometry_is_believed_rather_than_the_height(keeper):
    made = ScaleKeeper(NodeConfig(), MetricConfig(), TransformBuffer(), keeper.frame, lambda text: None, 0.8)
    drive(made, 0, 30)
    made.take([floor_seen(number, 2.5) for number in range(30)])
    made.update()
    assert keeper.frame.scale == pytest.approx(5.0, rel=1e-3)


def test_other_submaps_and_late_frames_do_not_count(keeper):
    drive(keeper, 0, 30, submap=1)
    drive(keeper, 30, 30, late=True)
    assert keeper.update() == ''
    drive(keeper, 60, 30)
    assert keeper.update()


def test_a_discarded_map_has_no_scale(keeper):
    drive(keeper, 0, 30)
    keeper.update()
    keeper.take([events.MapDiscarded(stamp(31), 'too weak')])
    assert keeper.frame.scale == 1.0 and keeper.awaited and not keeper.estimate.known


def test_a_loss_is_no_motion(keeper):
    drive(keeper, 0, 30)
    lost = events.StateChanged(stamp(30), MappingState.TRACKING, MappingState.LOST, 'dark')
    keeper.take([lost])
    for number in range(31, 60):  # found again far away: only what is driven from there counts
        keeper.take_odometry(odometry(number, METRES_A_FRAME * number), forward(METRES_A_FRAME * number))
        keeper.take([posed(number, UNITS_A_FRAME * number + 40.0)])
    keeper.update()
    assert keeper.frame.scale == pytest.approx(5.0, rel=1e-3) and keeper.estimate.rejected < 0.05


def test_odometry_of_another_body_is_told_where_its_place_is_unknown(keeper):
    keeper.take([posed(0, 0.0)])
    keeper.take_odometry(odometry(0, 0.0, 'wheels'), forward(0.0))
    assert len(keeper.said) == 1 and 'wheels' in keeper.said[0]


def test_the_distance_is_that_of_the_odometry_else_the_time(keeper):
    assert keeper.distance(stamp(0), stamp(10)) == pytest.approx(1.0)
    drive(keeper, 0, 11)
    for number in (11, 12, 13):  # ahead of the frames
        keeper.take_odometry(odometry(number, 5.5), forward(5.5))
    assert keeper.distance(stamp(10), stamp(12)) == pytest.approx(0.5, abs=0.01)
    assert keeper.distance(stamp(11), stamp(13)) < 0.01  # standing


def test_the_map_frame_scales_poses_points_and_covariances_alike():
    mounting = se3.make(se3.BODY_FROM_OPTICAL[:3, :3], [0.4, 0.0, 0.5])
    frame = MapFrame()
    frame.mount(mounting)
    world_from_camera = se3.make(se3.exp_so3([0.1, 0.2, 0.3]), [1.0, 2.0, 3.0])
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    cloud = PointCloud(points, np.zeros((20, 3), np.uint8), np.ones(20, np.float32))
    frame.scale = 5.0
    metric = world_from_camera.copy()
    metric[:3, 3] *= 5.0
    np.testing.assert_allclose(frame.base(world_from_camera), mounting @ metric @ se3.inverse(mounting), atol=1e-12)
    np.testing.assert_allclose(frame.camera(world_from_camera), mounting @ metric, atol=1e-12)
    # A point keeps its pixel: scaling everything cannot be seen by the camera.
    seen = se3.transform_points(se3.inverse(world_from_camera), points)
    again = se3.transform_points(se3.inverse(frame.camera(world_from_camera)), frame.cloud(cloud).points)
    np.testing.assert_allclose(again / again[:, 2:], seen / seen[:, 2:], rtol=1e-3, atol=1e-3)
    plain = frame.covariance(np.eye(6), world_from_camera)
    frame.deviation = 0.02
    more = frame.covariance(np.eye(6), world_from_camera) - plain
    assert np.trace(more) == pytest.approx((0.02 * np.linalg.norm(metric[:3, 3])) ** 2)


# ------------------------------------------------------------------ the node


@pytest.mark.parametrize('source', ['topic', 'tf'])
def test_outputs_become_metric_together(graph, make_node, camera, pipeline, source):
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    maps = graph.listen(PointCloud2, '/dark3r_mapping/map', qos.latched())
    poses = graph.listen(Odometry, '/dark3r_mapping/odometry')
    keyframes = graph.listen(KeyframeArray, '/dark3r_mapping/keyframes')
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    transforms = graph.listen(TFMessage, '/tf')
    wheels = TransformBroadcaster(graph.helper)
    publisher = graph.helper.create_publisher(Odometry, 'odom', 50)
    node = make_node(queue_length=100, path_period=0.1, map_period=0.5, tf_wait=10.0, metric__min_steps=5)
    graph.until(lambda: camera.matched() and publisher.get_subscription_count() > 0)
    graph.until(lambda: wheels._publisher.get_subscription_count() >= 2)
    camera.infos.publish(camera.info())
    graph.until(lambda: len(node.cameras) > 0)
    for number in range(14):
        body = forward(METRES_A_FRAME * number)
        wheels.send(convert.transform_to_message(body, stamp(number), 'odom', 'base_link'))
        graph.until(lambda n=number: node.buffer.newest_ns('base_link') == stamp(n))
        if source == 'topic':
            publisher.publish(odometry(number, METRES_A_FRAME * number))
        camera.images.publish(camera.image(stamp(number)))
        graph.until(lambda n=number: node.health.pipeline.posed == n + 1)
    graph.until(lambda: any(status.metric_scale for status in statuses), why='the scale is not known')
    found = next(status for status in statuses if status.metric_scale)
    assert found.scale == pytest.approx(5.0, rel=1e-3) and found.scale_text.startswith('metric (5')
    first = next(status for status in statuses if status.scale_text)
    assert not first.metric_scale and first.scale_text.startswith('arbitrary')

    graph.until(lambda: paths and paths[-1].poses[-1].pose.position.x == pytest.approx(METRES_A_FRAME * 13, rel=1e-3))
    assert paths[-1].poses[4].pose.position.x == pytest.approx(METRES_A_FRAME * 4, rel=1e-3)
    graph.until(
        lambda: maps and convert.cloud_from_message(maps[-1]).points[:, 0].max() == pytest.approx(13 * 5.0, rel=1e-3)
    )
    graph.until(lambda: len(keyframes[-1].keyframes) == 5)  # all of them moved, in one message
    assert keyframes[-1].keyframes[-1].pose.position.x == pytest.approx(METRES_A_FRAME * 12, rel=1e-3)
    mine = [item for message in transforms for item in message.transforms if item.header.frame_id == 'map']
    assert mine == []  # metres and another unit are not mixed

    number = 14
    wheels.send(convert.transform_to_message(forward(7.0), stamp(number), 'odom', 'base_link'))
    camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: convert.stamp_to_ns(poses[-1].header.stamp) == stamp(number))
    assert poses[-1].pose.pose.position.x == pytest.approx(7.0, rel=1e-3)
    graph.until(lambda: [i for m in transforms for i in m.transforms if i.header.frame_id == 'map'])
    (item,) = [i for m in transforms for i in m.transforms if i.header.frame_id == 'map']
    assert item.child_frame_id == 'odom' and abs(item.transform.translation.x) < 0.02


def test_a_node_that_shall_not_use_odometry_says_so(graph, make_node, camera):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    make_node(use_odometry=False)
    graph.until(lambda: any('use_odometry is false' in status.scale_text for status in statuses))
    assert not statuses[-1].metric_scale and np.isnan(statuses[-1].scale)
