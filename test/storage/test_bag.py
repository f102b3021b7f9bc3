# SPDX-License-Identifier: Apache-2.0
"""Bags written, read, compressed, damaged and interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from storage_helpers import CAMERA, START_NS, STEP_NS, make_frame, make_pose

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.storage.bag import IMAGE_TOPIC, INFO_TOPIC, BagReader, BagWriter
from dark3r_ros.storage.ros_messages import CAMERA_INFO, IMAGE, ODOMETRY, deserialize, serialized_stamp_ns

FRAMES = 40
SIZE = (320, 240)


def write_bag(path, frames=FRAMES, storage='mcap', **options):
    with BagWriter(path, storage, **options) as writer:
        for index in range(frames):
            frame = make_frame(index, size=SIZE)
            writer.write_frame(frame)
            writer.write_camera_info(CAMERA, frame.stamp_ns, 'camera_optical')
            writer.write_odometry(frame.stamp_ns, make_pose(index), linear=(1.0, 0.0, 0.0))
    return path


def storage_file(bag):
    return next(item for item in bag.iterdir() if item.suffix in ('.mcap', '.db3'))


def image_indices(reader):
    """Indices of the frames that come back, each compared with what was written."""
    found = []
    for message in reader.messages([IMAGE_TOPIC]):
        image = deserialize(message.data, IMAGE)
        index = (serialized_stamp_ns(message.data) - START_NS) // STEP_NS
        np.testing.assert_array_equal(
            image.data.view('<u2').reshape(image.height, image.width), make_frame(index, size=SIZE).mosaic
        )
        found.append(index)
    return found


@pytest.mark.parametrize(('storage', 'compress'), [('mcap', False), ('mcap', True), ('sqlite3', False)])
def test_round_trip(tmp_path, storage, compress):
    bag = write_bag(tmp_path / 'bag', storage=storage, compress=compress)
    assert sorted(item.name for item in tmp_path.iterdir()) == ['bag']
    for path in (bag, storage_file(bag)):
        with BagReader(path) as reader:
            assert {topic.name: (topic.type, topic.count) for topic in reader.topics} == {
                IMAGE_TOPIC: (IMAGE, FRAMES), INFO_TOPIC: (CAMERA_INFO, FRAMES), '/odom': (ODOMETRY, FRAMES),
            }  # fmt: skip
            assert reader.warnings == []
            assert image_indices(reader) == list(range(FRAMES))
            info = deserialize(next(iter(reader.messages([INFO_TOPIC]))).data, CAMERA_INFO)
            np.testing.assert_allclose(info.k.reshape(3, 3), CAMERA.matrix)
            np.testing.assert_allclose(info.d, CAMERA.distortion)
            times = reader.log_times()
            np.testing.assert_array_equal(times[IMAGE_TOPIC], START_NS + STEP_NS * np.arange(FRAMES))


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_quality_of_service_is_recorded(tmp_path, storage):
    bag = write_bag(tmp_path / 'bag', 2, storage)
    metadata = yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    profiles = {
        entry['topic_metadata']['name']: entry['topic_metadata']['offered_qos_profiles'][0]
        for entry in metadata['topics_with_message_count']
    }
    assert profiles[IMAGE_TOPIC]['reliability'] == 'best_effort'
    assert profiles[IMAGE_TOPIC]['depth'] == 5
    assert profiles['/odom']['reliability'] == 'reliable'
    with BagReader(bag) as reader:
        assert next(topic for topic in reader.topics if topic.name == '/odom').qos == 'reliable, volatile, keep last 10'


def test_levels_are_kept_in_the_metadata(tmp_path):
    with BagReader(write_bag(tmp_path / 'bag', 1)) as reader:
        assert reader.levels == {IMAGE_TOPIC: {'black_level': [256.0, 256.0, 256.0], 'white_level': 4095.0}}


@pytest.mark.parametrize('mode', ['file', 'message'])
@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_zstd_bags_of_rosbag2(tmp_path, mode, storage):
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer

    plain = write_bag(tmp_path / 'plain', 5)
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    packed = Writer(tmp_path / 'packed', version=9, storage_plugin=plugin)
    packed.set_compression(CompressionMode[mode.upper()], CompressionFormat.ZSTD)
    with Reader(plain) as source, packed as sink:
        made = {
            item.topic: sink.add_connection(
                item.topic, item.msgtype, msgdef=item.msgdef.data, rihs01=item.digest or 'RIHS01_0'
            )
            for item in source.connections
        }
        for connection, stamp, data in source.messages():
            sink.write(made[connection.topic], stamp, data)
    with BagReader(tmp_path / 'packed') as reader:
        assert image_indices(reader) == list(range(5))
        assert reader.warnings == []


def test_missing_metadata_is_said(tmp_path):
    bag = write_bag(tmp_path / 'bag', 5)
    (bag / 'metadata.yaml').unlink()
    with BagReader(bag) as reader:
        assert image_indices(reader) == list(range(5))
        assert 'metadata.yaml is missing' in reader.warnings[0]


def test_unreadable_metadata_is_said(tmp_path):
    bag = write_bag(tmp_path / 'bag', 5)
    (bag / 'metadata.yaml').write_text('rosbag2_bagfile_information: [')
    with BagReader(bag) as reader:
        assert image_indices(reader) == list(range(5))
        assert 'metadata.yaml is unreadable' in reader.warnings[0]


@pytest.mark.parametrize('compress', [False, True])
@pytest.mark.parametrize('with_metadata', [False, True])
def test_truncated_mcap_gives_what_lies_before(tmp_path, compress, with_metadata):
    bag = write_bag(tmp_path / 'bag', compress=compress)
    file = storage_file(bag)
    os.truncate(file, int(file.stat().st_size * 0.55))
    if not with_metadata:
        (bag / 'metadata.yaml').unlink()
    with BagReader(bag) as reader:
        found = image_indices(reader)
        text = ' '.join(reader.warnings)
    assert found == list(range(len(found)))
    # At most the last chunk (1 MiB, seven frames here) may be missing beside what was cut off; none if uncompressed.
    assert 0.55 * FRAMES - (8 if compress else 2) < len(found) <= 0.56 * FRAMES + 1
    assert f'{bag.name}.mcap is damaged' in text
    assert (f'{FRAMES - len(found)} of {FRAMES} messages of {IMAGE_TOPIC} are lost' in text) == with_metadata


def test_mcap_broken_in_the_middle_goes_on_behind_the_break(tmp_path):
    bag = write_bag(tmp_path / 'bag', compress=True)
    file = storage_file(bag)
    data = bytearray(file.read_bytes())
    frame_magic = data.index(b'\x28\xb5\x2f\xfd', len(data) // 2)
    data[frame_magic : frame_magic + 5000] = bytes(5000)
    file.write_bytes(data)
    with BagReader(bag) as reader:
        found = image_indices(reader)
        text = ' '.join(reader.warnings)
    assert found == sorted(set(found))
    assert FRAMES - 9 <= len(found) < FRAMES
    assert found[-1] == FRAMES - 1
    assert f'{FRAMES - len(found)} of {FRAMES} messages are lost' in text


def test_corrupt_sqlite3_gives_the_readable_rows(tmp_path):
    bag = write_bag(tmp_path / 'bag', storage='sqlite3')
    file = storage_file(bag)
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)
    with BagReader(bag) as reader:
        found = image_indices(reader)
        text = ' '.join(reader.warnings)
    assert found == list(range(len(found)))
    assert len(found) >= FRAMES // 2 - 3
    assert f'{FRAMES - len(found)} of {FRAMES}' in text


def test_sqlite3_with_a_zeroed_page_loses_only_the_rows_on_it(tmp_path):
    bag = write_bag(tmp_path / 'bag', storage='sqlite3')
    file = storage_file(bag)
    with sqlite3.connect(file) as connection:
        connection.execute('PRAGMA integrity_check')
    with file.open('r+b') as stream:
        stream.seek(file.stat().st_size // 2 // 4096 * 4096)
        stream.write(bytes(4096 * 3))
    with BagReader(bag) as reader:
        stamps = [serialized_stamp_ns(message.data) for message in reader.messages([IMAGE_TOPIC])]
    indices = [(stamp - START_NS) // STEP_NS for stamp in stamps]
    assert len(set(indices)) == len(indices) >= FRAMES - 3
    assert max(indices) == FRAMES - 1


@pytest.mark.parametrize('content', [b'', b'nothing of the kind' * 100, b'\x89MCAP0\r\n'])
def test_a_file_that_is_no_bag_is_one_line(tmp_path, content):
    file = tmp_path / 'x.mcap'
    file.write_bytes(content)
    if content.startswith(b'\x89MCAP'):
        with BagReader(file) as reader, pytest.raises(DataError, match='is empty'):
            reader.find_topic(IMAGE)
        return
    with pytest.raises(DataError, match='not a readable bag') as caught:
        BagReader(file)
    assert '\n' not in str(caught.value)


def test_a_database_without_topics_is_one_line(tmp_path):
    file = tmp_path / 'x.db3'
    sqlite3.connect(file).execute('CREATE TABLE other(id INTEGER)').connection.close()
    with pytest.raises(DataError, match='not a readable'):
        BagReader(file)


def test_empty_bag(tmp_path):
    bag = write_bag(tmp_path / 'bag', 0)
    with BagReader(bag) as reader:
        assert list(reader.messages()) == []
        with pytest.raises(DataError, match='is empty'):
            reader.find_topic(IMAGE)


def test_topics_are_found_by_type_or_listed(tmp_path):
    with BagWriter(tmp_path / 'bag') as writer:
        writer.write_frame(make_frame(0), '/left/image_raw')
        writer.write_frame(make_frame(0), '/right/image_raw')
        writer.write_odometry(START_NS, np.eye(4))
    with BagReader(tmp_path / 'bag') as reader:
        assert reader.find_topic(ODOMETRY) == '/odom'
        assert reader.find_topic(IMAGE, 'left/image_raw') == '/left/image_raw'
        with pytest.raises(DataError, match=r'several Image topics: .*; choose one with --image-topic'):
            reader.find_topic(IMAGE)
        with pytest.raises(DataError, match=r'no topic /up; topics: /left/image_raw \(sensor_msgs/msg/Image, 1\)'):
            reader.find_topic(IMAGE, '/up')
        with pytest.raises(DataError, match='/odom is nav_msgs/msg/Odometry, not sensor_msgs/msg/Image'):
            reader.find_topic(IMAGE, '/odom')
        with pytest.raises(DataError, match='no CameraInfo message; topics: /left'):
            reader.find_topic(CAMERA_INFO)


def test_split_bag_with_a_missing_part(tmp_path):
    bag = write_bag(tmp_path / 'bag', 4)
    other = write_bag(tmp_path / 'other', 8)
    shutil.copy(storage_file(other), bag / 'bag_10.mcap')
    metadata = yaml.safe_load((bag / 'metadata.yaml').read_text())
    metadata['rosbag2_bagfile_information']['relative_file_paths'] = ['bag.mcap', 'bag_9.mcap', 'bag_10.mcap']
    (bag / 'metadata.yaml').write_text(yaml.safe_dump(metadata))
    with BagReader(bag) as reader:
        assert 'bag_9.mcap is missing from the bag' in reader.warnings
        assert image_indices(reader) == [*range(4), *range(8)]


def test_existing_folder_is_not_replaced_unasked(tmp_path):
    bag = write_bag(tmp_path / 'bag', 2)
    with pytest.raises(OutputError, match='exists already'):
        BagWriter(bag)
    write_bag(bag, 3, overwrite=True)
    with BagReader(bag) as reader:
        assert image_indices(reader) == [0, 1, 2]
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'me.jpg').write_bytes(b'x')
    with pytest.raises(OutputError, match='holds no metadata'):
        BagWriter(tmp_path / 'photos', overwrite=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ['bag', 'photos']


def test_failure_inside_keeps_the_old_bag_and_the_new_messages(tmp_path):
    bag = write_bag(tmp_path / 'bag', 2)
    with pytest.raises(RuntimeError), BagWriter(bag, overwrite=True) as writer:
        for index in range(20):
            writer.write_frame(make_frame(index, size=SIZE))
        raise RuntimeError('simulated')
    with BagReader(bag) as reader:
        assert image_indices(reader) == [0, 1]
    with BagReader(tmp_path / 'bag.partial' / 'bag') as reader:
        assert len(image_indices(reader)) >= 12


KILLED = """
import sys, time
sys.path.insert(0, {folder!r})
from storage_helpers import make_frame
from dark3r_ros.storage.bag import BagWriter
writer = BagWriter({path!r}, {storage!r})
for index in range(60):
    writer.write_frame(make_frame(index, size=(320, 240)))
