# SPDX-License-Identifier: Apache-2.0
"""Noise of a single frame without a calibrated model, measured where the picture is smooth.

The residual of the kernel outer([1, -2, 1], [1, -2, 1]) (Immerkaer, Computer Vision and Image Understanding 64, 1996)
on sites of one colour removes everything that is linear along x or along y, and noise common to a row. Its mean
square is taken per tile; among tiles of similar brightness those far above the quietest ones count as texture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.raw.noise import rows_per_block
from dark3r_ros.types import Frame, Planes

TILE = 16
BRIGHTNESS_CLASSES = 8

# Median of the chi-square distribution with one degree of freedom.
_CHI2_MEDIAN = 0.45494

# Neighbouring residuals share pixels; the squared autocorrelation of the kernel sums to (1 + 2 (4/6)^2 + 2 (1/6)^2)^2.
_CORRELATION = (1.0 + 2.0 * (4.0 / 6.0) ** 2 + 2.0 * (1.0 / 6.0) ** 2) ** 2


def plane_noise_variance(planes: Planes, frame: Frame | None = None) -> NDArray[np.float64]:
    """Noise variance of the three planes (3,), counts squared.

    With the mosaic behind the planes it is measured at the full resolution, where noise stands out most from the
    picture, and carried over to the binned values; row noise is measured from the profile of row means.
    Without it the residual of the planes themselves is used: row noise is then missed and texture counts more.
    """
    if frame is None:
        return np.array([pixel_variance(plane) for plane in planes.values])
    lattices = _colour_lattices(frame)
    rows = rows_per_block(planes.samples)
    result = []
    for colour, count, covered in zip('rgb', planes.samples, rows, strict=True):
        pixel = float(np.mean([pixel_variance(lattice) for lattice in lattices[colour]]))
        row = float(np.mean([row_variance(lattice, pixel) for lattice in lattices[colour]]))
        result.append(pixel / count + row / covered)
    return np.array(result)


def _colour_lattices(frame: Frame) -> dict[str, list[NDArray[np.float32]]]:
    if frame.cfa == MONO:
        whole = [frame.mosaic.astype(np.float32)]
        return {'r': whole, 'g': whole, 'b': whole}
    return {
        colour: [frame.mosaic[y::2, x::2].astype(np.float32) for y, x in places]
        for colour, places in sites(frame.cfa).items()
    }


def pixel_variance(lattice: NDArray[np.float32]) -> float:
    """Mean variance of independent pixel noise of one image (h, w), counts squared; NaN below 3x3 pixels."""
    if min(lattice.shape) < 3:
        return math.nan
    second = np.array([1.0, -2.0, 1.0])
    residual = cv2.sepFilter2D(lattice, cv2.CV_32F, second, second)[1:-1, 1:-1]
    # The squared kernel sums to 36.
    squares = residual * residual / np.float32(36.0)
    tile = min(TILE, *squares.shape)
    height, width = squares.shape[0] // tile, squares.shape[1] // tile

    def tile_means(image: NDArray[np.float32]) -> NDArray[np.float64]:
        cut = image[: height * tile, : width * tile].reshape(height, tile, width, tile)
        return cut.mean(axis=(1, 3), dtype=np.float64).ravel()

    energy = tile_means(squares)
    order = np.argsort(tile_means(lattice[1:-1, 1:-1]))
    classes = np.array_split(energy[order], min(BRIGHTNESS_CLASSES, len(energy)))
    freedom = tile * tile / _CORRELATION
    return float(np.average([_smooth_level(part, freedom) for part in classes], weights=[len(p) for p in classes]))


def _smooth_level(energy: NDArray[np.float64], freedom: float) -> float:
    """Mean of the tiles that noise alone explains, given the degrees of freedom of a tile.

    The lowest quarter belongs to smooth tiles; where it lies in a chi-square distribution (Wilson and Hilferty 1931)
    tells the level, and tiles far above that level are texture.
    """
    spread = 2.0 / (9.0 * freedom)
    level = float(np.quantile(energy, 0.25)) / (1.0 - spread - 0.6745 * math.sqrt(spread)) ** 3
    kept = energy[energy <= level * (1.0 + 5.0 * math.sqrt(2.0 / freedom))]
    return float(kept.mean())


def row_variance(lattice: NDArray[np.float32], pixel: float) -> float:
    """Variance of the noise common to a row, from the curvature of the profile of row means; never negative."""
    if lattice.shape[0] < 3:
        return 0.0
    profile = lattice.mean(axis=1, dtype=np.float64)
    curvature = np.diff(profile, n=2)
    # Squared weights of the second difference sum to 6; the median ignores rows where the scene has an edge.
    measured = float(np.median(curvature**2)) / _CHI2_MEDIAN / 6.0
    return max(0.0, measured - pixel / lattice.shape[1])
