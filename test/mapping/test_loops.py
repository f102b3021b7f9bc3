# SPDX-License-Identifier: Apache-2.0
"""Loops: a ring whose drift shrinks, and a tunnel that repeats itself, in which none may be believed."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from drive import CONFIG, Route, World, along, descriptors

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import places
from dark3r_ros.mapping.events import KeyframesMoved

RADIUS = 5.0
BAY = 3.0


class Ring(World):
    """A corridor bent to a circle; the camera looks along it."""

    def __init__(self, density=120, seed=0):
        rng = np.random.default_rng(seed)
        count = int(2 * np.pi * RADIUS * density)
        angle, around = rng.uniform(0, 2 * np.pi, count), rng.uniform(0, 2 * np.pi, count)
        radius = rng.uniform(1.5, 2.2, count)
        out = RADIUS + radius * np.cos(around)
        self.points = np.column_stack([out * np.cos(angle), radius * np.sin(around), out * np.sin(angle)])
        self.step = 0.2

    def pose(self, index):
        angle = index * self.step / RADIUS
        forward = np.array([-np.sin(angle), 0.0, np.cos(angle)])
        down = np.array([0.0, 1.0, 0.0])
        rotation = np.stack([np.cross(down, forward), down, forward], axis=1)
        return se3.make(rotation, [RADIUS * np.cos(angle), 0.1 * np.sin(3 * angle), RADIUS * np.sin(angle)])

    def view(self, world_from_camera, limit=5.0):
        return super().view(world_from_camera, limit)


class Bays(World):
    """A straight tunnel of bays that are copies of each other."""

    def __init__(self, count=8, seed=0):
        super().__init__(BAY, 180, seed, step=0.25)
        bay = self.points[self.points[:, 2] < BAY]
        self.points = np.concatenate([bay + [0, 0, number * BAY] for number in range(count + 5)])
        self.size = len(bay)

    def looks(self, ids):
        return ids % self.size

    def pose(self, index):
        return se3.make(np.eye(3), [0.0, 0.0, index * self.step])

    def view(self, world_from_camera, limit=6.0):
        return super().view(world_from_camera, limit)


@dataclass
class SeenInBay:
    ids: np.ndarray
    pixels: np.ndarray
    place: float

    @property
    def nbytes(self):
        return self.ids.nbytes + self.pixels.nbytes


def bays_route(world, metres, config):
    """A matcher that cannot tell bays apart: it takes two views to be as near to each other as whole bays allow."""
    route = Route(world, along(world, metres), config=config)
    predictor, encode, match = route.predictor, route.predictor.encode, route.predictor._match

    def encode_place(planes):
        seen = encode(planes)
        return SeenInBay(seen.ids, seen.pixels, float(predictor.pose_of_stamp(planes.stamp_ns)[2, 3]))

    def match_place(a, b):
        shift = round((a.place - b.place) / BAY) * world.size
        return match(a, SeenInBay(b.ids + shift, b.pixels, b.place))

    predictor.encode, predictor._match = encode_place, match_place
    return route


def laps(world, count, config=CONFIG):
    metres = np.arange(0.0, count * 2 * np.pi * RADIUS, world.step)
    return Route(world, along(world, metres), config=config, noise_px=1.2)


@pytest.fixture(scope='module')
def ring():
    """A little more than a lap, with loops and without."""
    world = Ring()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, 'local_descriptors', descriptors(world))
        return laps(world, 1.2).run(), laps(world, 1.2, replace(CONFIG, loops=False)).run()


def test_a_closed_loop_takes_the_drift_away(ring):
    closed, drifted = ring
    status = closed.pipeline.status()
    assert status.loops_accepted >= 1
    assert status.loops_proposed >= status.loops_verified >= 3
    assert drifted.error()[0] > 0.3
    assert closed.error()[0] < 0.5 * drifted.error()[0]
    assert closed.error()[1] == len(closed.poses)
    # The whole map was told to move.
    moved = [event for event in closed.events if isinstance(event, KeyframesMoved)]
    assert max(len(event.keyframes) for event in moved) > 2 * CONFIG.window


def test_what_is_seen_again_has_the_old_landmarks(ring):
    def seen_twice(route):
        """Keyframes of the second lap that share landmarks with the start of the first."""
        sparse_map = route.pipeline._atlas.active.map
        late = sparse_map.keyframes[-len(sparse_map.keyframes) // 6 :]
        early = sparse_map.keyframes[: len(sparse_map.keyframes) // 4]
        seen = [keyframe.table.landmark[keyframe.table.observing()] for keyframe in late]
        return sum(bool(sparse_map.covisible(landmarks, early)) for landmarks in seen)

    closed, drifted = ring
    assert seen_twice(closed) >= 1
    assert seen_twice(drifted) == 0


def test_loops_can_be_switched_off(ring):
    assert ring[1].pipeline.status().loops_proposed == 0


def test_a_tunnel_of_equal_bays_closes_no_loop(monkeypatch):
    world = Bays()
    monkeypatch.setattr(places, 'local_descriptors', descriptors(world))
    out = np.arange(0.0, 20.0, world.step)
    there_and_back = np.concatenate([out, out[::-1]])
    with_loops = bays_route(world, there_and_back, CONFIG).run()
    without = bays_route(world, there_and_back, replace(CONFIG, loops=False)).run()
    status = with_loops.pipeline.status()
    # Places were proposed and fitted, for they are the same to the last pixel.
    assert status.loops_verified > 10
    assert status.loops_accepted == 0
    refused = status.loops_refused
    assert refused.get('ambiguous', 0) + refused.get('beyond drift', 0) > 5
    error, count = with_loops.error()
    # A keyframe more than half a bay back draws the camera into the wrong one: the jump is refused.
    assert count >= len(there_and_back) - 3
    assert error <= 1.05 * without.error()[0] + 0.01