print('written', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_killed_writer_leaves_a_readable_bag(tmp_path, storage):
    folder = os.path.dirname(os.path.abspath(__file__))
    code = KILLED.format(folder=folder, path=str(tmp_path / 'bag'), storage=storage)
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'written\n'
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.05)
    assert not (tmp_path / 'bag').exists()
    with BagReader(tmp_path / 'bag.partial' / 'bag') as reader:
        found = image_indices(reader)
    assert found == list(range(len(found)))
    assert len(found) >= 45
    # The next run does not stumble over the remains.
    write_bag(tmp_path / 'bag', 2)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_full_disk_is_one_line_and_keeps_what_was_written(tmp_path, storage):
    folder = os.path.dirname(os.path.abspath(__file__))
    code = (
        'import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n'
        + KILLED.format(folder=folder, path=str(tmp_path / 'bag'), storage=storage)
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('dark3r_ros.errors.OutputError: cannot write')
    assert 'messages are kept in' in last
    with BagReader(tmp_path / 'bag.partial' / 'bag') as reader:
        assert len(image_indices(reader)) >= 18


def test_unwritable_place_is_an_output_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError, match='a part of the path is a file'):
        BagWriter(tmp_path / 'file' / 'bag')
    with pytest.raises(OutputError, match='not one of'):
        BagWriter(tmp_path / 'bag', 'rosbag1')


