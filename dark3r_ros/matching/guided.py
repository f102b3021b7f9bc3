# SPDX-License-Identifier: Apache-2.0
"""Matches of `mini` where geometry already says about where to look.

With poses known, a place of one view lies on a known curve in another, and near a known point once its depth is known.
Looking only there leaves out most of what noise could be mistaken for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor, best_in_window
from dark3r_ros.model.mini import COARSE, FINE

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Queries:
    """Places of one view to be looked for: pixels (M, 2) and fine descriptors (M, F)."""

    pixels: Array
    fine: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class Near:
    """What was found: pixels (M, 2), chance of the place in its window (M,), error of the way back (M,) in pixels."""

    pixels: Array
    chance: Array
    return_error: Array


def anchor_pixels(features: MiniFeatures) -> Array:
    """Pixels (N, 2) of the fixed keypoints of a view; the row is the anchor's number."""
    return _pixels(features.keypoints, features)


def grid_queries(features: MiniFeatures, step: int) -> tuple[Queries, tuple[int, int]]:
    """Every `step`-th fine pixel of a view, and the rows and columns of that grid."""
    rows = torch.arange(step // 2, features.shape[0], step)
    columns = torch.arange(step // 2, features.shape[1], step)
    index = (rows[:, None] * features.shape[1] + columns).reshape(-1).to(features.fine.device)
    return Queries(_pixels(index, features), features.fine[index].float()), (len(rows), len(columns))


def _pixels(index: Tensor, features: MiniFeatures) -> Array:
    place = torch.stack([index % features.shape[1], index // features.shape[1]], dim=1)
    return (place.double() * FINE + (FINE - 1) / 2).cpu().numpy()


def _grid(pixels: Tensor, maps: Tensor) -> Tensor:
    """Coordinates of `grid_sample` (without aligned corners) of pixels (..., 2) on coarse maps (..., rows, columns)."""
    extent = torch.tensor([maps.shape[-1], maps.shape[-2]], dtype=pixels.dtype, device=pixels.device) * COARSE
    return (pixels + 0.5) * (2.0 / extent) - 1.0


class GuidedPair:
    """Two views, for searches of places of the first in the second."""

    def __init__(self, predictor: MiniPredictor, a: MiniFeatures, b: MiniFeatures) -> None:
        self._a, self._b = a, b
        self._coarse_a, self._coarse_b = predictor.coarse_maps(a, b)
        self._coarse_factor, self._fine_factor = predictor.coarse_factor, predictor.fine_factor
        self._device = predictor.device

    def coarse_chances(self, pixels: Array) -> Tensor:
        """Chance (M, rows, columns) that pixels (M, 2) of a lie in a cell of b, as coarse descriptors judge it."""
        with torch.inference_mode():
            maps = self._similarity(torch.from_numpy(pixels), self._coarse_a, self._coarse_b)
            return functional.softmax(self._coarse_factor * maps.flatten(1), dim=1).reshape(maps.shape)

    def evidence(self, chances: Tensor, pixels: Array, floor: float = 1e-3) -> Array:
        """Logarithm (M, D) of the chance at pixels (M, D, 2) of each query; outside the view that of `floor`.

        The floor is what an occluded or misread place may cost: no single view can veto a depth.
        """
        with torch.inference_mode():
            grid = _grid(torch.from_numpy(pixels).to(chances), chances)
            sampled = functional.grid_sample(chances[:, None], grid[:, :, None], align_corners=False)[:, 0, :, 0]
            return (sampled + floor).log().double().cpu().numpy()

    def fine_evidence(self, fine: Tensor, pixels: Array) -> Array:
        """Logarithm (M, S) of how much better than on average fine descriptors (M, F) of a fit pixels (M, S, 2) of b.

        Outside the view it is zero: nothing is known.
        """
        height, width = self._b.shape
        with torch.inference_mode():
            maps = self._b.fine.float().T.reshape(1, -1, height, width)
            places = torch.from_numpy(pixels).to(maps)
            extent = torch.tensor([width, height], dtype=maps.dtype, device=maps.device) * FINE
            grid = (places + 0.5) * (2.0 / extent) - 1.0
            found = functional.grid_sample(maps, grid[None], align_corners=False)[0]
            logits = self._fine_factor * torch.einsum('mf,fms->ms', fine, found)
            logits = logits - logits.logsumexp(1, keepdim=True) + float(np.log(pixels.shape[1]))
            inside = (grid.abs() < 1).all(-1)
            return torch.where(inside, logits, 0.0).double().cpu().numpy()

    def search_near(self, pixels: Array, predicted: Array, radius: float) -> Near:
        """Find pixels (M, 2) of a within `radius` pixels (a square window) of predicted pixels (M, 2) of b.

        Only fine descriptors count: the coarse ones vary too slowly to place anything within a window and pull towards
        its middle. The way back starts at the place that was found.
        """
        half = max(1, round(radius / FINE))
        with torch.inference_mode():
            home = torch.from_numpy(pixels).to(self._device)
            start = torch.from_numpy(predicted).to(self._device)
            found, chance = self._best(self._a, home, self._b, start, half)
            nearest = ((found - (FINE - 1) / 2) / FINE).round() * FINE + (FINE - 1) / 2
            returned, _ = self._best(self._b, nearest, self._a, home, half)
            error = (returned - home + found - nearest).norm(dim=1)
        return Near(found.cpu().numpy(), chance.double().cpu().numpy(), error.cpu().numpy())

    def _similarity(self, pixels: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Coarse similarity (M, rows, columns) of pixels (M, 2) of one map to all cells of the other."""
        grid = _grid(pixels.to(own), own)[None, None]
        found = functional.grid_sample(own[None], grid, padding_mode='border', align_corners=False)[0, :, 0].T
        return (functional.normalize(found, dim=1) @ other.flatten(1)).reshape(-1, *other.shape[1:])

    def _best(
        self, here: MiniFeatures, home: Tensor, there: MiniFeatures, start: Tensor, half: int
    ) -> tuple[Tensor, Tensor]:
        """Best pixels (M, 2) for places (M, 2) within windows around starts (M, 2), and the chance there (M,)."""
        place, centre = (((pixels - (FINE - 1) / 2) / FINE).round().long() for pixels in (home, start))
        position, mass = best_in_window(here, place, there, centre, half, self._fine_factor)
        return position.double() * FINE + (FINE - 1) / 2, mass
