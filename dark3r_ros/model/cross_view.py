# SPDX-License-Identifier: Apache-2.0
"""Attention between the two views of a pair, on the tokens of a convolutional pyramid.

Each layer lets the tokens of a view look at those of the same view, with rotary encodings of their distance (Su et al.,
RoFormer, 2021, on two axes), then at those of the other view by content alone, as nothing is known of how the views lie
to each other. Positions enter by differences only, so that the layers work on images of any size. The last map starts
at zero: an untrained module changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Table = tuple[Tensor, Tensor]
_BASE = 100.0  # the longest wavelength of the rotary encodings is 2 pi times this many tokens


def rotary_table(rows: int, columns: int, size: int, device: torch.device) -> Table:
    """Cosine and sine (rows * columns, size / 2) of the encodings: one half of the angles for x, one for y."""
    quarter = size // 4
    frequency = _BASE ** (-torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing='ij')
    angle = torch.cat([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], dim=1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turn vectors (..., N, size) by their tokens' angles."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_query = nn.Linear(width, width)
        self.cross_key_value = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor, table_x: Table, table_y: Table) -> tuple[Tensor, Tensor]:
        x, y = self._look_around(x, table_x), self._look_around(y, table_y)
        return self._look_across(x, y), self._look_across(y, x)

    def _look_around(self, x: Tensor, table: Table) -> Tensor:
        query, key, value = (self._split(part) for part in self.self_qkv(self.self_norm(x)).chunk(3, dim=-1))
        found = functional.scaled_dot_product_attention(rotate(query, table), rotate(key, table), value)
        return x + self.self_out(found.transpose(1, 2).flatten(2))

    def _look_across(self, x: Tensor, other: Tensor) -> Tensor:
        query = self._split(self.cross_query(self.cross_norm(x)))
        key, value = (self._split(part) for part in self.cross_key_value(self.cross_norm(other)).chunk(2, dim=-1))
        found = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.cross_out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class CrossView(nn.Module):
    """Features (B, S, h, w) of both views of B pairs to changes of the same shapes.

    Parameters
    ----------
    channels: S. width: of a token. heads: of the attention; width / heads must be a multiple of 4. layers: how many.

    """

    def __init__(self, channels: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.head_size = width // heads
        self.enter = nn.Linear(channels, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Changes of a and b."""
        table_a, table_b = (rotary_table(x.shape[2], x.shape[3], self.head_size, x.device) for x in (a, b))
        x, y = (self.enter(z.flatten(2).transpose(1, 2)) for z in (a, b))
        for layer in self.layers:
            x, y = layer(x, y, table_a, table_b)
        return self._leave(x, a), self._leave(y, b)

    def _leave(self, x: Tensor, like: Tensor) -> Tensor:
        return self.leave(self.norm(x)).transpose(1, 2).unflatten(2, like.shape[2:])
