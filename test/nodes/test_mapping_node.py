# SPDX-License-Identifier: Apache-2.0
"""The node on a real graph, with a pipeline whose answers are known."""

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from dark3r_ros.msg import KeyframeArray, MappingStatus
from dark3r_ros.srv import SaveMap
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Odometry, Path
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage

from dark3r_ros.geometry import se3
from dark3r_ros.nodes import convert, qos
from dark3r_ros.nodes.mapping_node import MappingNode
from dark3r_ros.nodes.node_config import GROUPS
from dark3r_ros.nodes.transforms import TransformBroadcaster
from dark3r_ros.storage.result import read_result

T0 = 1795188284_123456789
STEP = 100_000_007


def stamp(number: int) -> int:
    return T0 + number * STEP


def drive(graph, camera, node, count: int, first: int = 0, **changes) -> None:
    """Publish images one by one and wait until the node has taken each."""
    graph.until(camera.matched, why='the camera is not matched')
    if not first:
        camera.infos.publish(camera.info())
        graph.spin(0.1)
    for number in range(first, first + count):
        before = node.health.received
        camera.images.publish(camera.image(stamp(number), **changes))
        graph.until(lambda before=before: node.health.received > before, why='an image did not arrive')
        graph.until(lambda: node.worker.pending == 0)
        graph.spin(0.02)


def stamps(messages) -> list[int]:
    return [convert.stamp_to_ns(message.header.stamp) for message in messages]


# ------------------------------------------------------------------ outputs


def test_outputs_carry_stamps_frames_and_axes(graph, make_node, camera):
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    transforms = graph.listen(TFMessage, '/tf')
    clouds = graph.listen(PointCloud2, '/dark3r_mapping/cloud')
    keyframes = graph.listen(KeyframeArray, '/dark3r_mapping/keyframes')
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node()
    drive(graph, camera, node, 7)
    graph.until(lambda: len(odometry) == 7 and len(transforms) == 7 and len(clouds) == 3 and len(keyframes) == 3)
    assert stamps(odometry) == [stamp(number) for number in range(7)]
    edges = [(m.transforms[0].header.frame_id, m.transforms[0].child_frame_id) for m in transforms]
    assert edges == [('map', 'base_link')] * 7
    assert [stamps(m.transforms) for m in transforms] == [[stamp(number)] for number in range(7)]
    # The pipeline drives forwards along the optical z axis: that is x of the base.
    for number, message in enumerate(odometry):
        expected = np.eye(4)
        expected[0, 3] = 0.1 * number
        np.testing.assert_allclose(convert.pose_from_message(message.pose.pose), expected, atol=1e-12)
        assert (message.header.frame_id, message.child_frame_id) == ('map', 'base_link')
    # Variances 1..6 of optical x y z: body x is optical z, body y is -x, body z is -y.
    covariance = odometry[0].pose.covariance.reshape(6, 6)
    np.testing.assert_allclose(np.diag(covariance), [3, 1, 2, 6, 4, 5], atol=1e-9)
    assert stamps(clouds) == [stamp(0), stamp(3), stamp(6)]
    # Keyframe 3 sees points at optical (0, 0, 4) and (1, 0, 4).
    np.testing.assert_allclose(convert.cloud_from_message(clouds[1]).points, [[4, 0, 0], [4, -1, 0]], atol=1e-6)
    assert clouds[1].header.frame_id == 'map'
    ids = [[(keyframe.id, *stamps([keyframe])) for keyframe in message.keyframes] for message in keyframes]
    assert ids == [[(0, stamp(0))], [(3, stamp(3))], [(6, stamp(6))]]
    last = next(status for status in statuses if stamps([status]) == [stamp(6)])
    assert (last.state, last.frames_received, last.frames_posed) == (MappingStatus.STATE_TRACKING, 7, 7)
    assert (last.snr_db, last.samples_per_value, last.inliers, last.matches) == (7.5, 16, 50, 60)
    assert (
        0 < last.latency < 1
        and last.memory_mib > 20
        and last.map_mib == 1.0
        and last.header.frame_id == 'camera_optical'
    )


