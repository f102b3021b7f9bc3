# SPDX-License-Identifier: Apache-2.0
"""The raw sensor: from linear radiance to noisy mosaics at a stated signal-to-noise ratio.

Noise is added at full mosaic resolution, before any binning, as row noise and clipping do not commute with it.
The SNR is that of `raw.snr`: 10 log10(mean(signal^2) / mean(noise variance)) at network resolution. With a scale a
(counts per unit of radiance) signal power grows as a^2 and variance as a*shot + dark, so that a solves a quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.cfa import check_pattern, sites
from dark3r_ros.raw.noise import NoiseModel

Float32 = NDArray[np.float32]

# Share of the range between black and white that the brightest pixels of a clean frame fill.
CLEAN_LEVEL = 0.7


@dataclass
class SignalStatistics:
    """Running moments of binned signals (3, h, w) in units of radiance, over any number of frames."""

    first: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    second: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    brightest: float = 0.0
    pixels: int = 0

    def add(self, signal: Float32) -> None:
        """Take in the clean planes (3, h, w) of one frame."""
        flat = np.asarray(signal, dtype=np.float64).reshape(3, -1)
        self.first += flat.sum(axis=1)
        self.second += (flat * flat).sum(axis=1)
        self.brightest = max(self.brightest, float(np.percentile(flat.max(axis=0), 99.9)))
        self.pixels += flat.shape[1]

    def exposure(self, noise: NoiseModel, snr_db: float, samples: tuple[int, int, int]) -> float:
        """Counts per unit of radiance at which the power SNR over everything added is `snr_db`.

        Infinity asks for a clean exposure: the brightest pixels at `CLEAN_LEVEL` of the range.
        """
        if not self.pixels or not self.second.any():
            raise DataError('the scene is black: no exposure gives it a signal; switch a light on')
        if math.isinf(snr_db):
            return CLEAN_LEVEL * (noise.white_level - noise.black_level) / self.brightest
        power, shot, dark = self._terms(noise, samples)
        ratio = 10.0 ** (snr_db / 10.0)
        # power*a^2 = ratio*(shot*a + dark)
        return float((ratio * shot + math.sqrt((ratio * shot) ** 2 + 4.0 * power * ratio * dark)) / (2.0 * power))

    def powers(self, noise: NoiseModel, exposure: float, samples: tuple[int, int, int]) -> tuple[float, float]:
        """Mean signal power and mean noise variance at a given exposure, counts squared."""
        power, shot, dark = self._terms(noise, samples)
        return power * exposure**2, shot * exposure + dark

    def _terms(self, noise: NoiseModel, samples: tuple[int, int, int]) -> tuple[float, float, float]:
        dark = noise.planes_variance(np.zeros(3), samples)
        shot = noise.planes_variance(self.first / self.pixels, samples) - dark
        return float(self.second.mean() / self.pixels), float(shot.mean()), float(dark.mean())


@dataclass(frozen=True)
class RawSensor:
    """A colour camera that photographs linear radiance.

    Attributes
    ----------
    noise: its noise model, with black and white level.
    cfa: Bayer phase, or `mono`.
    response: relative sensitivity of R, G, B; raw files of daylight sensors are green.

    """

    noise: NoiseModel
    cfa: str = 'rggb'
    response: tuple[float, float, float] = (0.6, 1.0, 0.7)

    def __post_init__(self) -> None:
        check_pattern(self.cfa)
        if min(self.response) <= 0:
            raise ConfigError(f'channel response {self.response} must be positive')

    def samples(self, binning: int) -> tuple[int, int, int]:
        """Raw pixels averaged into one value of R, G, B."""
        pixels = binning * binning
        return (pixels,) * 3 if self.cfa == 'mono' else (pixels // 4, pixels // 2, pixels // 4)

    def planes(self, radiance: Float32, binning: int) -> Float32:
        """Clean signal (3, h, w) per unit of exposure, as `raw.to_planes` would bin the mosaic by `binning`.

        `radiance` (3, H, W) has one value per 2x2 quad of the mosaic (`binning` counts mosaic pixels).
        """
        values = self._channels(radiance)
        step = binning // 2
        height, width = values.shape[1] // step, values.shape[2] // step
        blocks = values[:, : height * step, : width * step].reshape(3, height, step, width, step)
        return np.asarray(blocks.mean(axis=(2, 4)), dtype=np.float32)

    def _channels(self, radiance: Float32) -> Float32:
        if self.cfa == 'mono':
            grey = np.tensordot(np.array(self.response, dtype=np.float32) / sum(self.response), radiance, axes=1)
            return np.repeat(grey[None], 3, axis=0)
        return radiance * np.array(self.response, dtype=np.float32)[:, None, None]

    def mosaic(self, radiance: Float32, exposure: float, *, full: bool = False) -> Float32:
        """Clean mosaic (H, W) in counts above black.

        Radiance is (3, H/2, W/2), every site of a quad seeing the same light, or with `full` (3, H, W).
        """
        values = self._channels(radiance) * np.float32(exposure)
        if self.cfa == 'mono':
            return values[0] if full else values[0].repeat(2, axis=0).repeat(2, axis=1)
        factor = 1 if full else 2
        result = np.empty((values.shape[1] * factor, values.shape[2] * factor), dtype=np.float32)
        for plane, places in zip(values, sites(self.cfa).values(), strict=True):
            for y, x in places:
                result[y::2, x::2] = plane[y::2, x::2] if full else plane
        return result

    def expose(self, clean: Float32, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Noisy counts (H, W) with the pedestal, of a clean mosaic in counts above black."""
        return self.noise.sample(clean, rng, self.cfa)

    def expose_clean(self, clean: Float32) -> NDArray[np.uint16]:
        """Noise-free counts (H, W) with the pedestal, rounded and clipped as the converter does."""
        return np.clip(np.rint(clean + self.noise.black_level), 0, self.noise.white_level).astype(np.uint16)
