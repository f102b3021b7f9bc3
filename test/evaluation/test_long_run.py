# SPDX-License-Identifier: Apache-2.0
"""What the long drive measures, against cases that can be worked out by hand."""

import math

import numpy as np
import pytest

from dark3r_ros.evaluation.long_run import LongRun, Schedule, _in_map
from dark3r_ros.evaluation.long_run_drift import end_drift, piece_drift, way
from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import FramePosed
from dark3r_ros.simulation.sequence import SimulationConfig


def test_when_the_light_comes_back():
    dark = SimulationConfig(rate=10.0, dark_at=2.0, dark_seconds=0.5)
    assert LongRun(dark, MappingConfig()).lit_again == 2.5
    assert LongRun(SimulationConfig(dark_at=2.0), MappingConfig()).lit_again == math.inf


def test_only_a_pose_of_this_frame_in_the_map_counts_as_found():
    def posed(stamp, submap):
        return FramePosed(stamp, '', np.eye(4), np.zeros((6, 6)), 0, 0, 0.0, False, submap=submap)

    assert _in_map([posed(7, 1), posed(7, 0)], 7)
    assert not _in_map([posed(7, 1), posed(6, 0)], 7)


def test_latencies_of_two_threads():
    schedule = Schedule(interval=0.1)
    # An encode of 50 ms and a pose of 20 ms: nothing waits.
    assert schedule.latency(0, 0.05, 0.02, 0.0) == pytest.approx(0.07)
    # 300 ms of work after the pose: the next frame, encoded meanwhile, waits for its end at 0.1 + 0.07 + 0.3.
    assert schedule.latency(1, 0.05, 0.02, 0.3) == pytest.approx(0.07)
    assert schedule.latency(2, 0.05, 0.02, 0.0) == pytest.approx(0.47 + 0.02 - 0.2)
    assert schedule.dropped == 0


def drive_along(count, step, turn):
    poses = [se3.make(se3.exp_so3([0.3, 0.1, 0.0]), [1.0, 2.0, 3.0])]
    for _ in range(count):
        poses.append(poses[-1] @ se3.make(se3.exp_so3([0.0, turn, 0.0]), [0.0, 0.0, step]))
    return np.stack(poses)


def test_drift_does_not_see_place_turn_and_unit_of_the_map():
    truth = drive_along(100, 0.5, 0.0)
    estimate = se3.make(se3.exp_so3([0.5, -0.2, 1.0]), [4.0, 0.0, 1.0]) @ truth
    estimate[:, :3, 3] *= 3.0
    assert way(truth)[-1] == pytest.approx(50.0)
    assert end_drift(estimate, truth, 0.1) == pytest.approx(0.0, abs=1e-9)
    assert piece_drift(estimate, truth, 10.0) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(piece_drift(estimate, truth, 60.0))


def test_drift_of_a_way_that_bends_and_of_one_that_shrinks():
    truth, bent = drive_along(100, 0.5, 0.0), drive_along(100, 0.5, 0.004)
    # A bend of 0.4 rad in 50 m: 50 m * 0.4 / 2 aside at the end, 10 m * 0.08 / 2 after 10 m.
    assert end_drift(bent, truth, 0.02) / 50.0 == pytest.approx(0.2, rel=0.08)
    assert piece_drift(bent, truth, 10.0) == pytest.approx(0.04, rel=0.08)
    shrunk = truth.copy()
    shrunk[50:, :3, 3] = truth[50, :3, 3] + 0.9 * (truth[50:, :3, 3] - truth[50, :3, 3])
    assert end_drift(shrunk, truth, 0.1) == pytest.approx(2.5)
