# SPDX-License-Identifier: Apache-2.0
"""What the picture says about the camera's settings while the robot drives: one sentence for each thing to change.

A condition must hold for some measurements before it is told, and be gone by a margin for as many before it is
withdrawn, so that advice does not flicker.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting
from dark3r_ros.raw.checks import frame_health
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame

# Pixels that are looked at; more would cost time and tell nothing new.
_SAMPLE_PIXELS = 400_000
# Frames whose sharpness tells what is usual in this place, and how many of them there must be.
_SHARPNESS_WINDOW, _SHARPNESS_FEWEST = 100, 15
# A measured sharpness must stand out of the noise by this many standard deviations.
_CERTAIN = 8.0
_SMOOTHING = 0.3


@dataclass(frozen=True)
class AdviceConfig(Config):
    """When the camera's settings are worth a word."""

    period: float = setting(0.2, 'Least time between two frames that are looked at.', unit='s', minimum=0.0)
    hold: int = setting(3, 'Such frames in a row that a condition must hold, or be gone.', minimum=1, maximum=1000)
    black_share: float = setting(
        0.01, 'Share of pixels at the black rail that is too much.', minimum=0.0001, maximum=1.0
    )
    saturated_share: float = setting(0.02, 'Share of saturated pixels that is too much.', minimum=0.0001, maximum=1.0)
    low_snr: float = setting(
        -4.0, 'Signal-to-noise ratio below which more light is asked for.', unit='dB', minimum=-40.0, maximum=60.0
    )
    sharpness: float = setting(
        0.5, 'Share of the usual fine structure below which a frame is blurred; 0 never.', minimum=0.0, maximum=0.95
    )


@dataclass(frozen=True)
class Measurement:
    """One look at a frame.

    Attributes
    ----------
    black: share of pixels at the lowest code where that is a rail, else 0. saturated: share at the white level.
    no_light: whether nothing but noise was seen.
    structure: fine structure relative to coarse along x and along y, NaN where the noise hides it.

    """

    black: float
    saturated: float
    no_light: bool
    structure: tuple[float, float]


class Observer:
    """Measures frames, at most one each `period`; used by the thread that decodes them."""

    def __init__(self, config: AdviceConfig, noise: NoiseModel | None = None) -> None:
        self._config, self._noise = config, noise
        self._next_ns = -(2**63)
        self.newest: Measurement | None = None

    def look(self, frame: Frame) -> None:
        """Measure a frame into `newest` where it is time to."""
        if self._next_ns - 10**10 < frame.stamp_ns < self._next_ns or min(frame.mosaic.shape) < 32:
            return
        self._next_ns = frame.stamp_ns + round(self._config.period * 1e9)
        self.newest = measure(frame, self._noise)


def measure(frame: Frame, noise: NoiseModel | None = None) -> Measurement:
    """Look at a frame of at least 32x32 pixels; large ones are looked at in part."""
    rows = _some_rows(frame.mosaic)
    health = frame_health(replace(frame, mosaic=rows), noise)
    # Columns as rows, so that neighbours along y stay neighbours.
    columns = _some_rows(np.ascontiguousarray(frame.mosaic.T))
    return Measurement(
        0.0 if frame.processed else _at_rail(rows, min(frame.black_level)),
        health.saturated_fraction,
        health.all_black,
        (_structure(rows), _structure(columns)),
    )


