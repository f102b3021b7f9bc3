# SPDX-License-Identifier: Apache-2.0
import json

import cv2
import numpy as np
import pytest
from dark3r_ros.msg import MappingStatus
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nodes import convert, qos
from dark3r_ros.nodes.replay import STATUS_TOPIC, Item, Lockstep, Replay, scheduled
from dark3r_ros.raw.camera_info import camera_from_info
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.types import Frame

T0 = 1795188284_000000001
STEP = 20_000_000
CAMERA = Camera(64, 48, 50.0, 51.0, 31.5, 23.5)
MOUNT = se3.make(se3.BODY_FROM_OPTICAL[:3, :3], [0.3, 0.0, 0.4])


def mosaic(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 65536, (48, 64)).astype(np.uint16)


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp('bags') / 'small'
    with BagWriter(path) as writer:
        writer.write_static_transforms(T0, [('base_link', 'cam', MOUNT)])
        for number in range(10):
            stamp = T0 + number * STEP
            writer.write_camera_info(CAMERA, stamp, 'cam')
            writer.write_frame(Frame(stamp, mosaic(number), 'gbrg', (240.0,) * 3, 65535.0, CAMERA, 'cam'))
            writer.write_odometry(stamp, se3.make(np.eye(3), [0.1 * number, 0.0, 0.0]))
    return path


@pytest.fixture
def make(graph):
    def build(**values) -> Replay:
        return graph.add(Replay(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()]))

    return build


def test_a_bag_arrives_as_it_is(graph, make, bag):
    images = graph.listen(Image, 'image_raw', qos.sensor(50))
    infos = graph.listen(CameraInfo, 'camera_info', qos.sensor(50))
    odometry = graph.listen(Odometry, 'odom')
    static = graph.listen(TFMessage, '/tf_static', qos.latched())
    moving = graph.listen(TFMessage, '/tf')
    replay = make(bag=str(bag), odom_tf=True, linger=0.2)
    graph.until(lambda: replay.finished, 10.0)
    assert [convert.stamp_to_ns(item.header.stamp) for item in images] == [T0 + n * STEP for n in range(10)]
    for number, message in enumerate(images):
        np.testing.assert_array_equal(np.frombuffer(message.data, '<u2').reshape(48, 64), mosaic(number))
        assert (message.encoding, message.header.frame_id) == ('bayer_gbrg16', 'cam')
    assert camera_from_info(infos[0]) == CAMERA
    assert [item.pose.pose.position.x for item in odometry] == [0.1 * n for n in range(10)]
    np.testing.assert_allclose(convert.transform_from_message(static[0].transforms[0]), MOUNT, atol=1e-12)
    assert {(t.header.frame_id, t.child_frame_id) for m in moving for t in m.transforms} == {('odom', 'base_link')}
    assert replay.close() == 0


def test_the_rate_is_kept(graph, make, bag):
    import time

    arrivals = []
    graph.helper.create_subscription(Image, 'image_raw', lambda _: arrivals.append(time.monotonic()), 50)
    replay = make(bag=str(bag), rate=0.5, linger=0.1)
    graph.until(lambda: replay.finished, 10.0)
    assert len(arrivals) == 10
    assert 0.9 * 9 * 0.04 < arrivals[-1] - arrivals[0] < 2.0 * 9 * 0.04


def test_images_come_late_at_random_and_in_order():
    items = [Item(topic, T0 + n * STEP, n) for n in range(200) for topic in ('odom', 'image_raw')]
    sent = list(scheduled(items, 0.05))
    assert sorted((item.stamp_ns, item.topic) for _, item in sent) == sorted((i.stamp_ns, i.topic) for i in items)
    assert [due for due, _ in sent] == sorted(due for due, _ in sent)
    late = {topic: [(due - i.stamp_ns) / 1e9 for due, i in sent if i.topic == topic] for topic in ('odom', 'image_raw')}
    assert not any(late['odom'])
    assert 0.0 <= min(late['image_raw']) < 0.01 and 0.04 < max(late['image_raw']) <= 0.05
    stamps = [item.stamp_ns for _, item in sent if item.topic == 'image_raw']
    assert stamps == sorted(stamps)
    assert list(scheduled(items, 0.05)) == sent
    # Messages of another topic overtake an image that is late.
    assert [item.stamp_ns for _, item in sent] != [item.stamp_ns for item in items]


