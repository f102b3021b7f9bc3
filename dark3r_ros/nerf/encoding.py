# SPDX-License-Identifier: Apache-2.0
"""Multi-resolution grids of features, and spherical harmonics of directions.

Levels that fit into the table are dense volumes read by `grid_sample` (compiled kernels on CPU and CUDA); larger ones
are hashed as in instant-ngp (Mueller et al., SIGGRAPH 2022). `encode_reference` is the plain statement of both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_PRIMES = (1, 2654435761, 805459861)
_CORNERS = tuple(itertools.product((0, 1), repeat=3))


def level_cells(levels: int, coarsest: int, finest: int, sides: Sequence[float]) -> list[tuple[int, int, int]]:
    """Cells (x, y, z) of each level: a geometric series along the longest side, cubic cells along the others."""
    growth = (finest / coarsest) ** (1.0 / max(levels - 1, 1))
    longest = [coarsest * growth**level for level in range(levels)]
    return [tuple(max(2, round(count * side)) for side in sides) for count in longest]  # type: ignore[misc]


class GridEncoding(nn.Module):
    """Features interpolated trilinearly from grids of several resolutions over [-1, 1]^3.

    Nodes of a level with n cells lie at (i - 1/2) / n of the domain, i = 0 .. n + 1, so that the nodes of different
    levels do not fall together.
    """

    def __init__(self, cells: Sequence[tuple[int, int, int]], features: int, table_size: int, spread: float) -> None:
        super().__init__()
        self.features = features
        self.dense_cells: list[tuple[int, int, int]] = []
        self.hashed_cells: list[tuple[int, int, int]] = []
        self.dense = nn.ParameterList()
        for count in cells:
            nodes = tuple(n + 2 for n in count)
            if math.prod(nodes) <= table_size:
                self.dense_cells.append(count)
                volume = torch.empty(1, features, nodes[2], nodes[1], nodes[0]).uniform_(-spread, spread)
                self.dense.append(nn.Parameter(volume))
            else:
                self.hashed_cells.append(count)
        self.table_size = table_size
        hashed = torch.empty(len(self.hashed_cells) * table_size, features).uniform_(-spread, spread)
        self.table = nn.Parameter(hashed) if self.hashed_cells else None
        self._scale: dict[tuple[torch.device, int], Tensor] = {}

    @property
    def width(self) -> int:
        """Number of values per point."""
        return self.features * (len(self.dense_cells) + len(self.hashed_cells))

    def _cells(self, x: Tensor, level: int) -> Tensor:
        key = (x.device, level)
        if key not in self._scale:
            cells = (self.dense_cells + self.hashed_cells)[level]
            self._scale[key] = torch.tensor(cells, dtype=torch.float32, device=x.device)
        return self._scale[key].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, width) of points (N, 3) in [-1, 1]^3."""
        parts = []
        for level, volume in enumerate(self.dense):
            cells = self._cells(x, level)
            # Node coordinate p = (x + 1) / 2 * n + 1/2 of n + 2 nodes, as grid_sample wants it: 2 p / (n + 1) - 1.
            place = ((x + 1.0) * cells + 1.0) / (cells + 1.0) - 1.0
            read = functional.grid_sample(volume, place[None, None, None], align_corners=True, padding_mode='border')
            parts.append(read[0, :, 0, 0].T)
        if self.table is not None:
            parts.append(self._hashed(x))
        return torch.cat(parts, dim=1)

    def _hashed(self, x: Tensor) -> Tensor:
        assert self.table is not None
        rows, weights = [], []
        for number in range(len(self.hashed_cells)):
            cells = self._cells(x, len(self.dense_cells) + number)
            place = (x + 1.0) * 0.5 * cells + 0.5
            base = place.detach().floor()
            inside = place - base
            index, weight = _corners(base.long(), inside, self.table_size)
            rows.append(index + number * self.table_size)
            weights.append(weight)
        flat = functional.embedding_bag(torch.cat(rows), self.table, per_sample_weights=torch.cat(weights), mode='sum')
        return flat.reshape(len(rows), len(x), self.features).transpose(0, 1).reshape(len(x), -1)


def _corners(base: Tensor, inside: Tensor, table_size: int) -> tuple[Tensor, Tensor]:
    """Hashed rows (N, 8) and trilinear weights (N, 8) of the corners of cells."""
    primes = base.new_tensor(_PRIMES)
    low, high = base * primes, (base + 1) * primes
    index, weight = [], []
    for corner in _CORNERS:
        x, y, z = (high[:, axis] if corner[axis] else low[:, axis] for axis in range(3))
        index.append((x ^ y ^ z) % table_size)
        factors = [inside[:, axis] if corner[axis] else 1.0 - inside[:, axis] for axis in range(3)]
        weight.append(factors[0] * factors[1] * factors[2])
    return torch.stack(index, dim=1), torch.stack(weight, dim=1)


def encode_reference(encoding: GridEncoding, x: Tensor) -> Tensor:
    """Evaluate the same features node by node in float64: slow, and the definition that tests compare with."""
    x = x.double()
    parts = []
    for number, cells in enumerate(encoding.dense_cells + encoding.hashed_cells):
        place = (x + 1.0) / 2.0 * x.new_tensor(cells) + 0.5
        base = place.detach().floor()
        total = torch.zeros(len(x), encoding.features, dtype=torch.float64)
        for corner in _CORNERS:
            node = base + x.new_tensor(corner)
            weight = (1.0 - (place - node).abs()).prod(dim=1)
            total = total + weight[:, None] * _node_values(encoding, number, node.long())
        parts.append(total)
    return torch.cat(parts, dim=1)


def _node_values(encoding: GridEncoding, level: int, node: Tensor) -> Tensor:
    x, y, z = node.T
    hashed = level - len(encoding.dense_cells)
    if hashed < 0:
        volume = encoding.dense[level][0]
        inside = [axis.clamp(0, size - 1) for axis, size in zip((z, y, x), volume.shape[1:], strict=True)]
        return volume[:, inside[0], inside[1], inside[2]].T.double()
    assert encoding.table is not None
    index = (x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]) % encoding.table_size
    return encoding.table[hashed * encoding.table_size + index].double()


def spherical_harmonics(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics (N, (degree + 1)^2) of unit vectors (N, 3), degree 0 to 3, orthonormal on the sphere."""
    x, y, z = directions.unbind(dim=-1)
    values = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        values += [0.4886025119029199 * axis for axis in (y, z, x)]
    if degree >= 2:
        values += [1.0925484305920792 * x * y, 1.0925484305920792 * y * z, 0.31539156525252005 * (3 * z * z - 1)]
        values += [1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)]
    if degree >= 3:
        values += [0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z]
        values += [0.4570457994644658 * y * (5 * z * z - 1), 0.3731763325901154 * z * (5 * z * z - 3)]
        values += [0.4570457994644658 * x * (5 * z * z - 1), 1.445305721320277 * z * (x * x - y * y)]
        values += [0.5900435899266435 * x * (x * x - 3 * y * y)]
    return torch.stack(values, dim=-1)
