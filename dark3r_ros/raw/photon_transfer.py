# SPDX-License-Identifier: Apache-2.0
"""Variance against mean from pairs of equal exposures (the photon transfer method of EMVA 1288).

The difference of two frames of the same scene holds no scene and no fixed pattern, only noise, twice. Half its
variance over a tile of one colour, against the mean of the tile, lies on a line: its slope is the gain, its value at
black the dark noise. Tiles need not be uniform, because the line also holds for means over a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.types import Frame

Array = NDArray[np.float64]

# Side of a tile in pixels of one colour; its 256 pixels give a variance to 9 %.
TILE = 16

# Share of pixels at code zero up to which the cut-off foot of the noise does not yet spoil a variance.
TOLERATED_ZEROS = 0.01


@dataclass(frozen=True)
class TransferPoints:
    """Tiles of one pair of frames, or of many pairs averaged.

    Attributes
    ----------
    mean: (n,) counts above black.
    variance: (n,) noise variance of one pixel, counts squared, row noise included; NaN where the tile is clipped.
    relative_sigma: (n,) relative standard error of the variance.
    drift: (n,) change of the scene in standard errors: of the difference of the tile means, or of the correlation that
        motion leaves in the difference, whichever is larger.
    row_variance: variance of the noise common to a row, counts squared.
    clipped: share of tiles that touch saturation or code zero.

    """

    mean: Array
    variance: Array
    relative_sigma: Array
    drift: Array
    row_variance: float
    clipped: float

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TransferLine:
    """Straight line variance = gain * mean + dark_variance with its standard errors and quality.

    Attributes
    ----------
    gain, gain_sigma: counts per electron and its standard error.
    dark_variance, dark_sigma: counts squared at black, and its standard error.
    r_squared: share of the scatter of the binned points that the line explains.
    reduced_chi2: mean squared residual in standard errors; 1 for a perfect model.

    """

    gain: float
    gain_sigma: float
    dark_variance: float
    dark_sigma: float
    r_squared: float
    reduced_chi2: float


def lattices(image: NDArray[Any], cfa: str) -> Iterator[tuple[int, NDArray[Any]]]:
    """Sub-images of one colour with the index of their colour (0 red, 1 green, 2 blue); mono is one green lattice."""
    if cfa == MONO:
        yield 1, image
        return
    for index, places in enumerate(sites(cfa).values()):
        for y, x in places:
            yield index, image[y::2, x::2]


def check_same_kind(first: Frame, other: Frame) -> None:
    """Raise DataError when two frames cannot come from the same camera and setting."""
    if first.size != other.size:
        raise DataError(
            f'the frames have different sizes ({first.size[0]}x{first.size[1]} and {other.size[0]}x{other.size[1]}): '
            'calibrate one resolution at a time'
        )
    if first.cfa != other.cfa:
        raise DataError(f'the frames have different colour filter phases ({first.cfa} and {other.cfa})')
    if first.gain is not None and other.gain is not None and first.gain != other.gain:
        raise DataError(
            f'the frames were taken at different gains ({first.gain:g} and {other.gain:g}): calibrate one at a time'
        )
    if first.processed or other.processed:
        raise DataError('the frames are processed pictures, their noise is not that of the sensor: record raw')


def saturation_code(frame: Frame) -> float:
    """Code at which pixels count as saturated: the white level, or lower where many pixels share the largest value."""
    highest = int(frame.mosaic.max())
    crowded = np.count_nonzero(frame.mosaic == highest) > 1e-3 * frame.mosaic.size
    next_lower = np.count_nonzero(frame.mosaic == highest - 1) * 4 if crowded else 0
    if crowded and next_lower < np.count_nonzero(frame.mosaic == highest):
        return min(float(highest), frame.white_level)
    return frame.white_level


def pair_points(first: Frame, second: Frame, black: tuple[float, float, float]) -> TransferPoints:
    """Measure every tile of a pair of frames of the same scene. Raises DataError when they are not comparable."""
    check_same_kind(first, second)
    if min(first.size) < 2 * TILE:
        raise DataError(f'frames of {first.size[0]}x{first.size[1]} are too small: at least {2 * TILE} pixels a side')
    white = min(saturation_code(first), saturation_code(second))
    row, _ = row_noise(first, second)
    columns = []
    pairs = zip(lattices(first.mosaic, first.cfa), lattices(second.mosaic, first.cfa), strict=True)
    for (colour, one), (_, two) in pairs:
        tiles_a, tiles_b = _tiles(one), _tiles(two)
        largest = np.maximum(tiles_a.max(axis=1), tiles_b.max(axis=1))
        zeros = np.mean((tiles_a == 0) | (tiles_b == 0), axis=1)
        usable = (largest < white) & (zeros <= TOLERATED_ZEROS)
        columns.append(_measure(tiles_a, tiles_b, usable, row, black[colour]))
    mean, variance, relative, drift = (np.concatenate(part) for part in zip(*columns, strict=True))
    return TransferPoints(mean, variance, relative, drift, row, float(np.mean(np.isnan(variance))))


def _measure(
    tiles_a: NDArray[np.uint16], tiles_b: NDArray[np.uint16], usable: NDArray[np.bool_], row: float, black: float
) -> tuple[Array, Array, Array, Array]:
    """Mean, variance (NaN where not usable), its relative error and the drift of tiles (n, pixels) of one colour."""
    count = tiles_a.shape[1]
    difference = tiles_a.astype(np.float64) - tiles_b
    mean = (tiles_a.mean(axis=1) + tiles_b.mean(axis=1)) / 2.0 - black
    step = difference.mean(axis=1)
    centred = difference - step[:, None]
    square = np.mean(centred**2, axis=1)
    variance = np.where(usable, square * count / (count - 1) / 2.0, np.nan)
    positive = usable & (square > 0)
    # Heavy tails make a variance less certain than for a Gaussian.
    kurtosis = np.mean(centred[positive] ** 4, axis=1) / square[positive] ** 2
    excess = max(float(kurtosis.mean()) - 3.0, 0.0) if positive.any() else 0.0
    relative = np.full(len(mean), np.sqrt(2.0 / (count - 1) + excess / count))
    # Row noise does not average over the columns of a tile.
    error = np.sqrt(2.0 * (np.maximum(square / 2.0, 1.0 / 12.0) / count + row / TILE))
    drift = np.abs(_without_flicker(step, mean, error)) / error
    return mean, variance, relative, np.maximum(drift, _correlation(centred, square))


def _correlation(centred: Array, square: Array) -> Array:
    """Correlation of vertical neighbours of a difference, in standard errors; noise has none, motion leaves edges."""
    tiles = centred.reshape(len(centred), TILE, TILE)
    products = tiles[:, 1:] * tiles[:, :-1]
    error = np.maximum(square, 1e-12) / np.sqrt(products[0].size)
    return np.abs(products.mean(axis=(1, 2))) / error


def _without_flicker(step: Array, mean: Array, error: Array) -> Array:
    """Take off what a change of the lamp or of the frame's offset explains: a line over the brightness."""
    keep = np.ones(len(step), dtype=bool)
    rest = step - np.median(step)
    for _ in range(3):
        if np.count_nonzero(keep) < 3 or not np.ptp(mean[keep]) > 0:
            break
        line = np.polyfit(mean[keep], step[keep], 1, w=1.0 / error[keep])
        rest = step - np.polyval(line, mean)
        keep = np.abs(rest) < 4.0 * error
    return rest


