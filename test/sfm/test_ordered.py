# SPDX-License-Identifier: Apache-2.0
"""Frames in order of time: places that look alike, a camera that stands, a path that folds."""

from dataclasses import replace

import numpy as np
import pytest
from star_world import StarPredictor, camera_path, centre_error, frames

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.chain import Chain, moving_views, near_pairs
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.pairs import VerifiedPair, match_pair
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.sfm.refine import Refined
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.trust import check_neighbours
from dark3r_ros.sfm.views import take_view

CONFIG = SfmConfig(network_width=160)
COUNT = 16
PERIOD = 2.0 * np.pi / 1.7  # of the wall of star_world, along x


def along_the_wall(count: int) -> np.ndarray:
    """Poses world_from_camera past the wall, half a metre a step, turning a little to and fro."""
    turns = [se3.exp_so3([0.02 * np.sin(0.9 * n), 0.06 * np.sin(0.7 * n), 0.0]) for n in range(count)]
    return np.stack([se3.make(turn, [0.5 * n, 0.1 * np.sin(n), 0.0]) for n, turn in enumerate(turns)])


class RepeatedWallPredictor(StarPredictor):
    """Sees that the wall repeats itself: views further apart are matched as if whole periods did not lie between."""

    def _find(self, a, b, rng):
        shift = self.poses[b][0, 3] - self.poses[a][0, 3]
        truth = self.poses
        self.poses = truth.copy()
        self.poses[b][0, 3] -= PERIOD * np.rint(shift / PERIOD)
        found = super()._find(a, b, rng)
        self.poses = truth
        return found


class Watched(SfmRun):
    """Keeps what the stages hand on."""

    def _pairs(self, views):
        self.found = super()._pairs(views)
        return self.found


@pytest.fixture(scope='module')
def truth():
    return along_the_wall(COUNT)


@pytest.fixture(scope='module')
def result(truth):
    run = Watched(replace(CONFIG, rematch_rounds=0), RepeatedWallPredictor(truth))
    return run(frames(COUNT)), run


def posed(reconstruction):
    return np.stack([frame.world_from_camera for frame in reconstruction.frames if frame.world_from_camera is not None])


def test_places_that_look_alike_are_not_taken_for_one(result, truth):
    reconstruction, run = result
    found = run.notes['start']['tried']['ordered']
    assert run.notes['start']['method'] == 'ordered'
    # Views three steps apart are the last that are not a period off by the nearest likeness.
    wrong = sum(np.rint(0.5 * (pair.second - pair.first) / PERIOD) != 0 for pair in run.found)
    assert wrong > len(run.found) / 2
    assert found['refused_pairs'] == wrong
    assert len(posed(reconstruction)) == COUNT
    assert centre_error(posed(reconstruction), truth) < 0.01
    assert run.warnings == []
    assert run.notes['neighbours']['breaks'] == []


def test_a_path_that_folds_is_said(result, truth):
    _, run = result
    cameras = {number: se3.inverse(pose) for number, pose in enumerate(truth)}
    folded = truth.copy()
    folded[8:, 0, 3] -= PERIOD
    for poses, breaks in ((cameras, []), (dict(enumerate(map(se3.inverse, folded))), [(7, 8)])):
        focal = run.views[0].focal
        structure = triangulate_tracks(build_tracks(run.views, run.found), poses, focal, 3.0, 0.005)
        check = check_neighbours(run.found, Refined(poses, structure, {}), run.views, CONFIG, ordered=True)
        assert check is not None
        assert check.breaks == breaks
    assert 'between 007.png and 008.png' in check.warning(run.views)


def test_a_beginning_that_is_twisted_is_grown_anew():
    count = 19
    truth = along_the_wall(count)
    predictor = StarPredictor(truth, noise=0.3)
    views = [take_view(frame, predictor, CONFIG) for frame in frames(count)]
    keys = [(first, first + steps) for first in range(count) for steps in (1, 2) if first + steps < count]
    pairs = [pair.verified() for key in keys if (pair := match_pair(key, views, predictor, CONFIG)) is not None]
    chain = Chain(range(count), pairs, views, CONFIG)
    cameras = {number: se3.inverse(pose) for number, pose in enumerate(truth)}
    assert chain.straightened(cameras, range(5)) is cameras
    for nucleus in (range(5), range(14, 19)):
        twisted = dict(cameras)
        for number in nucleus:
            twisted[number] = se3.exp([0.3 * (number - 2), 0.0, 0.0, 0.0, 0.08 * (number % 5), 0.0]) @ cameras[number]
        grown = chain.straightened(twisted, nucleus)
        assert len(grown) == count
        step = [grown[n + 1] @ se3.inverse(grown[n]) @ truth_step(truth, n) for n in nucleus[:-1]]
        assert max(np.degrees(se3.rotation_angle(one[:3, :3])) for one in step) < 1.0
    short = {number: cameras[number] for number in range(12)}
    assert chain.straightened(short, range(5)) is short


def truth_step(truth, number):
    """Pose of the next camera in the one before."""
    return se3.inverse(truth[number]) @ truth[number + 1]


def test_a_camera_that_stands_for_a_while_is_followed():
    stands = along_the_wall(9)[[0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 5, 6, 7, 8]]
    run = SfmRun(replace(CONFIG, rematch_rounds=0), StarPredictor(stands, noise=0.3))
    reconstruction = run(frames(14))
    assert run.notes['start']['method'] == 'ordered'
    assert len(posed(reconstruction)) == 14
    assert centre_error(posed(reconstruction), stands) < 0.01


def test_frames_in_no_order_are_reconstructed_without_a_warning():
    shuffled = camera_path(9)[[4, 0, 8, 2, 6, 1, 7, 3, 5]]
    run = SfmRun(CONFIG, StarPredictor(shuffled))
    reconstruction = run(frames(9))
    assert centre_error(posed(reconstruction), shuffled) < 0.005
    assert run.warnings == []


def pair(first: int, second: int, motion: float) -> VerifiedPair:
    """A pair whose matches all move by some pixels."""
    pixels = np.random.default_rng(0).uniform(0, 100, (30, 2))
    number = np.arange(30)
    right = np.ones(30, dtype=bool)
    return VerifiedPair(
        first, second, pixels, pixels + (motion, 0.0), number, number, True, np.ones(30), right, np.eye(4), 0.1, 30
    )


def test_views_that_do_not_move_are_passed_over():
    place = np.array([0.0, 10.0, 20.0, 20.1, 20.2, 20.3, 30.0, 30.5, 33.0, 36.0])
    every = [pair(a, b, abs(place[b] - place[a])) for a in range(10) for b in range(a + 1, 10)]
    assert moving_views(every, range(10)) == [0, 1, 2, 6, 9]
    # Without a pair from the first standing view to the next moving one, the last standing one bridges the gap.
    short = [one for one in every if one.second - one.first <= 3]
    assert moving_views(short, range(10)) == [0, 1, 2, 5, 6, 9]
    none = [pair(0, 1, 10.0), pair(2, 3, 10.0)]
    assert moving_views(none, range(4)) == [0, 1, 2, 3]


def test_places_are_counted_in_the_order_of_time_not_of_numbers():
    pairs = [pair(0, 2, 9.0), pair(0, 1, 9.0), pair(1, 2, 9.0)]
    assert near_pairs(pairs, [1, 0, 2], 1) == [pairs[0], pairs[1]]
