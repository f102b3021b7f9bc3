# SPDX-License-Identifier: Apache-2.0
"""Landmarks go where keyframes that stay see them: every point on its own, by damped Gauss-Newton.

That is what remains of a bundle adjustment without free poses, at a fraction of its cost.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.model.compiled import Compiled
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.progress import on_one_core
from dark3r_ros.sfm.rows import (
    Seen,
    Terms,
    differentiate,
    down_through,
    factored,
    huber,
    look,
    sums_over_points,
    terms_of,
    unexpected_distances,
    up_through,
)

Array = NDArray[np.float64]


def settled(problem: BundleProblem, iterations: int) -> Array:
    """Points (P, 3) of least robust reprojection error near their start, all poses held.

    A step of a point that costs is not taken.
    """
    if len(problem.point_index) == 0:
        return problem.points.copy()
    with torch.inference_mode(), on_one_core():
        return _settled(terms_of(problem)[0], iterations).t().contiguous().numpy()


def _gauss_newton(terms: Terms, iterations: int, damping: float = 1e-4) -> Tensor:
    """Points (3, P)."""
    points = terms.points
    seen = look(terms, terms.poses, points)
    cost = _costs(terms, seen, points)
    for _ in range(iterations):
        matrices, gradients = sums_over_points(terms, differentiate(terms, terms.poses, seen), points)
        factors = factored(matrices, damping)
        trial = points - up_through(factors, down_through(factors, gradients))
        trial_seen = look(terms, terms.poses, trial)
        trial_cost = _costs(terms, trial_seen, trial)
        better = trial_cost < cost
        points, cost = torch.where(better, trial, points), torch.where(better, trial_cost, cost)
        own = better.index_select(0, terms.point)
        seen = Seen(
            torch.where(own, trial_seen.local, seen.local),
            torch.where(own, trial_seen.front, seen.front),
            torch.where(own, trial_seen.residual, seen.residual),
            torch.where(own, trial_seen.length, seen.length),
        )
    return points


def _costs(terms: Terms, seen: Seen, points: Tensor) -> Tensor:
    """Cost (P,) of every point: Huber's, and that of an unexpected distance."""
    costs = torch.zeros_like(points[0])
    costs.index_add_(0, terms.point, huber(terms, seen))
    if terms.far.numel() > 0:
        costs.index_add_(0, terms.far, 0.5 * unexpected_distances(terms, points)[0].square())
    return costs


_settled = Compiled(_gauss_newton)
