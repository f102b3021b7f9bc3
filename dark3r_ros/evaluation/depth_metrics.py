# SPDX-License-Identifier: Apache-2.0
"""Depth errors: AbsRel, RMSE and the share within a factor of 1.25, after median scaling.

Source: Eigen et al., Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, NeurIPS 2014.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dark3r_ros.errors import DataError

DELTA = 1.25


@dataclass(frozen=True)
class DepthScores:
    """Scores over the pixels where both depths are positive and finite; NaN where there is none.

    Attributes
    ----------
    abs_rel: mean of |estimate - truth| / truth. rmse: in the unit of the truth.
    delta: share of pixels with max(estimate / truth, truth / estimate) < 1.25.
    pixels: number of pixels compared. scale: factor applied to the estimate.

    """

    abs_rel: float
    rmse: float
    delta: float
    pixels: int
    scale: float


def score_depth(estimate: ArrayLike, truth: ArrayLike, scale: float | None = None) -> DepthScores:
    """Compare depths of equal shape; `scale` multiplies the estimate, None takes median(truth) / median(estimate)."""
    estimated, true = np.asarray(estimate, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if estimated.shape != true.shape:
        raise DataError(f'depths of {estimated.shape} and {true.shape} cannot be compared')
    valid = np.isfinite(estimated) & np.isfinite(true) & (estimated > 0) & (true > 0)
    if not valid.any():
        return DepthScores(math.nan, math.nan, math.nan, 0, math.nan)
    estimated, true = estimated[valid], true[valid]
    factor = float(np.median(true) / np.median(estimated)) if scale is None else scale
    estimated = estimated * factor
    return DepthScores(
        abs_rel=float(np.mean(np.abs(estimated - true) / true)),
        rmse=float(np.sqrt(np.mean((estimated - true) ** 2))),
        delta=float(np.mean(np.maximum(estimated / true, true / estimated) < DELTA)),
        pixels=len(true),
        scale=factor,
    )