def test_extrinsics_from_tf_static_put_the_base_at_the_origin(graph, make_node, camera):
    mounted = se3.make(se3.exp_so3([0.0, 0.3, 0.1]) @ se3.BODY_FROM_OPTICAL[:3, :3], [0.4, 0.1, 0.5])
    TransformBroadcaster(graph.helper, static=True).send(
        convert.transform_to_message(mounted, 0, 'base_link', 'camera_optical')
    )
    used = graph.listen(TransformStamped, '/dark3r_mapping/extrinsics', qos.latched())
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    node = make_node()
    graph.until(lambda: node.buffer.connected('base_link', 'camera_optical'))
    drive(graph, camera, node, 3)
    graph.until(lambda: len(odometry) == 3 and used)
    np.testing.assert_allclose(convert.transform_from_message(used[0]), mounted, atol=1e-9)
    forward = np.eye(4)
    forward[2, 3] = 0.2
    expected = mounted @ forward @ se3.inverse(mounted)
    np.testing.assert_allclose(convert.pose_from_message(odometry[0].pose.pose), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(convert.pose_from_message(odometry[2].pose.pose), expected, atol=1e-9)
    assert not any('is unknown' in line for line in node.lines)


def test_unknown_extrinsics_are_said_once(graph, make_node, camera):
    node = make_node()
    drive(graph, camera, node, 3)
    assert sum('base_link -> camera_optical is unknown' in line for line in node.lines) == 1


def test_map_to_odom_composes_with_the_odometry_at_the_image_stamp(graph, make_node, camera):
    transforms = graph.listen(TFMessage, '/tf')
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    wheels = TransformBroadcaster(graph.helper)
    node = make_node(use_odometry=False, tf_wait=10.0)

    def odom_from_base(time_ns: int) -> np.ndarray:
        seconds = (time_ns - T0) / 1e9
        return se3.make(se3.exp_so3([0, 0, 0.2 * seconds]), [0.5 * seconds, 0.0, 0.0])

    def send(time_ns: int) -> None:
        wheels.send(convert.transform_to_message(odom_from_base(time_ns), time_ns, 'odom', 'base_link'))

    graph.until(lambda: wheels._publisher.get_subscription_count() >= 2)
    send(stamp(0) - STEP)
    graph.until(lambda: node.buffer.connected('odom', 'base_link'))
    drive(graph, camera, node, 2)
    mine = [item for m in transforms for item in m.transforms if item.header.frame_id == 'map']
    assert mine == []  # odometry newer than the images has not come: nothing is extrapolated
    send(stamp(1) + STEP // 3)
    graph.until(lambda: len([1 for m in transforms for item in m.transforms if item.header.frame_id == 'map']) == 2)
    mine = [item for m in transforms for item in m.transforms if item.header.frame_id == 'map']
    assert {item.child_frame_id for item in mine} == {'odom'}
    assert [convert.stamp_to_ns(item.header.stamp) for item in mine] == [stamp(0), stamp(1)]
    for item, message in zip(mine, odometry, strict=True):
        time_ns = convert.stamp_to_ns(item.header.stamp)
        map_from_base = convert.pose_from_message(message.pose.pose)
        composed = convert.transform_from_message(item) @ node.buffer.lookup('odom', 'base_link', time_ns)
        np.testing.assert_allclose(composed, map_from_base, atol=1e-9)
    # Interpolated between two samples 0.13 s apart, the odometry is that of the stamp up to the curve of the path.
    assert np.abs(node.buffer.lookup('odom', 'base_link', stamp(0)) - odom_from_base(stamp(0))).max() < 1e-3
    # One parent per frame on the whole graph.
    parents: dict[str, set[str]] = {}
    for message in transforms:
        for item in message.transforms:
            parents.setdefault(item.child_frame_id, set()).add(item.header.frame_id)
    assert parents == {'odom': {'map'}, 'base_link': {'odom'}}


def test_odometry_that_stays_away_costs_only_the_transform(graph, make_node, camera):
    wheels = TransformBroadcaster(graph.helper)
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    node = make_node(tf_wait=0.1, use_odometry=False)
    graph.until(lambda: wheels._publisher.get_subscription_count() >= 1)
    wheels.send(convert.transform_to_message(np.eye(4), T0 - 10**12, 'odom', 'base_link'))
    graph.until(lambda: node.buffer.connected('odom', 'base_link'))
    drive(graph, camera, node, 2)
    graph.until(lambda: any('no map -> odom' in line for line in node.lines))
    assert len(odometry) == 2


def test_nothing_is_published_on_tf_while_lost(graph, make_node, camera, pipeline):
    pipeline.script = {2: 'lost', 3: 'lost'}
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    transforms = graph.listen(TFMessage, '/tf')
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node()
    drive(graph, camera, node, 6)
    graph.until(lambda: len(odometry) == 4 and len(transforms) == 4)
    expected = [stamp(number) for number in (0, 1, 4, 5)]
    assert stamps(odometry) == expected
    assert [stamps(m.transforms)[0] for m in transforms] == expected
    states = {stamps([status])[0]: status.state for status in statuses}
    assert states[stamp(3)] == MappingStatus.STATE_LOST and states[stamp(5)] == MappingStatus.STATE_TRACKING


def test_late_poses_go_into_the_path_only(graph, make_node, camera, pipeline):
    pipeline.script = {2: 'late'}
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    node = make_node(idle_flush=0.5, path_period=0.1)
    drive(graph, camera, node, 4)
    graph.until(lambda: paths and len(paths[-1].poses) == 4)
    assert stamps(odometry) == [stamp(number) for number in (0, 1, 3)]
    assert stamps(paths[-1].poses) == [stamp(number) for number in range(4)]


def test_a_discarded_map_leaves_path_and_map(graph, make_node, camera, pipeline):
    pipeline.script = {3: 'discard'}
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    node = make_node(idle_flush=0.5, path_period=0.1)
    drive(graph, camera, node, 6)
    graph.until(lambda: paths and stamps(paths[-1].poses) == [stamp(number) for number in (4, 5)])


def test_the_newest_pose_reaches_the_path_although_no_other_frame_follows(graph, make_node, camera, pipeline):
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    node = make_node(idle_flush=3600.0, path_period=1.0)
    drive(graph, camera, node, 2)
    graph.until(lambda: paths and stamps(paths[-1].poses) == [stamp(0), stamp(1)])
    assert pipeline.flushed == 0


def test_the_end_of_the_stream_refines_once_and_publishes_path_and_map(graph, make_node, camera, pipeline):
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    maps = graph.listen(PointCloud2, '/dark3r_mapping/map', qos.latched())
    node = make_node(idle_flush=3600.0, path_period=3600.0, map_period=3600.0)
    drive(graph, camera, node, 4)
    assert pipeline.flushed == 0
    early = (len(paths), len(maps))
    node.inputs._config = replace(node.config, idle_flush=0.5)  # only now, however slow the machine is
    graph.until(lambda: pipeline.flushed == 1 and len(paths) > early[0] and len(maps) > early[1])
    assert len(paths[-1].poses) == 4
    assert maps[-1].width == 4 and maps[-1].header.frame_id == 'map'
    graph.spin(1.0)
    assert pipeline.flushed == 1


def test_toggles_switch_outputs_off_while_running(graph, make_node, camera):
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    transforms = graph.listen(TFMessage, '/tf')
    node = make_node()
    drive(graph, camera, node, 2)
    node.set_parameters([Parameter('publish_tf', value=False)])
    drive(graph, camera, node, 2, first=2)
    graph.until(lambda: len(odometry) == 4)
    assert len(transforms) == 2


# ------------------------------------------------------------------ lifecycle and services


def test_the_lifecycle_can_be_walked_twice(graph, make_node, camera, pipeline):
    node = make_node(start=False)

    def change(label: str) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        return graph.call(ChangeState, '/dark3r_mapping/change_state', request).success

    def state() -> str:
        return graph.call(GetState, '/dark3r_mapping/get_state', GetState.Request()).current_state.label

    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    threads = threading.active_count()
    for _ in range(2):
        assert change('configure') and state() == 'inactive'
        assert camera.images.get_subscription_count() == 0
        assert change('activate') and state() == 'active'
        before = len(odometry)
        drive(graph, camera, node, 3)
        graph.until(lambda before=before: len(odometry) == before + 3)
        started = time.monotonic()
        assert change('deactivate') and state() == 'inactive'
        assert time.monotonic() - started < 2.0
        graph.until(lambda: camera.images.get_subscription_count() == 0)
        assert change('cleanup') and state() == 'unconfigured'
        assert threading.active_count() <= threads
    assert change('shutdown') and state() == 'finalized'
    assert node.finished


def test_deactivating_keeps_the_map_and_reactivating_goes_on(graph, make_node, camera, pipeline):
    node = make_node()
    drive(graph, camera, node, 3)
    resets = pipeline.resets
    node.trigger_deactivate()
    node.trigger_activate()
    drive(graph, camera, node, 2, first=3)
    assert (pipeline.posed, pipeline.resets) == (5, resets)


def test_a_configuration_that_fails_leaves_the_node_unconfigured(make_node):
    from dark3r_ros.errors import ConfigError
    from dark3r_ros.nodes import mapping_node

    node = make_node(start=False, noise_file='/does/not/exist.yaml')
    node._make_pipeline = mapping_node.build_pipeline
    with pytest.raises(ConfigError, match='could not be configured'):
        node.autostart()
    assert not node.finished and node.pipeline is None


def test_reset_forgets_the_map_and_accepts_older_stamps(graph, make_node, camera, pipeline):
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    node = make_node(path_period=0.1)
    drive(graph, camera, node, 3, first=0)
    graph.until(lambda: paths and paths[-1].poses)
    resets = pipeline.resets
    answer = graph.call(Trigger, '/dark3r_mapping/reset', Trigger.Request())
    assert answer.success and pipeline.resets == resets + 1
    graph.until(lambda: not paths[-1].poses, why='the latched path of the forgotten map is still there')
    drive(graph, camera, node, 2, first=0)
    graph.until(lambda: len(odometry) == 5)
    assert not any('back' in line for line in node.lines)


def test_pause_ignores_images_and_says_so(graph, make_node, camera, pipeline):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node()
    drive(graph, camera, node, 2)
    assert graph.call(SetBool, '/dark3r_mapping/pause', SetBool.Request(data=True)).success
    for number in range(2, 5):
        camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: node.inputs._counts and sum(node.inputs._counts.values()) >= 6)
    assert len(pipeline.frames) == 2
    graph.until(lambda: 'paused' in statuses[-1].message)
    assert graph.call(SetBool, '/dark3r_mapping/pause', SetBool.Request(data=False)).success
    drive(graph, camera, node, 1, first=9)
    assert len(pipeline.frames) == 3 and 'paused' not in statuses[-1].message


def test_save_map_writes_the_folder_and_never_half(graph, make_node, camera, tmp_path):
    node = make_node()
    folder = tmp_path / 'saved'

    def save(path=folder, overwrite=False):
        request = SaveMap.Request(path=str(path), overwrite=overwrite)
        return graph.call(SaveMap, '/dark3r_mapping/save_map', request, 20.0)

    refused = save()
    assert not refused.success and 'no frame' in refused.message and not folder.exists()
    drive(graph, camera, node, 4)
    answer = save()
    assert (answer.success, answer.frames, answer.keyframes) == (True, 4, 2), answer.message
    saved = read_result(folder)
    assert [frame.stamp_ns for frame in saved.reconstruction.frames] == [stamp(number) for number in range(4)]
    assert set(saved.report['config']) == {*GROUPS, 'node'} - {''}
    assert saved.report['config']['decode']['black_level'] == node.get_parameter('decode.black_level').value
    again = save()
    assert not again.success and 'exists' in again.message
    assert save(overwrite=True).success
    (tmp_path / 'file').write_text('')
    unwritable = save(tmp_path / 'file' / 'below')
    assert not unwritable.success and 'file' in unwritable.message
    assert not save('').success
    node.trigger_deactivate()
    assert save(tmp_path / 'inactive').success


def test_services_refuse_while_unconfigured(graph, make_node):
    make_node(start=False)
    assert not graph.call(Trigger, '/dark3r_mapping/reset', Trigger.Request()).success
    assert not graph.call(SetBool, '/dark3r_mapping/pause', SetBool.Request(data=True)).success
    answer = graph.call(SaveMap, '/dark3r_mapping/save_map', SaveMap.Request(path='/tmp/never'))
    assert not answer.success and 'not configured' in answer.message


def test_shutdown_saves_the_map_within_two_seconds(graph, make_node, camera, pipeline, tmp_path):
    node = make_node(save_on_shutdown=str(tmp_path / 'end'))
    drive(graph, camera, node, 3)
    pipeline.delay = 0.3
    for number in range(3, 8):
        camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: node.health.received == 8)
    started = time.monotonic()
    assert node.close() == 0
    assert time.monotonic() - started < 2.0
    assert 3 <= len(read_result(tmp_path / 'end').reconstruction.frames) <= 4


