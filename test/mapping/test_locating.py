# SPDX-License-Identifier: Apache-2.0
"""A predictor that can look for given places is asked for no more than is needed, and the poses stay exact."""

import math
from dataclasses import replace

import numpy as np
import pytest
from drive import CONFIG, HalfSize, Route, World, along
from synthetic_world import index_of

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.intake import _picture
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import Expectation, locate_near, sought
from dark3r_ros.model.predictor import Located, Locator
from dark3r_ros.types import Planes

PLANES = Camera(160, 120, 125.0, 125.0, 79.5, 59.5)


class Locating(HalfSize):
    """Finds given places as well; counts how many it was asked for, and the pairs that were matched as a whole."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked, self.matched, self.off = [], 0, []

    def match(self, pairs):
        self.matched += len(pairs)
        return super().match(pairs)

    def locate(self, reference, pixels, view, expected=None, reach=math.inf):
        self.asked.append(len(pixels))
        apart = np.linalg.norm(pixels[:, None] - reference.pixels[None], axis=2)
        nearest = apart.argmin(axis=1) if len(reference.ids) else np.zeros(len(pixels), np.int64)
        sure = np.flatnonzero(apart[np.arange(len(pixels)), nearest] < 0.5) if len(reference.ids) else nearest
        place = {int(number): row for row, number in enumerate(view.ids)}
        rows = [row for row in sure.tolist() if int(reference.ids[nearest[row]]) in place]
        found = view.pixels[[place[int(reference.ids[nearest[row]])] for row in rows]].reshape(-1, 2)
        rows = np.array(rows, dtype=np.int64)
        if expected is not None:
            off = np.abs(found - expected[rows]).max(axis=1, initial=0.0)
            self.off += off.tolist()
            rows, found = rows[off <= reach], found[off <= reach]
        return Located(rows, found, np.full(len(rows), 0.5))


def drive(**settings):
    world = World()
    route = Route(world, along(world, np.arange(0.0, 12.0, 0.12)), config=replace(CONFIG, **settings), indexed=False)
    route.predictor = Locating(world, lambda ns: route.poses[index_of(ns)], indexed=False)
    route.pipeline._predictor = route.predictor
    route.pipeline.reset()
    return route.run()


@pytest.mark.parametrize('whole', [1, 2])
def test_landmarks_that_are_only_looked_for_hold_the_poses_as_well(whole):
    route = drive(whole_neighbours=whole, track_landmarks=100)
    assert isinstance(route.predictor, Locator)
    error, count = route.error()
    assert count == len(route.poses)
    assert error < 0.05  # of 12 metres
    assert max(route.predictor.asked) <= 100
    keyframes = route.pipeline.status().keyframes
    # The first keyframes take some tries.
    assert (whole - 0.5) * keyframes < route.predictor.matched < (whole + 0.5) * keyframes + 15


def test_landmarks_are_expected_where_they_are():
    off = drive(track_landmarks=100).predictor.off
    # A camera at constant speed is foreseen to a pixel, but for the first frames and for matches that are wrong.
    assert len(off) > 3000 and np.quantile(off, 0.9) < 1.5


def test_what_should_not_be_seen_is_not_looked_for():
    sparse_map = SparseMap()
    points = np.array(
        [[0.0, 0.0, 4.0], [0.0, 0.0, -4.0], [3.0, 0.0, 4.0], [9.0, 0.0, 4.0]]
    )  # ahead, behind, beside, far
    landmarks = sparse_map.landmarks.add(points, np.zeros((4, 3), np.uint8))
    keyframe = Keyframe(0, 0, '', PLANES, np.eye(4), 0.0, None)
    pixels = np.array([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]])
    rows = keyframe.table.lookup(pixels, None)
    keyframe.table.landmark[rows] = landmarks
    asked = {}

    class Seeing(Locating):
        def locate(self, reference, pixels, view, expected=None, reach=math.inf):
            asked.update(pixels=pixels, expected=expected, reach=reach)
            return Located(np.arange(len(pixels)), expected, np.ones(len(pixels)))

    predictor = Seeing(World(), lambda ns: None)
    view = View(1, '', '', PLANES, None, np.zeros((1, 1, 3), np.uint8), 0.0)
    found = locate_near(keyframe, view, rows, predictor, sparse_map, Expectation(np.eye(4), 0.2, 0.1))
    np.testing.assert_array_equal(asked['pixels'], pixels[[0, 2]])  # 32 pixels beyond the edge may still be seen
    np.testing.assert_allclose(asked['expected'], PLANES.project(points[[0, 2]]))
    assert asked['reach'] == 32.0
    np.testing.assert_array_equal(found.points_a, pixels[[0, 2]])


def test_what_is_looked_for_is_spread_and_well_observed():
    rng = np.random.default_rng(0)
    sparse_map = SparseMap()
    count = 900
    # Most points crowd in one corner.
    pixels = np.concatenate([rng.uniform(0, 16, (800, 2)), rng.uniform([20, 20], [159, 119], (100, 2))])
    landmarks = sparse_map.landmarks.add(rng.normal(size=(count, 3)), np.zeros((count, 3), np.uint8))
    for number in range(3):
        keyframe = Keyframe(number, number, '', PLANES, np.eye(4), 0.0, None)
        rows = keyframe.table.lookup(pixels, np.arange(count))
        seen = np.arange(count) % 3 >= number  # every third is seen by all, by two, by one
        keyframe.table.landmark[rows[seen]] = landmarks[seen]
        sparse_map.keyframes.append(keyframe)
    first = sparse_map.keyframes[0]
    predictor = Locating(World(), lambda ns: None)
    chosen = sought(first, sparse_map.support(), predictor, MappingConfig(track_landmarks=150))
    assert len(chosen) == len(set(chosen.tolist())) == 150
    assert (pixels[chosen] > 16).all(axis=1).sum() > 80  # nearly all of the few outside the crowd
    crowd = chosen[(pixels[chosen] <= 16).all(axis=1)]
    assert (crowd % 3 == 2).mean() > 0.9  # those that all see
    assert len(sought(first, sparse_map.support(), predictor, MappingConfig(track_landmarks=1000))) == count
    assert len(sought(first, sparse_map.support(), object(), MappingConfig(track_landmarks=150))) == count


@pytest.mark.parametrize(('height', 'width'), [(120, 160), (121, 161), (1, 9)])
def test_landmarks_take_their_colour_from_where_they_are(height, width):
    values = np.full((3, height, width), 64.0, np.float32)
    values[0, :, : width // 2] += 500.0  # red on the left, blue on the right
    values[2, :, width // 2 :] += 500.0
    planes = Planes(values, (64.0, 64.0, 64.0), 4095.0, (4, 8, 4), 2, 0)
    camera = Camera(width, height, 100.0, 100.0, width / 2, height / 2)
    view = View(0, '', '', camera, None, _picture(planes), 0.0)
    left, right = view.color_at(np.array([[0.0, 0.0], [width - 1.0, height - 1.0]]))
    assert left[0] > 200 and left[2] < 20 and right[2] > 200 and right[0] < 20


def test_a_keyframe_that_shares_nothing_with_others_is_made_as_well(monkeypatch):
    around = Submap.around
    monkeypatch.setattr(Submap, 'around', lambda self, rows, **rest: around(self, rows, **rest) if rest else [])
    route = drive(loops=False)
    assert route.pipeline.status().keyframes > 2