def damage(data, rng):
    """One random accident: cut, zeroed, overwritten, removed or inserted bytes."""
    data, at, length = bytearray(data), int(rng.integers(len(data))), int(rng.choice([1, 16, 5000]))
    kind = rng.choice(['cut', 'zero', 'overwrite', 'remove', 'insert'])
    if kind == 'cut':
        del data[at:]
    elif kind == 'insert':
        data[at:at] = rng.bytes(length)
    else:
        length = min(length, len(data) - at)
        data[at : at + length] = {'zero': bytes(length), 'overwrite': rng.bytes(length), 'remove': b''}[str(kind)]
    return bytes(data)


@pytest.mark.parametrize(('storage', 'compress'), [('mcap', False), ('mcap', True), ('sqlite3', False)])
def test_no_accident_gives_a_traceback_or_invented_messages(tmp_path, storage, compress):
    bag = write_bag(tmp_path / 'bag', 6, storage, compress=compress)
    file, metadata = storage_file(bag), bag / 'metadata.yaml'
    sound, sound_metadata = file.read_bytes(), metadata.read_bytes()
    readable = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        file.write_bytes(damage(sound, rng))
        metadata.write_bytes(damage(sound_metadata, rng) if seed % 4 == 0 else sound_metadata)
        try:
            with BagReader(bag) as reader:
                stamps = [message.log_ns for message in reader.messages()]
                assert '\n' not in ''.join(reader.warnings)
        except DataError as error:
            assert '\n' not in str(error)
            continue
        readable += len(stamps) > 0
        assert len(stamps) <= 18
    assert readable > 15


