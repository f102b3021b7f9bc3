# SPDX-License-Identifier: Apache-2.0
"""Parts of a map that took a wrong turn are grown again; a right one stays, also where a folded one explains more."""

import numpy as np
import pytest
from star_world import StarPredictor, centre_error, frames
from test_ordered import CONFIG, PERIOD, RepeatedWallPredictor, along_the_wall

from dark3r_ros.geometry import se3
from dark3r_ros.sfm import start
from dark3r_ros.sfm.late import agreeing
from dark3r_ros.sfm.pairs import match_pair, thin_pairs
from dark3r_ros.sfm.regrow import MOST_TRIALS, PATIENCE, regrown
from dark3r_ros.sfm.start_ordered import OrderedStart, key_of
from dark3r_ros.sfm.views import take_view

COUNT = 12
TURN = 6  # the view at which a map takes a wrong turn


@pytest.fixture(scope='module')
def truth():
    return along_the_wall(COUNT)


def matched(predictor):
    """Views and all verified pairs of them."""
    views = [take_view(frame, predictor, CONFIG) for frame in frames(COUNT)]
    keys = [(first, second) for first in range(COUNT) for second in range(first + 1, COUNT)]
    return views, [pair for key in keys if (pair := match_pair(key, views, predictor, CONFIG)) is not None]


@pytest.fixture(scope='module')
def world(truth):
    return matched(StarPredictor(truth))


@pytest.fixture(scope='module')
def lookalikes(truth):
    return matched(RepeatedWallPredictor(truth))


def thinned(pairs):
    """As `first_poses` has maps grow again, with fewer points of each view."""
    return thin_pairs([pair.verified() for pair in pairs], 80)


def cameras(poses):
    return {number: se3.inverse(pose) for number, pose in enumerate(poses)}


def turned_wrong(truth):
    """From one view on the camera goes back instead of ahead, turning a little more: what a narrow step looks like."""
    wrong = truth.copy()
    for number in range(TURN, COUNT):
        step = se3.inverse(truth[number - 1]) @ truth[number]
        step[:3, 3] *= -0.3
        wrong[number] = wrong[number - 1] @ step @ se3.make(se3.exp_so3([0.0, 0.05, 0.0]), [0.0, 0.0, 0.0])
    return wrong


def in_order(result):
    return np.stack([se3.inverse(result[number]) for number in sorted(result)])


def share(pairs, poses, views):
    return sum(agreeing(pair, poses, views, CONFIG.max_error) for pair in pairs) / sum(pair.support for pair in pairs)


def test_a_map_that_took_a_wrong_turn_is_put_right(world, truth):
    views, pairs = world
    wrong = cameras(turned_wrong(truth))
    assert centre_error(in_order(wrong), truth) > 0.1
    heard = []
    found = regrown(wrong, pairs, thinned(pairs), views, CONFIG, lambda: heard.append(1))
    assert found.taken >= 1
    assert len(heard) == found.trials <= MOST_TRIALS
    assert centre_error(in_order(found.state.poses), truth) < 0.01
    assert share(pairs, found.state.poses, views) > 0.95 > share(pairs, wrong, views)


def test_a_right_map_stays_and_costs_few_trials(world, truth):
    views, pairs = world
    found = regrown(cameras(truth), pairs, thinned(pairs), views, CONFIG)
    assert found.taken == 0
    assert found.trials <= PATIENCE
    assert centre_error(in_order(found.state.poses), truth) < 0.01


def test_a_map_that_folds_is_not_taken_though_more_matches_agree_with_it(lookalikes, truth):
    views, pairs = lookalikes
    folded = truth.copy()
    folded[:, 0, 3] -= PERIOD * np.rint((truth[:, 0, 3] - truth[0, 0, 3]) / PERIOD)
    assert share(pairs, cameras(folded), views) > share(pairs, cameras(truth), views) + 0.1
    found = regrown(cameras(truth), pairs, thinned(pairs), views, CONFIG, ordered=True)
    assert centre_error(in_order(found.state.poses), truth) < 0.01


def test_a_chain_that_contradicts_much_is_doubted(world, truth, monkeypatch):
    views, pairs = world
    wrong = cameras(turned_wrong(truth))
    across = frozenset(key_of(pair) for pair in pairs if pair.first < TURN <= pair.second)
    refused = sum(pair.support for pair in pairs if key_of(pair) in across) / sum(pair.support for pair in pairs)
    assert refused > 0.1
    chain = OrderedStart(wrong, 0.95, across, frozenset(), refused, 0.0, True)
    monkeypatch.setattr(start, 'start_in_order', lambda *_: chain)
    found = start.first_poses(views, pairs, StarPredictor(truth), CONFIG)
    assert centre_error(in_order(found.poses), truth) < 0.01
    assert found.note['tried']['ordered']['parts_kept'] >= 1
    assert not found.refused
