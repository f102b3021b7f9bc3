# SPDX-License-Identifier: Apache-2.0
"""The online pipeline against exact truth, and against what a camera in the field does to it."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import synthetic_world
from synthetic_world import CAMERA, EPOCH_NS, RATE_NS, World, WorldPredictor, frame, index_of, stamp

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import FramePosed, FrameUnposed, KeyframeAdded, KeyframesMoved, StateChanged
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.types import MappingState

CONFIG = MappingConfig(binning=2, network_width=160, degraded_snr=-40.0)


class Drive:
    """A pipeline fed from the world; planes are half the mosaic, so the predictor's pixels are scaled to match."""

    def __init__(self, config=CONFIG, world=None, **predictor):
        self.world = world or World()
        self.predictor = HalfSize(self.world, lambda ns: self.world.pose(index_of(ns)), **predictor)
        self.pipeline = MappingPipeline(config, self.predictor)
        self.events = []

    def push(self, *frames):
        for item in frames:
            self.events += self.pipeline.push(item)
        return self

    def drive(self, first, last):
        return self.push(*(frame(index) for index in range(first, last)))

    def posed(self):
        return [event for event in self.events if isinstance(event, FramePosed)]

    def unposed(self):
        return [event for event in self.events if isinstance(event, FrameUnposed)]

    def states(self):
        return [event.new for event in self.events if isinstance(event, StateChanged)]

    def score(self):
        """Relative ATE and largest rotation error in degrees of the reconstruction after Sim(3)."""
        trajectory = self.pipeline.reconstruction().trajectory()
        truth = np.stack([self.world.pose(index_of(int(ns))) for ns in trajectory.stamps_ns])
        estimate = trajectory.world_from_camera
        scale, rotation, translation = umeyama(estimate[:, :3, 3], truth[:, :3, 3])
        error = np.linalg.norm(scale * estimate[:, :3, 3] @ rotation.T + translation - truth[:, :3, 3], axis=1)
        extent = np.linalg.norm(truth[-1, :3, 3] - truth[0, :3, 3])
        turned = [
            se3.rotation_angle((rotation @ e[:3, :3]).T @ t[:3, :3]) for e, t in zip(estimate, truth, strict=True)
        ]
        return float(np.sqrt((error**2).mean()) / extent), float(np.degrees(max(turned)))


class HalfSize(WorldPredictor):
    def encode(self, planes):
        seen = super().encode(planes)
        seen.pixels = (seen.pixels + 0.5) / 2 - 0.5
        return seen


@pytest.mark.parametrize('indexed', [True, False])
def test_drive_is_mapped_with_every_frame_posed(indexed):
    drive = Drive(indexed=indexed).drive(0, 120)
    posed = [event.stamp_ns for event in drive.posed()]
    assert sorted(posed) == [stamp(index) for index in range(120)]
    ate, turn = drive.score()
    assert ate < 0.01
    assert turn < 1.0
    status = drive.pipeline.status()
    assert status.state == MappingState.TRACKING
    assert 0.0 < status.reprojection < 1.0
    assert 0.3 < status.found_again <= 1.0
    drive.pipeline.flush()
    refined, _ = drive.score()
    assert refined < 0.006


def test_a_distorted_lens_is_undone(monkeypatch):
    lens = Camera(320, 240, 250.0, 250.0, 159.5, 119.5, 'plumb_bob', (-0.25, 0.08, 0.001, -0.001, 0.0))
    monkeypatch.setattr(synthetic_world, 'CAMERA', lens)
    drive = Drive()
    drive.push(*(frame(index, camera=lens) for index in range(60)))
    drive.pipeline.flush()
    assert len(drive.posed()) >= 60
    assert drive.score()[0] < 0.01
    seen = drive.pipeline.reconstruction().observations
    assert seen.pixels.min() > -1.5  # noise may push a keypoint over the edge
    assert seen.pixels[:, 0].max() < 320.5


def test_a_frame_is_encoded_once():
    drive = Drive().drive(0, 60)
    assert drive.predictor.encoded == 60


