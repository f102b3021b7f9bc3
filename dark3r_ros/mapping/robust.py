# SPDX-License-Identifier: Apache-2.0
"""A line through measurements of which up to nearly half may be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TUKEY = 4.685  # 95 % efficient on a normal distribution
_ROUNDS = 20
_FLOOR = 1e-6


@dataclass(frozen=True)
class RobustLine:
    """Level and slope with standard deviations.

    Attributes
    ----------
    value, deviation: level without a slope.
    end, end_deviation: level at x = 0 with the slope.
    slope, slope_deviation: per unit of x.
    agreeing: sum of the weights of the measurements, each 0 to 1. independent: the same without their overlap.

    """

    value: float
    deviation: float
    end: float
    end_deviation: float
    slope: float
    slope_deviation: float
    agreeing: float
    independent: float


def shortest_half(values: Array) -> tuple[float, float]:
    """Centre of the shortest interval that holds half of the values (N,), and its half width.

    Source: Rousseeuw, Least median of squares regression, JASA 1984. Wrong values on one side move it less than
    the median.
    """
    ordered = np.sort(values)
    half = len(ordered) // 2 + 1
    widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    first = int(np.argmin(widths))
    return float(ordered[first] + 0.5 * widths[first]), float(0.5 * widths[first])


def robust_line(x: Array, y: Array, *, overlap: int = 1) -> RobustLine:
    """Fit a level and a line to measurements y (N,) at x (N,), N >= 3, in the order of x.

    `overlap` neighbours share what makes them err, so that they count as one; correlation that remains is taken
    from the residuals.
    """
    centre, half_width = shortest_half(y)
    sigma = max(half_width / 0.6745, _FLOOR)
    # Half of the measurements show the scatter of all too small when they are few or correlated.
    near = np.abs(y - centre) < TUKEY * sigma
    sigma = max(sigma, 1.4826 * float(np.median(np.abs(y[near] - centre))), _FLOOR)
    level, covariance, weights = _fit(np.ones((len(y), 1)), y, np.array([centre]), sigma, overlap)
    sloped = np.stack([np.ones(len(x)), x], axis=1)
    line, _, line_weights = _fit(sloped, y, np.array([level[0], 0.0]), sigma, overlap)
    # Around the line the scatter is that of the measurements; around the level the slope adds to it.
    residuals = np.abs(y - sloped @ line)[line_weights > 0.0]
    if len(residuals):
        sigma = max(min(sigma, 1.4826 * float(np.median(residuals))), _FLOOR)
    line, line_covariance, _ = _fit(sloped, y, line, sigma, overlap)
    agreeing = float(weights.sum())
    return RobustLine(
        float(level[0]),
        float(np.sqrt(covariance[0, 0])),
        float(line[0]),
        float(np.sqrt(line_covariance[0, 0])),
        float(line[1]),
        float(np.sqrt(line_covariance[1, 1])),
        agreeing,
        agreeing / overlap,
    )


def _fit(design: Array, y: Array, start: Array, sigma: float, overlap: int) -> tuple[Array, Array, Array]:
    """Parameters, covariance and weights of iteratively reweighted least squares with Tukey's biweight."""
    solution = start
    scale = np.abs(design).max(axis=0)
    scaled = design / np.where(scale > 0.0, scale, 1.0)
    solution = solution * scale
    ridge = 1e-9 * np.eye(design.shape[1])
    for _ in range(_ROUNDS):
        weights = tukey_weights(y - scaled @ solution, sigma)
        normal = scaled.T @ (weights[:, None] * scaled) + ridge
        before = solution
        solution = np.asarray(np.linalg.solve(normal, scaled.T @ (weights * y)))
        if np.abs(solution - before).max() < 1e-9:
            break
    residuals = y - scaled @ solution
    weights = tukey_weights(residuals, sigma)
    u2 = np.minimum((residuals / (TUKEY * sigma)) ** 2, 1.0)
    slopes = (1.0 - u2) * (1.0 - 5.0 * u2)
    bread = np.linalg.inv(scaled.T @ (slopes[:, None] * scaled) + ridge)
    meat = scaled.T @ (((weights * residuals) ** 2)[:, None] * scaled)
    degrees = max(weights.sum() / overlap - design.shape[1], 1.0)
    # The scatter of a few values is itself uncertain: widened towards a 95 % statement.
    small_sample = 1.0 + 5.0 * design.shape[1] / degrees
    covariance = bread @ meat @ bread * overlap * _correlation(weights * residuals, overlap) * small_sample
    return solution / scale, covariance / np.outer(scale, scale), weights


def tukey_weights(residuals: Array, sigma: float) -> Array:
    """Tukey's biweight, 1 to 0, of residuals of an expected deviation."""
    u2 = (residuals / (TUKEY * sigma)) ** 2
    return np.asarray((1.0 - np.minimum(u2, 1.0)) ** 2)


def _correlation(values: Array, overlap: int) -> float:
    """How many times the variance of a mean grows because values `overlap` apart are alike; at least 1."""
    if len(values) < 4 * overlap + 4:
        return 1.0
    power = float(values @ values)
    if power <= 0.0:
        return 1.0
    rho = float(values[overlap:] @ values[:-overlap]) / power
    rho = min(max(rho, 0.0), 0.9)
    return (1.0 + rho) / (1.0 - rho)
