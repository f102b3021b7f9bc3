# SPDX-License-Identifier: Apache-2.0
"""Scenes that fields are compared on: estimated poses beside true ones, and the clean truth of every view."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dark3r_ros.cli.main import main
from dark3r_ros.errors import ReconstructionError
from dark3r_ros.evaluation import nerf_scenes, scenes
from dark3r_ros.evaluation.nerf_comparison import compare, variants_for
from dark3r_ros.evaluation.nerf_scenes import ComparisonConfig, make_scene
from dark3r_ros.nerf.config import profile
from dark3r_ros.nerf.load import collect_views
from dark3r_ros.simulation.sequence import simulate
from dark3r_ros.types import DepthMap, FrameRecord, Observations, PointCloud, Reconstruction

SMALL = replace(scenes.SIMULATED['room'], width=64, height=48, workers=1, seconds=6.0, depth=True)
SCALE = 0.5
TURN, SHIFT = Rotation.from_rotvec([0.2, -0.4, 0.1]).as_matrix(), np.array([3.0, 1.0, -2.0])
TINY = {
    'width': 32, 'levels': 2, 'finest': 16, 'hidden': 16, 'rays': 128, 'samples': 8, 'proposal_samples': 12,
    'proposal_grid': 12, 'holdout': 4, 'steps': 5,
}  # fmt: skip


@functools.cache
def truth():
    return simulate(SMALL)


class Reconstructing:
    """Stands for `dark3r sfm`: the true poses and depths in another frame and scale, one of them missing."""

    calls = 0
    missing = 3
    posed = 12

    def __init__(self, config, predictor, progress):
        self.depths, self.seconds = {}, {}

    def __call__(self, frames, expected=0):
        type(self).calls += 1
        simulation = truth()
        records = []
        for number, frame in enumerate(frames):
            pose = simulation.pose(number).copy()
            pose[:3, 3] = SCALE * pose[:3, 3] @ TURN.T + SHIFT
            pose[:3, :3] = TURN @ pose[:3, :3]
            known = number != self.missing and number < self.posed
            records.append(FrameRecord(frame.stamp_ns, pose if known else None, reason='' if known else 'dark'))
            depth = np.nan_to_num(simulation.depth(number), posinf=0.0).astype(np.float32) * np.float32(SCALE)
            if known:
                self.depths[number] = DepthMap(depth, (depth > 0).astype(np.float32))
        cloud = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
        nothing = Observations(
            np.zeros((0, 3)), np.zeros((0, 3), np.uint8), *np.zeros((2, 0), np.int64), np.zeros((0, 2))
        )
        return Reconstruction(simulation.camera, tuple(records), cloud, nothing)


class Remembered(scenes.SimulatedScene):
    """The small room, each level photographed once in all tests."""

    made: ClassVar[dict] = {}

    def photograph(self, snr_db, seed, preset):
        if snr_db not in self.made:
            frames = super().photograph(snr_db, seed, preset)
            self.made[snr_db] = scenes.KeptPhotographs(tuple(frames), frames.exposure)
        return self.made[snr_db]


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(nerf_scenes, 'open_scene', lambda name: Remembered(SMALL))
    monkeypatch.setattr(nerf_scenes, 'SfmRun', Reconstructing)
    monkeypatch.setattr(Reconstructing, 'calls', 0)
    return ComparisonConfig(poses='estimated', width=32, snr_db=10.0)


def test_true_poses_come_in_the_frame_of_the_estimated_ones(config, tmp_path):
    scene = make_scene(config, tmp_path)
    assert len(scene.posed.stamps_ns) == 11 and scene.facts['posed'] == 11 and scene.facts['frames'] == 12
    true = scene.with_true_poses()
    assert np.allclose(true.world_from_camera, scene.posed.world_from_camera, atol=1e-6)
    assert scene.facts['ate_relative'] < 1e-6
    # The same frames with a pose that is wrong: the true one mends it.
    spoiled = scene.posed.world_from_camera.copy()
    spoiled[4, :3, 3] += 0.2
    moved = replace(scene, posed=replace(scene.posed, world_from_camera=spoiled)).with_true_poses()
    assert np.allclose(moved.world_from_camera, true.world_from_camera)


def test_truth_has_the_unit_of_the_dark_frames_and_of_the_poses(config, tmp_path):
    scene = make_scene(config, tmp_path)
    views = collect_views(scene.posed, scene.frames, profile('preview', TINY), noise=scene.noise)
    clean = scene.truth_of(views)
    assert clean.shape == views.values.shape == (11, 3, 24, 32)
    residual = views.values * views.unit - clean
    assert abs(residual.mean()) < 0.01 * clean.mean()
    expected = (views.read_variance + views.shot_gain * clean.mean(axis=(0, 2, 3)) / views.unit) * views.unit**2
    assert np.allclose(residual.var(axis=(0, 2, 3)), expected, rtol=0.1)
    index = 5
    true = scene.depth[int(views.stamps_ns[index])]
    found, sure = scene.posed.depth(index, views.camera)
    assert np.median(np.abs(found[sure > 0] / true[sure > 0] - 1.0)) < 0.01


def test_a_reconstruction_is_made_once(config, tmp_path):
    make_scene(config, tmp_path)
    make_scene(config, tmp_path)
    assert Reconstructing.calls == 1
    make_scene(replace(config, seed=1), tmp_path)
    assert Reconstructing.calls == 2


def test_too_few_poses_are_one_line(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Reconstructing, 'posed', 2)
    with pytest.raises(ReconstructionError, match='2 views were posed'):
        make_scene(config, tmp_path)


def test_a_comparison_has_floors_and_variants(config, tmp_path):
    rows = compare(config, profile('preview', TINY), variants=('full', 'true poses'), folder=tmp_path)
    assert list(rows)[:1] == ['noisy input'] and list(rows)[-2:] == ['full', 'true poses']
    assert len(rows) == 5 and rows['full']['posed'] == 11
    assert rows['nearest view, denoised']['psnr_linear_db'] > rows['noisy input']['psnr_linear_db']
    # Equal poses, equal training.
    assert abs(rows['full']['psnr_linear_db'] - rows['true poses']['psnr_linear_db']) < 0.5
    assert (tmp_path / 'true_poses.png').is_file()
    assert 'true poses' not in variants_for(ComparisonConfig())


def test_the_command_refuses_what_makes_no_sense(tmp_path, capsys):
    assert main(['nerf', 'compare', '-o', str(tmp_path), '--variants', 'true poses']) == 2
    assert 'unknown variant' in capsys.readouterr().err


def test_frames_of_a_level_are_made_once(monkeypatch):
    plain = scenes.SimulatedScene(replace(SMALL, seconds=1.0))
    kept = scenes.KeptScene(plain)
    first = kept.photograph(-4.0, 0, 'starvis')
    assert kept.photograph(-4.0, 0, 'starvis') is first
    clean = kept.photograph(None, 0, 'starvis')
    assert clean is not first and len(first) == len(clean) == 2
    made = list(plain.photograph(-4.0, 0, 'starvis'))
    assert all(np.array_equal(a.frame.mosaic, b.frame.mosaic) for a, b in zip(first, made, strict=True))
    assert scenes.KeptScene(plain, most=1).photograph(-4.0, 0, 'starvis') is not None
