# SPDX-License-Identifier: Apache-2.0
"""Transformer layers with a two-dimensional rotary position embedding (RoPE).

Sources: Vaswani et al. 2017 (attention), Dosovitskiy et al. 2021 (ViT, pre-norm blocks), Su et al. 2021 (RoPE);
one half of a head's channels follows the image row, the other half the column.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Cosine and sine of every token, each (N, 2, n/2) with n = half the channels of a head; axis 1 is (row, column).
Rotation = tuple[Tensor, Tensor]


def rope_tables(height: int, width: int, head_dim: int, base: float, device: torch.device | str = 'cpu') -> Rotation:
    """Rotation of the tokens of a (height, width) grid in raster order.

    Returns cosine and sine, each (height * width, 2, head_dim / 4) float32; axis 1 holds row and column. The angle of
    frequency k at position p is p * base^(-k / (head_dim / 4)). Computed in float64.
    """
    quarter = head_dim // 4
    frequency = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    angle = torch.stack((rows, columns), dim=1)[:, :, None] * frequency
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(channels: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys (B, heads, N, d) by the position of their token.

    Within the share of an axis channel k is turned together with channel k + n/2.
    """
    cosine, sine = (table.to(channels.dtype) for table in rotation)
    first, second = channels.unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack((first * cosine - second * sine, second * cosine + first * sine), dim=-2)
    return turned.flatten(-3)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """(.., width) -> (.., out)."""
        return self.fc2(functional.gelu(self.fc1(x)))


def hidden_width(width: int, ratio: float) -> int:
    """Width of a hidden layer; a ratio read off shapes, hidden / width, gives the hidden width back."""
    return int(width * ratio + 1e-6)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention of the tokens of one view among themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        query, key, value = (_split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of the tokens of one view to those of the other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """(B, N, width), (B, M, width) -> (B, N, width)."""
        query = rotate(_split_heads(self.projq(x), self.heads), rotation)
        key = rotate(_split_heads(self.projk(memory), self.heads), memory_rotation)
        value = _split_heads(self.projv(memory), self.heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Norm(nn.LayerNorm):
    """Layer normalisation in the precision of its weights, on every device, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """(.., width) -> (.., width)."""
        return super().forward(x.to(self.weight.dtype))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = Norm(width, eps=eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = Norm(width, eps=eps)
        self.mlp = Mlp(width, hidden_width(width, mlp_ratio))

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm block with attention to the other view, whose tokens it normalises by itself."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = Norm(width, eps=eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = Norm(width, eps=eps)
        self.norm_y = Norm(width, eps=eps)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = Norm(width, eps=eps)
        self.mlp = Mlp(width, hidden_width(width, mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """(B, N, width), (B, M, width) -> (B, N, width)."""
        x = x + self.attn(self.norm1(x), rotation)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(memory), rotation, memory_rotation)
        return x + self.mlp(self.norm3(x))