# ------------------------------------------------------------------ load


def test_a_slow_mapping_drops_old_frames_and_counts_them(graph, make_node, camera, pipeline):
    pipeline.gate = threading.Event()
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    diagnostics = graph.listen(DiagnosticArray, '/diagnostics')
    node = make_node(queue_length=2, image_depth=50)
    graph.until(camera.matched)
    camera.infos.publish(camera.info())
    graph.spin(0.1)
    camera.images.publish(camera.image(stamp(0)))
    graph.until(lambda: pipeline.frames)
    for number in range(1, 7):
        camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: node.health.received == 7)
    pipeline.gate.set()
    graph.until(lambda: statuses and statuses[-1].frames_dropped == 4 and stamps(statuses)[-1] == stamp(6))
    assert [frame.stamp_ns for frame in pipeline.frames][::2] == [stamp(0), stamp(6)] and len(pipeline.frames) == 3
    graph.until(lambda: any('dropped' in item.status[0].message for item in diagnostics))


def test_frames_lost_before_the_node_are_counted(graph, make_node, camera):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node()
    drive(graph, camera, node, 8)
    drive(graph, camera, node, 2, first=10)
    assert statuses[-1].frames_missing == 2 and statuses[-1].frames_dropped == 0


def test_a_crash_of_the_pipeline_does_not_end_the_node(graph, make_node, camera, pipeline):
    pipeline.script = {1: RuntimeError('inside')}
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    node = make_node()
    drive(graph, camera, node, 2)
    graph.until(lambda: 'RuntimeError: inside' in statuses[-1].message)
    drive(graph, camera, node, 1, first=2)
    graph.until(lambda: len(odometry) == 2)
    assert 'RuntimeError' not in statuses[-1].message


