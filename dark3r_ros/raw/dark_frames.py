# SPDX-License-Identifier: Apache-2.0
"""What frames with the lens cap on say: black level, read, row and offset noise, shape of the tails.

Differences of frames remove the fixed pattern. The variance of a difference is twice that of a pixel; the variance
of its row means holds the row noise; the frame means wander by the offset noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from dark3r_ros.errors import DataError
from dark3r_ros.raw.photon_transfer import Array, check_same_kind, lattices, row_noise
from dark3r_ros.types import Frame

# Pixels followed through all frames for the shape of the tails, and values sorted for the fit.
TRACKED_PIXELS = 20_000
SHAPE_SAMPLES = 200_000

# Tukey lambda that comes nearest to a Gaussian, and how near counts as Gaussian.
GAUSSIAN_LAMBDA = 0.1436
GAUSSIAN_TOLERANCE = 0.025

# Fewer frames leave too much of a pixel's own noise in its mean for the shape.
SHAPE_FRAMES = 8


@dataclass(frozen=True)
class DarkStatistics:
    """Noise without light. Sigmas in counts.

    Attributes
    ----------
    black: mean of R, G, B. read_variance: temporal variance of a pixel without row noise, rounding included.
    row_variance, offset_variance: see the noise model. offset_freedom: degrees of freedom behind the latter.
    tukey_lambda: shape of the read noise, NaN when Gaussian or unknown. ppcc: its probability plot correlation.
    gaussian_ppcc: the same for a Gaussian.
    residuals: (n,) sorted read noise values for the histogram.
    frame_means: (frames, 3) mean of R, G, B of every frame.
    zero_share: share of pixels at code zero. frames: number of frames. sample: one of them.

    """

    black: tuple[float, float, float]
    read_variance: float
    row_variance: float
    offset_variance: float
    offset_freedom: int
    tukey_lambda: float
    ppcc: float
    gaussian_ppcc: float
    residuals: Array
    frame_means: Array
    zero_share: float
    frames: int
    sample: Frame


def analyse_darks(frames: Iterable[Frame]) -> DarkStatistics:
    """Measure dark frames, read one after the other; only two are held in memory.

    Raises DataError with fewer than two frames, or when they are not dark, not raw or not of one kind.
    """
    previous: Frame | None = None
    means, rows, totals, tracked, zeros = [], [], [], [], 0
    picker: NDArray[np.intp] | None = None
    for frame in frames:
        if previous is None:
            check_same_kind(frame, frame)
            picker = _tracked(frame)
        else:
            check_same_kind(previous, frame)
            row, total = row_noise(previous, frame)
            rows.append(row)
            totals.append(total)
        means.append(_colour_means(frame))
        centred = frame.mosaic.reshape(-1)[picker].astype(np.float32)
        row_means = frame.mosaic.mean(axis=1, dtype=np.float64).astype(np.float32)
        assert picker is not None
        tracked.append(centred - row_means[picker // frame.mosaic.shape[1]])
        zeros += int(np.count_nonzero(frame.mosaic == 0))
        previous = frame
    if previous is None:
        raise DataError('the dark input has no frames: record at least 20 with the lens cap on')
    if len(means) < 2:
        raise DataError('one dark frame only: noise needs at least two, better 20 or more, with the lens cap on')
    table = np.array(means)
    height = previous.mosaic.shape[0]
    row_variance, total_variance = float(np.mean(rows)), float(np.mean(totals))
    read_variance = max(total_variance - row_variance, 0.0)
    offset_variance, freedom = _offset(table, read_variance, row_variance, previous.mosaic.size, height)
    residuals = _residuals(np.array(tracked))
    shape, ppcc = _shape(residuals) if len(means) >= SHAPE_FRAMES else (math.nan, math.nan)
    gaussian = _correlation(residuals, ndtri(_positions(len(residuals))))
    near_gaussian = abs(shape - GAUSSIAN_LAMBDA) < GAUSSIAN_TOLERANCE
    black = table.mean(axis=0)
    return DarkStatistics(
        black=(float(black[0]), float(black[1]), float(black[2])),
        read_variance=read_variance,
        row_variance=row_variance,
        offset_variance=offset_variance,
        offset_freedom=freedom,
        tukey_lambda=math.nan if near_gaussian else shape,
        ppcc=ppcc,
        gaussian_ppcc=gaussian,
        residuals=residuals,
        frame_means=table,
        zero_share=zeros / (previous.mosaic.size * len(means)),
        frames=len(means),
        sample=previous,
    )


def tukey_lambda_quantiles(probability: Array, shape: float) -> Array:
    """Quantile function (p^s - (1 - p)^s) / s of the standard Tukey-lambda distribution; logistic at s = 0."""
    if abs(shape) < 1e-6:
        return np.log(probability) - np.log1p(-probability)
    return (probability**shape - (1.0 - probability) ** shape) / shape


def _tracked(frame: Frame) -> NDArray[np.intp]:
    rng = np.random.default_rng(0)
    count = min(TRACKED_PIXELS, frame.mosaic.size)
    return np.sort(rng.choice(frame.mosaic.size, count, replace=False))


def _colour_means(frame: Frame) -> list[float]:
    sums: list[list[float]] = [[], [], []]
    for colour, lattice in lattices(frame.mosaic, frame.cfa):
        sums[colour].append(float(lattice.mean(dtype=np.float64)))
    green = float(np.mean(sums[1]))
    return [float(np.mean(part)) if part else green for part in sums]


def _offset(table: Array, read: float, row: float, pixels: int, height: int) -> tuple[float, int]:
    """Variance of the frame means beyond what pixel and row noise explain, averaged over the colours."""
    mono = bool(np.all(table[:, 0] == table[:, 1]))
    wander = np.var(table, axis=0, ddof=1)
    if mono:
        expected = np.array([read / pixels + row / height])
        wander = wander[:1]
    else:
        expected = read / (pixels * np.array([0.25, 0.5, 0.25])) + row / (height * np.array([0.5, 1.0, 0.5]))
    return max(float(np.mean(wander - expected)), 0.0), (len(table) - 1) * len(wander)


def _residuals(tracked: NDArray[np.float32]) -> Array:
    """Read noise of the tracked pixels: their own mean taken off, scaled for what the mean takes along, sorted."""
    frames = len(tracked)
    centred = (tracked - tracked.mean(axis=0)) * math.sqrt(frames / (frames - 1))
    values = centred.reshape(-1)
    if len(values) > SHAPE_SAMPLES:
        values = values[:: -(-len(values) // SHAPE_SAMPLES)]
    return np.sort(values.astype(np.float64))


def _positions(count: int) -> Array:
    """Plotting positions of Filliben: medians of the order statistics, nearly."""
    positions = np.asarray((np.arange(1, count + 1) - 0.3175) / (count + 0.365), dtype=np.float64)
    positions[-1] = 0.5 ** (1.0 / count)
    positions[0] = 1.0 - positions[-1]
    return positions


def _correlation(values: Array, quantiles: Array) -> float:
    if not values.std() > 0:
        return math.nan
    return float(np.corrcoef(values, quantiles)[0, 1])


def _shape(values: Array) -> tuple[float, float]:
    """Tukey lambda of largest probability plot correlation, and that correlation; NaN for constant values."""
    if not values.std() > 0:
        return math.nan, math.nan
    positions = _positions(len(values))

    def best(candidates: Array) -> tuple[float, float]:
        scores = [_correlation(values, tukey_lambda_quantiles(positions, float(shape))) for shape in candidates]
        return float(candidates[int(np.argmax(scores))]), max(scores)

    coarse, _ = best(np.arange(-0.44, 0.4, 0.04))
    return best(np.arange(max(coarse - 0.04, -0.44), coarse + 0.0401, 0.005))
