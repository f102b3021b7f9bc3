# SPDX-License-Identifier: Apache-2.0
"""One point map a view out of those of all its pairs, its focal length, and the anchors that carry its depth.

Written from the description of MASt3R-SfM (Duisterhof et al., 2024): point maps of a view in its own frame are
averaged by confidence; relative depth within blocks of 8x8 pixels is kept as it is, that of block centres can move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

BLOCK = 8
_FOCAL_ROUNDS = 10


@dataclass(frozen=True, eq=False)
class CanonicalView:
    """What a view is before alignment.

    Attributes
    ----------
    points: (H, W, 3) in its own frame. confidence: (H, W). relative: (H, W) depth over that of the block's centre.
    focal: in pixels. core_depth: (H / 8 * W / 8,) depth of the block centres, row by row.

    """

    points: Array
    confidence: Array
    relative: Array
    focal: float
    core_depth: Array

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.points.shape[1], self.points.shape[0]

    def anchors(self, pixels: Index) -> tuple[Index, Array]:
        """Block (N,) of pixels (N, 2) and their depth (N,) over that of the block's centre."""
        x, y = pixels.T
        return y // BLOCK * (self.points.shape[1] // BLOCK) + x // BLOCK, self.relative[y, x]


def _centres(values: Array) -> Array:
    """Value at the block's centre, (H, W), for every pixel."""
    centre = values[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK]
    return centre.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def canonical_view(point_maps: Sequence[Array], confidences: Sequence[Array]) -> CanonicalView:
    """Combine point maps (H, W, 3) of a view in its own frame, one a pair, with confidences (H, W) above 0.999.

    Sides must be multiples of 8.
    """
    points = np.stack([np.asarray(one, dtype=np.float64) for one in point_maps])
    weight = np.stack([np.asarray(one, dtype=np.float64) for one in confidences]) - 0.999
    total = weight.sum(axis=0)
    mean = (weight[..., None] * points).sum(axis=0) / total[..., None]
    confidence = (weight**2).sum(axis=0) / total
    angle = np.zeros_like(total)
    radius = np.zeros_like(total)
    for one, w in zip(points, weight, strict=True):
        depth = np.maximum(_centres(one[..., 2]), np.finfo(np.float32).eps)
        away = np.hypot(one[..., 0] - _centres(one[..., 0]), one[..., 1] - _centres(one[..., 1]))
        away = np.maximum(away, 1e-8)
        angle += w * np.arctan((one[..., 2] - depth) / away)
        radius += away / len(points)
    relative = 1.0 + radius * np.tan(angle / total) / _centres(mean[..., 2])
    core = mean[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 2].ravel()
    return CanonicalView(mean, confidence, relative, estimate_focal(mean), core)


def estimate_focal(points: Array) -> float:
    """Focal length in pixels that best explains a point map (H, W, 3) with its principal point at (W / 2, H / 2).

    Weiszfeld's iterations for the sum of absolute errors; kept within 0.5 to 3.5 times that of 60 degrees.
    """
    height, width = points.shape[:2]
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns - width / 2, rows - height / 2], axis=-1).reshape(-1, 2)
    with np.errstate(divide='ignore', invalid='ignore'):
        slopes = (points[..., :2] / points[..., 2:]).reshape(-1, 2)
    slopes = np.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0)
    along, square = (pixels * slopes).sum(axis=1), (slopes**2).sum(axis=1)
    focal = along.mean() / square.mean()
    for _ in range(_FOCAL_ROUNDS):
        weight = 1.0 / np.maximum(np.linalg.norm(pixels - focal * slopes, axis=1), 1e-8)
        focal = (weight * along).mean() / (weight * square).mean()
    usual = max(width, height) / (2.0 * np.tan(np.radians(30.0)))
    return float(np.clip(focal, 0.5 * usual, 3.5 * usual))
