# SPDX-License-Identifier: Apache-2.0
"""Depths of a room that several views agree on, against its exact depths."""

import dataclasses

import numpy as np
import pytest

from dark3r_ros.nerf import agreement
from dark3r_ros.nerf.agreement import agreed_depths
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.trainer import Trainer


@pytest.fixture
def spoiled(views):
    """The views of the room with noise, outliers and holes in their depths."""
    rng = np.random.default_rng(3)
    depth = views.depth * (1.0 + 0.05 * rng.standard_normal(views.depth.shape))
    wrong = rng.random(depth.shape) < 0.1
    depth = np.where(wrong, depth * rng.uniform(0.4, 1.8, depth.shape), depth).astype(np.float32)
    depth[rng.random(depth.shape) < 0.3] = 0.0
    return dataclasses.replace(views, depth=depth, confidence=(depth > 0).astype(np.float32))


def errors(depth, confidence, truth):
    """Share of places with a depth, median relative error, confidence-weighted share of those off by 15 %."""
    known = (depth > 0) & (truth > 0)
    error = np.abs(depth[known] / truth[known] - 1.0)
    trust = confidence[known]
    return known.mean(), float(np.median(error)), float((trust * (error > 0.15)).sum() / trust.sum())


def test_views_agree_on_better_depths(spoiled, room):
    before = errors(spoiled.depth, spoiled.confidence, room.depth)
    after = errors(*agreed_depths(spoiled), room.depth)
    assert before[0] < 0.72 and before[1] > 0.03 and before[2] > 0.06
    assert after[0] > 0.95 and after[1] < 0.6 * before[1] and after[2] < 0.5 * before[2]


def test_exact_depths_stay_what_they_are(views, room):
    depth, confidence = agreed_depths(views)
    known = room.depth > 0
    # Places of 2 to 3 degrees: a depth carried over comes from up to half of one beside.
    assert np.median(np.abs(depth[known] / room.depth[known] - 1.0)) < 0.01
    assert np.median(confidence[known]) > 0.7


def test_held_out_views_do_not_vote(spoiled):
    lying = spoiled.depth.copy()
    lying[spoiled.held_out] *= 0.5
    depth, confidence = agreed_depths(dataclasses.replace(spoiled, depth=lying))
    expected = agreed_depths(spoiled)
    training = ~spoiled.held_out
    assert np.array_equal(depth[training], expected[0][training])
    assert np.array_equal(confidence[training], expected[1][training])


def test_a_view_that_nobody_shares_keeps_its_own(views):
    alone = dataclasses.replace(views, world_from_camera=views.world_from_camera.copy())
    alone.world_from_camera[4, :3, 3] += 1000.0
    sure = np.full_like(views.confidence, 0.6) * (views.depth > 0)
    depth, confidence = agreed_depths(dataclasses.replace(alone, confidence=sure))
    assert np.allclose(depth[4], views.depth[4], rtol=1e-5) and np.allclose(confidence[4], sure[4])


def test_single_points_are_left_alone(views):
    sparse = np.zeros_like(views.depth)
    sparse[:, 3, 5] = 2.0
    given = dataclasses.replace(views, depth=sparse, confidence=(sparse > 0).astype(np.float32))
    depth, confidence = agreed_depths(given)
    assert np.array_equal(depth, sparse) and np.array_equal(confidence, given.confidence)


def test_no_depth_in_a_view_is_no_error(spoiled):
    depth = spoiled.depth.copy()
    depth[2] = 0.0
    given = dataclasses.replace(spoiled, depth=depth, confidence=(depth > 0).astype(np.float32))
    found, confidence = agreed_depths(given)
    assert np.isfinite(found).all() and np.isfinite(confidence).all() and (found >= 0).all()
    # Its partners are not known without a depth of its own.
    assert not found[2].any()


def test_large_depths_are_thinned(views, monkeypatch):
    monkeypatch.setattr(agreement, '_WIDEST', 20)
    depth, confidence = agreed_depths(views)
    assert depth.shape == confidence.shape == (len(views), 12, 16)
    known = (depth > 0) & (views.depth[:, 1::2, 1::2] > 0)
    error = np.abs(depth[known] / views.depth[:, 1::2, 1::2][known] - 1.0)
    assert np.median(error) < 0.02
    small = NerfConfig(width=32, rays=16, steps=1, levels=1, coarsest=4, finest=4, proposal_grid=8)
    assert Trainer(views, small).data.depth.shape == (len(views), 24 * 32)
    trainer = Trainer(views, dataclasses.replace(small, depth_vote=True))
    assert trainer.data.depth_site.max() == 12 * 16 - 1 and len(trainer.data.depth_site) == 24 * 32
    trainer.run()
