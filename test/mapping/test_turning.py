# SPDX-License-Identifier: Apache-2.0
"""A camera that turns on the spot sees nothing with parallax, and must be followed all the same."""

import numpy as np
import pytest
from drive import CONFIG, Route, World, along
from synthetic_world import index_of, stamp

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.provisional import held_by_bearings

STEP = np.radians(3.0)  # a frame, at 30 degrees a second
LEG = 20  # frames of driving before and after, 0.08 m each


class Hall(World):
    """Points on and before the walls of a round hall, about as many in every direction."""

    def __init__(self, count=2500, seed=0):
        rng = np.random.default_rng(seed)
        angle, radius = rng.uniform(0.0, 2.0 * np.pi, count), rng.uniform(2.5, 4.5, count)
        self.points = np.column_stack([radius * np.sin(angle), rng.uniform(-2.0, 2.0, count), radius * np.cos(angle)])


def turned(degrees, lever=0.0):
    """Drive to the middle of the hall, turn about an axis `lever` behind the camera, and drive on where that leads."""
    before = [se3.make(np.eye(3), [0.0, 0.0, 0.08 * (number - LEG + 1)]) for number in range(LEG)]
    axis = before[-1] @ se3.make(np.eye(3), [0.0, 0.0, -lever])
    ahead = se3.make(np.eye(3), [0.0, 0.0, lever])
    angles = np.arange(STEP, np.radians(degrees) + 1e-6, STEP)
    spin = [axis @ se3.make(se3.exp_so3([0.0, angle, 0.0]), np.zeros(3)) @ ahead for angle in angles]
    after = [spin[-1] @ se3.make(np.eye(3), [0.0, 0.0, 0.08 * number]) for number in range(1, LEG)]
    return Route(Hall(), [*before, *spin, *after], config=CONFIG), slice(LEG, LEG + len(spin))


def errors(route):
    """Errors of position in units of the world and of rotation in degrees, of every frame, from where the turn begins.

    The way before it says how large the map is.
    """
    trajectory = route.pipeline.reconstruction().trajectory()
    assert len(trajectory) == len(route.poses)  # every frame is posed, all in one map
    found, truth = trajectory.world_from_camera.copy(), np.stack(route.poses)
    found[:, :3, 3] *= umeyama(found[:LEG, :3, 3], truth[:LEG, :3, 3])[0]
    aligned = truth[LEG - 1] @ se3.inverse(found[LEG - 1]) @ found
    angles = [se3.rotation_angle(one[:3, :3].T @ other[:3, :3]) for one, other in zip(aligned, truth, strict=True)]
    return np.linalg.norm((aligned - truth)[:, :3, 3], axis=1), np.degrees(angles)


@pytest.mark.parametrize(('lever', 'way', 'angle'), [(0.0, 0.03, 0.5), (0.1, 0.1, 0.6)])
def test_a_turn_on_the_spot_is_followed_and_invents_no_way(lever, way, angle):
    route, spin = turned(180.0, lever)
    route.run()
    off, turn = errors(route)
    assert off[spin].max() < way  # of a hall of 7 m
    assert turn[spin].max() < angle and turn[-1] < angle
    # How large things are on the other side was guessed, from what was seen before or from the way of the camera.
    assert off[-1] < 0.2 * 0.08 * LEG


def test_odometry_tells_the_way_of_a_camera_beside_the_axis_from_a_turn():
    route, spin = turned(180.0, 0.05)
    for number, pose in enumerate(route.poses):
        route.pipeline.add_odometry(stamp(number), pose @ se3.inverse(se3.BODY_FROM_OPTICAL))
        route.run(number, number + 1)
        if number == LEG - 1:  # a longer way would have told how large the map is
            ways = [event.world_from_camera[:3, 3] for event in route.posed()[-10:]]
            route.pipeline._atlas.active.metres = 9 * 0.08 / np.linalg.norm(ways[-1] - ways[0])
    off, turn = errors(route)
    assert off[spin].max() < 0.03 and turn[spin].max() < 0.6  # 0.09 and 0.54 without odometry
    assert off[-1] < 0.05  # things are as large on the other side


def test_the_covariance_says_that_bearings_alone_do_not_tell_where_the_camera_is():
    route, spin = turned(90.0)
    route.run(0, spin.stop)
    deviation = np.sqrt([np.diag(event.covariance) for event in route.posed()])
    assert np.median(deviation[:LEG, :3], axis=0).max() < 0.01
    assert deviation[spin.stop - 3 :, :3].min() > 0.1  # in depths of the scene
    assert deviation[LEG:, 3:].max() < np.radians(0.1)


def test_provisional_landmarks_become_like_others_once_there_is_parallax():
    route, spin = turned(90.0)
    route.run(0, spin.stop)
    landmarks = route.pipeline._atlas.active.map.landmarks
    newest = route.pipeline._atlas.active.map.keyframes[-1].table
    guessed = newest.landmark[newest.observing()]
    assert landmarks.provisional[guessed].mean() > 0.7
    sparse_map = route.pipeline._atlas.active.map
    held = held_by_bearings(sparse_map, sparse_map.keyframes)
    assert held and all(index_of(keyframe.stamp_ns) >= LEG for keyframe in held)
    cloud = route.pipeline.reconstruction().cloud
    assert len(cloud) == landmarks.alive.sum() - landmarks.provisional.sum()  # what was guessed is nothing to steer by
    route.run(spin.stop)
    newest = route.pipeline._atlas.active.map.keyframes[-1].table
    assert not landmarks.provisional[newest.landmark[newest.observing()]].any()
    assert landmarks.provisional[guessed[landmarks.alive[guessed]]].mean() < 0.5


def test_a_drive_has_none_of_them():
    world = World()
    route = Route(world, along(world, np.arange(0.0, 6.0, 0.12))).run()
    sparse_map = route.pipeline._atlas.active.map
    assert not sparse_map.landmarks.provisional.any()
    assert not held_by_bearings(sparse_map, sparse_map.keyframes)