def _some_rows(mosaic: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Pairs of rows spread over the mosaic, so that its colours stay in place."""
    height, width = mosaic.shape
    pairs = mosaic[: height // 2 * 2].reshape(height // 2, 2, width)
    step = max(1, math.ceil(mosaic.size / _SAMPLE_PIXELS))
    return np.ascontiguousarray(pairs[::step]).reshape(-1, width)


def _at_rail(mosaic: NDArray[np.uint16], black: float) -> float:
    """Share of pixels at the lowest code when it stands out over the next one, as cut-off noise does."""
    counts = np.bincount(mosaic.reshape(-1))
    codes = np.flatnonzero(counts)
    lowest = int(codes[0])
    beside = int(counts[lowest + 1]) if lowest + 1 < len(counts) else 0
    rail = counts[lowest] > 2 * beside or lowest == 0
    # A picture well above black has a lowest code too.
    return float(counts[lowest]) / mosaic.size if rail and lowest <= black + 1.0 else 0.0


def _structure(mosaic: NDArray[np.uint16]) -> float:
    """Growth of the differences from 1 to 2 tiles of distance over that from 4 to 8, along the rows.

    Independent noise adds the same to the differences at all distances and drops out. Blur takes from the fine ones.
    """
    height, width = mosaic.shape
    tiles = mosaic[: height // 2 * 2, : width // 2 * 2].astype(np.float32)
    tiles = tiles[0::2, 0::2] + tiles[0::2, 1::2] + tiles[1::2, 0::2] + tiles[1::2, 1::2]
    if tiles.shape[1] < 17:
        return math.nan
    squares = {k: (tiles[:, k:] - tiles[:, :-k]) ** 2 for k in (1, 2, 4, 8)}
    means = {k: float(square.mean(dtype=np.float64)) for k, square in squares.items()}
    coarse = means[8] - means[4]
    error = float(np.sqrt(2.0) * squares[4].std(dtype=np.float64) / math.sqrt(tiles.size))
    if coarse <= _CERTAIN * error:
        return math.nan
    return (means[2] - means[1]) / coarse


class _Switch:
    """On after `hold` values beyond `on` in a row, off after as many within `off`."""

    def __init__(self, on: float, off: float, hold: int) -> None:
        self._on, self._off, self._hold = on, off, hold
        self._count = 0
        self.active = False
        self.value = math.nan

    def add(self, value: float) -> None:
        """Take the next value; NaN says nothing."""
        if math.isnan(value):
            return
        self.value = value if math.isnan(self.value) else self.value + _SMOOTHING * (value - self.value)
        rising = self._on > self._off
        beyond = value > self._on if rising else value < self._on
        within = value < self._off if rising else value > self._off
        self._count = self._count + 1 if (within if self.active else beyond) else 0
        if self._count >= self._hold:
            self.active, self._count = not self.active, 0
            self.value = value


class Advisor:
    """Sentences from measurements."""

    def __init__(self, config: AdviceConfig) -> None:
        self._config = config
        hold = config.hold
        self._black = _Switch(config.black_share, 0.5 * config.black_share, hold)
        self._saturated = _Switch(config.saturated_share, 0.5 * config.saturated_share, hold)
        self._snr = _Switch(config.low_snr, config.low_snr + 1.5, hold)
        self._dark = _Switch(0.5, 0.4, hold)
        self._blur = _Switch(config.sharpness, min(1.4 * config.sharpness, 0.5 * (1.0 + config.sharpness)), hold)
        self._usual: tuple[deque[float], deque[float]] = (
            deque(maxlen=_SHARPNESS_WINDOW),
            deque(maxlen=_SHARPNESS_WINDOW),
        )
        self._seen: Measurement | None = None

    def take(self, measurement: Measurement | None, snr_db: float) -> None:
        """Take the newest measurement (the same one twice counts once) and the ratio of the frame it came from."""
        if measurement is None or measurement is self._seen:
            return
        self._seen = measurement
        self._black.add(measurement.black)
        self._saturated.add(measurement.saturated)
        self._dark.add(float(measurement.no_light))
        self._snr.add(snr_db)
        self._blur.add(self._relative_sharpness(measurement.structure))

    def _relative_sharpness(self, structure: tuple[float, float]) -> float:
        """Smaller share of the usual fine structure along x and y; NaN until the usual is known."""
        shares = []
        for value, usual in zip(structure, self._usual, strict=True):
            if math.isnan(value):
                continue
            if len(usual) >= _SHARPNESS_FEWEST:
                shares.append(max(value, 0.0) / max(float(np.median(usual)), 1e-9))
            usual.append(value)
        return min(shares) if shares and self._config.sharpness > 0.0 else math.nan

    def sentences(self) -> list[str]:
        """What would help now, most urgent first; empty when all is well."""
        if self._dark.active:
            return ['no light reaches the sensor: take off the lens cap, switch the lamp on, or lengthen the exposure']
        result = []
        if self._saturated.active:
            result.append(
                f'{_percent(self._saturated.value)} of the pixels are saturated: shorten the exposure or lower the gain'
            )
        if self._black.active:
            result.append(
                f"{_percent(self._black.value)} of the pixels are at the black rail: raise the camera's black level"
            )
        if self._snr.active and self._blur.active:
            result.append(
                f'SNR {self._snr.value:.0f} dB and blurred: add light, open the aperture or slow down; a longer '
                'exposure would blur more'
            )
        elif self._snr.active:
            result.append(f'SNR {self._snr.value:.0f} dB: lengthen the exposure and slow down, or add light')
        elif self._blur.active:
            result.append(
                f'blurred, {_percent(self._blur.value)} of the usual fine structure is left: shorten the exposure or '
                'slow down'
            )
        return result


def _percent(share: float) -> str:
    return f'{100.0 * share:.0f} %' if share >= 0.1 else f'{100.0 * share:.1g} %'