def test_diagnostics_tell_the_state_once_a_second(graph, make_node, camera):
    diagnostics = graph.listen(DiagnosticArray, '/diagnostics')
    node = make_node()
    drive(graph, camera, node, 2)
    diagnostics.clear()
    graph.until(lambda: len(diagnostics) >= 2)
    status = diagnostics[-1].status[0]
    values = {item.key: item.value for item in status.values}
    assert (status.level, status.hardware_id) == (DiagnosticStatus.OK, 'camera_optical')
    assert values['state'] == 'tracking' and values['SNR [dB]'] == '7.5'
    assert {'latency [ms]', 'memory [MiB]', 'frames dropped by the queue'} <= set(values)


# ------------------------------------------------------------------ bad input


def test_first_images_wait_for_a_late_calibration(graph, make_node, camera, pipeline):
    node = make_node(queue_length=5)
    graph.until(camera.matched)
    for number in range(3):
        camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: node.health.received == 3)
    assert pipeline.frames == []
    camera.infos.publish(camera.info())
    graph.until(lambda: len(pipeline.frames) == 3)
    assert all(frame.camera is not None and frame.camera.fx == 50.0 for frame in pipeline.frames)


def test_a_calibration_that_was_latched_before_is_heard(graph, make_node, camera, pipeline):
    once = graph.helper.create_publisher(CameraInfo, 'camera_info', qos.latched())
    graph.helper.destroy_publisher(camera.infos)
    once.publish(camera.info())
    node = make_node(calibration_wait=5.0)
    graph.until(lambda: camera.images.get_subscription_count() > 0)
    camera.images.publish(camera.image(stamp(0)))
    graph.until(lambda: pipeline.frames)
    assert pipeline.frames[0].camera.fx == 50.0
    assert not any('match' in line for line in node.lines)


