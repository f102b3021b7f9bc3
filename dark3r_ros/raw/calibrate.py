# SPDX-License-Identifier: Apache-2.0
"""Calibrate the noise model of a camera at one gain from its own recordings.

Dark frames give black level, read, row and offset noise and the tails; pairs of flats at several exposures, or many
frames of a static scene, give the gain. Without darks the read noise is what the line leaves at black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.raw.dark_frames import DarkStatistics, analyse_darks
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.photon_transfer import (
    TransferLine,
    TransferPoints,
    average_points,
    check_same_kind,
    fit_line,
    join_points,
    pair_points,
)
from dark3r_ros.types import Frame

# A pair counts as one exposure when the means agree to this share of the signal.
SAME_EXPOSURE = 0.03

# A tile has moved when its mean changed by so many standard errors; a scene, when so many tiles have.
MOVED_SIGMAS = 7.0
MOVED_SHARE = 0.1

RECOMMENDED_DARKS = 20


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration: the model, how well it fits, and what it was made from."""

    noise: NoiseModel
    line: TransferLine
    points: TransferPoints
    darks: DarkStatistics | None
    method: str
    pairs: int
    warnings: tuple[str, ...] = field(default=())

    def report(self) -> dict[str, Any]:
        """Plain figures for YAML and JSON."""
        line = self.line
        result: dict[str, Any] = {
            'method': self.method,
            'fit': {
                'gain_relative_error': line.gain_sigma / line.gain,
                'dark_variance': line.dark_variance,
                'dark_variance_error': line.dark_sigma,
                'r_squared': line.r_squared,
                'reduced_chi2': line.reduced_chi2,
                'tiles': len(self.points),
                'pairs': self.pairs,
                'clipped_share': self.points.clipped,
            },
            'warnings': list(self.warnings),
        }
        if self.darks is not None:
            result['darks'] = {
                'frames': self.darks.frames,
                'black_rgb': list(self.darks.black),
                'zero_share': self.darks.zero_share,
                'offset_freedom': self.darks.offset_freedom,
                'tukey_lambda_ppcc': self.darks.ppcc,
                'gaussian_ppcc': self.darks.gaussian_ppcc,
            }
        return result


def calibrate(
    *,
    darks: Iterable[Frame] | None = None,
    flats: Sequence[Iterable[Frame]] = (),
    static: Iterable[Frame] | None = None,
    name: str = '',
) -> Calibration:
    """Calibrate one camera at one gain.

    Parameters
    ----------
    darks: frames with the lens cap on, 20 or more; for the offset noise to 10 % about 20 frames, to 5 % about 70.
    flats: recordings of an even surface; within each, consecutive frames of equal brightness are taken as pairs, so
        that one recording may step through several exposures.
    static: recording of any scene without motion, in place of flats or beside them.
    name: name of camera and setting, kept in the model.

    Raises DataError saying what to record when the material does not allow a calibration: too few frames, saturated,
    moving, of different size or gain, or without a range of brightness.

    """
    dark = None if darks is None else analyse_darks(darks)
    parts, pairs, sample = _collect(flats, static, dark)
    if sample is None:
        raise DataError(
            'the gain needs light: give pairs of flats at several exposures, or a recording of a static scene'
        )
    points = join_points(parts)
    if len(points) < 10 and points.clipped > 0.5:
        raise DataError(
            f'{points.clipped:.0%} of the tiles are saturated or cut off at zero: lower exposure or light, or raise '
            'the black level of the camera'
        )
    line = fit_line(points)
    _check_line(line, points, dark, sample)
    noise = _model(line, points, dark, sample, name)
    method = '+'.join(
        part for part, used in (('dark', darks), ('flat', flats), ('static', static)) if used is not None and used != ()
    )
    return Calibration(noise, line, points, dark, method, pairs, tuple(_advice(noise, line, points, dark)))


def _collect(
    flats: Sequence[Iterable[Frame]], static: Iterable[Frame] | None, dark: DarkStatistics | None
) -> tuple[list[TransferPoints], int, Frame | None]:
    """Points of all recordings with light, the number of pairs, and one of the frames."""
    parts: list[TransferPoints] = []
    sample: Frame | None = None
    pairs = 0
    for recording in flats:
        found = 0
        for first, second in _equal_pairs(recording):
            sample = _same_camera(sample, first, dark)
            points = pair_points(first, second, _black(dark, first))
            _check_motion(points, 'the flats')
            parts.append(points)
            found += 1
        if not found:
            raise DataError(
                'a flat recording has no two consecutive frames of the same brightness: record at least two frames per '
                'exposure, under a steady lamp'
            )
        pairs += found
    if static is not None:
        measured = []
        for first, second in _disjoint_pairs(static):
            sample = _same_camera(sample, first, dark)
            measured.append(pair_points(first, second, _black(dark, first)))
        if not measured:
            raise DataError('the static recording has fewer than two frames: record at least 20')
        average = average_points(measured)
        _check_motion(average, 'the static scene')
        parts.append(average)
        pairs += len(measured)
    return parts, pairs, sample


def _same_camera(sample: Frame | None, frame: Frame, dark: DarkStatistics | None) -> Frame:
    if dark is not None:
        check_same_kind(dark.sample, frame)
    if sample is None:
        return frame
    check_same_kind(sample, frame)
    return sample


