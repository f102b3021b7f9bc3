# SPDX-License-Identifier: Apache-2.0
"""A doubtful map against one from all pairs of views, with exact truth."""

import errno
from dataclasses import replace

import numpy as np
import pytest
from recorded import DARK, SMALL, mapped, recorded, score

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import anew
from dark3r_ros.mapping.anew import doubt_of, look_again, tracked_poses
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.events import FramePosed, KeyframeAdded, MapDiscarded
from dark3r_ros.mapping.finishing import MatchedAgain, sfm_view
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.recording import HeldViews
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.pairs import match_pair
from dark3r_ros.sfm.pipeline import Solution
from dark3r_ros.sfm.progress import quiet
from dark3r_ros.types import MappingState

# A tunnel in steps of 0.6 s, at 0 dB.
WIDE = replace(DARK, scene='tunnel', light='lamp', seconds=5.0, rate=1.6, snr_db=0.0)


@pytest.fixture(scope='module')
def wide():
    """The frames, the pipeline after its end, and what it said there."""
    frames = recorded(WIDE)
    pipeline = MappingPipeline(SMALL, make_predictor('mini'), offline=True)
    for frame, _ in frames:
        pipeline.push(frame)
    return frames, pipeline, pipeline.flush()


def test_what_was_followed_into_a_wrong_shape_is_found_by_all_pairs(wide):
    frames, pipeline, _ = wide
    _, followed, _ = mapped(frames, replace(SMALL, doubtful_share=0.0), offline=True)
    assert followed > 0.1  # a scene that would not need it shows nothing
    error, posed = score(pipeline, frames)
    assert posed == len(frames)
    assert error < 0.02
    note = pipeline.verdict.note
    assert note['taken'] and note['method'] == 'ordered' and 'matches agree' in note['doubt']
    assert note['agreeing_anew'] > note['agreeing_tracked'] > 0
    assert set(note['tried']) >= {'ordered', 'tracked'}
    assert pipeline.stage_seconds['anew'] > 0.0


def test_the_map_in_its_place_is_one_like_others(wide, tmp_path):
    frames, pipeline, events = wide
    discarded = next(number for number, event in enumerate(events) if isinstance(event, MapDiscarded))
    posed = [event for event in events[discarded:] if isinstance(event, FramePosed)]
    assert [event.stamp_ns for event in posed] == [frame.stamp_ns for frame, _ in frames]
    assert sum(isinstance(event, KeyframeAdded) for event in events[discarded:]) == len(frames)
    assert pipeline.status().posed == pipeline.status().keyframes == len(frames)
    reconstruction = pipeline.reconstruction()
    np.testing.assert_allclose(reconstruction.frames[0].world_from_camera, np.eye(4), atol=1e-6)
    seen = reconstruction.observations
    pose = np.stack([se3.inverse(frame.world_from_camera) for frame in reconstruction.frames])[seen.frame_index]
    local = np.einsum('kij,kj->ki', pose[:, :3, :3], seen.points[seen.point_index]) + pose[:, :3, 3]
    error = np.linalg.norm(reconstruction.camera.project(local) - seen.pixels, axis=1)
    assert len(error) > 1000 and np.median(error) < 3.0  # of the mosaic, which has twice the pixels of the planes
    # And another session finds itself in it.
    pipeline.save_state(tmp_path / 'state')
    later = MappingPipeline(SMALL, make_predictor('mini'))
    later.load_state(tmp_path / 'state')
    frame, truth = frames[4]
    found = [event for event in later.push(frame) if isinstance(event, FramePosed)]
    assert found and later.status().state != MappingState.LOST
    np.testing.assert_allclose(
        found[0].world_from_camera[:3, :3], (se3.inverse(frames[0][1]) @ truth)[:3, :3], atol=np.radians(3.0)
    )


def test_a_recording_that_never_became_a_map_gets_its_poses():
    frames = recorded()[:7]
    never = replace(SMALL, init_inliers=10_000)
    pipeline, error, posed = mapped(frames, never, offline=True)
    assert posed == len(frames)
    assert error < 0.03
    assert pipeline.verdict.note['doubt'] == 'the camera could not be followed'
    live, _, posed = mapped(frames, never, offline=False)
    assert posed == 0 and live.verdict.note == {}


class Given:
    """In place of `SfmRun`: gives what a test wants, or fails."""

    def __init__(self, pairs, poses, failure=None):
        self.pairs, self.poses, self.failure = pairs, poses, failure
        self.notes, self.seconds, self.warnings = {'start': {'method': 'given'}}, {}, []

    def __call__(self, *_, **__):
        return self

    def solve(self, views, known):
        if self.failure is not None:
            raise self.failure
        self.known = known
        return Solution(views, self.pairs, self.poses, None, None, {})


@pytest.fixture(scope='module')
def followed():
    """A right map of a recording, its views, all pairs of them, and those of neighbours."""
    pipeline, _, posed = mapped(recorded()[:6], replace(SMALL, doubtful_share=0.0), offline=True)
    assert posed == 6
    views = pipeline._held.whole(pipeline._atlas, 100)
    seen = [sfm_view(view) for view in views]
    graph = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    pairs = [match_pair(pair, seen, pipeline._predictor, SfmConfig()) for pair in graph]
    pairs = [pair for pair in pairs if pair is not None]
    near = [pair for pair in pairs if pair.second == pair.first + 1]
    return pipeline, views, pairs, MatchedAgain(True, near, [view.stamp_ns for view in views])