@pytest.mark.parametrize(
    'text',
    [
        '[]', '7', 'rosbag2_bagfile_information: 3', 'rosbag2_bagfile_information: {relative_file_paths: bag.mcap}',
        'rosbag2_bagfile_information: {relative_file_paths: [bag.mcap], topics_with_message_count: 5}',
        'rosbag2_bagfile_information: {relative_file_paths: [4]}',
    ],
)  # fmt: skip
def test_metadata_of_a_wrong_shape(tmp_path, text):
    bag = write_bag(tmp_path / 'bag', 3)
    (bag / 'metadata.yaml').write_text(text)
    with BagReader(bag) as reader:
        assert image_indices(reader) == [0, 1, 2]
        assert 'metadata.yaml is unreadable' in reader.warnings[0]


@pytest.mark.parametrize('levels', ['[]', '{"/camera/image_raw": {"black_level": 3}}', 'no json', '{"a": 1}'])
def test_broken_levels_are_no_levels(tmp_path, levels):
    bag = write_bag(tmp_path / 'bag', 1)
    document = yaml.safe_load((bag / 'metadata.yaml').read_text())
    document['rosbag2_bagfile_information']['custom_data'] = {'dark3r_levels': levels}
    (bag / 'metadata.yaml').write_text(yaml.safe_dump(document))
    with BagReader(bag) as reader:
        assert reader.levels == {}
