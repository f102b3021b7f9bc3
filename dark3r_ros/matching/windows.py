# SPDX-License-Identifier: Apache-2.0
"""Where places of one picture lie in another, on the tensors of both: cells first, then fine pixels around them.

Written so that TorchScript can compile it (`model/compiled.py`): constants are defaults of parameters.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.model.compiled import Compiled
from dark3r_ros.model.mini import COARSE, FINE
from dark3r_ros.model.patches import Bordered, PatchSides, compare_lines, patch_sides, square

FARTHEST = 0.7  # of a summit from the largest value, in fine pixels
EDGE = 2  # fine pixels from the edge of a picture within which nothing is found for sure
OUTSIDE = -1e4  # similarity beyond the edge of a picture


class WindowSearch(NamedTuple):
    """How windows are searched.

    Attributes
    ----------
    across, down: offsets x and y (K,) of the places of a window. near_best: (K, K) for each, which ones touch it.
    patch: what is compared at each. radius: half side of the window in fine pixels. factor: of similarities before the
        softmax.

    """

    across: Tensor
    down: Tensor
    near_best: Tensor
    patch: PatchSides
    radius: int
    factor: float


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def window_search(radius: int, factor: float, device: torch.device) -> WindowSearch:
    """How windows of a radius are searched on a device."""
    across, down = square(radius, device)
    apart = torch.maximum((across[:, None] - across).abs(), (down[:, None] - down).abs())
    return WindowSearch(across, down, apart <= 1, patch_sides(device, torch.float32), radius, factor)


def _best_in_window(
    a: Bordered,
    home: Tensor,
    b: Bordered,
    centre: Tensor,
    extent: tuple[int, int],
    search: WindowSearch,
    edge: int = EDGE,
    outside: float = OUTSIDE,
) -> tuple[Tensor, Tensor]:
    """`best_in_window` of maps; `extent` is the width and height of the picture in b, without its padding."""
    x, y = centre[:, 0:1] + search.across, centre[:, 1:] + search.down
    from_edge = torch.minimum(torch.minimum(x, extent[0] - 1 - x), torch.minimum(y, extent[1] - 1 - y))
    image = torch.zeros_like(home[:, 0])
    similarity = search.factor * compare_lines(a, home, b, centre, image, search.patch, search.radius)
    similarity = similarity.masked_fill(from_edge < 0, outside)
    chance = torch.softmax(similarity, dim=1)
    best = chance.argmax(1)
    side = 2 * search.radius + 1
    peak = summit(similarity.view(similarity.shape[0], side, side), best)
    clear = from_edge.gather(1, best[:, None])[:, 0] >= edge
    return centre - search.radius + peak, (search.near_best[best] * chance).sum(1) * clear


def _there_and_back(
    a: Bordered,
    home: Tensor,
    extent_a: tuple[int, int],
    b: Bordered,
    start: Tensor,
    extent_b: tuple[int, int],
    expected: Tensor,
    search: WindowSearch,
    min_confidence: float,
    tolerance: float,
    fine: int = FINE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Look for whole fine pixels (M, 2) of a around starts (M, 2) in b, and from there for the way back.

    `extent` is the width and height of a picture, without its padding, and `expected` (M,) the chance that the start is
    right. What is less sure than `min_confidence`, or ends more than `tolerance` pixels from its beginning, is left
    out. Returns which ones came back (K,), their places in b (K, 2), in fine pixels, and how sure these are (K,).
    """
    # The chance of the place is at most one: what cannot be sure enough is left out before the costly part.
    hopeful = (expected >= min_confidence).nonzero()[:, 0]
    home = home[hopeful]
    position, peak = _best_in_window(a, home.long(), b, start[hopeful].round().long(), extent_b, search)
    confidence = expected[hopeful] * peak
    sure = (confidence >= min_confidence).nonzero()[:, 0]
    home, position = home[sure], position[sure]
    back = position.round()
    returned, _ = _best_in_window(b, back.long(), a, home.round().long(), extent_a, search)
    # The way back starts at the nearest fine pixel: what was rounded off is given back.
    error = torch.linalg.vector_norm((returned - home + (position - back)) * fine, dim=[1])
    kept = error <= tolerance
    return hopeful[sure][kept], position[kept], confidence[sure][kept]