def _black(dark: DarkStatistics | None, frame: Frame) -> tuple[float, float, float]:
    return dark.black if dark is not None else frame.black_level


def _disjoint_pairs(frames: Iterable[Frame]) -> Iterator[tuple[Frame, Frame]]:
    previous: Frame | None = None
    for frame in frames:
        if previous is None:
            previous = frame
        else:
            yield previous, frame
            previous = None


def _equal_pairs(frames: Iterable[Frame]) -> Iterator[tuple[Frame, Frame]]:
    """Consecutive frames of equal brightness, each frame used once."""
    previous: Frame | None = None
    for frame in frames:
        if previous is not None:
            check_same_kind(previous, frame)
            mean = float(frame.mosaic.mean(dtype=np.float64))
            change = abs(mean - float(previous.mosaic.mean(dtype=np.float64)))
            signal = max(mean - float(np.mean(frame.black_level)), 0.0)
            if change <= SAME_EXPOSURE * signal + 0.05 * float(frame.mosaic.std()):
                yield previous, frame
                previous = None
                continue
        previous = frame


def _check_motion(points: TransferPoints, what: str) -> None:
    usable = ~np.isnan(points.variance)
    moved = float(np.mean(points.drift[usable] > MOVED_SIGMAS)) if usable.any() else 0.0
    if moved > MOVED_SHARE:
        raise DataError(
            f'{what} changed between frames in {moved:.0%} of the image: fix the camera, and let nothing move'
        )


def _check_line(line: TransferLine, points: TransferPoints, dark: DarkStatistics | None, sample: Frame) -> None:
    if not line.gain > 0 or line.gain_sigma > 0.1 * line.gain:
        raise DataError(
            f'the noise does not grow with brightness clearly enough (slope {line.gain:.3g} +- {line.gain_sigma:.2g} '
            f'DN/e- from {points.mean.min():.3g} to {points.mean.max():.3g} counts above black): record brighter '
            'flats, or more frames of a scene with more contrast'
        )
    if dark is None and line.dark_variance - points.row_variance < -3.0 * line.dark_sigma:
        raise DataError(
            f'the line gives a negative variance at black ({line.dark_variance:.3g} counts squared): the black level '
            f'{np.mean(sample.black_level):g} is wrong; set black_level or add dark frames'
        )


def _model(
    line: TransferLine, points: TransferPoints, dark: DarkStatistics | None, sample: Frame, name: str
) -> NoiseModel:
    step = quantisation_step(sample)
    if dark is not None:
        read, row, offset, shape = dark.read_variance, dark.row_variance, dark.offset_variance, dark.tukey_lambda
        black = float(np.mean(dark.black))
    else:
        row, offset, shape = points.row_variance, 0.0, math.nan
        read = line.dark_variance - row
        black = float(np.mean(sample.black_level))
    return NoiseModel(
        gain=line.gain,
        read_sigma=math.sqrt(max(read - step**2 / 12.0, 0.0)),
        row_sigma=math.sqrt(row),
        offset_sigma=math.sqrt(offset),
        tukey_lambda=shape,
        black_level=black,
        white_level=sample.white_level,
        quantisation_step=step,
        name=name,
        source='measured by dark3r calibrate-noise',
    )


def quantisation_step(frame: Frame) -> float:
    """Greatest common divisor of the steps between the codes that occur in a frame; 1 for a constant one."""
    steps = np.diff(np.flatnonzero(np.bincount(frame.mosaic.reshape(-1), minlength=2)))
    return float(np.gcd.reduce(steps)) if len(steps) else 1.0


def _advice(
    noise: NoiseModel, line: TransferLine, points: TransferPoints, dark: DarkStatistics | None
) -> Iterator[str]:
    if dark is None:
        yield 'no dark frames: black level as stated, offset noise and tails unknown; add 20 with the lens cap on'
    else:
        if dark.frames < RECOMMENDED_DARKS:
            yield f'{dark.frames} dark frames: read and row noise are good, the offset noise wants {RECOMMENDED_DARKS}'
        if dark.zero_share > 1e-3:
            yield (
                f'{dark.zero_share:.2%} of the dark pixels are at code zero: raise the black level of the camera, the '
                'noise is cut off'
            )
        total = dark.read_variance + dark.row_variance
        if abs(line.dark_variance - total) > 4.0 * line.dark_sigma + 0.15 * total:
            yield (
                f'the line meets black at {line.dark_variance:.3g} counts squared but dark frames have {total:.3g}: '
                'the response is not linear, or defect correction, denoising or gamma is on; switch them off'
            )
    if noise.pedestal_sigmas < 4.0:
        yield (
            f'the black level is only {noise.pedestal_sigmas:.1f} sigma above zero: raise it to at least '
            f'{4.0 * noise.black_level / noise.pedestal_sigmas:.0f} counts'
        )
    if math.sqrt(noise.dark_variance) < 0.6 * noise.quantisation_step:
        yield 'the noise is below one step of the codes: use more bits or more gain; the figures are rough'
    if line.reduced_chi2 > 2.0:
        yield (
            f'the points scatter {math.sqrt(line.reduced_chi2):.1f} times more than noise explains: flickering lamp, '
            'motion, or processing in the camera; look at the plot'
        )
    if points.clipped > 0.2:
        yield f'{points.clipped:.0%} of the tiles were left out as saturated or cut off at zero'
