# SPDX-License-Identifier: Apache-2.0
"""Scale from odometry against exact truth: a driving robot whose visual poses are in units of their own."""

import math

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.metric import MetricConfig, MetricScale, ScaleEstimate, estimate_scale
from dark3r_ros.mapping.odometry_track import OdometryReplay, OdometryTrack
from dark3r_ros.mapping.robust import robust_line, shortest_half
from dark3r_ros.simulation.odometry import WheelOdometry
from dark3r_ros.types import Trajectory

TRUE = 3.7
RATE = 10.0
OPTICAL = se3.BODY_FROM_OPTICAL
MOUNTED = se3.make(se3.exp_so3([0.0, 0.4, 0.0]) @ OPTICAL[:3, :3], [0.3, 0.05, 0.5])


class Drive:
    """A robot on a winding way of varying speed; `units` are its visual poses, `wheels` its odometry."""

    def __init__(self, seed=0, frames=1200, noise=0.01, wheel_noise=0.01, slips=0.0, drift=0.0):
        rng = np.random.default_rng(seed)
        wheels = WheelOdometry(rng, scale_error=0.0, noise=wheel_noise, slip_rate=slips)
        time = np.arange(frames) / RATE
        heading, speed = 0.5 * np.sin(time / 7), 0.6 * (1 + 0.5 * np.sin(time / 3))
        x, y = np.cumsum(speed * np.cos(heading)) / RATE, np.cumsum(speed * np.sin(heading)) / RATE
        bases = [se3.make(se3.exp_so3([0, 0, a]), [p, q, 0.0]) for a, p, q in zip(heading, x, y, strict=True)]
        cameras = np.stack(bases) @ MOUNTED
        self.travelled = speed.sum() / RATE
        self.scales = TRUE * np.exp(drift * np.cumsum(speed) / RATE)
        steps = np.diff(cameras[:, :3, 3], axis=0, prepend=cameras[:1, :3, 3]) / self.scales[:, None]
        self.units = cameras.copy()
        self.units[:, :3, 3] = np.cumsum(steps, axis=0) + rng.normal(0, noise / TRUE, (frames, 3))
        self.units = se3.inverse(cameras[0]) @ self.units  # a world of its own
        self.stamps = (time * 1e9).astype(np.int64)
        self.wheels = np.stack(
            [wheels.read(int(s), base @ OPTICAL).odom_from_body for s, base in zip(self.stamps, bases, strict=True)]
        )

    def feed(self, metric, frames=slice(None), offset_s=0.0, silent=()):
        for stamp, pose, wheel in zip(self.stamps[frames], self.units[frames], self.wheels[frames], strict=True):
            if not (silent and silent[0] < stamp / 1e9 < silent[1]):
                metric.add_odometry(int(stamp + offset_s * 1e9), wheel)
            metric.add_pose(int(stamp), pose)
        return metric.estimate


def new(mounting=MOUNTED, **settings) -> MetricScale:
    return MetricScale(MetricConfig(**settings), mounting)


def test_exact_streams_give_the_exact_scale():
    found = Drive(noise=0.0, wheel_noise=0.0).feed(new())
    assert found.known and abs(found.scale / TRUE - 1) < 5e-4 and found.deviation < 5e-4 and found.drift == 0.0


@pytest.mark.parametrize('seed', range(3))
def test_the_error_is_what_the_deviation_says(seed):
    found = Drive(seed, noise=0.03).feed(new())
    assert found.known and 5e-4 < found.deviation < 0.01
    assert abs(math.log(found.scale / TRUE)) < 3.5 * found.deviation


@pytest.mark.parametrize('seed', range(3))
def test_slips_in_bursts_are_left_out(seed):
    drive = Drive(seed, slips=0.15)
    found = drive.feed(new())
    travelled = np.linalg.norm(np.diff(drive.wheels[:, :3, 3], axis=0), axis=1).sum()
    assert travelled / drive.travelled > 1.025  # all wheels together turned this much too far
    assert found.known and abs(found.scale / TRUE - 1) < 0.008 and found.rejected > 0.1


@pytest.mark.parametrize('offset', [-0.1, 0.1])
def test_clocks_that_differ_hardly_matter(offset):
    found = Drive().feed(new(), offset_s=offset)
    assert found.known and abs(found.scale / TRUE - 1) < 0.01


def test_a_camera_that_looks_elsewhere_than_stated_hardly_matters():
    found = Drive(noise=0.02).feed(new(OPTICAL))  # 23 degrees down and beside its place
    assert found.known and abs(found.scale / TRUE - 1) < 0.01


def test_dropouts_and_losses_leave_gaps_only():
    drive, metric = Drive(), new()
    drive.feed(metric, slice(0, 400), silent=(10.0, 30.0))
    metric.interrupt()  # vision was lost and is found again elsewhere
    drive.units[500:, :3, 3] += 25.0
    found = drive.feed(metric, slice(500, 1200))
    assert found.known and abs(found.scale / TRUE - 1) < 0.01 and found.rejected < 0.2


def test_drift_is_found_with_the_scale_of_now():
    drive = Drive(frames=2000, drift=3e-3)
    found = drive.feed(new())
    assert found.known and abs(found.scale / drive.scales[-1] - 1) < 0.02
    assert abs(found.drift / 3e-3 - 1) < 0.2


