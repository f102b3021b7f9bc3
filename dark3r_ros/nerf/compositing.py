# SPDX-License-Identifier: Apache-2.0
"""Volume rendering along rays (Max, 1995), always in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def ray_weights(density: Tensor, edges: Tensor) -> Tensor:
    """Share (R, n) of each interval in what a ray sees: T_i (1 - exp(-density_i delta_i)).

    Parameters
    ----------
    density: (R, n), per unit of distance. edges: (R, n + 1) distances along the ray, increasing.

    """
    optical = density.float() * (edges[:, 1:] - edges[:, :-1])
    before = torch.cumsum(optical, dim=1) - optical
    return torch.exp(-before) * -torch.expm1(-optical)


def composite(weights: Tensor, values: Tensor) -> Tensor:
    """Sum values (R, n, C) with weights (R, n) to (R, C); what no interval stops is black."""
    return (weights[..., None] * values.float()).sum(dim=1)


def expected_distance(weights: Tensor, edges: Tensor) -> Tensor:
    """Mean distance (R,) at which a ray ends, over the part of it that ends."""
    middle = (edges[:, 1:] + edges[:, :-1]) / 2.0
    return (weights * middle).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)


def median_distance(weights: Tensor, edges: Tensor) -> Tensor:
    """Distance (R,) at which half of what a ray sees lies behind it."""
    cumulative = torch.cumsum(weights, dim=1)
    half = cumulative[:, -1:] / 2.0
    index = torch.searchsorted(cumulative, half).clamp(max=weights.shape[1] - 1)
    before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), torch.zeros_like(half))
    part = ((half - before) / weights.gather(1, index).clamp(min=1e-9)).clamp(0.0, 1.0)
    start, end = edges.gather(1, index), edges.gather(1, index + 1)
    return (start + part * (end - start))[:, 0]
