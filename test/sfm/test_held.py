# SPDX-License-Identifier: Apache-2.0
"""Odometry holds the unit of a path: exact drifts, slips of wheels, wrong distances, silence."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from star_world import STEP_NS, StarPredictor, frames
from test_ordered import along_the_wall

from dark3r_ros.geometry import se3
from dark3r_ros.sfm import pipeline
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.held import drift, hold_unit
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.sfm.scale import odometry_at
from dark3r_ros.types import Trajectory

COUNT = 120


def winding(count: int = COUNT) -> np.ndarray:
    """Poses world_from_camera along a path that winds, steps of 0.2 m."""
    pose, poses = np.eye(4), []
    for number in range(count):
        poses.append(pose)
        pose = pose @ se3.exp([0.0, 0.0, 0.2, 0.002, 0.06 * np.sin(0.1 * number), 0.0])
    return np.stack(poses)


def stretched(truth: np.ndarray, scale: np.ndarray) -> dict[int, np.ndarray]:
    """Poses camera_from_world of the same path, each step (N - 1,) times a scale."""
    poses = truth.copy()
    steps = scale[:, None] * np.diff(truth[:, :3, 3], axis=0)
    poses[1:, :3, 3] = poses[0, :3, 3] + np.cumsum(steps, axis=0)
    return {number: se3.inverse(pose) for number, pose in enumerate(poses)}


def wheels(truth: np.ndarray, seed: int = 0, slips=(), scale: float = 1.03, noise: float = 0.02) -> Trajectory:
    """Odometry of a body 0.1 m beside the camera, twice as often; `slips` are steps that look 1.5 times as long."""
    rng = np.random.default_rng(seed)
    body_from_camera = se3.make(se3.exp_so3([0.0, 0.3, 0.0]), [0.1, 0.0, 0.0])
    bodies = truth @ se3.inverse(body_from_camera)
    pose, poses = se3.exp([5.0, 1.0, 0.0, 0.0, 0.0, 2.0]), []
    for number, (before, after) in enumerate(itertools.pairwise(bodies)):
        step = se3.log(se3.inverse(before) @ after)
        step[:3] *= scale * (1.0 + noise * rng.normal()) * (1.5 if number in slips else 1.0)
        poses += [pose, pose @ se3.exp(0.5 * step)]
        pose = pose @ se3.exp(step)
    stamps = STEP_NS // 2 * np.arange(2 * len(truth) - 1)
    return Trajectory(stamps, np.stack([*poses, pose]))


def views(count: int, second: int = 0) -> list[SimpleNamespace]:
    made = [SimpleNamespace(stamp_ns=STEP_NS * number, name=f'{number}.png') for number in range(count)]
    return made + [SimpleNamespace(stamp_ns=STEP_NS * n + 10**6, name=f'second_{n}.png') for n in range(second)]


def units(poses: dict[int, np.ndarray], truth: np.ndarray) -> np.ndarray:
    """Logarithms (N - 1,) of the units of the steps, against their mean."""
    centres = se3.inverse(np.stack([poses[number] for number in range(len(truth))]))[:, :3, 3]
    ratio = np.log(np.linalg.norm(np.diff(centres, axis=0), axis=1))
    ratio -= np.log(np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1))
    return ratio - ratio.mean()


STEPS = np.arange(COUNT - 1)
DRIFTS = {
    'steady': np.exp(-0.01 * STEPS),
    'slow': np.exp(-0.002 * STEPS),
    'bending': np.exp(-0.5 * (STEPS / COUNT) ** 3),
    'sudden': np.exp(-0.7 / (1.0 + np.exp(-(STEPS - 50) / 3.0))),
}


@pytest.mark.parametrize('name', DRIFTS)
def test_a_drift_is_taken_out_whatever_its_course(name):
    truth = winding()
    slips = {*range(20, 24), *range(70, 75), 100}
    held = hold_unit(stretched(truth, DRIFTS[name]), views(COUNT), wheels(truth, slips=slips))
    before = np.std(units(stretched(truth, DRIFTS[name]), truth))
    after = units(held.poses, truth)
    assert np.std(after) < 0.3 * before
    assert np.std(after) < 0.025
    assert np.abs(after).max() < 0.08
    assert held.slipped == pytest.approx(len(slips) / (COUNT - 1), abs=0.03)
    for number, pose in stretched(truth, DRIFTS[name]).items():
        np.testing.assert_allclose(held.poses[number][:3, :3], pose[:3, :3])


def test_nothing_moves_where_only_wheels_err():
    truth = winding()
    given = stretched(truth, np.full(COUNT - 1, 0.4))
    for seed in range(6):
        slips = {*range(10 + 15 * seed, 17 + 15 * seed)}
        held = hold_unit(given, views(COUNT), wheels(truth, seed, slips, noise=0.05))
        for number, pose in given.items():
            np.testing.assert_allclose(held.poses[number], pose, atol=1e-3)
        assert held.note['drift'] < 1.002


def test_what_odometry_does_not_know_is_bridged():
    truth = winding()
    odometry = wheels(truth)
    silent = (odometry.stamps_ns > 40 * STEP_NS) & (odometry.stamps_ns < 55 * STEP_NS)
    known = Trajectory(odometry.stamps_ns[~silent], odometry.world_from_camera[~silent])
    held = hold_unit(stretched(truth, DRIFTS['steady']), views(COUNT), known)
    assert held.steps < COUNT - 15
    assert np.std(units(held.poses, truth)) < 0.015
    few = Trajectory(odometry.stamps_ns[:30], odometry.world_from_camera[:30])
    assert hold_unit(stretched(truth, DRIFTS['steady']), views(COUNT), few) is None


def test_a_second_camera_goes_with_the_first():
    truth = winding()
    given = stretched(truth, DRIFTS['steady'])
    beside = se3.make(np.eye(3), [0.3, 0.0, 0.0])
    scale = np.append(DRIFTS['steady'], DRIFTS['steady'][-1])
    for number in range(COUNT):
        side = beside.copy()
        side[:3, 3] *= scale[number]
        given[COUNT + number] = se3.inverse(side) @ given[number]
    held = hold_unit(given, views(COUNT, COUNT), wheels(truth)).poses
    lengths = [np.linalg.norm((held[COUNT + n] @ se3.inverse(held[n]))[:3, 3]) for n in range(COUNT)]
    assert np.ptp(np.log(lengths)) < 0.08 < np.ptp(np.log(scale))


def test_a_drift_is_taken_only_on_clear_evidence():
    rng = np.random.default_rng(0)
    sigma = np.full(60, 0.03)
    for _ in range(10):
        level, _ = drift(rng.normal(0.0, 0.03, 60), sigma, np.zeros((60, 3)))
        assert np.ptp(level) < 1e-9
    level, _ = drift(rng.normal(0.0, 0.03, 60) + 0.004 * np.arange(60), sigma, np.zeros((60, 3)))
    assert np.ptp(level) == pytest.approx(0.004 * 59, rel=0.2)


def test_odometry_is_interpolated_and_held_for_a_moment():
    poses = np.stack([se3.exp([float(x), 0.0, 0.0, 0.0, 0.0, 0.1 * x]) for x in range(4)])
    odometry = Trajectory(np.array([2, 0, 1, 9]) * STEP_NS, poses[[2, 0, 1, 3]])
    found, known = odometry_at(odometry, np.array([STEP_NS // 2, 2 * STEP_NS + 1, 5 * STEP_NS, 9 * STEP_NS + 1]))
    assert known.tolist() == [True, True, False, True]
    np.testing.assert_allclose(found[0], se3.interpolate(poses[0], poses[1], 0.5))
    np.testing.assert_allclose(found[1], poses[2])
    np.testing.assert_allclose(found[3], poses[3])


def squeezed(truth: np.ndarray, rate: float) -> Trajectory:
    """Odometry that says that steps grow shorter by a rate."""
    poses = stretched(truth, np.exp(-rate * np.arange(len(truth) - 1)))
    stamps = (np.arange(len(truth)) + 1) * STEP_NS
    return Trajectory(stamps, se3.inverse(np.stack([poses[number] for number in range(len(truth))])))


class Watched(SfmRun):
    """Keeps what is to be held."""

    def _held(self, *given):
        self.given = given
        return super()._held(*given)


def test_a_reconstruction_follows_odometry_only_where_its_scale_is_doubtful(monkeypatch):
    truth = along_the_wall(21)
    odometry = squeezed(truth, 0.01)
    config = SfmConfig(network_width=160, rematch_rounds=0, mapper='ordered')
    run = Watched(config, StarPredictor(truth, 0.3), odometry=odometry)
    monkeypatch.setattr(pipeline, '_KNOWN_SCALE', 1.0)
    made = run(frames(21))
    assert 0.0 < run.notes['scale']['deviation'] < 0.05
    assert run.warnings == []
    assert 'held' not in run.notes
    poses = {number: se3.inverse(frame.world_from_camera) for number, frame in enumerate(made.frames)}
    assert np.abs(units(poses, truth)).max() < 0.02
    monkeypatch.setattr(pipeline, '_KNOWN_SCALE', 0.0)
    held = run._held(*run.given)
    assert run.notes['held']['taken']
    assert np.abs(units(held.poses, odometry.world_from_camera)).max() < 0.03
    assert len(held.structure.points) > 0.8 * len(run.given[1].structure.points)
