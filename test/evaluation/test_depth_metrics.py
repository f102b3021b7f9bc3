# SPDX-License-Identifier: Apache-2.0
"""Depth metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dark3r_ros.errors import DataError
from dark3r_ros.evaluation.depth_metrics import score_depth


def test_by_hand():
    scores = score_depth([[1.0, 2.0], [3.0, 8.0]], [[1.0, 2.5], [3.3, 4.0]], scale=1.0)
    assert scores.abs_rel == pytest.approx((0 + 0.5 / 2.5 + 0.3 / 3.3 + 4.0 / 4.0) / 4)
    assert scores.rmse == pytest.approx(np.sqrt((0.25 + 0.09 + 16) / 4))
    assert scores.delta == 0.5  # 2.5 / 2.0 = 1.25 is not below 1.25
    assert scores.pixels == 4


def test_median_scaling_makes_the_unit_irrelevant():
    truth = np.random.default_rng(0).uniform(1, 5, (20, 30))
    estimate = truth * np.random.default_rng(1).uniform(0.9, 1.1, truth.shape)
    first, second = score_depth(estimate, truth), score_depth(estimate * 12.5, truth)
    assert first.abs_rel == pytest.approx(second.abs_rel)
    assert second.scale == pytest.approx(first.scale / 12.5)
    assert 0.02 < first.abs_rel < 0.06


def test_invalid_pixels_do_not_count():
    truth = np.array([1.0, 0.0, np.nan, 2.0, 3.0, np.inf])
    estimate = np.array([1.0, 5.0, 5.0, -1.0, 3.0, 1.0])
    scores = score_depth(estimate, truth)
    assert scores.pixels == 2
    assert scores.abs_rel == 0.0
    assert np.isnan(score_depth(np.zeros(3), np.ones(3)).abs_rel)


def test_shapes_must_agree():
    with pytest.raises(DataError, match='cannot be compared'):
        score_depth(np.ones((2, 3)), np.ones((3, 2)))