def row_noise(first: Frame, second: Frame) -> tuple[float, float]:
    """Variance of the noise common to a row, and mean pixel variance with row noise in it, of a pair of frames.

    The variance of the row means of the difference holds the row noise and the pixel noise over the width.
    """
    difference = first.mosaic.astype(np.float32) - second.mosaic
    lattice: NDArray[Any]
    for _, lattice in lattices(difference, first.cfa):
        lattice -= lattice.mean(dtype=np.float64).astype(np.float32)
    width = difference.shape[1]
    total = float(np.mean(np.square(difference, dtype=np.float64))) / 2.0
    means = difference.mean(axis=1, dtype=np.float64)
    measured = float(np.var(means, ddof=2)) / 2.0
    # measured = row + pixel / width and total = row + pixel.
    return max((measured - total / width) / (1.0 - 1.0 / width), 0.0), total


def average_points(pairs: Sequence[TransferPoints]) -> TransferPoints:
    """Average the same tiles over many pairs of a static scene; a tile clipped once stays out."""
    count = len(pairs)
    variance = np.mean([points.variance for points in pairs], axis=0)
    return TransferPoints(
        mean=np.mean([points.mean for points in pairs], axis=0),
        variance=variance,
        relative_sigma=np.sqrt(np.mean([points.relative_sigma**2 for points in pairs], axis=0) / count),
        drift=np.max([points.drift for points in pairs], axis=0),
        row_variance=float(np.mean([points.row_variance for points in pairs])),
        clipped=float(np.mean(np.isnan(variance))),
    )


