# SPDX-License-Identifier: Apache-2.0
"""The field itself: density and linear radiance everywhere, and the coarse density that guides the samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.encoding import GridEncoding, level_cells, spherical_harmonics

_GEOMETRY = 15  # values that the density network hands to the colour network
_LARGEST_LOG = 11.0
_TINT = 0.5  # how much a step moves the hues beside the features
_THIN = -1.5  # log density of an empty start: most of a ray passes through, so that every depth gets gradients


def _nodes(cells: tuple[int, int, int]) -> int:
    """Nodes of a level of a grid."""
    return math.prod(count + 2 for count in cells)


class Field(nn.Module):
    """Density (per normalised distance) and radiance (mean signal of the frames = 1, never negative)."""

    def __init__(self, config: NerfConfig, sides: tuple[float, float, float]) -> None:
        super().__init__()
        cells = level_cells(config.levels, config.coarsest, config.finest, sides)
        self.encoding = GridEncoding(cells, config.features, 2**config.table_log2, spread=1e-2)
        # The networks follow brightness and, at few steps of noisy light, leave hues grey: a coarse grid holds those.
        hues = level_cells(1, config.tint_cells, config.tint_cells, sides) if config.tint_cells else []
        self.tint_encoding = GridEncoding(hues, 3, max(map(_nodes, hues)), spread=1e-3) if hues else None
        self.degree = config.view_degree
        self.amp = config.amp
        harmonics = (config.view_degree + 1) ** 2
        self.density = nn.Sequential(
            nn.Linear(self.encoding.width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1 + _GEOMETRY)
        )
        self.mixing = nn.Linear(_GEOMETRY + harmonics, config.hidden)
        self.colour = nn.Linear(config.hidden, 3)

    def forward(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) and radiance (N, 3) at domain points (N, 3) in [-1, 1].

        `directions` are the unit vectors (R, 3) of R rays; the points are those of the first ray, of the second, ...
        """
        features = self.encoding(x)
        harmonics = spherical_harmonics(directions, self.degree)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.amp and x.device.type == 'cuda'):
            hidden = self.density(features)
            # `mixing` of [geometry, harmonics], the second part of it once a ray.
            seen = functional.linear(harmonics, self.mixing.weight[:, _GEOMETRY:], self.mixing.bias)
            local = functional.linear(hidden[:, 1:], self.mixing.weight[:, :_GEOMETRY])
            mixed = local.view(len(directions), -1, local.shape[1]) + seen[:, None]
            colour = self.colour(functional.relu(mixed).view(len(x), -1))
        if self.tint_encoding is not None:
            colour = colour.float() + _TINT * self.tint_encoding(x)
        density = torch.exp((hidden[:, 0].float() + _THIN).clamp(max=_LARGEST_LOG))
        return density, torch.exp(colour.float().clamp(-_LARGEST_LOG, _LARGEST_LOG))


class CoarseDensity(nn.Module):
    """Density alone, its logarithm read from two grids without any network: cheap enough for many samples."""

    def __init__(self, cells: int, sides: tuple[float, float, float]) -> None:
        super().__init__()
        fine = level_cells(2, max(2, cells // 4), cells, sides)
        self.encoding = GridEncoding(fine, 1, max(map(_nodes, fine)), spread=1e-2)
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Density (N,) at domain points (N, 3)."""
        # The factor lets single cells grow to walls within tens of steps at the learning rate of the field.
        logarithm = 5.0 * self.encoding(x).sum(dim=1) + self.level + _THIN
        return torch.exp(logarithm.clamp(max=_LARGEST_LOG))
