# SPDX-License-Identifier: Apache-2.0
"""Submaps that odometry joins across a blackout, against exact truth."""

import numpy as np
import pytest
from drive import Route, World, along, descriptors
from synthetic_world import Seen, frame, index_of, stamp

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping import bridging, packing, places
from dark3r_ros.mapping.closing import spread_error
from dark3r_ros.mapping.events import FramePosed, KeyframesMoved
from dark3r_ros.simulation.odometry import WheelOdometry
from dark3r_ros.types import MappingState

STEP = 0.12
BEFORE, DARK, AFTER = 60, 50, 90
MOUNTED = se3.make(se3.BODY_FROM_OPTICAL[:3, :3], [0.2, 0.0, 0.4])


class Wheels:
    """Odometry of the true motion in metres of its own, slipping by a share from one frame to another."""

    def __init__(self, metres=0.5, slips=()):
        self.metres, self.slips = metres, slips

    def poses(self, cameras):
        found, odom = [], np.eye(4)
        for index, camera in enumerate(cameras):
            if index:
                step = se3.inverse(cameras[index - 1]) @ camera
                step[:3, 3] *= self.metres * (
                    1.0 + sum(share for first, last, share in self.slips if first <= index < last)
                )
                odom = odom @ step
            found.append(MOUNTED @ odom @ se3.inverse(MOUNTED))
        return found