def test_no_camera_info_is_a_status_and_costs_nothing_else(graph, make_node, camera, pipeline):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node(calibration_wait=0.0)
    graph.until(camera.matched)
    camera.images.publish(camera.image(stamp(0)))
    graph.until(lambda: any('no camera_info arrived' in status.message for status in statuses))
    assert statuses[-1].state == MappingStatus.STATE_WAITING_FOR_CALIBRATION and pipeline.frames == []
    camera.infos.publish(camera.info())
    graph.spin(0.1)
    camera.images.publish(camera.image(stamp(1)))
    graph.until(lambda: len(pipeline.frames) == 1)
    assert sum('no camera_info arrived' in line for line in node.lines) == 1


@pytest.mark.parametrize(
    ('info', 'image', 'words'),
    [
        ({'k': np.zeros(9)}, {}, 'all-zero K'),
        ({'width': 128, 'height': 96}, {}, 'image of 64x48'),
        ({}, {'encoding': 'bayer_rggb12p'}, 'bayer_rggb12p'),
        ({}, {'encoding': 'yuv422_yuy2'}, 'yuv422_yuy2'),
        ({}, {'data': b'\0' * 100}, 'truncated'),
        ({}, {'step': 3}, 'step'),
    ],
    ids=['zero K', 'size mismatch', 'packed', 'unknown encoding', 'truncated', 'short step'],
)
def test_bad_images_are_one_clear_line_and_lose_nothing(graph, make_node, camera, pipeline, info, image, words):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node(calibration_wait=0.0)
    if not info:
        drive(graph, camera, node, 3)
    graph.until(camera.matched)
    camera.infos.publish(camera.info(**info))
    graph.spin(0.1)
    for number in range(3, 6):
        camera.images.publish(camera.image(stamp(number), **image))
    graph.until(lambda: statuses and stamps(statuses)[-1] == stamp(5))
    assert words in statuses[-1].message
    assert sum(words in line for line in node.lines) == 1
    assert len(pipeline.frames) == (0 if info else 3) == pipeline.posed
    camera.infos.publish(camera.info())
    graph.spin(0.1)
    drive(graph, camera, node, 1, first=6)
    assert len(pipeline.frames) == (1 if info else 4)