def join_points(parts: Sequence[TransferPoints]) -> TransferPoints:
    """Put the usable tiles of several exposures side by side."""
    kept = [~np.isnan(points.variance) for points in parts]

    def column(name: str) -> Array:
        return np.concatenate([getattr(points, name)[mask] for points, mask in zip(parts, kept, strict=True)])

    return TransferPoints(
        mean=column('mean'),
        variance=column('variance'),
        relative_sigma=column('relative_sigma'),
        drift=column('drift'),
        row_variance=float(np.mean([points.row_variance for points in parts])),
        clipped=float(np.mean([points.clipped for points in parts])),
    )


def fit_line(points: TransferPoints, iterations: int = 30) -> TransferLine:
    """Fit variance = gain * mean + dark_variance, robust (Huber) and weighted by the error of each variance.

    Raises DataError when fewer than ten tiles are left or when their brightness does not vary.
    """
    mean, variance = points.mean, points.variance
    if len(mean) < 10:
        raise DataError(f'only {len(mean)} tiles are usable: record larger frames without clipping')
    design = np.column_stack([mean, np.ones_like(mean)])
    spread = float(mean.max() - mean.min())
    if not spread > 0:
        raise DataError('all tiles have the same brightness: the gain needs flats at several exposures')
    sigma = points.relative_sigma * np.median(variance)
    robust = np.ones_like(mean)
    solution: Array = np.zeros(2)
    for _ in range(iterations):
        weight = robust / sigma**2
        normal = design.T @ (design * weight[:, None])
        previous, solution = solution, np.asarray(np.linalg.solve(normal, design.T @ (variance * weight)), np.float64)
        fitted = np.maximum(design @ solution, 1e-3 * np.median(variance) + 1e-12)
        # The error of a variance is proportional to the true variance, which the line knows best.
        sigma = points.relative_sigma * fitted
        robust = np.minimum(1.0, 3.0 / np.maximum(np.abs(variance - fitted) / sigma, 1e-9))
        if np.allclose(solution, previous, rtol=1e-9, atol=0):
            break
    covariance = np.linalg.inv(design.T @ (design * (robust / sigma**2)[:, None]))
    residual: Array = (variance - design @ solution) / sigma
    centres, values, errors = binned_curve(points, solution[0], solution[1])
    curve = solution[0] * centres + solution[1]
    weight = 1.0 / errors**2
    scatter = np.sum(weight * (values - np.average(values, weights=weight)) ** 2)
    return TransferLine(
        gain=float(solution[0]),
        gain_sigma=float(np.sqrt(covariance[0, 0])),
        dark_variance=float(solution[1]),
        dark_sigma=float(np.sqrt(covariance[1, 1])),
        r_squared=float(1.0 - np.sum(weight * (values - curve) ** 2) / scatter) if scatter > 0 else 0.0,
        reduced_chi2=float(np.sum(residual**2) / (len(residual) - 2)),
    )


def binned_curve(points: TransferPoints, gain: float, dark_variance: float, bins: int = 40) -> tuple[Array, ...]:
    """Mean, variance and standard error of the variance (bins,) of tiles sorted by brightness, for plots and R^2.

    Tiles of a bin differ in brightness; their ratio to the line, cut at three errors, is carried to the centre.
    """
    expected = np.maximum(gain * points.mean + dark_variance, 1e-9)
    limit = 3.0 * points.relative_sigma
    ratio = 1.0 + np.clip(points.variance / expected - 1.0, -limit, limit)
    parts = np.array_split(np.argsort(points.mean), min(bins, len(points)))
    centres = np.array([points.mean[part].mean() for part in parts])
    line = np.array([expected[part].mean() for part in parts])
    values = line * [ratio[part].mean() for part in parts]
    errors = line * [points.relative_sigma[part].mean() / np.sqrt(len(part)) for part in parts]
    return centres, values, errors


def _tiles(image: NDArray[np.uint16]) -> NDArray[np.uint16]:
    height, width = image.shape[0] // TILE, image.shape[1] // TILE
    cut = image[: height * TILE, : width * TILE].reshape(height, TILE, width, TILE)
    return cut.swapaxes(1, 2).reshape(height * width, TILE * TILE)
