# SPDX-License-Identifier: Apache-2.0
"""Saved maps: written, refused, loaded and continued."""

import json

import numpy as np
import pytest
from dark3r_ros.msg import MappingStatus
from dark3r_ros.srv import LoadMap, SaveMap
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import PointCloud2

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.metric import ScaleEstimate
from dark3r_ros.nodes import map_files, qos
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.storage.result import read_result

T0 = 1795188284_000000000
STEP = 100_000_000
METRIC = ScaleEstimate(5.0, 0.004, known=True, reason='')


def drive(graph, camera, node, numbers) -> None:
    graph.until(camera.matched)
    camera.infos.publish(camera.info())
    graph.until(lambda: len(node.cameras) > 0)
    for number in numbers:
        before = node.health.received
        camera.images.publish(camera.image(T0 + number * STEP))
        graph.until(lambda before=before: node.health.received > before and node.worker.pending == 0)
    graph.until(lambda: node.health.stamp_ns == T0 + numbers[-1] * STEP)


def save(graph, path, overwrite=False):
    return graph.call(SaveMap, '/dark3r_mapping/save_map', SaveMap.Request(path=str(path), overwrite=overwrite))


def load(graph, path):
    return graph.call(LoadMap, '/dark3r_mapping/load_map', LoadMap.Request(path=str(path)))


@pytest.fixture
def frame() -> MapFrame:
    made = MapFrame()
    made.mount(se3.BODY_FROM_OPTICAL)
    return made


@pytest.fixture
def filled(pipeline, camera):
    pipeline.poses = {T0 + n: pipeline.pose(n) for n in range(4)}
    pipeline.keyframes = {0: T0}
    pipeline.loaded = 4
    return pipeline


