# SPDX-License-Identifier: Apache-2.0
"""Height above the ground and the scale that follows from it, against exact scenes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.ground import UP_IN_CAMERA, GroundScale, height_above_ground, scale_from_height
from dark3r_ros.types import FrameRecord, Observations, PointCloud, Reconstruction

METRES = 0.8


def corridor(rng, ground=300, walls=500, noise=0.02, height=METRES):
    """Points (N, 3) of a corridor 3 m wide, in a level camera that looks along it; noise as a share of the depth."""
    floor = np.column_stack([rng.uniform(-1.4, 1.4, ground), np.full(ground, height), rng.uniform(1.5, 8.0, ground)])
    sides = np.column_stack(
        [rng.choice([-1.5, 1.5], walls), rng.uniform(-1.5, height, walls), rng.uniform(1.0, 9.0, walls)]
    )
    points = np.concatenate([floor, sides])
    return points * (1.0 + noise * rng.normal(size=(len(points), 1)))


def tilted(degrees):
    return se3.exp_so3([math.radians(degrees), 0.0, 0.0])


@pytest.mark.parametrize('degrees', [0.0, 8.0, -15.0])
def test_the_floor_is_found_among_walls_noise_and_tilt(degrees):
    points = corridor(np.random.default_rng(1)) @ tilted(degrees).T
    assert height_above_ground(points, UP_IN_CAMERA) == pytest.approx(METRES, rel=0.02)


def test_what_stands_on_the_floor_is_not_the_floor():
    rng = np.random.default_rng(2)
    table = np.column_stack([rng.uniform(-0.6, 0.6, 150), np.full(150, 0.3), rng.uniform(2.0, 3.0, 150)])
    points = np.concatenate([corridor(rng, noise=0.005), table])
    assert height_above_ground(points, UP_IN_CAMERA) == pytest.approx(METRES, rel=0.02)


def test_no_floor_is_no_height():
    rng = np.random.default_rng(3)
    points = corridor(rng)
    assert height_above_ground(points[points[:, 1] < 0.1], UP_IN_CAMERA) is None  # nothing below
    assert height_above_ground(rng.normal(size=(2000, 3)) * [2.0, 2.0, 4.0], UP_IN_CAMERA) is None  # a cloud
    assert height_above_ground(points @ tilted(50.0).T, UP_IN_CAMERA) is None  # looks at the floor
    assert height_above_ground(np.zeros((0, 3)), UP_IN_CAMERA) is None
    assert height_above_ground(np.full((500, 3), [0.0, 1.0, 3.0]), UP_IN_CAMERA) is None  # one point


def drive(scale, metres_per_unit, count, start=0):
    """Keyframes 0.3 m apart, seen in map units."""
    for number in range(start, start + count):
        pose = se3.make(np.eye(3), [0.0, 0.0, 0.3 * number / metres_per_unit])
        points = corridor(np.random.default_rng(number), 60, 100) / metres_per_unit
        scale.add(pose, se3.transform_points(pose, points))


def test_the_scale_is_known_after_a_few_metres_and_follows_the_unit():
    scale = GroundScale(METRES)
    drive(scale, 2.5, 10)
    assert not scale.estimate.known and 'below 10 of 10 keyframes' in scale.estimate.reason
    drive(scale, 2.5, 20, start=10)
    assert scale.estimate.known
    assert scale.estimate.scale == pytest.approx(2.5, rel=0.02)
    assert abs(math.log(scale.estimate.scale / 2.5)) < 4.0 * scale.estimate.deviation + 0.01
    scale.interrupt()
    drive(scale, 3.0, 40, start=100)
    assert scale.estimate.scale == pytest.approx(3.0, rel=0.02)
    scale.reset()
    assert not scale.estimate.known


def test_a_floor_that_changes_its_height_is_not_believed():
    scale = GroundScale(METRES)
    for number in range(30):
        pose = se3.make(np.eye(3), [0.0, 0.0, 3.0 * number])
        scale.interrupt()
        height = np.random.default_rng(number).uniform(0.4, 1.6)
        scale.add(pose, se3.transform_points(pose, corridor(np.random.default_rng(number), height=height)))
    assert not scale.estimate.known and '%' in scale.estimate.reason


def test_scale_of_a_finished_reconstruction():
    unit, camera = 4.0, Camera(320, 240, 200.0, 200.0, 159.5, 119.5)
    frames, points, frame_index = [], [], []
    for number in range(20):
        pose = se3.make(np.eye(3), [0.0, 0.0, 0.3 * number / unit])
        own = se3.transform_points(pose, corridor(np.random.default_rng(number), 60, 100) / unit)
        frames.append(FrameRecord(10**9 * number, pose, True))
        points.append(own)
        frame_index += [number] * len(own)
    count = len(frame_index)
    seen = Observations(
        np.concatenate(points),
        np.zeros((count, 3), np.uint8),
        np.arange(count),
        np.array(frame_index),
        np.zeros((count, 2)),
    )
    empty = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    whole = Reconstruction(camera, tuple(frames), empty, seen)
    assert scale_from_height(whole, METRES).scale == pytest.approx(unit, rel=0.02)
    lost = replace(whole, frames=tuple(replace(frame, world_from_camera=None) for frame in frames))
    assert not scale_from_height(lost, METRES).known
