# SPDX-License-Identifier: Apache-2.0
"""Signal-to-noise ratio of binned planes, with truth and without.

Definition: 10 log10(mean(signal^2) / mean(noise variance)), signal above black, means over all pixels of the three
planes, at the resolution a network sees. The number of raw pixels averaged per value belongs beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dark3r_ros.errors import DataError
from dark3r_ros.raw.blind import plane_noise_variance
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame, Planes

# Reported where no signal power is left after the noise is taken off; below what any estimate can tell from zero.
FLOOR_DB = -40.0


@dataclass(frozen=True)
class SnrEstimate:
    """Signal-to-noise ratio of one frame.

    Attributes
    ----------
    db: over the three planes together; `FLOOR_DB` when no signal is measurable, NaN when black is unknown.
    per_plane_db: the same for R, G, B each.
    samples: raw pixels averaged into one value of R, G, B.

    """

    db: float
    per_plane_db: tuple[float, float, float]
    samples: tuple[int, int, int]


def snr_db(signal: ArrayLike, noise_variance: ArrayLike) -> float:
    """Power SNR in dB of a clean signal (3, h, w) above black, given the noise variance (3, h, w) or (3,)."""
    clean = np.asarray(signal, dtype=np.float64)
    variance = np.asarray(noise_variance, dtype=np.float64)
    if clean.ndim != 3 or len(clean) != 3 or variance.shape not in ((3,), clean.shape):
        raise DataError(
            f'SNR needs a (3, h, w) signal and its (3,) or (3, h, w) variance, got {clean.shape} and {variance.shape}'
        )
    return _ratio_db(float(np.mean(clean**2)), float(np.mean(variance)))


def estimate_snr(planes: Planes, noise: NoiseModel | None = None, frame: Frame | None = None) -> SnrEstimate:
    """SNR of a noisy frame without its truth.

    The power of the values above black contains the noise: mean((v - black)^2) = mean(signal^2) + variance + the
    squared offset of the frame. The calibrated model gives the last two, which are taken off.

    Parameters
    ----------
    planes: binned planes of the frame; a `noise_variance` it carries is used where there is no model.
    noise: its calibrated model. Without one the noise is estimated from the frame itself, which texture can only
        inflate, so that the SNR comes out too low rather than too high.
    frame: the mosaic behind the planes; used only without a model, and more accurate than the planes alone.

    """
    signal = planes.signal()
    power = np.mean(np.square(signal, dtype=np.float64), axis=(1, 2))
    if noise is not None:
        variance = noise.mean_planes_variance(planes)
        offset = noise.offset_sigma**2
    else:
        known = planes.noise_variance
        variance = plane_noise_variance(planes, frame) if known is None else np.array(known)
        offset = 0.0
    clean_power = power - variance - offset
    per_plane = [_ratio_db(float(p), float(v)) for p, v in zip(clean_power, variance, strict=True)]
    return SnrEstimate(
        db=_ratio_db(float(clean_power.mean()), float(variance.mean())),
        per_plane_db=(per_plane[0], per_plane[1], per_plane[2]),
        samples=planes.samples,
    )


def _ratio_db(signal_power: float, noise_power: float) -> float:
    if math.isnan(signal_power) or math.isnan(noise_power):
        return math.nan
    if signal_power <= 0.0:
        return FLOOR_DB
    if noise_power <= 0.0:
        return math.inf
    return max(FLOOR_DB, 10.0 * math.log10(signal_power / noise_power))