def test_little_motion_or_none_is_not_known_and_says_why():
    drive, metric = Drive(), new()
    assert not metric.estimate.known and 'no odometry' in str(metric.estimate)
    found = drive.feed(metric, slice(0, 40))
    assert not found.known and 'arbitrary' in str(found)
    standing = new()
    for number in range(100):
        standing.add_odometry(number * 10**8, np.eye(4))
        standing.add_pose(number * 10**8, drive.units[number])
    assert not standing.estimate.known and 'no motion' in standing.estimate.reason


def test_streams_that_have_nothing_in_common_are_not_known():
    rng, drive, metric = np.random.default_rng(0), Drive(), new()
    drive.units[:, :3, 3] = np.cumsum(rng.normal(0, 0.05, (len(drive.units), 3)), axis=0)
    assert not drive.feed(metric).known


def test_a_new_unit_starts_anew():
    drive, metric = Drive(), new()
    drive.feed(metric, slice(0, 600))
    metric.reset()
    assert not metric.estimate.known
    drive.units[600:, :3, 3] *= 0.5
    assert abs(drive.feed(metric, slice(600, 1200)).scale / (2 * TRUE) - 1) < 0.01


def test_odometry_that_starts_anew_is_not_taken_for_motion():
    drive, metric = Drive(), new()
    drive.wheels[600:] = se3.inverse(drive.wheels[600]) @ drive.wheels[600:]
    found = drive.feed(metric)
    assert found.known and abs(found.scale / TRUE - 1) < 0.01


def test_memory_is_bounded():
    drive, metric = Drive(noise=0.0), new(window=50)
    drive.feed(metric)
    for number in range(30000):  # odometry without vision
        metric.add_odometry(int(drive.stamps[-1]) + number * 10**7, drive.wheels[-1])
    assert len(metric._knots) == 51 and len(metric._track) <= 20000


def test_a_finished_trajectory_in_one_call():
    drive = Drive(frames=600)
    visual, wheels = Trajectory(drive.stamps, drive.units), Trajectory(drive.stamps, drive.wheels)
    found = estimate_scale(visual, wheels, MOUNTED)
    assert isinstance(found, ScaleEstimate) and abs(found.scale / TRUE - 1) < 0.01
    # Nothing stated: robot axes are found for the wheels, optical axes for another camera's trajectory.
    assert abs(estimate_scale(visual, wheels).scale / TRUE - 1) < 0.01
    other = drive.units.copy()
    other[:, :3, 3] *= 2.5
    assert abs(estimate_scale(visual, Trajectory(drive.stamps, other)).scale / 2.5 - 1) < 1e-3


def test_the_track_interpolates_and_refuses_gaps_and_the_future():
    track = OdometryTrack(300_000_000, 20.0)
    for second in (0, 0.2, 0.4, 2.0):
        track.add(int(second * 1e9), se3.make(np.eye(3), [second, 0, 0]))
    pose, _ = track.at(300_000_000)
    np.testing.assert_allclose(pose[:3, 3], [0.3, 0, 0], atol=1e-12)
    assert track.at(10**9) is None and track.at(3 * 10**9) is None and track.at(-1) is None
    track.add(int(1.9e9), np.eye(4))  # late: ignored
    assert track.newest_ns == 2 * 10**9


def test_a_track_of_fast_odometry_still_spans_a_minute():
    track = OdometryTrack(300_000_000, 20.0)
    for number in range(70_000):
        track.add(number * 10**6, se3.make(np.eye(3), [1e-3 * number, 0, 0]))
    assert len(track) <= 20000
    for second in (5, 37.0005, 69.99):
        pose, _ = track.at(int(second * 1e9))
        np.testing.assert_allclose(pose[:3, 3], [second, 0, 0], atol=1e-9)


def test_recorded_odometry_is_handed_on_as_frames_advance():
    stamps = 100 * np.arange(10)
    poses = np.stack([se3.make(np.eye(3), [stamp, 0, 0]) for stamp in stamps])
    taken = []
    replay = OdometryReplay(Trajectory(stamps, poses), lambda stamp, pose: taken.append((stamp, pose[0, 3])))
    for frame, newest in ((-5, 0), (10, 100), (20, 100), (100, 100), (101, 200), (730, 800), (2000, 900), (3000, 900)):
        replay.until(frame)
        assert taken[-1] == (newest, newest)
    assert [stamp for stamp, _ in taken] == stamps.tolist()


def test_the_robust_line_stands_forty_percent_of_wrong_values_on_one_side():
    rng = np.random.default_rng(1)
    x = np.linspace(-50.0, 0.0, 400)
    y = 1.0 + 0.002 * x + rng.normal(0, 0.01, 400)
    wrong = rng.random(400) < 0.4
    y[wrong] += rng.uniform(0.1, 0.6, wrong.sum())
    line = robust_line(x, y)
    assert abs(line.end - 1.0) < 4 * line.end_deviation < 0.03
    assert abs(line.slope - 0.002) < 4 * line.slope_deviation < 0.001
    assert line.agreeing < 260
    centre, width = shortest_half(np.array([0.0, 0.0, 0.0, 5.0, 9.0]))
    assert (centre, width) == (0.0, 0.0)


def test_stated_deviations_of_the_line_are_honest():
    rng = np.random.default_rng(2)
    x = np.linspace(-1.0, 0.0, 100)
    lines = [robust_line(x, rng.normal(0, 0.1, 100)) for _ in range(300)]
    for name in ('value', 'end', 'slope'):
        spread = np.std([getattr(line, name) for line in lines])
        stated = np.median([getattr(line, 'deviation' if name == 'value' else f'{name}_deviation') for line in lines])
        assert 0.85 < stated / spread < 1.6, name