def test_events_of_posed_frames_are_in_time_order_and_consistent():
    drive = Drive().drive(0, 50)
    posed = drive.posed()
    assert all(earlier.stamp_ns < later.stamp_ns for earlier, later in pairwise(posed))
    drive.events += drive.pipeline.flush()  # the newest keyframe was still in work
    keyframes = [event for event in drive.events if isinstance(event, KeyframeAdded)]
    assert {event.stamp_ns for event in keyframes} == {event.stamp_ns for event in posed if event.keyframe}
    assert 3 < len(keyframes) < 25
    assert all(len(event.cloud) == event.landmarks for event in keyframes)
    assert any(isinstance(event, KeyframesMoved) for event in drive.events)


def test_cloud_lies_on_the_world():
    drive = Drive().drive(0, 80)
    drive.pipeline.flush()
    reconstruction = drive.pipeline.reconstruction()
    trajectory = reconstruction.trajectory()
    truth = np.stack([drive.world.pose(index_of(int(ns)))[:3, 3] for ns in trajectory.stamps_ns])
    scale, rotation, translation = umeyama(trajectory.world_from_camera[:, :3, 3], truth)
    points = scale * reconstruction.observations.points @ rotation.T + translation
    radius = np.hypot(points[:, 0], points[:, 1])
    assert len(points) > 300
    assert np.mean((radius > 1.35) & (radius < 2.35)) > 0.95


def test_observations_reproject_onto_their_pixels():
    drive = Drive().drive(0, 60)
    drive.pipeline.flush()
    reconstruction = drive.pipeline.reconstruction()
    seen = reconstruction.observations
    poses = np.stack([record.world_from_camera for record in reconstruction.frames])
    cameras = se3.inverse(poses)[seen.frame_index]
    points = seen.points[seen.point_index]
    local = np.einsum('kij,kj->ki', cameras[:, :3, :3], points) + cameras[:, :3, 3]
    error = np.linalg.norm(reconstruction.camera.project(local) - seen.pixels, axis=1)
    assert np.median(error) < 0.8
    assert error.max() < 2 * CONFIG.max_error + 0.1


def test_the_same_frames_give_the_same_bits():
    first, second = Drive(wrong=0.3).drive(0, 60), Drive(wrong=0.3).drive(0, 60)
    for drive in (first, second):
        drive.pipeline.flush()
    a, b = (drive.pipeline.reconstruction().trajectory() for drive in (first, second))
    np.testing.assert_array_equal(a.stamps_ns, b.stamps_ns)
    np.testing.assert_array_equal(a.world_from_camera, b.world_from_camera)


def test_parts_of_push_give_the_same_bits():
    whole, parts = Drive(wrong=0.3).drive(0, 60), Drive(wrong=0.3)
    ahead = parts.pipeline.prepare(frame(0))
    for index in range(1, 61):
        prepared, ahead = ahead, parts.pipeline.prepare(frame(index))  # one frame ahead of the map
        parts.events += parts.pipeline.pose(prepared)
        parts.events += parts.pipeline.work()
    for drive in (whole, parts):
        drive.pipeline.flush()
    a, b = (drive.pipeline.reconstruction().trajectory() for drive in (whole, parts))
    np.testing.assert_array_equal(a.world_from_camera, b.world_from_camera)


def test_a_frame_prepared_before_a_reset_is_not_used_after_it():
    drive = Drive().drive(0, 40)
    prepared = drive.pipeline.prepare(frame(40))
    drive.pipeline.reset()
    events = drive.pipeline.pose(prepared)
    assert 'reset' in events[0].reason
    drive.events.clear()
    drive.drive(0, 30)
    assert len(drive.posed()) == 30


def test_a_jump_to_a_place_that_looks_right_is_not_believed():
    drive = Drive().drive(0, 80)
    drive.events.clear()
    # The picture is that of a place passed six seconds ago.
    drive.predictor.pose_of_stamp = lambda ns: drive.world.pose(index_of(ns) - 60)
    drive.drive(80, 82)
    assert all('jump' in event.reason for event in drive.unposed())
    assert len(drive.unposed()) == 2
    drive.drive(82, 100)  # a camera that stays there was carried
    assert MappingState.RELOCALISING in drive.states()
    assert drive.states()[-1] == MappingState.TRACKING


