# SPDX-License-Identifier: Apache-2.0
"""A map that is matched again at its end, as `sfm` does, against exact truth."""

from dataclasses import replace

import numpy as np
import pytest
from drive import CONFIG, Route, World, along
from recorded import DARK, SMALL, mapped, recorded

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.finishing import _graph, _groups, _in_place, match_again
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.recording import HeldViews
from dark3r_ros.matching.registry import make_predictor


@pytest.fixture(scope='module')
def frames():
    return recorded()


def test_all_frames_of_a_short_dark_recording_get_more_exact(frames):
    _, before, posed_before = mapped(frames, offline=False)
    pipeline, after, posed = mapped(frames, offline=True)
    assert posed >= posed_before > len(frames) // 2
    assert not all(frame.keyframe for frame in pipeline.reconstruction().frames)
    assert after < 0.7 * before
    # A good map is not held against another one.
    assert pipeline.verdict.note['method'] == 'tracked' and 'doubt' not in pipeline.verdict.note
    assert pipeline.stage_seconds['anew'] < 0.1 * pipeline.stage_seconds['final']
    # The first keyframe is where the map begins.
    first = pipeline.reconstruction().frames
    start = next(frame.world_from_camera for frame in first if frame.keyframe)
    np.testing.assert_allclose(start, np.eye(4), atol=1e-6)


def test_a_map_with_more_keyframes_than_configured_stays_as_it_is(frames):
    pipeline, _, _ = mapped(frames[:8], replace(SMALL, rematch_keyframes=0), offline=False)
    before = pipeline.reconstruction().trajectory().world_from_camera
    submap = pipeline._atlas.submaps[0]
    few = replace(SMALL, rematch_keyframes=len(submap.map.keyframes) - 1)
    assert len(before) > 3
    assert match_again(submap, pipeline._predictor, few, pipeline._log, pipeline._held) is None
    np.testing.assert_array_equal(pipeline.reconstruction().trajectory().world_from_camera, before)


def test_another_predictor_is_finished_as_before():
    world = World()
    route, other = (Route(world, along(world, np.arange(0.0, 3.0, 0.12))).run() for _ in range(2))
    other.pipeline._offline = True
    route.pipeline.flush()
    other.pipeline.flush()
    np.testing.assert_array_equal(
        route.pipeline.reconstruction().trajectory().world_from_camera,
        other.pipeline.reconstruction().trajectory().world_from_camera,
    )


def test_views_of_a_long_recording_are_not_kept():
    route = Route(World(), along(World(), np.arange(0.0, 6.0, 0.12)), config=replace(CONFIG, rematch_frames=20))
    assert not route.run(0, 10).pipeline._held.nbytes  # live
    route.pipeline._held = HeldViews(20)
    held = []
    for index in range(10, len(route.poses)):
        route.run(index, index + 1)
        held.append(route.pipeline._held.nbytes)
    assert max(held) > 0 and held[-1] == 0
    assert HeldViews(0).nbytes == 0


def test_what_moved_as_a_whole_is_put_back_where_it_was():
    rng = np.random.default_rng(0)
    before = {number: se3.exp(rng.normal(0.0, 1.0, 6)) for number in (3, 4, 7, 9)}
    turned = se3.exp(rng.normal(0.0, 1.0, 6))
    found = {}
    for number, pose in before.items():
        moved = pose @ turned
        moved[:3, 3] *= 0.7
        found[number] = moved
    for number, pose in _in_place(found, before).items():
        np.testing.assert_allclose(pose, before[number], atol=1e-9)


def test_views_are_matched_with_those_that_share_most_and_groups_stay_apart():
    shared = np.zeros((7, 7))
    for first, second, count in ((0, 1, 50), (1, 2, 20), (2, 3, 14), (3, 4, 90), (4, 5, 90), (3, 5, 30)):
        shared[first, second] = shared[second, first] = count
    pairs = _graph(shared)
    assert pairs == [(0, 1), (1, 2), (3, 4), (3, 5), (4, 5)]

    class Pair:
        def __init__(self, first, second):
            self.first, self.second = first, second

    assert _groups([Pair(*pair) for pair in pairs], 7) == [[0, 1, 2], [3, 4, 5]]
    assert _groups([], 3) == []


def test_a_recording_waits_until_a_keyframe_is_made():
    # Steps of 0.6 s, played as if a tenth of a second lay between: the work for a keyframe takes longer than that.
    wide = recorded(replace(DARK, scene='room', seconds=6.0, rate=1.6, snr_db=15.0))
    fast = [(replace(frame, stamp_ns=number * 10**8), truth) for number, (frame, truth) in enumerate(wide, start=1)]
    keyframes = {}
    for offline in (False, True):
        pipeline = MappingPipeline(replace(SMALL, step_seconds=0.05), make_predictor('classical'), offline=offline)
        for frame, _ in fast:
            pipeline.push(frame)
            assert not (offline and pipeline._growth.busy)
        keyframes[offline] = pipeline.status().keyframes
    assert keyframes[True] > keyframes[False] >= 2
