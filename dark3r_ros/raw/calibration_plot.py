# SPDX-License-Identifier: Apache-2.0
"""Picture of a noise calibration, to see whether the model fits what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from dark3r_ros.errors import DependencyError, OutputError
from dark3r_ros.raw.calibrate import Calibration
from dark3r_ros.raw.dark_frames import DarkStatistics, tukey_lambda_quantiles
from dark3r_ros.raw.noise import tukey_lambda_variance
from dark3r_ros.raw.photon_transfer import binned_curve

_POINTS = '#9ab6cf'
_MEASURED = '#1f4e79'
_FITTED = '#c8501e'


def plot_calibration(calibration: Calibration, path: Path | str) -> None:
    """Write a PNG: variance against mean with the line, residuals, histogram of the read noise, frame means.

    Raises OutputError when the file cannot be written, DependencyError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError('plots need matplotlib: pip install matplotlib, or leave --plot out') from error
    figure = Figure(figsize=(12 if calibration.darks else 8, 8.5), layout='constrained')
    FigureCanvasAgg(figure)
    noise = calibration.noise
    figure.suptitle(
        f'{noise.name or "camera"}: gain {noise.gain:.4g} DN/e-, read {noise.read_sigma:.4g} DN '
        f'({noise.read_sigma / noise.gain:.3g} e-), row {noise.row_sigma:.3g} DN, black {noise.black_level:.5g} DN'
    )
    darks = calibration.darks
    axes = figure.subplots(2, 1 if darks is None else 2, squeeze=False)
    _draw_line(axes[0, 0], calibration)
    _draw_residuals(axes[1, 0], calibration)
    if darks is not None:
        _draw_read_noise(axes[0, 1], darks)
        _draw_frame_means(axes[1, 1], darks)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f'cannot write the plot to {path}: {error.strerror}') from error


def _draw_line(axis: Any, calibration: Calibration) -> None:
    line, points = calibration.line, calibration.points
    centres, values, errors = binned_curve(points, line.gain, line.dark_variance)
    shown = np.linspace(0, len(points) - 1, min(len(points), 4000)).astype(int)
    axis.scatter(points.mean[shown], points.variance[shown], s=3, color=_POINTS, label='tiles', rasterized=True)
    axis.errorbar(centres, values, errors, fmt='o', ms=4, color=_MEASURED, label='mean of tiles')
    x = np.array([0.0, max(float(centres.max()), 0.0)])
    axis.plot(x, line.gain * x + line.dark_variance, color=_FITTED, label='fit')
    top = 1.25 * max(float(values.max()), line.gain * x[1] + line.dark_variance)
    axis.set_ylim(0.0, top)
    axis.set_xlabel('mean above black [DN]')
    axis.set_ylabel('variance of a pixel [DN$^2$]')
    axis.set_title(f'photon transfer: R$^2$ = {line.r_squared:.4f}, reduced $\\chi^2$ = {line.reduced_chi2:.2f}')
    axis.legend(loc='upper left')


def _draw_residuals(axis: Any, calibration: Calibration) -> None:
    line = calibration.line
    centres, values, errors = binned_curve(calibration.points, line.gain, line.dark_variance)
    fitted = line.gain * centres + line.dark_variance
    axis.axhline(0.0, color=_FITTED)
    axis.errorbar(centres, 100.0 * (values / fitted - 1.0), 100.0 * errors / fitted, fmt='o', ms=4, color=_MEASURED)
    axis.set_xlabel('mean above black [DN]')
    axis.set_ylabel('variance over fit - 1 [%]')
    axis.set_title('residuals of the line')


def _draw_read_noise(axis: Any, darks: DarkStatistics) -> None:
    values = darks.residuals
    sigma = float(values.std()) or 1.0
    limit = max(5.0 * sigma, float(np.abs(values[[0, -1]]).max()))
    edges = np.linspace(-limit, limit, 121)
    counts, _ = np.histogram(values, edges)
    width = edges[1] - edges[0]
    axis.bar(edges[:-1], counts / (len(values) * width), width, align='edge', color=_POINTS, label='dark frames')
    probability = np.linspace(1e-6, 1.0 - 1e-6, 200_001)
    curves = [('Gaussian', ndtri(probability) * sigma, '0.35', '--')]
    if not math.isnan(darks.tukey_lambda):
        scale = sigma / math.sqrt(tukey_lambda_variance(darks.tukey_lambda))
        quantiles = tukey_lambda_quantiles(probability, darks.tukey_lambda) * scale
        curves.append((f'Tukey lambda {darks.tukey_lambda:.3f}', quantiles, _FITTED, '-'))
    for label, quantiles, colour, style in curves:
        axis.plot(quantiles, np.gradient(probability, quantiles), style, color=colour, label=label)
    axis.set_yscale('log')
    axis.set_xlim(-limit, limit)
    axis.set_ylim(0.3 / (len(values) * width), 3.0 * counts.max() / (len(values) * width))
    axis.set_xlabel('read noise of a pixel [DN]')
    axis.set_ylabel('density [1/DN]')
    axis.set_title(f'read noise: PPCC {darks.ppcc:.5f} (Gaussian {darks.gaussian_ppcc:.5f})')
    axis.legend(loc='upper right')


def _draw_frame_means(axis: Any, darks: DarkStatistics) -> None:
    for index, (name, colour) in enumerate((('R', '#b03030'), ('G', '#2f8f3f'), ('B', '#3050b0'))):
        axis.plot(darks.frame_means[:, index], 'o-', ms=3, lw=0.8, color=colour, label=name)
    axis.set_xlabel('dark frame')
    axis.set_ylabel('mean [DN]')
    axis.set_title(f'black level: offset noise {math.sqrt(darks.offset_variance):.3g} DN')
    axis.legend(loc='upper right')
