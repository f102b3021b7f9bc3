# SPDX-License-Identifier: Apache-2.0
"""Multi-resolution grids of features, and spherical harmonics of directions.

Levels that fit into the table are dense; larger ones are hashed as in instant-ngp (Mueller et al., SIGGRAPH 2022). All
levels of all points are looked up together, corner by corner, in one flat table a feature: few large operations on
contiguous memory instead of many small ones. `encode_reference` is the plain statement of both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dark3r_ros.errors import ConfigError

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
    levels do not fall together. Levels must come coarse to fine; `table_size` is a power of two where one is hashed.
    """

    def __init__(self, cells: Sequence[tuple[int, int, int]], features: int, table_size: int, spread: float) -> None:
        super().__init__()
        self.features, self.table_size = features, table_size
        self.cells = list(cells)
        self.nodes = [math.prod(n + 2 for n in count) for count in cells]
        self.dense_levels = sum(count <= table_size for count in self.nodes)
        if any(count > table_size for count in self.nodes[: self.dense_levels]):
            raise ConfigError('levels of a grid must come coarse to fine')
        if self.dense_levels < len(self.cells) and table_size & (table_size - 1):
            raise ConfigError(f'a hashed table has a power of two of entries, not {table_size}')
        rows = [min(count, table_size) for count in self.nodes]
        self.starts = [sum(rows[:level]) for level in range(len(rows))]
        self.table = nn.Parameter(torch.empty(features, sum(rows)).uniform_(-spread, spread))
        self._constants: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def width(self) -> int:
        """Number of values per point."""
        return self.features * len(self.cells)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, width) of points (N, 3) in [-1, 1]^3, level by level."""
        cells, steps, starts = self._on(x.device)
        place = (x.T[:, None] + 1.0) * (0.5 * cells)[:, :, None] + 0.5
        with torch.no_grad():
            base = torch.nan_to_num(place).floor()
            index = self._index(base.long(), steps, starts)
        inside = place - base
        features: Tensor = _Interpolate.apply(self.table, index, inside)  # type: ignore[no-untyped-call]
        return features.flatten(0, 1).T

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Cells (3, L) float32, strides (3, L) and starts (L, 1) int64."""
        if device not in self._constants:
            cells = torch.tensor(self.cells, dtype=torch.float32).T
            steps = torch.tensor([(1, n[0] + 2, (n[0] + 2) * (n[1] + 2)) for n in self.cells]).T
            starts = torch.tensor(self.starts)[:, None]
            self._constants[device] = cells.contiguous().to(device), steps.to(device), starts.to(device)
        return self._constants[device]

    def _index(self, base: Tensor, steps: Tensor, starts: Tensor) -> Tensor:
        """Columns (8, L, N) of the table of the corners of cells with lowest nodes (3, L, N)."""
        dense = self.dense_levels
        index = base.new_empty(8, *base.shape[1:])
        low = base[:, :dense]
        step = steps[:, :dense, None]
        first = low[0] + low[1] * step[1] + low[2] * step[2] + starts[:dense]
        for corner, part in zip(_CORNERS, index, strict=True):
            shift = corner[0] + corner[1] * step[1] + corner[2] * step[2]
            torch.add(first, shift, out=part[:dense])
        if dense < len(self.cells):
            low = base[:, dense:]
            axes = [(low[axis] * prime, (low[axis] + 1) * prime) for axis, prime in enumerate(_PRIMES)]
            for corner, part in zip(_CORNERS, index, strict=True):
                hashed = axes[0][corner[0]] ^ axes[1][corner[1]] ^ axes[2][corner[2]]
                torch.add(hashed & (self.table_size - 1), starts[dense:], out=part[dense:])
        return index


def _factors(inside: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights of the lower and upper node along each axis."""
    return [(1.0 - part, part) for part in inside]


class _Interpolate(torch.autograd.Function):
    """Trilinear interpolation in a table (F, T) at columns (8, L, N) with places (3, L, N) inside the cells.

    Written out because autograd would make a gradient as large as the table for every corner.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, inside: Tensor) -> Tensor:
        x, y, z = _factors(inside)
        levels, count = index.shape[1:]
        result = table.new_zeros(levels, table.shape[0], count)
        weights = table.new_empty(index.shape)
        for number, corner in enumerate(_CORNERS):
            if not corner[2]:
                plane = x[corner[0]] * y[corner[1]]
            torch.mul(plane, z[corner[2]], out=weights[number])
            for feature, row in enumerate(table):
                read = row.index_select(0, index[number].reshape(-1)).view(levels, count)
                result[:, feature].addcmul_(read, weights[number])
        ctx.save_for_backward(table, index, inside, weights)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # type: ignore[override]
        table, index, inside, weights = ctx.saved_tensors
        rows = gradient.transpose(0, 1).contiguous()  # (F, L, N)
        of_table = of_inside = None
        if ctx.needs_input_grad[0]:
            # One feature a thread: sums come in the same order however many threads there are.
            parts = (weights * rows[:, None]).flatten(1)
            of_table = torch.zeros_like(table).scatter_add_(1, index.view(1, -1).expand(len(table), -1), parts)
        if ctx.needs_input_grad[2]:
            of_inside = _place_gradient(table, index, inside, rows)
        return of_table, None, of_inside


def _place_gradient(table: Tensor, index: Tensor, inside: Tensor, rows: Tensor) -> Tensor:
    """Gradient (3, L, N) of the places inside the cells, for gradients (F, L, N) of the features."""
    value = torch.zeros_like(index, dtype=table.dtype)
    for feature, row in enumerate(rows):
        value += table[feature].index_select(0, index.view(-1)).view(index.shape) * row
    value = value.view(2, 2, 2, *index.shape[1:])
    x, y, z = _factors(inside)
    result = torch.zeros_like(inside)
    for a, b in itertools.product((0, 1), repeat=2):
        result[0] += (value[1, a, b] - value[0, a, b]) * y[a] * z[b]
        result[1] += (value[a, 1, b] - value[a, 0, b]) * x[a] * z[b]
        result[2] += (value[a, b, 1] - value[a, b, 0]) * x[a] * y[b]
    return result


def encode_reference(encoding: GridEncoding, x: Tensor) -> Tensor:
    """Evaluate the same features node by node in float64: slow, and the definition that tests compare with."""
    x = x.double()
    parts = []
    for level, cells in enumerate(encoding.cells):
        place = (x + 1.0) / 2.0 * x.new_tensor(cells) + 0.5
        base = place.detach().floor()
        total = torch.zeros(len(x), encoding.features, dtype=torch.float64)
        for corner in _CORNERS:
            node = base + x.new_tensor(corner)
            weight = (1.0 - (place - node).abs()).prod(dim=1)
            total = total + weight[:, None] * _node_values(encoding, level, node.long())
        parts.append(total)
    return torch.cat(parts, dim=1)


def _node_values(encoding: GridEncoding, level: int, node: Tensor) -> Tensor:
    x, y, z = node.T
    if level < encoding.dense_levels:
        across, down, _ = (count + 2 for count in encoding.cells[level])
        index = x + across * (y + down * z)
    else:
        index = (x * _PRIMES[0] ^ y * _PRIMES[1] ^ z * _PRIMES[2]) % encoding.table_size
    return encoding.table[:, encoding.starts[level] + index].T.double()


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
