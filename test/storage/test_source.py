# SPDX-License-Identifier: Apache-2.0
"""Frames from bags, sequence folders and raw folders, with the right camera, and every bad input as one line."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
from storage_helpers import CAMERA, START_NS, STEP_NS, make_frame, make_pose

from dark3r_ros.errors import CalibrationError, ConfigError, DataError, EncodingError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.storage import ros_messages
from dark3r_ros.storage.bag import IMAGE_TOPIC, INFO_TOPIC, BagWriter
from dark3r_ros.storage.bag_source import read_odometry
from dark3r_ros.storage.sequence import EPOCH_NS, read_cameras_json, read_depth, write_cameras_json
from dark3r_ros.storage.source import open_source
from dark3r_ros.types import FrameSource


def write_images(path, frames, *, infos=(0,), camera=CAMERA):
    """A bag with CameraInfo only beside the frames named in `infos`."""
    with BagWriter(path) as writer:
        for index, frame in enumerate(frames):
            writer.write_frame(frame)
            if index in infos:
                writer.write_camera_info(camera, frame.stamp_ns, frame.frame_id)
    return path


def write_image_message(path, change, count=3):
    """A bag whose image messages were changed by `change(index, message)`."""
    with BagWriter(path) as writer:
        for index in range(count):
            frame = make_frame(index)
            message = ros_messages.image_message(frame)
            change(index, message)
            writer.write_message(IMAGE_TOPIC, message, frame.stamp_ns)
            writer.write_camera_info(CAMERA, frame.stamp_ns)
    return path


def test_frames_come_back_equal(tmp_path):
    frames = [make_frame(index) for index in range(5)]
    source = open_source(write_images(tmp_path / 'bag', frames))
    assert isinstance(source, FrameSource)
    assert len(source) == 5
    for _ in range(2):  # a source can be read again
        for frame, expected in zip(source, frames, strict=True):
            np.testing.assert_array_equal(frame.mosaic, expected.mosaic)
            for name in ('stamp_ns', 'cfa', 'black_level', 'white_level', 'camera', 'frame_id', 'processed'):
                assert getattr(frame, name) == getattr(expected, name), name
    assert list(source.warnings) == []


def test_levels_given_by_the_user_win(tmp_path):
    source = open_source(
        write_images(tmp_path / 'bag', [make_frame(0)]), decode=DecodeOptions(black_level=64.0, white_level=1000.0)
    )
    frame = next(iter(source))
    assert (frame.black_level, frame.white_level) == ((64.0, 64.0, 64.0), 1000.0)


@pytest.mark.parametrize('infos', [(4,), (0,), (2, 3)])
def test_late_or_rare_camera_info_serves_all_frames(tmp_path, infos):
    source = open_source(write_images(tmp_path / 'bag', [make_frame(index) for index in range(5)], infos=infos))
    assert [frame.camera for frame in source] == [CAMERA] * 5


def test_without_camera_info_frames_have_no_camera(tmp_path):
    source = open_source(write_images(tmp_path / 'bag', [make_frame(0)], infos=()))
    assert next(iter(source)).camera is None
    assert any('no CameraInfo' in warning for warning in source.warnings)


def test_camera_can_be_given(tmp_path):
    other = replace(CAMERA, fx=77.0)
    source = open_source(write_images(tmp_path / 'bag', [make_frame(0)], infos=()), camera=other)
    assert next(iter(source)).camera == other


def test_start_duration_and_stride(tmp_path):
    bag = write_images(tmp_path / 'bag', [make_frame(index) for index in range(20)])

    def taken(**options):
        return [round((frame.stamp_ns - START_NS) / STEP_NS) for frame in open_source(bag, **options)]

    assert taken(start=0.5) == list(range(5, 20))
    assert taken(duration=0.5) == [0, 1, 2, 3, 4]
    assert taken(start=0.3, duration=1.0, stride=4) == [3, 7, 11]
    assert len(open_source(bag, stride=3)) == 7
    with pytest.raises(DataError, match='no frame is left'):
        taken(start=60.0)
    with pytest.raises(ConfigError, match='stride 0'):
        taken(stride=0)


def test_regions_of_interest_shift_phase_and_principal_point(tmp_path):
    frame = make_frame(0)
    info = ros_messages.camera_info_message(replace(CAMERA, width=128, height=96), frame.stamp_ns, '')
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 11, 8, 64, 48
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_frame(frame)
        writer.write_message(INFO_TOPIC, info, frame.stamp_ns)
    found = next(iter(open_source(tmp_path / 'bag')))
    assert found.camera is not None
    assert (found.camera.cx, found.camera.cy) == pytest.approx((CAMERA.cx - 11, CAMERA.cy - 8))
    assert found.cfa == 'rggb'  # grbg seen one column further


def test_stamps_going_back_or_repeating_are_handed_on_and_counted(tmp_path):
    frames = [make_frame(index) for index in (0, 1, 1, 3, 2, 4)]
    with BagWriter(tmp_path / 'bag') as writer:
        for index, frame in enumerate(frames):
            writer.write_message(IMAGE_TOPIC, ros_messages.image_message(frame), START_NS + index * STEP_NS)
    source = open_source(tmp_path / 'bag')
    assert [frame.stamp_ns for frame in source] == [frame.stamp_ns for frame in frames]
    text = ' '.join(source.warnings)
    assert '1 images repeat the stamp before them' in text
    assert '1 images go back in time' in text


def test_all_zero_calibration(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        frame = make_frame(0)
        info = ros_messages.camera_info_message(CAMERA, frame.stamp_ns, '')
        info.k = np.zeros(9)
        writer.write_frame(frame)
        writer.write_message(INFO_TOPIC, info, frame.stamp_ns)
    with pytest.raises(CalibrationError, match=r'/camera/camera_info: .*zero'):
        list(open_source(tmp_path / 'bag'))


def test_calibration_of_another_size(tmp_path):
    bag = write_images(tmp_path / 'bag', [make_frame(0)], camera=replace(CAMERA, width=128, height=96))
    with pytest.raises(CalibrationError, match=r'128x96.*64x48'):
        list(open_source(bag))


def test_resolution_change_in_the_middle(tmp_path):
    sizes = [(64, 48), (64, 48), (32, 24), (32, 24), (64, 48)]
    bag = write_images(tmp_path / 'bag', [make_frame(index, size=size) for index, size in enumerate(sizes)])
    source = open_source(bag)
    expected = [make_frame(index).stamp_ns for index in (0, 1, 4)]
    assert [frame.stamp_ns for frame in source] == expected
    (note,) = [text for text in source.warnings if 'left out' in text]
    assert note.startswith('2 messages are left out: ') and '64x48' in note and '32x24' in note
    assert [frame.stamp_ns for frame in source.sample(5)] == expected


def test_calibration_that_breaks_in_the_middle_costs_no_frame(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        for index in range(3):
            frame = make_frame(index)
            info = ros_messages.camera_info_message(CAMERA, frame.stamp_ns, '')
            if index:
                info.k = np.zeros(9)
            writer.write_message(INFO_TOPIC, info, frame.stamp_ns)
            writer.write_frame(frame)
    source = open_source(tmp_path / 'bag')
    assert [frame.camera for frame in source] == [CAMERA] * 3
    assert any(text.startswith('2 messages are left out: ') and 'zero K' in text for text in source.warnings)


@pytest.mark.parametrize('encoding', ['bayer_rggb10p', 'yuv422', '16UC1_packed', ''])
def test_unknown_or_packed_encoding(tmp_path, encoding):
    bag = write_image_message(tmp_path / 'bag', lambda index, message: setattr(message, 'encoding', encoding))
    with pytest.raises(EncodingError, match='/camera/image_raw'):
        list(open_source(bag))


def test_encoding_override(tmp_path):
    bag = write_image_message(tmp_path / 'bag', lambda index, message: setattr(message, 'encoding', 'mono16'))
    frame = next(iter(open_source(bag, decode=DecodeOptions(encoding_override='bayer_grbg16'))))
    assert frame.cfa == 'grbg'
    np.testing.assert_array_equal(frame.mosaic, make_frame(0).mosaic)


def cut(which):
    def change(index, message):
        if index in which:
            message.data = message.data[: len(message.data) // 2]

    return change


def test_one_cut_image_is_left_out_and_counted(tmp_path):
    source = open_source(write_image_message(tmp_path / 'bag', cut({1})))
    assert [frame.stamp_ns for frame in source] == [START_NS, START_NS + 2 * STEP_NS]
    assert '1 image messages are cut or broken and left out' in source.warnings


def test_only_cut_images_are_an_error(tmp_path):
    with pytest.raises(DataError):
        list(open_source(write_image_message(tmp_path / 'bag', cut({0, 1, 2}))))


def test_a_message_of_garbage_is_left_out(tmp_path):
    from rosbags.interfaces import Connection

    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_frame(make_frame(0))
        connection: Connection = writer._connections[IMAGE_TOPIC]
        writer._writer.write(connection, START_NS + 5, b'\x00\x01')
        writer._writer.write(connection, START_NS + 6, b'\x00\x01\x00\x00' + b'\xff' * 40)
        writer.write_frame(make_frame(1))
    source = open_source(tmp_path / 'bag')
    assert len(list(source)) == 2
    assert '2 image messages are cut or broken and left out' in source.warnings


def test_bag_of_another_type_says_what_is_there(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_odometry(START_NS, np.eye(4))
    with pytest.raises(DataError, match=r'no Image message; topics: /odom \(nav_msgs/msg/Odometry, 1\)'):
        open_source(tmp_path / 'bag')


def test_compressed_images_are_refused_with_the_reason(tmp_path):
    store = ros_messages.typestore()
    kind = 'sensor_msgs/msg/CompressedImage'
    message = store.types[kind](
        header=ros_messages.header_message(START_NS, ''), format='jpeg', data=np.zeros(4, np.uint8)
    )
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_message('/camera/image_raw/compressed', message, START_NS)
    with pytest.raises(EncodingError, match='only compressed images'):
        open_source(tmp_path / 'bag')


def test_missing_path_and_folder_of_nothing(tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        open_source(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='holds neither a bag'):
        open_source(tmp_path)
    with pytest.raises(ConfigError, match='no bag'):
        open_source(tmp_path, image_topic='/x')


def test_memory_stays_constant(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        for index in range(60):
            writer.write_frame(make_frame(index, size=(640, 480)))
    tracemalloc.start()
    for _ in open_source(tmp_path / 'bag'):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 640 * 480 * 2  # the bag holds 60 frames


def write_sequence(folder, pictures, suffix='.png', **keys):
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f'{index}{suffix}'), picture)
        images.append({'file': f'{index}{suffix}', 'c2w': make_pose(index).tolist()})
    camera = {'width': 64, 'height': 48, 'fx': 50.0, 'fy': 51.0, 'cx': 31.2, 'cy': 23.7}
    (folder / 'cameras.json').write_text(json.dumps({**camera, 'scale': 'metres', 'images': images, **keys}))
    return folder


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_sequence_of_mosaics(tmp_path, suffix):
    mosaics = [make_frame(index).mosaic for index in range(12)]
    folder = write_sequence(
        tmp_path / 's', mosaics, suffix, cfa='GRBG', black_level=[255.0, 256.0, 257.0], white_level=4095
    )
    source = open_source(folder)
    assert len(source) == 12
    for index, frame in enumerate(source):
        np.testing.assert_array_equal(frame.mosaic, mosaics[index])  # 10 comes after 9
        assert frame.stamp_ns == EPOCH_NS + index * 100_000_000
        assert (frame.cfa, frame.black_level, frame.white_level) == ('grbg', (255.0, 256.0, 257.0), 4095.0)
        assert frame.camera == Camera(64, 48, 50.0, 51.0, 31.2, 23.7)
        assert frame.name == f'{index}{suffix}'


def test_sequence_of_pictures_is_marked_processed(tmp_path):
    picture = np.full((48, 64, 3), 128, np.uint8)
    source = open_source(write_sequence(tmp_path / 's', [picture]))
    assert next(iter(source)).processed
    assert any('un-processed approximately' in warning for warning in source.warnings)


def test_sequence_with_a_missing_or_broken_image(tmp_path):
    folder = write_sequence(tmp_path / 's', [make_frame(index).mosaic for index in range(3)], cfa='rggb')
    (folder / '1.png').write_bytes(b'broken')
    frames = iter(open_source(folder))
    next(frames)
    with pytest.raises(DataError, match=r'1\.png'):
        next(frames)
    (folder / '1.png').unlink()
    with pytest.raises(DataError, match=r'1 images of cameras.json are missing, first 1\.png'):
        open_source(folder)


def test_mosaics_of_another_size_than_the_camera(tmp_path):
    folder = write_sequence(tmp_path / 's', [make_frame(0).mosaic], cfa='rggb', width=80)
    with pytest.raises(CalibrationError, match='80x48'):
        list(open_source(folder))


def test_raw_folder_without_cameras(tmp_path):
    for index in (10, 9):
        cv2.imwrite(str(tmp_path / f'dark{index}.png'), make_frame(index).mosaic)
    source = open_source(tmp_path, decode=DecodeOptions(encoding_override='bayer_rggb16', black_level=256.0))
    frames = list(source)
    assert [frame.name for frame in frames] == ['dark9.png', 'dark10.png']
    assert frames[0].camera is None
    assert frames[0].black_level == (256.0, 256.0, 256.0)
    assert any('no calibration' in warning for warning in source.warnings)
    assert next(iter(open_source(tmp_path, decode=DecodeOptions(encoding_override='rggb'), camera=CAMERA))).camera


def test_odometry_round_trip_without_what_is_not_finite(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        for index in range(4):
            pose = make_pose(index)
            if index == 2:
                pose[0, 3] = np.nan
            writer.write_odometry(START_NS + index, pose, linear=(0.5, 0, 0), angular=(0, 0, index))
    track = read_odometry(tmp_path / 'bag')
    np.testing.assert_array_equal(track.stamps_ns - START_NS, [0, 1, 3])
    np.testing.assert_allclose(track.world_from_body, [make_pose(index) for index in (0, 1, 3)], atol=1e-12)
    np.testing.assert_array_equal(track.angular[:, 2], [0, 1, 3])
    assert (track.frame_id, track.child_frame_id) == ('odom', 'base_link')
    assert any(warning.startswith('1 odometry messages') for warning in track.warnings)


def test_cameras_json_round_trip(tmp_path):
    folder = write_sequence(tmp_path / 's', [make_frame(index).mosaic for index in range(3)])
    info = read_cameras_json(folder)
    write_cameras_json(tmp_path / 't' / 'cameras.json', CAMERA, info.images, metric=info.metric)
    again = read_cameras_json(tmp_path / 't')
    assert again.camera == CAMERA
    assert again.metric
    np.testing.assert_array_equal(again.trajectory().stamps_ns, info.trajectory().stamps_ns)
    np.testing.assert_array_equal(again.trajectory().world_from_camera, [make_pose(index) for index in range(3)])


def test_timestamps_in_seconds_keep_every_digit(tmp_path):
    folder = write_sequence(tmp_path / 's', [make_frame(0).mosaic])
    data = json.loads((folder / 'cameras.json').read_text())
    data['images'][0]['timestamp'] = 1305031229.863055
    (folder / 'cameras.json').write_text(json.dumps(data))
    assert read_cameras_json(folder).images[0].stamp_ns == 1305031229_863055000


@pytest.mark.parametrize(
    ('change', 'error', 'match'),
    [
        ({'fx': None}, DataError, 'must be numbers'),
        ({'fx': 0.0}, CalibrationError, 'not usable'),
        ({'images': []}, DataError, 'lists no images'),
        ({'cfa': 'rgbw'}, DataError, 'not one of'),
        ({'distortion': [0.1, 0.2]}, CalibrationError, 'coefficients'),
        ({'images': [{'file': 'a', 'c2w': [[1]]}]}, DataError, 'image 0: c2w'),
        ({'images': [{'file': 'a', 'c2w': (-np.eye(4)).tolist()}]}, DataError, 'right-handed'),
        ({'images': [{'c2w': None}]}, DataError, 'no file'),
        ({'images': [{'file': 'a', 'timestamp': 1.0}, {'file': 'b'}]}, DataError, '1 of 2 images have no timestamp'),
    ],
)
def test_bad_cameras_json(tmp_path, change, error, match):
    folder = write_sequence(tmp_path / 's', [make_frame(0).mosaic])
    data = json.loads((folder / 'cameras.json').read_text())
    (folder / 'cameras.json').write_text(json.dumps({**data, **change}))
    with pytest.raises(error, match=match):
        read_cameras_json(folder)


def test_cameras_json_that_is_no_json(tmp_path):
    (tmp_path / 'cameras.json').write_text('{')
    with pytest.raises(DataError, match='not valid JSON'):
        read_cameras_json(tmp_path)


@pytest.mark.parametrize('name', ['d.png', 'd.npy', 'd.npz'])
def test_depth_files(tmp_path, name):
    depth = np.array([[1.0, 0.0], [2.5, 6.0]], np.float32)
    write_depth = {
        'd.png': lambda path: cv2.imwrite(path, (depth * 5000).astype(np.uint16)),
        'd.npy': lambda path: np.save(path, np.where(depth > 0, depth, np.inf)),
        'd.npz': lambda path: np.savez_compressed(path, depth=depth),
    }
    write_depth[name](str(tmp_path / name))
    folder = write_sequence(tmp_path, [make_frame(0).mosaic])
    data = json.loads((folder / 'cameras.json').read_text())
    data['images'][0]['depth'] = name
    (folder / 'cameras.json').write_text(json.dumps(data))
    info = read_cameras_json(folder)
    np.testing.assert_array_equal(read_depth(info, info.images[0]), depth)
    (tmp_path / name).write_bytes(b'no depth')
    with pytest.raises(DataError, match='cannot read the depth'):
        read_depth(info, info.images[0])