def test_covariance_predicts_the_error_between_keyframes():
    drive = Drive(noise_px=0.5, wrong=0.0).drive(0, 100)
    plain = [event for event in drive.posed() if not event.keyframe][10:]
    assert plain
    for event in plain:
        assert np.linalg.eigvalsh(event.covariance).min() > -1e-12
        assert 1e-5 < np.sqrt(np.trace(event.covariance[:3, :3])) < 0.1


def test_lost_in_the_dark_and_found_again():
    drive = Drive(blind=range(60, 75)).drive(0, 60)
    before = drive.score()[0]
    drive.events.clear()
    drive.drive(60, 75)
    assert not drive.posed()
    assert MappingState.LOST in drive.states()
    # The rover turns its light on and comes back to where it was.
    drive.predictor.pose_of_stamp = lambda ns: drive.world.pose(59 - (index_of(ns) - 75))
    drive.drive(75, 95)
    found = [index_of(event.stamp_ns) for event in drive.posed()]
    assert found
    assert found[0] - 75 < 8
    assert drive.states()[-2:] == [MappingState.RELOCALISING, MappingState.TRACKING]
    last = drive.posed()[-1].world_from_camera
    same_place = next(
        record.world_from_camera
        for record in drive.pipeline.reconstruction().frames
        if index_of(record.stamp_ns) == 59 - 19
    )
    assert np.linalg.norm(last[:3, 3] - same_place[:3, 3]) < 0.05 + 2 * before


def test_frames_before_the_map_are_posed_afterwards():
    world = World(step=0.03)
    drive = Drive(world=world).drive(0, 40)
    first_posed = next(number for number, event in enumerate(drive.events) if isinstance(event, FramePosed))
    waiting = [event for event in drive.events[:first_posed] if isinstance(event, FrameUnposed)]
    assert len(waiting) >= 2
    assert {event.stamp_ns for event in waiting} <= {event.stamp_ns for event in drive.posed()}


def test_standing_still_makes_no_map_and_no_keyframes():
    world = World()
    drive = Drive(world=world)
    drive.predictor.pose_of_stamp = lambda ns: world.pose(0)
    drive.drive(0, 30)
    assert drive.pipeline.status().keyframes == 0
    assert drive.pipeline.status().state == MappingState.INITIALISING
    assert 'parallax' in drive.unposed()[-1].reason


def test_pure_rotation_makes_no_map():
    world = World()
    drive = Drive(world=world)
    drive.predictor.pose_of_stamp = lambda ns: se3.make(se3.exp_so3([0, 0.01 * index_of(ns), 0]), world.pose(0)[:3, 3])
    drive.drive(0, 30)
    assert drive.pipeline.status().keyframes == 0


def test_wrong_matches_alone_make_no_map():
    drive = Drive(wrong=1.0, noise_px=20.0).drive(0, 15)
    assert drive.pipeline.status().keyframes == 0
    drive.pipeline.flush()
    assert len(drive.pipeline.reconstruction().trajectory()) == 0


def test_without_calibration_it_waits_and_says_so():
    drive = Drive().push(frame(0, camera=None), frame(1, camera=None))
    assert drive.pipeline.status().state == MappingState.WAITING_FOR_CALIBRATION
    assert 'camera_info' in drive.unposed()[0].reason
    with pytest.raises(ReconstructionError, match='calibration'):
        drive.pipeline.reconstruction()
    drive.drive(2, 30)
    assert drive.posed()


def test_stamps_that_repeat_or_go_back_are_ignored_and_nothing_is_lost():
    drive = Drive().drive(0, 40)
    keyframes = drive.pipeline.status().keyframes
    drive.events.clear()
    drive.push(frame(39), frame(30), frame(40, stamp_ns=EPOCH_NS - 50 * RATE_NS))
    reasons = [event.reason for event in drive.unposed()]
    assert 'repeats' in reasons[0]
    assert 'went back by 0.9' in reasons[1]
    assert 'Reset' in reasons[2]
    assert drive.pipeline.status().keyframes == keyframes
    drive.drive(40, 50)
    assert len(drive.posed()) == 10