@pytest.mark.parametrize(
    ('numbers', 'words'), [((5, 2), 'went back'), ((5, 5), 'repeats')], ids=['going back', 'repeating']
)
def test_stamps_that_make_no_sense_are_told(graph, make_node, camera, numbers, words):
    node = make_node()
    graph.until(camera.matched)
    camera.infos.publish(camera.info())
    graph.spin(0.1)
    for number in numbers:
        camera.images.publish(camera.image(stamp(number)))
    graph.until(lambda: any(words in line for line in node.lines))


def test_a_new_resolution_with_its_calibration_goes_on(graph, make_node, camera, pipeline):
    node = make_node()
    drive(graph, camera, node, 2)
    camera.infos.publish(camera.info(width=32, height=24))
    graph.spin(0.1)
    drive(graph, camera, node, 2, first=2, width=32, height=24)
    assert [frame.size for frame in pipeline.frames] == [(64, 48), (64, 48), (32, 24), (32, 24)]
    assert pipeline.frames[-1].camera.width == 32


@pytest.mark.parametrize(('level', 'words'), [(0, 'black'), (4095, 'saturated')])
def test_blind_frames_are_told_by_the_real_pipeline(graph, camera, level, words):
    values = [('decode.black_level', 240.0), ('decode.white_level', 4095.0)]
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    odometry = graph.listen(Odometry, '/dark3r_mapping/odometry')
    node = graph.add(MappingNode(parameter_overrides=[Parameter(name, value=value) for name, value in values]))
    node.autostart()
    drive(graph, camera, node, 3, values=np.full((48, 64), level))
    graph.until(lambda: stamps(statuses)[-1] == stamp(2))
    assert words in statuses[-1].message and statuses[-1].state != MappingStatus.STATE_TRACKING
    assert odometry == []


