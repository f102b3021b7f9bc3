# SPDX-License-Identifier: Apache-2.0
"""A map that is matched again at its end, as `sfm` does, against exact truth."""

from dataclasses import replace

import numpy as np
import pytest
from drive import CONFIG, Route, World, along

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.finishing import PassingViews, _graph, _groups, _in_place, match_again
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.types import Frame

DARK = SimulationConfig(
    scene='room', light='ambient', width=320, height=240, seconds=4.0, rate=3.0, snr_db=-4.0, depth=False
)
SMALL = MappingConfig(network_width=160)


@pytest.fixture(scope='module')
def frames() -> list[tuple[Frame, np.ndarray]]:
    return [(made.frame, made.world_from_camera) for made in simulate(DARK)]


def mapped(frames, config=SMALL, *, offline):
    """The pipeline at the end, the error of the frames as a share of the extent, and the frames that are posed."""
    pipeline = MappingPipeline(config, make_predictor('mini'), offline=offline)
    for frame, _ in frames:
        pipeline.push(frame)
    pipeline.flush()
    trajectory = pipeline.reconstruction(largest=True).trajectory()
    truth = {frame.stamp_ns: pose[:3, 3] for frame, pose in frames}
    true = np.stack([truth[int(stamp)] for stamp in trajectory.stamps_ns])
    found = trajectory.world_from_camera[:, :3, 3]
    scale, rotation, shift = umeyama(found, true)
    error = np.sqrt(((scale * found @ rotation.T + shift - true) ** 2).sum(axis=1).mean())
    return pipeline, error / np.linalg.norm(np.ptp(true, axis=0)), len(true)


def test_all_frames_of_a_short_dark_recording_get_more_exact(frames):
    _, before, posed_before = mapped(frames, offline=False)
    pipeline, after, posed = mapped(frames, offline=True)
    assert posed >= posed_before > len(frames) // 2
    assert not all(frame.keyframe for frame in pipeline.reconstruction().frames)
    assert after < 0.7 * before
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
    assert not match_again(submap, pipeline._predictor, few, pipeline._log, pipeline._passing)
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
    assert not route.run(0, 10).pipeline._passing.nbytes  # live
    route.pipeline._passing = PassingViews(20)
    held = []
    for index in range(10, len(route.poses)):
        route.run(index, index + 1)
        held.append(route.pipeline._passing.nbytes)
    assert max(held) > 0 and held[-1] == 0
    assert PassingViews(0).nbytes == 0


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