def test_a_written_map_is_metric_and_complete(filled, frame, tmp_path):
    snapshot = map_files.take_snapshot(filled, tmp_path / 'map', overwrite=False)
    map_files.write_map(snapshot, tmp_path / 'map', frame, METRIC, {}, False)
    saved = read_result(tmp_path / 'map')
    assert saved.reconstruction.metric_scale and saved.report['scale']['scale'] == 5.0
    np.testing.assert_allclose(saved.reconstruction.trajectory().world_from_camera[3][:3, 3], [0, 0, 1.5], atol=1e-9)
    state, found = map_files.read_map(tmp_path / 'map', [filled.camera])
    assert (state / 'fake.txt').read_text() == '4'
    assert (found.scale.scale, found.scale.deviation, found.scale.known) == (5.0, 0.004, True)
    np.testing.assert_array_equal(found.map_from_world, se3.BODY_FROM_OPTICAL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']  # nothing temporary is left


def test_a_state_that_cannot_be_written_leaves_the_reconstruction_and_says_so(filled, frame, tmp_path):
    filled.unsavable = OutputError('the disk is full')
    snapshot = map_files.take_snapshot(filled, tmp_path / 'map', overwrite=False)
    sentence = map_files.write_map(snapshot, tmp_path / 'map', frame, ScaleEstimate(), {}, False)
    assert 'not what is needed to go on in it: the disk is full' in sentence
    assert len(read_result(tmp_path / 'map').reconstruction.frames) == 4
    with pytest.raises(DataError, match='holds no state/'):
        map_files.read_map(tmp_path / 'map', [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']


def test_an_existing_folder_is_refused_before_anything_is_done(filled, frame, tmp_path):
    (tmp_path / 'map').mkdir()
    (tmp_path / 'map' / 'thesis.txt').write_text('mine')
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            map_files.take_snapshot(filled, tmp_path / 'map', overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda folder: (folder / 'map_frame.json').write_text('{'), 'map_frame.json is damaged'),
        (lambda folder: (folder / 'map_frame.json').write_text('{"camera": [1, 2]}'), 'map_frame.json is damaged'),
        (lambda folder: (folder / 'state' / 'fake.txt').write_text('x'), 'other weights'),
    ],
)
def test_damaged_maps_are_refused_and_the_present_map_is_kept(filled, frame, tmp_path, damage, words):
    folder = tmp_path / 'map'
    map_files.write_map(map_files.take_snapshot(filled, folder, False), folder, frame, METRIC, {}, False)
    damage(folder)
    resets = filled.resets
    with pytest.raises(DataError, match=words):
        map_files.load_map(filled, folder, [])
    assert filled.resets == resets and len(filled.poses) == 4


def test_another_camera_is_refused_with_both_sides(filled, frame, tmp_path):
    folder = tmp_path / 'map'
    map_files.write_map(map_files.take_snapshot(filled, folder, False), folder, frame, METRIC, {}, False)
    with pytest.raises(DataError, match=r'another camera: 64x48, fx 50.0; now it is 128x96, fx 100.0'):
        map_files.read_map(folder, [Camera(128, 96, 100.0, 100.0, 64.0, 48.0)])
    map_files.read_map(folder, [Camera(64, 48, 50.4, 50.4, 32.0, 24.0)])  # calibrated again


def test_a_map_that_was_not_metric_is_not_metric_again(filled, frame, tmp_path):
    folder = tmp_path / 'map'
    map_files.write_map(map_files.take_snapshot(filled, folder, False), folder, frame, ScaleEstimate(), {}, False)
    assert json.loads((folder / 'map_frame.json').read_text())['metres_per_unit'] is None
    assert not map_files.read_map(folder, [])[1].scale.known


# ------------------------------------------------------------------ the node


def test_a_map_is_saved_loaded_and_continued_with_its_unit_and_place(graph, make_node, camera, pipeline, tmp_path):
    paths = graph.listen(Path, '/dark3r_mapping/path', qos.latched())
    maps = graph.listen(PointCloud2, '/dark3r_mapping/map', qos.latched())
    poses = graph.listen(Odometry, '/dark3r_mapping/odometry')
    statuses = graph.listen(MappingStatus, '/dark3r_mapping/status')
    node = make_node(path_period=0.1, queue_length=100)
    drive(graph, camera, node, range(4))
    node.scale.restore(METRIC)
    node.frame.map_from_world = se3.make(np.eye(3), [0, 0, 9.0]) @ se3.BODY_FROM_OPTICAL
    assert (answer := save(graph, tmp_path / 'map')).success, answer.message

    refused = load(graph, tmp_path / 'nowhere')
    assert not refused.success and 'no saved map' in refused.message and node.frame.scale == 5.0
    node.frame.reset()
    node.outputs.publish_map(pipeline.cloud(1))  # of a map that was reset meanwhile: dropped
    answer = load(graph, tmp_path / 'map')
    assert answer.success and answer.keyframes == 2, answer.message
    assert 'in metres (+- 0.4 %)' in answer.message and 'the saved map is old' in answer.message
    assert pipeline.loaded == 4 and node.frame.scale == 5.0
    graph.until(lambda: paths and len(paths[-1].poses) == 4)
    assert paths[-1].poses[-1].pose.position.z == pytest.approx(9.0)
    graph.until(lambda: maps and maps[-1].width == 4)
    drive(graph, camera, node, range(2))  # stamps may begin anew
    graph.until(lambda: len(poses) == 6)
    assert poses[-1].pose.pose.position.x == pytest.approx(0.1 * 5.0)
    assert poses[-1].pose.pose.position.z == pytest.approx(9.0)
    node.results.update_scale()
    node.publish_status()
    graph.until(lambda: statuses[-1].metric_scale and statuses[-1].scale == 5.0)


def test_a_node_can_start_in_a_saved_map_or_says_why_not(graph, make_node, pipeline, filled, frame, tmp_path):
    folder = tmp_path / 'map'
    map_files.write_map(map_files.take_snapshot(filled, folder, False), folder, frame, METRIC, {}, False)
    node = make_node(load_on_start=str(folder))
    assert pipeline.loaded == 4 and node.frame.scale == 5.0
    node.trigger_deactivate()
    node.trigger_cleanup()
    (folder / 'state' / 'fake.txt').unlink()
    from dark3r_ros.errors import ConfigError

    with pytest.raises(ConfigError):
        node.autostart()
    assert node.pipeline is None and node.outputs is None
