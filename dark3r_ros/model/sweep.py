# SPDX-License-Identifier: Apache-2.0
"""Evidence of a plane sweep: what descriptors of `mini` in other views say of depths along the rays of one view.

Each ray of a cell is tried at a row of inverse depths. How likely a partner view holds the cell at each place is its
softmax over all cells of the partner, so that what looks alike everywhere says little anywhere. The logarithms are
averaged over the partners that see the place: noise that hides a cell from one of them does not hide it from all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.model.mini import COARSE, FINE

# Pixels of a place of the fine sweep: every second fine descriptor.
PLACE = 2 * FINE
_FLOOR = 1e-3  # no partner can veto a depth: an occluded or misread place costs no more than the logarithm of this
_UNSEEN = -5.0  # evidence where no partner sees a place: less than any that was looked for and found

# Pixels (M, 2) of a view and inverse depths (1 or M, D) to pixels (K, M, D, 2) of its partners; far outside where they
# lie behind one.
Projector = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class SweepView:
    """What a sweep looks at: coarse (C, h, w) and fine (F, 4h, 4w) descriptors of unit length."""

    coarse: Tensor
    fine: Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """Mean logarithm of the chance (D, h, w) of depths, and the share (D, h, w) of partners that see the place."""

    mean: Tensor
    seen: Tensor


def cell_pixels(height: int, width: int, size: int, first: float, device: torch.device) -> Tensor:
    """Pixels (height * width, 2) of a grid of `size` pixels that starts at `first`."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return (torch.stack([x, y], dim=-1).reshape(-1, 2).float() * size + first).to(device)


def coarse_evidence(
    view: SweepView, partners: Sequence[SweepView], project: Projector, inverse: Tensor, factor: float
) -> Evidence:
    """Evidence for inverse depths (D,) of every cell; `factor` is that of coarse similarities before a softmax."""
    height, width = view.coarse.shape[1:]
    places = project(cell_pixels(height, width, COARSE, (COARSE - 1) / 2, view.coarse.device), inverse[None])
    own = view.coarse.flatten(1).T
    found = []
    for partner, at in zip(partners, places, strict=True):
        rows, columns = partner.coarse.shape[1:]
        chance = functional.softmax(factor * (own @ partner.coarse.flatten(1)), dim=1).reshape(-1, 1, rows, columns)
        grid, inside = _grid(at, columns * COARSE, rows * COARSE)
        sampled = functional.grid_sample(chance, grid[:, :, None], padding_mode='border', align_corners=False)
        found.append(((sampled[:, 0, :, 0] + _FLOOR).log(), inside))
    return _mean(found, height, width, _UNSEEN)


def fine_evidence(
    view: SweepView, partners: Sequence[SweepView], project: Projector, inverse: Tensor, factor: float
) -> Evidence:
    """Evidence for inverse depths (S, 2h, 2w), by fine descriptors, each depth beside the mean of its row."""
    described = view.fine[:, 1::2, 1::2]
    height, width = described.shape[1:]
    pixels = cell_pixels(height, width, PLACE, FINE + (FINE - 1) / 2, view.fine.device)
    places = project(pixels, inverse.flatten(1).T)
    found = []
    for partner, at in zip(partners, places, strict=True):
        rows, columns = partner.fine.shape[1:]
        grid, inside = _grid(at, columns * FINE, rows * FINE)
        sampled = functional.grid_sample(partner.fine[None], grid[None], padding_mode='border', align_corners=False)[0]
        logits = factor * (described.flatten(1)[:, :, None] * sampled).sum(0)
        found.append((logits - logits.mean(1, keepdim=True), inside))
    return _mean(found, height, width, 0.0)


def _grid(pixels: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Coordinates for `grid_sample` of pixels (..., 2) of an image, and which lie inside it."""
    extent = torch.tensor([width, height], dtype=pixels.dtype, device=pixels.device)
    grid = (pixels + 0.5) * (2.0 / extent) - 1.0
    return grid.clamp(-3.0, 3.0), (grid.abs() < 1).all(-1)


def _mean(found: Sequence[tuple[Tensor, Tensor]], height: int, width: int, unseen: float) -> Evidence:
    total = torch.zeros_like(found[0][0])
    seen = torch.zeros_like(total)
    for values, inside in found:
        total += torch.where(inside, values, torch.zeros_like(values))
        seen += inside
    mean = torch.where(seen > 0, total / seen.clamp(min=1.0), torch.full_like(total, unseen))
    return Evidence(mean.T.reshape(-1, height, width), (seen / len(found)).T.reshape(-1, height, width))
