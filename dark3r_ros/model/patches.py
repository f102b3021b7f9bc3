# SPDX-License-Identifier: Apache-2.0
"""How alike two images are around two places: sums over patches of fine descriptors.

In the dark one descriptor is too noisy to tell its place from the next. The noise of descriptors some pixels apart is
different, while neighbours move alike, so that a patch of them, shifted as a whole, is far more exact: at -8 dB it
finds up to twice as many places to a pixel. The middle weighs most: what lies around it may be nearer or farther,
moves otherwise, and draws all places near it to one side.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# A patch is 2 * PATCH + 1 descriptors wide, PATCH_STEP fine pixels apart; its weights are a Gaussian of PATCH_SPREAD.
# Wider patches of even weights match as many places to a pixel, but poses from them were worse (fern at -4 dB 0.79 %
# against 0.58 %): neighbours' errors are more alike. Five descriptors a side, of spread 0.8, are as exact as these at
# three times the cost.
PATCH, PATCH_STEP, PATCH_SPREAD = 1, 2, 1.2
_SAMPLES = 2 * PATCH + 1
_REACH = PATCH * PATCH_STEP
_CHUNK, _CHUNK_CUDA = 64, 4096  # places compared at once: on a CPU, their surroundings fit into the cache of a core


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

    def lines(self, image: Tensor, centre: Tensor, half: int, margin: int) -> Tensor:
        """Descriptors (M, n * n, F) of the n = 2 half + 1 a side around pixels (M, 2) of images (M,), row by row.

        The border is repeated, `margin` (at least twice `half`) wide in a copy that is kept: lines of a square lie
        together in it, so that n pieces of memory are gathered instead of n^2.
        """
        table, side, length = self._with_border(margin), 2 * half + 1, self.table.shape[1]
        width, height = self.width + 2 * margin, self.height + 2 * margin
        x = centre[:, 0].clamp(-half, self.width - 1 + half) + (margin - half)
        y = centre[:, 1].clamp(-half, self.height - 1 + half) + (margin - half)
        begins = (image * height + y) * width + x
        rows = begins[:, None] + width * torch.arange(side, device=centre.device)
        pieces = table.as_strided((len(table) - side + 1, side * length), (length, 1))
        return pieces.index_select(0, rows.flatten()).view(len(centre), side * side, length)

    def _with_border(self, margin: int) -> Tensor:
        if margin not in self._bordered:
            maps = self.table.view(-1, self.height, self.width, self.table.shape[1])
            sides = self.height, self.width
            y, x = (torch.arange(-margin, side + margin, device=maps.device).clamp(0, side - 1) for side in sides)
            self._bordered[margin] = maps.index_select(1, y).index_select(2, x).flatten(0, 2)
        return self._bordered[margin]

    def around(self, image: Tensor, centre: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """Descriptors (M, K, F) at offsets (K,) from fine pixels (M, 2) of images (M,); the border is repeated."""
        x = (centre[:, :1] + across).clamp(0, self.width - 1)
        y = (centre[:, 1:] + down).clamp(0, self.height - 1)
        row = (image[:, None] * self.height + y) * self.width + x
        # Whole rows are gathered several times faster than by several index tensors.
        return self.table.index_select(0, row.flatten()).unflatten(0, row.shape)


def patch_similarity(a: FineMaps, home: Tensor, b: FineMaps, centre: Tensor, image: Tensor, radius: int) -> Tensor:
    """Compare the patch at a place with those of a window around another.

    Parameters
    ----------
    a, b: the images, one of each a pair. image: (M,) int64, which pair a place belongs to.
    home: (M, 2) int64 fine pixels of a. centre: (M, 2) int64, middles of the windows in b.
    radius: half side of a window in fine pixels.

    Returns (M, (2 radius + 1)^2), row by row: the weighted mean over the patch of the products of descriptors.

    """
    sides = _Sides.of(a.table, radius)
    if torch.is_grad_enabled():
        return _compare(a, home, b, centre, image, sides)
    size = _CHUNK if home.device.type == 'cpu' else _CHUNK_CUDA
    parts = [slice(start, start + size) for start in range(0, len(home), size)]
    found = [_compare_lines(a, home[part], b, centre[part], image[part], sides) for part in parts]
    return torch.cat(found) if found else home.new_zeros((0, (2 * radius + 1) ** 2), dtype=a.table.dtype)


@dataclass(frozen=True, eq=False)
class _Sides:
    """What is the same for all places.

    Attributes
    ----------
    patch: offsets x and y of its descriptors. weights: (S^2, 1) of these; they sum to one.
    scene: offsets x and y of all descriptors that a shifted patch may meet. radius: of the window.

    """

    patch: tuple[Tensor, Tensor]
    weights: Tensor
    scene: tuple[Tensor, Tensor]
    radius: int

    @classmethod
    def of(cls, like: Tensor, radius: int) -> _Sides:
        x, y = square(PATCH, like.device)
        weights = torch.exp(-(x.square() + y.square()).to(like.dtype) / (2 * PATCH_SPREAD**2))
        scene = square(radius + _REACH, like.device)
        return cls(square(PATCH, like.device, PATCH_STEP), (weights / weights.sum())[:, None], scene, radius)


def _compare(a: FineMaps, home: Tensor, b: FineMaps, centre: Tensor, image: Tensor, sides: _Sides) -> Tensor:
    patch = a.around(image, home, *sides.patch) * sides.weights
    scene = b.around(image, centre, *sides.scene)
    total: Tensor = _ShiftedSum.apply(torch.bmm(patch, scene.transpose(1, 2)), sides.radius)  # type: ignore[no-untyped-call]
    return total


def _compare_lines(a: FineMaps, home: Tensor, b: FineMaps, centre: Tensor, image: Tensor, sides: _Sides) -> Tensor:
    """As `_compare`, faster and without gradients."""
    half, window = sides.radius + _REACH, 2 * sides.radius + 1
    patch = a.around(image, home, *sides.patch) * sides.weights
    products = torch.bmm(patch, b.lines(image, centre, half, 2 * half).transpose(1, 2))
    products = products.unflatten(2, (2 * half + 1, -1))
    total = torch.zeros_like(products[:, 0, :window, :window])
    for number in range(_SAMPLES**2):
        y, x = PATCH_STEP * (number // _SAMPLES), PATCH_STEP * (number % _SAMPLES)
        total += products[:, number, y : y + window, x : x + window]
    return total.flatten(1)


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
