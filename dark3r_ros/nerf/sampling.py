# SPDX-License-Identifier: Apache-2.0
"""Where along a ray the field is looked at.

Positions are spaced evenly in s = t / (t + 1), linear near the camera and in inverse distance far away, then where a
coarse density says that something is (the proposal sampling of mip-NeRF 360, Barron et al., CVPR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

_PADDING = 0.01  # part of the histogram that is even, so that no place is ever out of reach


def spacing(t: Tensor) -> Tensor:
    """Distance t >= 0 to s in [0, 1)."""
    return t / (t + 1.0)


def distance(s: Tensor) -> Tensor:
    """Inverse of `spacing`."""
    return s / (1.0 - s)


def even_edges(
    rays: int, count: int, near: float, far: float, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Edges (rays, count + 1) in s from near to far; jittered within their intervals with a generator."""
    low, high = near / (near + 1.0), far / (far + 1.0)
    edges = torch.linspace(0.0, 1.0, count + 1, device=device).repeat(rays, 1)
    if generator is not None:
        shift = torch.rand(rays, count + 1, generator=generator, device=device) - 0.5
        shift[:, 0] = shift[:, -1] = 0.0
        edges = edges + shift / count
    return low + (high - low) * edges


def edges_from_weights(edges: Tensor, weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """New edges (R, count + 1) that are dense where the weights (R, n) of intervals with edges (R, n + 1) are large.

    Stratified inverse transform sampling with a generator, the quantile midpoints without. No gradient flows.
    """
    with torch.no_grad():
        padded = weights + _PADDING / weights.shape[1]
        cumulative = torch.cumsum(padded / padded.sum(dim=1, keepdim=True), dim=1)
        cumulative = torch.cat([torch.zeros_like(cumulative[:, :1]), cumulative], dim=1)
        rays, device = len(edges), edges.device
        base = torch.arange(count + 1, device=device, dtype=edges.dtype).repeat(rays, 1)
        if generator is None:
            shift = torch.full((rays, 1), 0.5, device=device)
        else:
            shift = torch.rand(rays, count + 1, generator=generator, device=device)
        u = ((base + shift) / (count + 1)).clamp(max=1.0 - 1e-6)
        above = torch.searchsorted(cumulative, u, right=True).clamp(1, edges.shape[1] - 1)
        below = above - 1
        left, right = cumulative.gather(1, below), cumulative.gather(1, above)
        part = ((u - left) / (right - left).clamp(min=1e-9)).clamp(0.0, 1.0)
        start = edges.gather(1, below)
        return start + part * (edges.gather(1, above) - start)