class Blackout(Route):
    """A drive along the corridor whose light is out between two stretches; all of it with odometry."""

    def __init__(self, wheels, after=AFTER, mounting=MOUNTED):
        world = World()
        count = BEFORE + DARK + after
        super().__init__(world, along(world, STEP * np.arange(count)), dark=range(BEFORE, BEFORE + DARK))
        self.wheels = None if wheels is None else wheels.poses(self.poses)
        if wheels is not None:
            self.pipeline.mount(mounting)

    def run(self, first=0, last=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(places, 'local_descriptors', descriptors(self.world))
            for index in range(first, len(self.poses) if last is None else last):
                if self.wheels is not None:
                    self.pipeline.add_odometry(stamp(index), self.wheels[index])
                self.events += self.pipeline.push(frame(index))
        return self

    def shift(self):
        """By how much the second stretch lies off where the first one says, as a share of the way between."""
        trajectory = self.pipeline.reconstruction().trajectory()
        index = np.array([index_of(int(ns)) for ns in trajectory.stamps_ns])
        truth = np.stack([self.poses[number][:3, 3] for number in index])
        estimate = trajectory.world_from_camera[:, :3, 3]
        before = index < BEFORE
        scale, rotation, translation = umeyama(estimate[before], truth[before])
        off = scale * estimate @ rotation.T + translation - truth
        return np.linalg.norm(off[~before], axis=1) / (STEP * (index[~before] - BEFORE + 1))


@pytest.fixture(scope='module')
def bridged():
    return Blackout(Wheels()).run()


def test_odometry_joins_what_was_seen_before_and_after_a_blackout(bridged):
    status = bridged.pipeline.status()
    assert (status.submap, status.submaps, status.state) == (0, 1, MappingState.TRACKING)
    assert status.posed > BEFORE + AFTER - 20
    assert bridged.shift().max() < 0.03
    assert bridged.error()[0] < 0.1  # of 24 metres


def test_the_map_is_gone_on_with_within_two_seconds_of_light(bridged):
    lit = stamp(BEFORE + DARK)
    first = next(event for event in bridged.posed(submap=0) if event.stamp_ns >= lit and not event.late)
    assert (first.stamp_ns - lit) / 1e9 <= 2.0


def test_frames_of_the_submap_are_told_again_in_the_map(bridged):
    told = {event.stamp_ns for event in bridged.posed(submap=1)}
    assert told and told <= {event.stamp_ns for event in bridged.posed(submap=0)}
    joint = next(number for number, event in enumerate(bridged.events) if isinstance(event, FramePosed)
                 and event.submap == 0 and event.late and event.stamp_ns in told)  # fmt: skip
    assert any(isinstance(event, KeyframesMoved) for event in bridged.events[joint:])


def test_a_bridge_doubts_a_long_way_more():
    short, far = (bridging._doubt(se3.make(np.eye(3), [0.0, 0.0, way]), 0.5, 0.01) for way in (0.1, 5.0))
    assert all(b > a for a, b in zip(short[:2], far[:2], strict=True)) and short[2] == far[2] == 0.01
    assert far[1] > 0.05 * 5.0 / 0.5  # in units of the map


@pytest.mark.parametrize('turned', [[0.0, 0.15, 0.0], [0.1, 0.0, 0.0]])
def test_a_camera_that_is_mounted_a_little_otherwise_than_stated_hardly_matters(turned):
    stated = MOUNTED @ se3.make(se3.exp_so3(turned), np.zeros(3))
    route = Blackout(Wheels(), mounting=stated).run()
    assert route.pipeline.status().submaps == 1
    assert route.shift().max() < 0.06


def test_a_camera_that_looks_elsewhere_than_stated_is_not_bridged():
    stated = MOUNTED @ se3.make(se3.exp_so3([0.0, 1.2, 0.0]), np.zeros(3))
    assert Blackout(Wheels(), mounting=stated, after=50).run().pipeline.status().submaps == 2


def test_without_odometry_submaps_stay_apart():
    assert Blackout(None, after=50).run().pipeline.status().submaps == 2


def test_odometry_that_began_anew_in_the_dark_is_no_bridge():
    route = Blackout(Wheels(), after=50)
    away = se3.make(np.eye(3), [500.0, 0.0, 0.0])
    middle = BEFORE + DARK // 2
    route.wheels = [*route.wheels[:middle], *(away @ pose for pose in route.wheels[middle:])]
    assert route.run().pipeline.status().submaps == 2


def test_slip_after_the_blackout_is_put_right_later():
    # The wheels turn half too far for a second right after the light is back.
    slips = [(BEFORE + DARK, BEFORE + DARK + 10, 0.5)]
    route = Blackout(Wheels(slips=slips), after=140).run()
    assert route.pipeline.status().submaps == 1
    trajectory = route.pipeline.reconstruction().trajectory()
    index = np.array([index_of(int(ns)) for ns in trajectory.stamps_ns])
    step = np.diff(trajectory.world_from_camera[:, :3, 3], axis=0)[np.diff(index) == 1]
    lengths, first = np.linalg.norm(step, axis=1), index[:-1][np.diff(index) == 1]
    grown = np.median(lengths[first > BEFORE + DARK + 40]) / np.median(lengths[first < BEFORE])
    assert abs(grown - 1.0) < 0.03


def test_a_noisy_odometry_with_slips_bridges_as_well():
    rng = np.random.default_rng(0)
    route = Blackout(Wheels(), after=140)
    wheels = WheelOdometry(rng, scale_error=0.02, noise=0.003, slip_rate=0.1)
    up = se3.BODY_FROM_OPTICAL
    route.wheels = [wheels.read(stamp(number), up @ pose).odom_from_body for number, pose in enumerate(route.poses)]
    route.pipeline.mount(up)
    assert route.run().pipeline.status().submaps == 1
    assert route.shift().max() < 0.12


def test_a_later_loop_may_move_what_a_bridge_joined(bridged):
    submap = bridged.pipeline._atlas.submaps[0]
    (first, second, turn, shift, scale), *none = submap.bridges
    assert not none and first < second and min(turn, shift, scale) > 0.0
    assert spread_error(submap, []) is not None  # the graph hangs together


def test_a_bridge_is_saved_and_loaded(bridged, tmp_path, monkeypatch):
    monkeypatch.setitem(packing.FEATURE_TYPES, 'Seen', Seen)
    bridged.pipeline.save_state(tmp_path / 'map')
    before = bridged.pipeline._atlas.submaps[0].bridges
    other = Blackout(None, after=1)
    other.pipeline.load_state(tmp_path / 'map')
    assert other.pipeline._atlas.submaps[0].bridges == before
