# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from dark3r_ros.msg import Keyframe, KeyframeArray, MappingStatus
from nav_msgs.msg import Path
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nodes import convert, interface, qos
from dark3r_ros.nodes.recorder import Recorder
from dark3r_ros.nodes.recording import Recording
from dark3r_ros.types import PointCloud

MOUNT = se3.make(se3.BODY_FROM_OPTICAL[:3, :3], [0.3, 0.0, 0.4])
CAMERA = Camera(64, 48, 50.0, 51.0, 31.5, 23.5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def base(x: float) -> np.ndarray:
    return se3.make(se3.exp_so3([0.0, 0.0, 0.1 * x]), [x, 0.0, 0.0])


def status(stamp: int, received: int, **fields) -> MappingStatus:
    return MappingStatus(header=convert.header(stamp, 'cam'), frames_received=received, snr_db=3.0, **fields)


@pytest.fixture
def recording() -> Recording:
    made = Recording(Clock())
    made.take(interface.CAMERA_INFO, convert.camera_info_message(CAMERA, 1, 'cam'))
    made.take(interface.EXTRINSICS, convert.transform_to_message(MOUNT, 1, 'base_link', 'cam'))
    return made


def fill(recording: Recording) -> None:
    for stamp in (10, 20, 30):
        recording.take(interface.ODOMETRY, convert.odometry_message(base(stamp), np.eye(6), stamp, 'map', 'base_link'))
        recording.take(interface.STATUS, status(stamp, stamp // 10, latency=stamp / 100, inliers=5, matches=9, state=2))
    recording.take(interface.STATUS, status(40, 4, message='nothing matches', state=4, latency=0.4))
    cloud = PointCloud(np.array([[1, 2, 3]], np.float32), np.zeros((1, 3), np.uint8), np.ones(1, np.float32))
    recording.take(interface.CLOUD, convert.cloud_message(cloud, 10, 'map'))
    keyframe = Keyframe(header=convert.header(20, 'map'), id=4, snr_db=3.0)
    recording.take(interface.KEYFRAMES, KeyframeArray(keyframes=[keyframe]))
    transform = convert.transform_to_message(base(1.0), 10, 'map', 'base_link')
    recording.take(interface.TF, TFMessage(transforms=[transform]))


def path_of(stamps, shift: float) -> Path:
    return Path(poses=[convert.pose_stamped(base(stamp + shift), stamp, 'map') for stamp in stamps])


def test_poses_are_those_of_the_camera_and_the_path_wins_when_complete(recording):
    fill(recording)
    online = recording.online()
    np.testing.assert_allclose(online.world_from_camera[1], base(20) @ MOUNT, atol=1e-9)
    recording.take(interface.PATH, path_of([10, 20], 0.5))
    trajectory, source = recording.refined()
    assert source == 'odometry' and trajectory.stamps_ns.tolist() == [10, 20, 30]
    recording.take(interface.PATH, path_of([5, 10, 20, 30], 0.5))
    trajectory, source = recording.refined()
    assert source == 'path' and trajectory.stamps_ns.tolist() == [5, 10, 20, 30]
    np.testing.assert_allclose(trajectory.world_from_camera[2], base(20.5) @ MOUNT, atol=1e-9)


def test_frames_without_a_pose_are_reported_with_their_reason(recording):
    fill(recording)
    result, report = recording.reconstruction(), recording.report()
    assert [frame.stamp_ns for frame in result.frames] == [10, 20, 30, 40]
    assert [frame.world_from_camera is not None for frame in result.frames] == [True, True, True, False]
    assert [frame.keyframe for frame in result.frames] == [False, True, False, False]
    assert result.frames[3].reason == 'nothing matches' and result.frames[0].inliers == 5
    assert result.camera == CAMERA and len(result.cloud) == 1 == len(result.observations.points)
    assert report['latency_s'] == {
        'median': pytest.approx(0.25),
        'p95': pytest.approx(0.385),
        'max': pytest.approx(0.4),
    }
    assert report['transforms'] == {'map -> base_link': 1}
    assert report['states'] == {'tracking': 3, 'lost': 1}
    assert report['topics']['~/odometry']['count'] == 3


def test_the_whole_map_replaces_the_clouds(recording):
    fill(recording)
    cloud = PointCloud(np.ones((7, 3), np.float32), np.zeros((7, 3), np.uint8), np.ones(7, np.float32))
    recording.take(interface.MAP, convert.cloud_message(cloud, 10, 'map'))
    assert len(recording.reconstruction().cloud) == 7


def test_idle_means_no_news_and_nothing_left_to_do(recording):
    clock = recording._clock
    recording.take(interface.STATUS, status(10, 1, queue_length=1))
    clock.now += 50
    assert recording.idle_for() == 0.0 and recording.silent_for == 50
    recording.take(interface.STATUS, status(10, 1))
    clock.now += 3
    recording.take(interface.STATUS, status(10, 1))  # a repeated status is no news
    recording.take(interface.TF, TFMessage())
    assert recording.idle_for() == 3
    recording.take(interface.STATUS, status(20, 2))
    assert recording.idle_for() == 0.0


def test_a_first_frame_after_a_long_wait_is_news_before_it_is_through(recording):
    clock = recording._clock
    clock.now += 50
    recording.take(interface.STATUS, status(0, 1))  # received, being worked on: no stamp, nothing waits
    assert recording.frames_received == 1
    assert recording.idle_for() == 0.0
    clock.now += 3
    recording.take(interface.STATUS, status(0, 1))
    assert recording.idle_for() == 3


def test_without_calibration_there_is_nothing_to_write():
    with pytest.raises(DataError, match='no camera_info'):
        Recording().reconstruction()


@pytest.fixture
def make(graph):
    def build(**values) -> Recorder:
        return graph.add(Recorder(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()]))

    return build


def test_an_output_that_cannot_be_written_is_told_before_the_drive(make, tmp_path):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'precious').write_text('x')
    with pytest.raises(OutputError, match='exists'):
        make(output=str(tmp_path / 'full'))
    with pytest.raises(ConfigError, match='output is empty'):
        make()
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OutputError):
        make(output=str(tmp_path / 'file' / 'below'))
    assert (tmp_path / 'full' / 'precious').read_text() == 'x'


def test_a_node_that_never_speaks_is_an_error(graph, make, tmp_path):
    recorder = make(output=str(tmp_path / 'out'), patience=1.0)
    graph.spin(1.1)
    with pytest.raises(DataError, match='reported no frame within 1 s'):
        recorder.finished  # noqa: B018
    with pytest.raises(DataError, match='nothing was recorded'):
        recorder.close()


def test_a_calibration_published_once_before_the_recorder_came_is_heard(graph, make, tmp_path):
    publisher = graph.helper.create_publisher(CameraInfo, 'camera_info', qos.latched())
    publisher.publish(convert.camera_info_message(CAMERA, 10, 'cam'))
    recorder = make(output=str(tmp_path / 'out'))
    graph.until(lambda: recorder.recording.calibrated)
    assert recorder.recording.arrivals['camera_info'].count == 1