@pytest.mark.parametrize(
    ('value', 'word'),
    [(64, 'are black'), (4095, 'are saturated'), (1023, 'the same value 1023')],
    ids=['all black', 'all saturated', 'all the same'],
)
def test_a_picture_without_content_is_named_and_survived(value, word):
    drive = Drive().drive(0, 40)
    drive.events.clear()
    mosaic = np.full((240, 320), value)
    drive.push(*(frame(index, mosaic=mosaic) for index in range(40, 46)))
    assert all(word in event.reason for event in drive.unposed())
    assert len(drive.unposed()) == 6
    assert drive.pipeline.status().state == MappingState.LOST
    assert math.isnan(drive.pipeline.status().snr_db)
    assert math.isnan(drive.pipeline.status().reprojection)
    assert math.isnan(drive.pipeline.status().found_again)
    assert all(math.isnan(record.snr_db) for record in drive.pipeline.reconstruction().frames[40:])
    drive.drive(46, 52)
    assert drive.posed()


def test_size_that_contradicts_the_calibration_is_refused_with_one_line():
    drive = Drive().drive(0, 30)
    wrong = frame(30, mosaic=np.full((120, 160), 500))
    drive.events.clear()
    drive.push(wrong)
    assert '160x120' in drive.unposed()[0].reason
    assert '\n' not in drive.unposed()[0].reason
    drive.drive(31, 40)
    assert len(drive.posed()) == 9


def test_resolution_may_change_when_the_calibration_changes_with_it():
    drive = Drive().drive(0, 40)
    half = CAMERA.binned(2)
    smaller = WorldPredictor.encode

    def encode(planes):
        seen = smaller(drive.predictor, planes)
        seen.pixels = (seen.pixels + 0.5) / 4 - 0.5
        return seen

    drive.predictor.encode = encode
    drive.events.clear()
    drive.push(*(frame(index, camera=half) for index in range(40, 60)))
    assert len(drive.posed()) == 20
    assert drive.score()[0] < 0.015


def test_reset_forgets_everything():
    drive = Drive().drive(0, 40)
    drive.pipeline.reset()
    status = drive.pipeline.status()
    assert (status.keyframes, status.landmarks, status.frames) == (0, 0, 0)
    drive.events.clear()
    drive.drive(0, 30)  # older stamps are welcome again
    assert len(drive.posed()) == 30


def test_a_weak_young_map_is_given_up_and_started_again():
    world = World()
    # The camera jumps to a far place right after the first keyframes; nothing there is on the first map.
    drive = Drive(world=world)
    drive.predictor.pose_of_stamp = lambda ns: world.pose(index_of(ns) if index_of(ns) < 4 else 200 + index_of(ns))
    drive.drive(0, 60)
    posed = drive.pipeline.reconstruction().trajectory()
    assert len(posed) > 45
    assert drive.pipeline.status().state == MappingState.TRACKING


def test_a_matcher_that_fails_costs_the_frame_and_nothing_else():
    drive = Drive().drive(0, 40)
    working = drive.predictor.match

    def broken(pairs):
        raise DataError('descriptors are not finite')

    drive.predictor.match = broken
    drive.events.clear()
    drive.drive(40, 42)
    assert [event.reason for event in drive.unposed()] == ['descriptors are not finite'] * 2
    drive.predictor.match = working
    drive.drive(42, 50)
    assert len(drive.posed()) == 8


def test_empty_input_is_an_error_with_one_line():
    pipeline = Drive().pipeline
    assert pipeline.flush() == []
    with pytest.raises(ReconstructionError):
        pipeline.reconstruction()


def test_memory_stays_bounded_when_old_keyframes_are_forgotten():
    world = World(length=160.0, density=15)
    config = replace(CONFIG, max_archived=30, relocalise_keyframes=8, max_cloud_points=1500, window=6, window_fixed=3)
    config = replace(config, keyframe_overlap=0.97, keyframe_flow=0.02, step_seconds=0.0)
    drive = Drive(config=config, world=world)
    sizes = []
    for start in range(0, 1200, 100):
        drive.drive(start, start + 100)
        drive.events.clear()
        sizes.append(drive.pipeline.status().map_bytes - drive.pipeline._log.nbytes)
    keyframes = drive.pipeline.status().keyframes
    assert keyframes > 150
    # Beside the log of poses only keyframes without landmarks grow, some hundred bytes each; the others go in lots.
    assert max(sizes[8:]) - max(sizes[:5]) < 500 * keyframes
    reconstruction = drive.pipeline.reconstruction()
    assert len(reconstruction.trajectory()) == 1200
    assert len(reconstruction.cloud) > 500
