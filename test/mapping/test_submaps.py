# SPDX-License-Identifier: Apache-2.0
"""Maps that are begun while the camera is lost, and joined when it sees the old one again."""

import numpy as np
import pytest
from drive import Route, World, along, descriptors
from synthetic_world import stamp

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import places
from dark3r_ros.mapping.events import FramePosed, KeyframeAdded, KeyframesMoved
from dark3r_ros.types import MappingState

OUT = np.arange(0.0, 5.0, 0.12)
BACK = np.arange(30.0, 1.0, -0.12)  # in reverse, from where nothing of the first part is seen


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(places, 'local_descriptors', descriptors(world))
    return world


@pytest.fixture(scope='module')
def joined():
    """A drive that is lost after its first part and joins the second part to it."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, 'local_descriptors', descriptors(world))
        return Route(world, [*along(world, OUT), *along(world, BACK)]).run()


def test_a_new_submap_is_joined_once_the_old_map_is_seen_again(joined):
    status = joined.pipeline.status()
    assert (status.submap, status.submaps) == (0, 1)
    assert status.loops_accepted >= 1
    assert status.state == MappingState.TRACKING
    error, count = joined.error()
    assert count > len(joined.poses) - 20
    assert error < 0.12  # of 26 metres


def test_poses_before_the_joint_are_told_apart_and_told_again(joined):
    kinds = [event.submap for event in joined.events if isinstance(event, FramePosed)]
    assert kinds.count(1) > 40
    # Nothing was said of the map between the loss and the joint.
    first_of_submap, last_of_submap = kinds.index(1), len(kinds) - kinds[::-1].index(1)
    assert set(kinds[first_of_submap:last_of_submap]) == {1}
    again = joined.posed(submap=0)[len(OUT) :]
    told = {event.stamp_ns for event in joined.posed(submap=1)}
    assert told <= {event.stamp_ns for event in again}
    late = [event.late for event in again]
    # All but the newest frame are late: that one may go to /tf.
    assert late.index(False) == sum(late)
    joint = next(number for number, event in enumerate(joined.events) if isinstance(event, KeyframeAdded)
                 and event.submap == 0 and event.stamp_ns in told)  # fmt: skip
    moved = next(event for event in joined.events[joint:] if isinstance(event, KeyframesMoved))
    assert len({state.keyframe_id for state in moved.keyframes}) == len(moved.keyframes)
    assert all(state.submap == 0 for state in moved.keyframes)


def test_poses_told_at_the_joint_fit_the_map(joined):
    newest = {event.stamp_ns: event.world_from_camera for event in joined.posed()}
    truth = {stamp(number): pose for number, pose in enumerate(joined.poses)}
    stamps = sorted(newest)
    a, b = stamps[5], stamps[-1]
    relative = se3.inverse(newest[a]) @ newest[b]
    expected = se3.inverse(truth[a]) @ truth[b]
    c = stamps[30]
    unit = np.linalg.norm(newest[c][:3, 3] - newest[a][:3, 3]) / np.linalg.norm(truth[c][:3, 3] - truth[a][:3, 3])
    assert np.linalg.norm(relative[:3, 3] / unit - expected[:3, 3]) < 0.1
    assert se3.rotation_angle(relative[:3, :3].T @ expected[:3, :3]) < 0.02


def test_submaps_that_never_meet_stay_apart_and_the_largest_is_given(world):
    route = Route(world, [*along(world, OUT[:30]), *along(world, BACK[:60])]).run()
    route.events += route.pipeline.flush()
    status = route.pipeline.status()
    assert status.submaps == 2
    assert status.submap == 1
    error, count = route.error(largest=True)
    assert 40 < count <= 60
    assert error < 0.05
    assert route.error()[1] == 30  # the map is still the first
    reasons = {frame.reason for frame in route.pipeline.reconstruction(largest=True).frames if frame.reason}
    assert any('submap' in reason for reason in reasons)


def test_the_end_of_the_input_joins_what_was_left_apart(world, monkeypatch):
    from dark3r_ros.mapping.loops import LoopGate

    route = Route(world, [*along(world, OUT), *along(world, BACK)])
    with monkeypatch.context() as patch:
        patch.setattr(LoopGate, 'consider_in_steps', lambda *_: iter(()))
        route.run()
    assert route.pipeline.status().submaps == 2
    route.events += route.pipeline.flush()
    assert route.pipeline.status().submaps == 1
    error, count = route.error()
    assert count > len(route.poses) - 20
    assert error < 0.1


def test_a_camera_that_comes_back_is_found_in_the_old_map_and_no_submap_stays(world):
    dark = range(len(OUT), len(OUT) + 25)
    route = Route(world, [*along(world, OUT), *along(world, [5.0] * 25), *along(world, OUT[::-1])], dark=dark).run()
    status = route.pipeline.status()
    assert (status.submap, status.submaps) == (0, 1)
    assert len({event.stamp_ns for event in route.posed()}) >= 2 * len(OUT) - 3


def test_without_submaps_nothing_new_is_begun(world):
    from dataclasses import replace

    from drive import CONFIG

    config = replace(CONFIG, submap_after=0)
    route = Route(world, [*along(world, OUT), *along(world, BACK[:40])], config=config).run()
    assert route.pipeline.status().submaps == 1
    assert route.pipeline.status().state == MappingState.LOST
