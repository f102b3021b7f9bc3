# SPDX-License-Identifier: Apache-2.0
"""What the long drive measures, against cases that can be worked out by hand."""

import numpy as np
import pytest

from dark3r_ros.evaluation.long_run import LongRun, Schedule, _in_map, blackened
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import FramePosed
from dark3r_ros.simulation.sequence import SimulationConfig
from dark3r_ros.types import Frame


def test_the_light_goes_out_and_comes_back_when_it_should():
    run = LongRun(SimulationConfig(rate=10.0), MappingConfig(), dark_at=2.0, dark_seconds=0.5)
    assert [number for number in range(40) if run.is_dark(number)] == [20, 21, 22, 23, 24]
    assert [run.is_lit_again(number) for number in (0, 24, 25, 39)] == [False, False, True, True]
    never = LongRun(SimulationConfig(rate=10.0), MappingConfig(), dark_at=2.0, dark_seconds=0.0)
    assert not any(never.is_dark(number) or never.is_lit_again(number) for number in range(40))


def test_a_frame_without_light_lies_around_its_black_level():
    frame = Frame(0, np.full((40, 60), 900, np.uint16), 'rggb', (64.0, 64.0, 64.0), 4095.0, None, '')
    dark = blackened(frame, 1).mosaic
    assert abs(float(dark.mean()) - 64.0) < 0.5 and 2.0 < float(dark.std()) < 4.0
    assert (blackened(frame, 1).mosaic == dark).all() and (blackened(frame, 2).mosaic != dark).any()


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
