# SPDX-License-Identifier: Apache-2.0
"""Work in pieces: paid for by stamps alone."""

import pytest

from dark3r_ros.mapping.chores import Chores

MS = 1_000_000


def pieces(done, count=6):
    for number in range(count):
        done.append(number)
        yield [number]


def test_time_between_stamps_pays_for_pieces():
    chores, done = Chores(0.03), []
    chores.advance(0)
    chores.begin(pieces(done))
    assert chores.advance(100 * MS) == [0, 1, 2]  # 3.3 pieces
    assert chores.advance(200 * MS) == [3, 4, 5]
    assert chores.busy  # the end has not been asked for yet
    assert chores.advance(300 * MS) == []
    assert not chores.busy


def test_slow_frames_pay_for_everything_and_nothing_is_saved_up():
    chores, done = Chores(0.1), []
    chores.advance(0)
    chores.begin(pieces(done))
    assert chores.advance(2000 * MS) == list(range(6))
    chores.begin(pieces(done, 3))
    assert len(chores.advance(2010 * MS)) <= 1


def test_without_a_price_all_is_done_at_once():
    chores, done = Chores(0.0), []
    chores.begin(pieces(done))
    assert chores.advance(0) == list(range(6))
    assert not chores.busy


def test_work_that_fails_is_over_and_the_next_can_begin():
    chores = Chores(0.0)

    def broken():
        yield [1]
        raise ValueError('no')

    chores.begin(broken())
    with pytest.raises(ValueError):
        chores.finish()
    assert not chores.busy
    chores.begin(pieces([], 2))
    chores.drop()
    assert chores.finish() == []
