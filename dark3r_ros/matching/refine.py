# SPDX-License-Identifier: Apache-2.0
"""Matches finer than the grid they were found on.

`match_coarse_to_fine` finds mutual pairs between pooled maps and follows them into the full ones within small windows:
the cost of a dense search falls with the fourth power of the pooling factor. `refine_subpixel` moves a match between
the pixels by Gauss-Newton steps on the descriptors (Lucas and Kanade 1981, with descriptors for brightness).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.matching.reciprocal import IndexArray, Matches, flatten_map, reciprocal_dense


def pool_descriptors(descriptors: Tensor, factor: int) -> Tensor:
    """Mean descriptor of each factor x factor cell, unit length again: (H, W, D) -> (H // factor, W // factor, D)."""
    pooled = functional.avg_pool2d(descriptors.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)
    return functional.normalize(pooled, dim=-1).contiguous()


def _window_offsets(radius: int) -> NDArray[np.int64]:
    side = np.arange(-radius, radius + 1)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def _windows(centre: Tensor, size: tuple[int, int], radius: int) -> Tensor:
    """Linear indices (M, (2r+1)^2) of the pixels around linear centres (M,), moved inside the image at its border."""
    height, width = size
    offsets = torch.from_numpy(_window_offsets(radius)).to(centre.device)
    columns = (centre % width).clamp(min(radius, width // 2), max(width - 1 - radius, width // 2))
    rows = (centre // width).clamp(min(radius, height // 2), max(height - 1 - radius, height // 2))
    x = (columns[:, None] + offsets[:, 0]).clamp(0, width - 1)
    y = (rows[:, None] + offsets[:, 1]).clamp(0, height - 1)
    return y * width + x


def _best_in_window(
    queries: Tensor, memory: Tensor, centre: Tensor, size: tuple[int, int], radius: int, chunk: int = 4096
) -> Tensor:
    """Index (M,) of the most similar row of memory (H * W, D) within the window around each centre (M,)."""
    parts = []
    for start in range(0, len(centre), chunk):
        window = _windows(centre[start : start + chunk], size, radius)
        similarity = torch.einsum('md,mkd->mk', queries[start : start + chunk], memory[window])
        parts.append(window.gather(1, similarity.argmax(1, keepdim=True))[:, 0])
    return torch.cat(parts) if parts else centre


def match_coarse_to_fine(map_a: Tensor, map_b: Tensor, factor: int = 4, rounds: int = 2) -> Matches:
    """Mutual pairs of two maps (H_a, W_a, D), (H_b, W_b, D), at most one a cell of factor x factor pixels.

    A pair survives when, after at most `rounds` round trips within windows of twice the cell, both sides choose
    each other.
    """
    a, b = flatten_map(map_a), flatten_map(map_b)
    size_a, size_b = (map_a.shape[0], map_a.shape[1]), (map_b.shape[0], map_b.shape[1])
    # A map smaller than a cell is one cell.
    factor = min(factor, *size_a, *size_b)
    coarse = reciprocal_dense(pool_descriptors(map_a, factor), pool_descriptors(map_b, factor))
    pixel_a = _cell_centres(coarse.index_a, size_a, factor).to(a.device)
    pixel_b = _cell_centres(coarse.index_b, size_b, factor).to(a.device)
    pixel_b = _best_in_window(a[pixel_a], b, pixel_b, size_b, factor)
    settled = torch.zeros(len(pixel_a), dtype=torch.bool, device=a.device)
    for _ in range(rounds):
        pixel_a = _best_in_window(b[pixel_b], a, pixel_a, size_a, factor)
        again = _best_in_window(a[pixel_a], b, pixel_b, size_b, factor)
        settled = again == pixel_b
        pixel_b = again
    pairs = torch.stack((pixel_a, pixel_b), dim=1)[settled].unique(dim=0).cpu().numpy()
    return Matches(pairs[:, 0].copy(), pairs[:, 1].copy())


def _cell_centres(index: IndexArray, size: tuple[int, int], factor: int) -> Tensor:
    columns = size[1] // factor
    x = (index % columns) * factor + factor // 2
    y = (index // columns) * factor + factor // 2
    return torch.from_numpy(y * size[1] + x)


def refine_subpixel(map_a: Tensor, map_b: Tensor, matches: Matches, steps: int = 3) -> NDArray[np.float64]:
    """Offsets (M, 2) in pixels of map b, as (x, y), from the matched pixel of b to where b, bilinear, meets a's pixel.

    The descriptor of a is held. An offset is zero where the descriptors of b do not vary in two directions, and where
    it would exceed one pixel.
    """
    height, width = map_b.shape[:2]
    a = flatten_map(map_a)
    flatten_map(map_b)
    device = map_b.device
    goal = a[torch.from_numpy(matches.index_a).to(device)]
    table = torch.cat((map_b, *_gradients(map_b)), dim=-1).reshape(height * width, -1)
    index_b = torch.from_numpy(matches.index_b).to(device)
    start = torch.stack((index_b % width, index_b // width), dim=1).to(torch.float64)
    limit = torch.tensor((width - 1, height - 1), dtype=torch.float64, device=device)
    position = start.clone()
    usable = torch.ones(len(start), dtype=torch.bool, device=device)
    for _ in range(steps):
        value, slope_x, slope_y = _bilinear(table, position, (height, width)).chunk(3, dim=-1)
        step, regular = _gauss_newton_step(goal - value, slope_x, slope_y)
        usable &= regular
        position = (position + step).clamp(min=torch.zeros_like(limit), max=limit)
    offset = position - start
    usable &= offset.abs().amax(dim=1) <= 1
    return torch.where(usable[:, None], offset, 0.0).cpu().numpy()


def _gradients(descriptors: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of a map (H, W, D) along x and y, one-sided at the border."""
    slopes = []
    for axis in (1, 0):
        if descriptors.shape[axis] > 1:
            slopes.append(torch.gradient(descriptors, dim=axis)[0])
        else:
            slopes.append(torch.zeros_like(descriptors))
    return slopes[0], slopes[1]


def _bilinear(table: Tensor, position: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows (H * W, C) of a map sampled at positions (M, 2), as (x, y), inside the image."""
    height, width = size
    corner = position.floor()
    x, y = corner.long().unbind(1)
    right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    fx, fy = (position - corner).to(table.dtype)[:, :, None].unbind(1)
    top = table[y * width + x] * (1 - fx) + table[y * width + right] * fx
    bottom = table[below * width + x] * (1 - fx) + table[below * width + right] * fx
    return top * (1 - fy) + bottom * fy


def _gauss_newton_step(residual: Tensor, slope_x: Tensor, slope_y: Tensor) -> tuple[Tensor, Tensor]:
    """Step (M, 2) that best explains residuals (M, D) by slopes (M, D), and whether it is determined (M,)."""
    r, sx, sy = residual.double(), slope_x.double(), slope_y.double()
    xx, yy, xy = (sx * sx).sum(1), (sy * sy).sum(1), (sx * sy).sum(1)
    right_x, right_y = (sx * r).sum(1), (sy * r).sum(1)
    determinant = xx * yy - xy**2
    regular = determinant > 1e-4 * (xx + yy) ** 2
    safe = torch.where(regular, determinant, 1.0)
    step = torch.stack((yy * right_x - xy * right_y, xx * right_y - xy * right_x), dim=1) / safe[:, None]
    return torch.where(regular[:, None], step, 0.0), regular
