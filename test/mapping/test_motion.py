# SPDX-License-Identifier: Apache-2.0
"""Poses judged by odometry and by the motion so far."""

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.motion import MotionJudge, odometry_track

STEP_NS = 100_000_000
SPEED = 0.1  # metres a frame
UNIT = 0.5  # map units a metre


def pose(metres):
    return se3.make(np.eye(3), [0.0, 0.0, metres])


def judge_on_its_way(frames=30, odometry=True, stretch=1.02):
    judge = MotionJudge(odometry_track())
    if odometry:
        for number in range(3 * frames):
            judge.track.add(number * STEP_NS, pose(stretch * SPEED * number))
    for number in range(frames):
        assert judge.objection(number * STEP_NS, pose(UNIT * SPEED * number), 1.0, lost=False) == ''
        judge.accept(number * STEP_NS, pose(UNIT * SPEED * number))
    return judge


@pytest.mark.parametrize('lost', [False, True])
def test_odometry_speaks_against_a_place_that_only_looks_right(lost):
    judge = judge_on_its_way()
    now = 40 * STEP_NS  # a metre and a bit later
    assert judge.objection(now, pose(UNIT * SPEED * 40), 1.0, lost=lost) == ''
    assert 'odometry' in judge.objection(now, pose(UNIT * (SPEED * 40 - 5.0)), 1.0, lost=lost)
    assert 'odometry' in judge.objection(now, pose(UNIT * (SPEED * 40 + 3.0)), 1.0, lost=lost)


def test_wheels_that_slip_do_not_stop_the_mapping():
    judge = judge_on_its_way()
    # The wheels turned 80 % too far for half a second.
    for number in range(100, 110):
        judge.track.add(number * STEP_NS, pose(1.02 * SPEED * (90 + 1.8 * (number - 90))))
    assert judge.objection(35 * STEP_NS, pose(UNIT * (SPEED * 29 + 0.3)), 1.0, lost=False) == ''


def test_odometry_that_is_wrong_for_long_loses_its_say():
    judge = judge_on_its_way(60)
    objections = [
        judge.objection((70 + number) * STEP_NS, pose(UNIT * SPEED * 59 - 5.0), 1.0, lost=True) for number in range(40)
    ]
    assert all(objections[:30]) and '' in objections[30:32]


def test_without_odometry_a_jump_is_doubted_while_the_camera_is_followed():
    judge = judge_on_its_way(odometry=False)
    now = 30 * STEP_NS
    assert judge.objection(now, pose(UNIT * SPEED * 31), 1.0, lost=False) == ''
    assert 'jump' in judge.objection(now, pose(UNIT * SPEED * 60), 1.0, lost=False)
    assert judge.objection(now, pose(UNIT * SPEED * 60), 1.0, lost=True) == ''  # it may have been carried


def test_after_a_gap_the_way_that_was_expected_counts():
    judge = judge_on_its_way(odometry=False)
    now = 60 * STEP_NS  # three seconds without a frame: three metres, 1.5 units
    assert judge.objection(now, pose(UNIT * SPEED * 58), 1.0, lost=False) == ''
    assert 'without a pose' in judge.objection(now, pose(UNIT * SPEED * 30), 1.0, lost=False)


def test_nothing_is_said_of_the_first_pose_nor_after_the_map_moved():
    judge = MotionJudge(odometry_track())
    assert judge.objection(0, pose(99.0), 1.0, lost=False) == ''
    judge = judge_on_its_way()
    judge.moved()
    assert judge.objection(30 * STEP_NS, pose(99.0), 1.0, lost=False) == ''


def test_odometry_says_where_the_camera_is_expected():
    judge = judge_on_its_way(stretch=1.0)
    judge.track.body_from_camera = np.eye(4)
    now = 33 * STEP_NS + STEP_NS // 2
    expected = judge.expected(now)
    # Four and a half frames after the last pose, in units of the map.
    np.testing.assert_allclose(expected, pose(UNIT * SPEED * 33.5), atol=1e-9)
    assert judge.expected(200 * STEP_NS) is None  # beyond what the odometry has told
    judge.moved()
    assert judge.expected(now) is None
    assert judge_on_its_way(odometry=False).expected(now) is None


def test_a_turn_of_the_robot_moves_its_camera_around_its_axis():
    judge = MotionJudge(odometry_track())
    body_from_camera = se3.BODY_FROM_OPTICAL.copy()
    body_from_camera[:3, 3] = 0.5, 0.0, 0.2
    judge.track.body_from_camera = body_from_camera
    angle = np.radians(20.0)

    def body(number):
        turned = se3.make(se3.exp_so3([0.0, 0.0, angle * max(number - 10, 0)]), np.zeros(3))
        return se3.make(np.eye(3), [0.1 * min(number, 10), 0.0, 0.0]) @ turned

    def camera(number):
        found = se3.inverse(body(0) @ body_from_camera) @ body(number) @ body_from_camera
        found[:3, 3] *= UNIT
        return found

    for number in range(12):
        judge.track.add(number * STEP_NS, body(number))
    for number in range(11):
        judge.accept(number * STEP_NS, camera(number))
    np.testing.assert_allclose(judge.expected(11 * STEP_NS), camera(11), atol=1e-9)


def test_odometry_that_comes_a_little_late_goes_on_as_before():
    judge = judge_on_its_way(frames=20, stretch=1.0)
    judge.track.body_from_camera = np.eye(4)
    last = judge.track.newest_ns
    assert last == 59 * STEP_NS
    for number in range(20, 60):
        judge.accept(number * STEP_NS, pose(UNIT * SPEED * number))
    np.testing.assert_allclose(judge.expected(60 * STEP_NS), pose(UNIT * SPEED * 60), atol=1e-9)
    assert judge.expected(61 * STEP_NS) is None
    # Without a pose before it nothing is known of the motion: the newest pose stands.
    fresh = MotionJudge(odometry_track())
    fresh.track.add(0, pose(1.0))
    assert (fresh._at(STEP_NS // 2)[0] == pose(1.0)).all() and fresh._at(2 * STEP_NS) is None