def summit(values: Tensor, best: Tensor, farthest: float = FARTHEST, outside: float = OUTSIDE) -> Tensor:
    """Column and row (M, 2) of the top of the paraboloid through the 3x3 around the largest of values (M, n, n).

    `best` (M,) is its number. At the border of the window or of the picture (`outside` lies beyond it), and where the
    nine have no top, it is the place itself; the top is no more than `farthest` away.
    """
    side = values.shape[2]
    row, column = best // side, best % side
    middle = torch.stack([column, row], dim=1)
    clear = ((middle > 0) & (middle < side - 1)).all(1)
    safe_row, safe_column = row.clamp(1, side - 2), column.clamp(1, side - 2)
    step = torch.arange(-1, 2, device=values.device)
    number = torch.arange(values.shape[0], device=values.device)[:, None, None]
    nine = values[number, safe_row[:, None, None] + step[:, None], safe_column[:, None, None] + step]
    gx, gy = (nine[:, 1, 2] - nine[:, 1, 0]) / 2, (nine[:, 2, 1] - nine[:, 0, 1]) / 2
    xx = nine[:, 1, 2] + nine[:, 1, 0] - 2 * nine[:, 1, 1]
    yy = nine[:, 2, 1] + nine[:, 0, 1] - 2 * nine[:, 1, 1]
    xy = (nine[:, 2, 2] - nine[:, 2, 0] - nine[:, 0, 2] + nine[:, 0, 0]) / 4
    determinant = xx * yy - xy * xy
    clear &= (determinant > 1e-9) & (xx < 0) & (nine.amin([1, 2]) > outside)
    offset = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], dim=1) / torch.where(clear, determinant, 1.0)[:, None]
    return middle + torch.where(clear[:, None], offset.clamp(-farthest, farthest), 0.0)


def _cells_there_and_back(
    described: Tensor,
    places: Tensor,
    coarse_a: Tensor,
    coarse_b: Tensor,
    expected: Tensor | None,
    reach: float,
    factor: float,
    coarse: int = COARSE,
    outside: float = OUTSIDE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Look for places of a picture in the cells of another, and from there for the way back.

    Parameters
    ----------
    described: (N, C) coarse descriptors of the places (N, 2), in pixels. coarse_a, coarse_b: (C, rows, columns).
    expected: (N, 2) pixels of b within `reach` of which a place is looked for, or None: anywhere.
    factor: of similarities before the softmax.

    Returns which ones came back (K,), their cells of b (K,), and the chance that these or those around are right (K,).

    """
    rows_a, columns_a, rows_b, columns_b = coarse_a.shape[1], coarse_a.shape[2], coarse_b.shape[1], coarse_b.shape[2]
    cells = coarse_b.flatten(1)
    similarity = described @ cells
    if expected is not None:
        similarity = similarity.masked_fill(~_cells_near(expected, rows_b, columns_b, reach), outside)
    cell = similarity.argmax(1)
    returning = cells.T[cell] @ coarse_a.flatten(1)
    if expected is not None:
        returning = returning.masked_fill(~_cells_near(places, rows_a, columns_a, reach), outside)
    back = returning.argmax(1)
    middle = torch.stack([back % columns_a, back // columns_a], dim=1) * coarse + (coarse - 1) / 2
    near = (middle - places).abs().amax(1) <= 2.5 * coarse
    near &= similarity.gather(1, cell[:, None])[:, 0] > outside
    chosen = near.nonzero()[:, 0]
    likely = torch.softmax(factor * similarity[chosen], dim=1)
    return chosen, cell[chosen], chance_around(likely, cell[chosen], columns_b)


def values_at(maps: Tensor, pixels: Tensor, coarse: int = COARSE) -> Tensor:
    """Values (N, C) at pixels (N, 2) of a frame, bilinear in a coarse map (C, rows, columns)."""
    extent = torch.tensor([maps.shape[2], maps.shape[1]], device=maps.device) * coarse
    grid = (pixels + 0.5) * (2.0 / extent) - 1.0
    found = functional.grid_sample(maps[None], grid[None, None], padding_mode='border', align_corners=False)
    return found[0, :, 0].T


def _cells_near(pixels: Tensor, rows: int, columns: int, reach: float, coarse: int = COARSE) -> Tensor:
    """Which cells (N, rows * columns) of a coarse map have their middle in a square of `reach` around pixels (N, 2)."""
    across = ((torch.arange(columns, device=pixels.device) + 0.5) * coarse - 0.5 - pixels[:, 0:1]).abs() <= reach
    down = ((torch.arange(rows, device=pixels.device) + 0.5) * coarse - 0.5 - pixels[:, 1:]).abs() <= reach
    return (down[:, :, None] & across[:, None, :]).flatten(1)


def middle_of(cell: Tensor, columns: int, ratio: int = COARSE // FINE) -> Tensor:
    """Fine pixels (M, 2) in the middle of cells (M,)."""
    return torch.stack([cell % columns, cell // columns], dim=1) * ratio + ratio // 2


def chance_around(chance: Tensor, cell: Tensor, columns: int) -> Tensor:
    """Sum (N,) of the chances (N, rows * columns) of a cell (N,) and those around it."""
    side = torch.tensor([-1, 0, 1], device=chance.device)
    x = (cell % columns)[:, None, None] + side
    y = (cell // columns)[:, None, None] + side[:, None]
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < chance.shape[1] // columns)
    index = torch.where(inside, y * columns + x, 0).flatten(1)
    return (chance.gather(1, index) * inside.flatten(1)).sum(1)


best_in_window = Compiled(_best_in_window)
there_and_back = Compiled(_there_and_back)
cells_there_and_back = Compiled(_cells_there_and_back)