@pytest.mark.parametrize('where', ['position', 'orientation', 'twist'])
def test_nan_in_the_odometry_is_refused_once(graph, make_node, camera, where):
    publisher = graph.helper.create_publisher(Odometry, 'odom', 10)
    node = make_node()
    graph.until(lambda: publisher.get_subscription_count() > 0)
    message = Odometry(header=convert.header(stamp(0), 'odom'), child_frame_id='base_link')
    if where == 'position':
        message.pose.pose.position.x = math.nan
    elif where == 'orientation':
        message.pose.pose.orientation.w = math.nan
    else:
        message.twist.twist.linear.x = math.nan
    for _ in range(3):
        publisher.publish(message)
    graph.until(lambda: any('odometry' in line and 'refused' in line for line in node.lines))
    graph.spin(0.2)
    assert sum('odometry' in line for line in node.lines) == 1
    drive(graph, camera, node, 2)
    assert node.health.pipeline.posed == 2


def test_incompatible_qos_is_one_sentence_naming_both_sides(graph, make_node, make_camera):
    make_camera(best_effort=True)
    node = make_node(image_reliability='reliable')
    graph.until(lambda: any('/image_raw' in line for line in node.lines))
    line = next(line for line in node.lines if 'no message will arrive on /image_raw' in line)
    assert 'reliability does not match' in line
    assert 'we ask for reliable, volatile' in line and '/helper offers best effort, volatile' in line
    assert 'image_reliability' in line


@pytest.mark.parametrize('use_sim_time', [False, True])
def test_silence_is_explained(graph, make_node, camera, use_sim_time):
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    diagnostics = graph.listen(DiagnosticArray, '/diagnostics')
    graph.helper.destroy_publisher(camera.infos)
    node = make_node(no_data_after=1.0, use_sim_time=use_sim_time)
    graph.until(lambda: any('no image for' in line for line in node.lines))
    line = next(line for line in node.lines if 'no image for' in line)
    assert '/image_raw [sensor_msgs/msg/Image, best effort, volatile]: 0 received, 1 publishers (/helper)' in line
    assert 'nothing arrived' in line
    assert '/camera_info' in line and 'nobody publishes it' in line
    graph.until(lambda: statuses and 'no image' in statuses[-1].message)
    graph.until(lambda: diagnostics and diagnostics[-1].status[0].level == DiagnosticStatus.STALE)


def test_an_image_topic_of_another_type_is_explained(graph, make_node, domain):
    import rclpy
    from sensor_msgs.msg import CompressedImage

    # One participant cannot hold two types of one topic.
    context = rclpy.Context()
    context.init(domain_id=domain)
    stranger = rclpy.create_node('stranger', context=context)
    stranger.create_publisher(CompressedImage, 'image_raw', 10)
    node = make_node(no_data_after=1.0)
    graph.until(lambda: any('published as sensor_msgs/msg/CompressedImage' in line for line in node.lines))
    stranger.destroy_node()
    context.try_shutdown()