def test_a_recording_that_begins_anew_is_played_to_its_end_first():
    first = [Item('image_raw', T0 + n * STEP, n) for n in range(20)]
    again = [Item('image_raw', T0 - 3_000_000_000 + n * STEP, n) for n in range(20)]
    for delay in (0.0, 0.2):
        assert [item for _, item in scheduled([*first, *again], delay)] == [*first, *again]


def test_lockstep_never_gets_further_ahead(graph, make, bag):
    images = graph.listen(Image, 'image_raw', qos.reliable(50))
    statuses = graph.helper.create_publisher(MappingStatus, STATUS_TOPIC, 10)
    replay = make(bag=str(bag), lockstep=2, rate=100.0, linger=0.1)
    for done in range(0, 10, 2):
        graph.until(lambda done=done: len(images) == done + 2)
        graph.spin(0.1)
        assert len(images) == done + 2
        statuses.publish(MappingStatus(header=images[-1].header))
    graph.until(lambda: replay.finished)


def test_lockstep_goes_on_when_frames_get_lost(graph, make, bag):
    images = graph.listen(Image, 'image_raw', qos.reliable(50))
    graph.helper.create_publisher(MappingStatus, STATUS_TOPIC, 10)
    make(bag=str(bag), lockstep=2, rate=100.0, lockstep_patience=0.1)
    graph.until(lambda: len(images) == 10)


def test_lockstep_counts_by_stamps():
    steps = Lockstep()
    for stamp in (10, 20, 30, 40):
        steps.published(stamp, now=stamp)
    steps.answered(99)
    assert len(steps) == 4
    steps.answered(20)
    assert len(steps) == 2
    assert steps.give_up(now=35.0, patience=4.0) == 1
    assert len(steps) == 1


def test_a_folder_of_pictures_is_played_with_its_calibration(graph, make, tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (48, 64)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), values)
    info = {
        'width': 64, 'height': 48, 'fx': 50.0, 'fy': 50.0, 'cx': 31.5, 'cy': 23.5, 'cfa': 'bggr', 'black_level': 0,
        'white_level': 4095, 'images': [{'file': 'a.png', 'stamp_ns': T0, 'c2w': None}],
    }  # fmt: skip
    (tmp_path / 'cameras.json').write_text(json.dumps(info))
    images = graph.listen(Image, 'image_raw', qos.reliable(50))
    infos = graph.listen(CameraInfo, 'camera_info', qos.reliable(50))
    replay = make(bag=str(tmp_path), linger=0.1)
    graph.until(lambda: replay.finished)
    assert (images[0].encoding, convert.stamp_to_ns(images[0].header.stamp)) == ('bayer_bggr16', T0)
    np.testing.assert_array_equal(np.frombuffer(images[0].data, '<u2').reshape(48, 64), values)
    assert camera_from_info(infos[0]).fx == 50.0


def test_nobody_listening_is_an_error_that_says_so(graph, make, bag):
    make(bag=str(bag), wait_for_subscriber=0.2)
    with pytest.raises(DataError, match='nobody subscribes to /image_raw'):
        graph.spin(2.0)


def test_what_cannot_be_played_is_told_at_once(make, tmp_path):
    with pytest.raises(ConfigError, match='bag is empty'):
        make()
    with pytest.raises(DataError, match='does not exist'):
        make(bag=str(tmp_path / 'none'))
    with pytest.raises(ConfigError, match='lockstep needs'):
        make(bag=str(tmp_path), lockstep=2, image_reliability='best_effort')
    with BagWriter(tmp_path / 'empty'):
        pass
    with pytest.raises(DataError):
        make(bag=str(tmp_path / 'empty'))
    with BagWriter(tmp_path / 'odometry') as writer:
        writer.write_odometry(T0, np.eye(4))
    with pytest.raises(DataError, match='holds no Image message'):
        make(bag=str(tmp_path / 'odometry'))
