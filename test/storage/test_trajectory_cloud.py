# SPDX-License-Identifier: Apache-2.0
"""TUM trajectories and PLY clouds."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from storage_helpers import START_NS, make_pose

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.storage.cloud import read_ply, write_ply
from dark3r_ros.storage.trajectory import format_stamp, parse_stamp, read_tum, write_tum
from dark3r_ros.types import PointCloud, Trajectory


@pytest.mark.parametrize('stamp', [0, 1, 999_999_999, START_NS, 2**62, -1, -1_500_000_000])
def test_stamps_are_exact(stamp):
    text = format_stamp(stamp)
    assert len(text.split('.')[1]) == 9
    assert parse_stamp(text) == stamp


def test_trajectory_round_trip(tmp_path):
    # Neighbouring nanoseconds: float seconds could not tell them apart.
    stamps = START_NS + np.array([0, 1, 2, 10**9])
    poses = np.stack([make_pose(index) for index in range(4)])
    write_tum(tmp_path / 't.tum', Trajectory(stamps, poses))
    read = read_tum(tmp_path / 't.tum')
    np.testing.assert_array_equal(read.stamps_ns, stamps)
    np.testing.assert_allclose(read.world_from_camera, poses, atol=1e-11)
    first = (tmp_path / 't.tum').read_text().splitlines()[1]
    assert first == '1700000000.123456789 0 0 -0.03 0 0 0 1'


def test_empty_trajectory_is_a_file_without_poses(tmp_path):
    write_tum(tmp_path / 't.tum', Trajectory(np.zeros(0, np.int64), np.zeros((0, 4, 4))))
    with pytest.raises(DataError, match='holds no pose'):
        read_tum(tmp_path / 't.tum')


@pytest.mark.parametrize(
    'text',
    [
        '# comment\n% another\n\n  1.5   1 2 3  0 0 0 1  \n0.5 0 0 0 0 0 0 1 # late\n',
        'timestamp,tx,ty,tz,qx,qy,qz,qw\n1.5,1,2,3,0,0,0,1\n0.5,0,0,0,0,0,0,1\n',
        '\ufeff1.5; 1; 2; 3; 0; 0; 0; 1\r\n0.5;0;0;0;0;0;0;1\r\n',
        '1.5\t1\t2\t3\t0\t0\t0\t1.00001\n5e-1 0 0 0 0 0 0 1',
    ],
)
def test_tolerant_reading(tmp_path, text):
    (tmp_path / 't.txt').write_text(text, encoding='utf-8')
    read = read_tum(tmp_path / 't.txt')
    np.testing.assert_array_equal(read.stamps_ns, [500_000_000, 1_500_000_000])
    np.testing.assert_allclose(read.world_from_camera[1, :3, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ('line', 'match'),
    [
        ('1 2 3', 'line 2: expected 8 values'),
        ('1 2 3 x 0 0 0 1', 'line 2: could not convert'),
        ('abc 2 3 4 0 0 0 1', "line 2: 'abc' is not a time"),
        ('inf 2 3 4 0 0 0 1', 'line 2'),
        ('1 nan 3 4 0 0 0 1', 'line 2: the pose holds NaN'),
        ('1 2 3 4 0 0 0 0', 'line 2: .*not a unit quaternion'),
    ],
)
def test_bad_lines_are_named(tmp_path, line, match):
    (tmp_path / 't.txt').write_text(f'0 0 0 0 0 0 0 1\n{line}\n')
    with pytest.raises(DataError, match=match):
        read_tum(tmp_path / 't.txt')


def test_missing_or_binary_trajectory(tmp_path):
    with pytest.raises(DataError, match='No such file'):
        read_tum(tmp_path / 'no.tum')
    (tmp_path / 'b.tum').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(DataError, match='not a text file'):
        read_tum(tmp_path / 'b.tum')


def make_cloud(count=50):
    rng = np.random.default_rng(0)
    return PointCloud(
        rng.normal(size=(count, 3)).astype(np.float32),
        rng.integers(0, 256, (count, 3)).astype(np.uint8),
        rng.random(count).astype(np.float32),
    )


@pytest.mark.parametrize('count', [0, 50])
def test_cloud_round_trip(tmp_path, count):
    cloud = make_cloud(count)
    write_ply(tmp_path / 'c.ply', cloud, 'two\nlines')
    read = read_ply(tmp_path / 'c.ply')
    for name in ('points', 'colors', 'confidence'):
        np.testing.assert_array_equal(getattr(read, name), getattr(cloud, name))


def test_bytes_of_a_cloud(tmp_path):
    points, colors = np.array([[1.0, -2.0, 3.5]], np.float32), np.array([[255, 128, 0]], np.uint8)
    write_ply(tmp_path / 'c.ply', PointCloud(points, colors, np.array([0.25], np.float32)))
    header, body = (tmp_path / 'c.ply').read_bytes().split(b'end_header\n')
    assert header.decode().splitlines() == [
        'ply', 'format binary_little_endian 1.0', 'element vertex 1', 'property float x', 'property float y',
        'property float z', 'property uchar red', 'property uchar green', 'property uchar blue',
        'property float confidence',
    ]  # fmt: skip
    assert body == struct.pack('<fffBBBf', 1.0, -2.0, 3.5, 255, 128, 0, 0.25)


def test_ascii_cloud_of_another_program(tmp_path):
    (tmp_path / 'c.ply').write_text(
        'ply\nformat ascii 1.0\ncomment x\nelement vertex 2\nproperty double x\nproperty double y\n'
        'property double z\nelement face 0\nproperty list uchar int vertex_indices\nend_header\n1 2 3\n4 5 6\n'
    )
    cloud = read_ply(tmp_path / 'c.ply')
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    assert cloud.confidence.tolist() == [1, 1]


def test_broken_clouds(tmp_path):
    write_ply(tmp_path / 'c.ply', make_cloud())
    data = (tmp_path / 'c.ply').read_bytes()
    (tmp_path / 'c.ply').write_bytes(data[:-100])
    with pytest.raises(DataError, match='truncated: 44 of 50'):
        read_ply(tmp_path / 'c.ply')
    (tmp_path / 'c.ply').write_bytes(b'plain text')
    with pytest.raises(DataError, match='not a PLY'):
        read_ply(tmp_path / 'c.ply')
    (tmp_path / 'c.ply').write_bytes(b'ply\nformat ascii 1.0\nelement vertex two\n')
    with pytest.raises(DataError, match='cannot read the cloud'):
        read_ply(tmp_path / 'c.ply')


def test_unwritable_place(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OutputError, match='cannot write'):
        write_ply(tmp_path / 'file' / 'c.ply', make_cloud())
