# SPDX-License-Identifier: Apache-2.0
"""How alike two images are around two places: sums over patches of fine descriptors.

In the dark one descriptor is too noisy to tell its place from the next. The noise of descriptors some pixels apart is
different, while neighbours move alike, so that a patch of them, shifted as a whole, is far more exact: at -8 dB it
finds up to twice as many places to a pixel. The middle weighs most: what lies around it may be nearer or farther,
moves otherwise, and draws all places near it to one side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dark3r_ros.model.compiled import Compiled

# A patch is 2 * PATCH + 1 descriptors wide, PATCH_STEP fine pixels apart; its weights are a Gaussian of PATCH_SPREAD.
# Wider patches of even weights match as many places to a pixel, but poses from them were worse (fern at -4 dB 0.79 %
# against 0.58 %): neighbours' errors are more alike. Five descriptors a side, of spread 0.8, are as exact as these at
# three times the cost.
PATCH, PATCH_STEP, PATCH_SPREAD = 1, 2, 1.2
_SAMPLES = 2 * PATCH + 1
_REACH = PATCH * PATCH_STEP
_CHUNK, _CHUNK_CUDA = 64, 4096  # places compared at once: on a CPU, their surroundings fit into the cache of a core


class Bordered(NamedTuple):
    """Fine descriptors of images of one size, with a border around each that repeats its edge.

    Attributes
    ----------
    table: (B * height * width, F) float32. bordered: the same with `margin` pixels more on each side.

    """

    table: Tensor
    bordered: Tensor
    height: int
    width: int
    margin: int


@dataclass(frozen=True, eq=False)
class FineMaps:
    """Fine descriptors of images of one size, in one table.

    Attributes
    ----------
    table: (B * height * width, F) float32.

    """

    table: Tensor
    height: int
    width: int
    _bordered: dict[int, Tensor] = field(default_factory=dict)

    def bordered(self, radius: int) -> Bordered:
        """The maps with a border for windows of a radius, which is kept."""
        margin = 2 * (radius + _REACH)
        if margin not in self._bordered:
            maps = self.table.view(-1, self.height, self.width, self.table.shape[1])
            sides = self.height, self.width
            y, x = (torch.arange(-margin, side + margin, device=maps.device).clamp(0, side - 1) for side in sides)
            self._bordered[margin] = maps.index_select(1, y).index_select(2, x).flatten(0, 2)
        return Bordered(self.table, self._bordered[margin], self.height, self.width, margin)


def _lines(maps: Bordered, image: Tensor, centre: Tensor, half: int) -> Tensor:
    """Descriptors (M, n * n, F) of the n = 2 half + 1 a side around pixels (M, 2) of images (M,), row by row.

    The border is at least twice `half` wide: lines of a square lie together in it, so that n pieces of memory are
    gathered instead of n^2.
    """
    table, side, length = maps.bordered, 2 * half + 1, maps.table.shape[1]
    width, height = maps.width + 2 * maps.margin, maps.height + 2 * maps.margin
    x = centre[:, 0].clamp(-half, maps.width - 1 + half) + (maps.margin - half)
    y = centre[:, 1].clamp(-half, maps.height - 1 + half) + (maps.margin - half)
    begins = (image * height + y) * width + x
    rows = begins[:, None] + width * torch.arange(side, device=centre.device)
    pieces = table.as_strided([table.shape[0] - side + 1, side * length], [length, 1])
    return pieces.index_select(0, rows.flatten()).view(centre.shape[0], side * side, length)


def _around(
    table: Tensor, height: int, width: int, image: Tensor, centre: Tensor, across: Tensor, down: Tensor
) -> Tensor:
    """Descriptors (M, K, F) at offsets (K,) from fine pixels (M, 2) of images (M,); the border is repeated."""
    x = (centre[:, 0:1] + across).clamp(0, width - 1)
    y = (centre[:, 1:] + down).clamp(0, height - 1)
    row = (image[:, None] * height + y) * width + x
    # Whole rows are gathered several times faster than by several index tensors.
    return table.index_select(0, row.flatten()).view(row.shape[0], row.shape[1], table.shape[1])


def patch_similarity(a: FineMaps, home: Tensor, b: FineMaps, centre: Tensor, image: Tensor, radius: int) -> Tensor:
    """Compare the patch at a place with those of a window around another.

    Parameters
    ----------
    a, b: the images, one of each a pair. image: (M,) int64, which pair a place belongs to.
    home: (M, 2) int64 fine pixels of a. centre: (M, 2) int64, middles of the windows in b.
    radius: half side of a window in fine pixels.

    Returns (M, (2 radius + 1)^2), row by row: the weighted mean over the patch of the products of descriptors.

    """
    patch = patch_sides(a.table.device, a.table.dtype)
    if torch.is_grad_enabled():
        return _compare(a, home, b, centre, image, patch, radius)
    return _compare_lines_compiled(a.bordered(radius), home, b.bordered(radius), centre, image, patch, radius)


class PatchSides(NamedTuple):
    """Offsets x and y (S^2,) of the descriptors of a patch, and their weights (S^2, 1), which sum to one."""

    across: Tensor
    down: Tensor
    weights: Tensor


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def patch_sides(device: torch.device, dtype: torch.dtype) -> PatchSides:
    """Patches that are compared; they serve training as well, whoever asks for them first."""
    x, y = square(PATCH, device)
    weights = torch.exp(-(x.square() + y.square()).to(dtype) / (2 * PATCH_SPREAD**2))
    return PatchSides(*square(PATCH, device, PATCH_STEP), (weights / weights.sum())[:, None])


def _compare(
    a: FineMaps, home: Tensor, b: FineMaps, centre: Tensor, image: Tensor, sides: PatchSides, radius: int
) -> Tensor:
    patch = _around(a.table, a.height, a.width, image, home, sides.across, sides.down) * sides.weights
    scene = _around(b.table, b.height, b.width, image, centre, *square(radius + _REACH, centre.device))
    total: Tensor = _ShiftedSum.apply(torch.bmm(patch, scene.transpose(1, 2)), radius)  # type: ignore[no-untyped-call]
    return total


def compare_lines(
    a: Bordered,
    home: Tensor,
    b: Bordered,
    centre: Tensor,
    image: Tensor,
    sides: PatchSides,
    radius: int,
    samples: int = _SAMPLES,
    step: int = PATCH_STEP,
    chunk: int = _CHUNK,
    chunk_cuda: int = _CHUNK_CUDA,
) -> Tensor:
    """`patch_similarity`, faster and without gradients."""
    half, window = radius + samples // 2 * step, 2 * radius + 1
    length, count = 2 * half + 1, home.shape[0]
    size = chunk if home.device.type == 'cpu' else chunk_cuda
    total = torch.zeros([count, window, window], dtype=a.table.dtype, device=home.device)
    for begin in range(0, count, size):
        end = min(begin + size, count)
        own = image[begin:end]
        patch = _around(a.table, a.height, a.width, own, home[begin:end], sides.across, sides.down) * sides.weights
        products = torch.bmm(patch, _lines(b, own, centre[begin:end], half).transpose(1, 2))
        products = products.view(end - begin, samples * samples, length, length)
        for number in range(samples * samples):
            y, x = step * (number // samples), step * (number % samples)
            total[begin:end] += products[:, number, y : y + window, x : x + window]
    return total.flatten(1)


_compare_lines_compiled = Compiled(compare_lines)


def square(half: int, device: torch.device, step: int = 1) -> tuple[Tensor, Tensor]:
    """Offsets x and y, ((2 half + 1)^2,) each, of a square grid, row by row."""
    side = torch.arange(-half, half + 1, device=device) * step
    return side.repeat(len(side)), side.repeat_interleave(len(side))


def _shifted(products: Tensor, radius: int) -> Tensor:
    """Of the products (M, S^2, L^2) those that belong to each shift of the patch as a whole: (M, S, S, W, W)."""
    length, window = 2 * (radius + _REACH) + 1, 2 * radius + 1
    area = length * length
    strides = (_SAMPLES**2 * area, _SAMPLES * area + PATCH_STEP * length, area + PATCH_STEP, length, 1)
    return products.as_strided((len(products), _SAMPLES, _SAMPLES, window, window), strides)


class _ShiftedSum(torch.autograd.Function):
    """Sum of `_shifted` over the samples; its gradient is written straight to its places."""

    @staticmethod
    def forward(ctx: FunctionCtx, products: Tensor, radius: int) -> Tensor:  # type: ignore[override]
        ctx.radius, ctx.size = radius, products.shape  # type: ignore[attr-defined]
        return _shifted(products.contiguous(), radius).sum((1, 2)).flatten(1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        radius: int = ctx.radius  # type: ignore[attr-defined]
        result = gradient.new_zeros(ctx.size)  # type: ignore[attr-defined]
        window = 2 * radius + 1
        _shifted(result, radius).copy_(gradient.unflatten(1, (window, window))[:, None, None])
        return result, None