def judged(monkeypatch, followed, poses, *, pairs=None, failure=None, share=None):
    pipeline, views, every, matched = followed
    given = Given(every if pairs is None else pairs, poses, failure)
    monkeypatch.setattr(anew, 'SfmRun', given)
    if share is None:  # a map in doubt
        monkeypatch.setattr(anew, 'doubt_of', lambda *_: 'a doubt')
    config = SMALL if share is None else replace(SMALL, doubtful_share=share)
    return look_again(views, pipeline._atlas, pipeline._log, matched, pipeline._predictor, config, quiet), given


def test_a_map_that_fewer_matches_agree_with_takes_no_place(monkeypatch, followed):
    pipeline, views, _, _ = followed
    tracked = tracked_poses(views, pipeline._atlas, pipeline._log)
    turned = {number: se3.exp(np.array([0.0, 0.0, 0.0, 0.0, 0.01 * number, 0.0])) @ pose
              for number, pose in tracked.items()}  # fmt: skip
    verdict, given = judged(monkeypatch, followed, turned)
    assert verdict.solution is None and not verdict.note['taken'] and verdict.note['method'] == 'tracked'
    assert verdict.note['agreeing_anew'] < verdict.note['agreeing_tracked']
    assert 'no other start gave a better one' in verdict.warnings[0]
    np.testing.assert_array_equal(given.known['tracked'][3], tracked[3])
    fewer, _ = judged(monkeypatch, followed, {number: tracked[number] for number in range(4)})
    assert fewer.solution is None


def test_a_path_that_folds_is_refused_though_more_matches_agree(monkeypatch, followed):
    pipeline, views, pairs, _ = followed
    tracked = tracked_poses(views, pipeline._atlas, pipeline._log)
    folded = {number: se3.exp(np.array([0.0, 0.0, 0.0, 0.0, 0.08 * number, 0.0])) @ pose
              for number, pose in tracked.items()}  # fmt: skip
    # Pairs of places that look alike: as many matches of far pairs as one likes agree with it.
    alike = [pair for pair in pairs if pair.second > pair.first + 1]
    exact = [
        replace(pair, pixels_first=a, pixels_second=b, agrees=np.ones(len(a), dtype=bool), confidence=np.ones(len(a)),
                identity_first=np.arange(len(a)), identity_second=np.arange(len(a)))
        for pair in alike for a, b in [_made_to_fit(pair, folded, views)]
    ]  # fmt: skip
    verdict, _ = judged(monkeypatch, followed, folded, pairs=exact)
    assert verdict.note['agreeing_anew'] > verdict.note['agreeing_tracked']
    assert verdict.solution is None


def _made_to_fit(pair, poses, views):
    """Matches (500, 2) of two views that agree with poses."""
    camera = views[pair.first].camera
    rng = np.random.default_rng(pair.first * 10 + pair.second)
    first = rng.uniform((20, 20), (camera.width - 20, camera.height - 20), (500, 2))
    points = np.column_stack([camera.unproject(first), np.ones(500)])
    relative = poses[pair.second] @ se3.inverse(poses[pair.first])
    return first, camera.project(se3.transform_points(relative, points))


def test_no_space_costs_the_comparison_and_not_the_map(monkeypatch, followed):
    verdict, _ = judged(monkeypatch, followed, {}, failure=OSError(errno.ENOSPC, 'No space left on device'))
    assert verdict.solution is None
    assert 'No space left' in verdict.note['failed'] and 'No space left' in verdict.warnings[0]


def test_a_good_map_is_not_compared(monkeypatch, followed):
    verdict, given = judged(monkeypatch, followed, {}, share=0.9)
    assert 'doubt' not in verdict.note and not hasattr(given, 'known')
    assert verdict.note['agreeing_share'] > 0.95
    off, _ = judged(monkeypatch, followed, {}, share=0.0)
    assert off.note == {}


@pytest.mark.parametrize(
    ('posed', 'views', 'share', 'words'),
    [
        (0, 5, None, 'could not be followed'),
        (18, 20, 0.99, '2 of 20 views have no pose'),
        (19, 20, 0.95, ''),
        (20, 20, 0.95, ''),
        (20, 20, 0.89, '89 % of the matches'),
        (2, 2, None, ''),
    ],
)
def test_what_makes_a_map_doubtful(posed, views, share, words):
    found = doubt_of(posed, views, share, 0.9)
    assert words in found and bool(found) == bool(words)


def test_views_without_a_pose_count_among_those_of_a_short_recording(followed):
    pipeline, views, _, _ = followed
    empty = Atlas(SMALL)
    held = HeldViews(3)
    for view in views[:3]:
        held.add(view)
        held.add(replace(view))  # tried again
    assert [view.stamp_ns for view in held.whole(empty, 100)] == [view.stamp_ns for view in views[:3]]
    held.add(views[1], keyframe=True)
    held.add(views[3])
    assert held.whole(empty, 100) is not None  # a keyframe is not counted
    atlas = pipeline._atlas
    assert held.whole(atlas, 100) is None  # keyframes whose pictures are not here
    assert held.whole(empty, 0) is not None
    for view in views:
        held.add(view, keyframe=True)
    assert len(held.whole(atlas, 100)) == atlas.keyframes
    assert held.whole(atlas, 2) is None
    four = [View(number, '', '', views[0].camera, views[0].features, views[0].colors, 0.0) for number in range(4)]
    for view in four:
        held.add(view)
    assert held.whole(atlas, 100) is None and held.nbytes == 0
