# SPDX-License-Identifier: Apache-2.0
"""Places that need no comparison: the map rules them out, or has them already."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from synthetic_world import CAMERA, Seen, stamp

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import loops
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.loops import LoopGate
from dark3r_ros.mapping.prospects import Prospects
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap

CONFIG = MappingConfig()
END = 40  # keyframes up to the turning point, a depth of the scene apart


class Alike:
    """Looks of keyframes: those that are given look the same as any other, the rest like nothing."""

    def __init__(self, *keyframe_ids):
        self.ids = set(keyframe_ids)

    def vector_of(self, keyframe):
        return np.ones(1, np.float32)

    def likeness(self, vector, keyframe_ids):
        return np.array([1.0 - 1e-3 * key if key in self.ids else 0.0 for key in keyframe_ids])


def there_and_back(*, turned=False):
    """A map of a way of END steps and back, where the camera may have turned round; nobody sees a landmark."""
    submap = Submap.empty(0, CONFIG, itertools.count())
    for number, place in enumerate([*range(END), *range(END, -1, -1)]):
        turn = np.pi if turned and number > END else 0.0
        pose = se3.make(se3.exp_so3([0.0, turn, 0.0]), [0.0, 0.0, float(place)])
        features = Seen(np.zeros(0, np.int64), np.zeros((0, 2)))
        keyframe = Keyframe(next(submap.map.numbers), stamp(number), '', CAMERA, se3.inverse(pose), 0.0, features)
        submap.map.keyframes.append(keyframe)
    return submap


def chosen(submap, *alike, config=CONFIG):
    """Numbers of the places that are possible and of those that are not, and what was refused."""
    refused = Counter()
    places = Prospects(config, Alike(*alike)).of(submap.map.keyframes[-1], submap, [submap], refused)
    numbers = [[place.keyframe.keyframe_id for place in places if place.possible == kind] for kind in (True, False)]
    return *numbers, +refused


def test_a_place_farther_off_than_the_drift_of_the_way_is_ruled_out():
    # The way since keyframe n of the way out is 2 END - n, of which a tenth may be drift, and 2.5 depths are in view.
    possible, others, refused = chosen(there_and_back(), 2, 9, 15, 25, 35)
    assert possible == [2, 9]
    assert others == [15, 25, 35]
    assert refused == {'elsewhere by the map': 3}


def test_less_drift_is_believed_where_less_is_set():
    assert chosen(there_and_back(), 2, 9, config=replace(CONFIG, loop_drift=0.01))[:2] == ([2], [9])


def test_a_camera_that_looks_the_other_way_sees_another_place():
    assert chosen(there_and_back(turned=True), 2)[:2] == ([], [2])


def test_places_that_cannot_be_take_no_room_from_those_that_can():
    possible, others, _ = chosen(there_and_back(), 6, *range(12, END))
    assert possible == [6]
    assert len(others) == CONFIG.loop_candidates


def test_after_a_loop_none_is_looked_for_until_there_is_a_way_to_mend():
    submap = there_and_back()
    submap.ties = [(0, 2 * END - 1)]
    assert chosen(submap, 2) == ([], [], {'nothing to close': 1})
    submap.ties = [(0, 2 * END - 8)]
    assert chosen(submap, 2)[0] == [2]


@pytest.mark.parametrize('shared', [CONFIG.min_inliers - 1, CONFIG.min_inliers])
def test_who_sees_landmarks_of_the_old_place_is_tied_to_it(shared):
    submap = there_and_back()
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.3, 0.3, (40, 2)), np.full(40, 3.0)])
    rows = submap.map.landmarks.add(points, np.zeros((40, 3), np.uint8))
    old, query = submap.map.keyframes[1], submap.map.keyframes[-1]
    for keyframe, own in ((old, rows), (query, rows[:shared])):
        pixels = CAMERA.project(se3.transform_points(keyframe.camera_from_world, points[: len(own)]))
        keyframe.table.restore(pixels, own.copy(), named=False)
    submap.archive.remembered.append(old)
    possible, _, refused = chosen(submap, 1, 6)  # the old one is excluded: landmarks are shared with it already
    assert (possible, refused) == (([], {'nothing to close': 1}) if shared >= CONFIG.min_inliers else ([6], {}))


@pytest.mark.parametrize(('share', 'least', 'most'), [(0.0, 60, 60), (0.5, 27, 33), (0.1, 4, 9)])
def test_comparisons_are_bounded_by_the_number_of_keyframes(share, least, most, monkeypatch):
    compared = []
    monkeypatch.setattr(loops, 'verify', lambda query, *_: compared.append(query))
    submap = there_and_back()
    gate = LoopGate(replace(CONFIG, loop_share=share), None, Alike(2, 6))
    for _ in range(60):
        assert gate.consider(submap.map.keyframes[-1], submap, [submap]) == []
    assert least <= len(compared) <= most
    assert gate.refused['no time'] == 60 - len(compared)
    assert gate.refused['geometry'] == len(compared)
