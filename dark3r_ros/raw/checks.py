# SPDX-License-Identifier: Apache-2.0
"""Is this raw fit for the dark? Advice at start-up, in sentences that say what to set on the camera.

Also the quick health of every frame: lens cap on, or blinded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.raw.blind import pixel_variance
from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame

# Share of pixels at the lowest code above which the foot of the noise is cut off, and the pedestal that prevents it.
RAIL_SHARE = 1e-3
PEDESTAL_SIGMAS = 4.0

# Mean signal, in standard deviations of a pixel, below which a frame holds no light: far below -20 dB at any binning
# up to 16. The black level itself is rarely known better.
NO_SIGNAL_SIGMAS = 0.005

# Side of the blocks, in 2x2 tiles, whose means are compared when the phase is tested.
PHASE_BLOCK = 16


@dataclass(frozen=True)
class FrameHealth:
    """Quick look at one frame.

    Attributes
    ----------
    black_fraction: share of pixels at code zero.
    saturated_fraction: share of pixels at or above the white level.
    all_black: no light reached the sensor: no colour has a mean above black that the noise does not explain.
    all_saturated: nearly every pixel (99 %) is saturated.

    """

    black_fraction: float
    saturated_fraction: float
    all_black: bool
    all_saturated: bool


def frame_health(frame: Frame, noise: NoiseModel | None = None) -> FrameHealth:
    """Measure the extremes of a frame; the noise model sharpens the test for `all_black`."""
    size = frame.mosaic.size
    saturated = int(np.count_nonzero(frame.mosaic >= frame.white_level)) / size
    return FrameHealth(
        black_fraction=np.count_nonzero(frame.mosaic == 0) / size,
        saturated_fraction=saturated,
        all_black=_no_light(frame, noise),
        all_saturated=saturated >= 0.99,
    )


def _no_light(frame: Frame, noise: NoiseModel | None) -> bool:
    offset = 0.0 if noise is None else noise.offset_sigma
    row = 0.0 if noise is None else noise.row_sigma
    for colour, lattice in _lattices(frame):
        part = lattice[::2]
        mean = float(part.mean(dtype=np.float64)) - frame.black_level[colour]
        sigma = float(part.std(dtype=np.float64))
        error = math.sqrt(sigma**2 / part.size + row**2 / len(part) + offset**2)
        if mean > max(4.0 * error, NO_SIGNAL_SIGMAS * sigma):
            return False
    return True


def check_frame(frame: Frame, noise: NoiseModel | None = None) -> list[str]:
    """Advice about the settings of the camera, one sentence each, the gravest first; empty when all is well."""
    if frame.processed:
        return [
            'the images are finished pictures, not raw: denoising and 8 bits have removed what is needed in the dark; '
            'set the camera to a Bayer format with 16 bit'
        ]
    health = frame_health(frame, noise)
    if health.all_saturated:
        return [f'{health.saturated_fraction:.0%} of the pixels are saturated: lower exposure time, gain or light']
    advice = [*_rail(frame), *_pedestal(frame, noise), *_bits(frame)]
    if health.all_black:
        advice.append(
            'no light at all reaches the sensor: take off the lens cap, or raise exposure time, gain or light'
        )
    else:
        advice += _phase(frame)
    if health.saturated_fraction > 0.01:
        advice.append(
            f'{health.saturated_fraction:.1%} of the pixels are saturated: lower exposure time or gain until lamps are '
            'the only ones'
        )
    return advice


def _rail(frame: Frame) -> list[str]:
    counts = np.bincount(frame.mosaic.reshape(-1))
    codes = np.flatnonzero(counts)[:2]
    lowest, share = int(codes[0]), counts[codes[0]] / frame.mosaic.size
    # Few distinct codes crowd the lowest one without any clipping; a rail stands out over the next code above it.
    stands_out = len(codes) > 1 and counts[codes[0]] > 2 * counts[codes[1]]
    if share <= RAIL_SHARE or (lowest > 0 and not stands_out):
        return []
    return [
        f'{share:.2%} of the pixels sit at the lowest code {lowest}: the foot of the noise is cut off, which biases '
        'the dark for good; raise the black level (pedestal) of the camera and switch black clamping, denoising and '
        'defect correction off'
    ]


def _pedestal(frame: Frame, noise: NoiseModel | None) -> list[str]:
    black = min(frame.black_level)
    if black <= 0:
        return [
            'the black level is zero or unknown: if the camera has a pedestal, state it as black_level; if it has '
            'none, raise its black level, since noise below black is cut off'
        ]
    if noise is not None:
        sigma = math.hypot(noise.read_sigma, noise.row_sigma)
    else:
        # Shot noise is in it, so that the advice errs on the safe side; bright frames say nothing about the dark.
        variances = [pixel_variance(lattice.astype(np.float32)) for _, lattice in _lattices(frame)]
        sigma = math.sqrt(min(variances))
        if float(np.median(frame.mosaic)) - black > 10.0 * sigma:
            return []
    if not sigma or black >= PEDESTAL_SIGMAS * sigma:
        return []
    return [
        f'the black level of {black:g} counts is only {black / sigma:.1f} times the noise of {sigma:.3g}: raise it to '
        f'{math.ceil(PEDESTAL_SIGMAS * sigma)} counts or more on the camera, so that no noise is cut off at zero'
    ]


def _bits(frame: Frame) -> list[str]:
    if frame.white_level > 255:
        return []
    return [
        'the data has 8 bits: noise below one count is lost and with it what averaging could bring back; set a 16 bit '
        'pixel format (bayer_*16), or raise the analog gain until the noise in the dark is above one count'
    ]


def _phase(frame: Frame) -> list[str]:
    """Test the stated phase: the two green sites of a tile see the same colour, red and blue do not."""
    means = _site_means(frame.mosaic)
    if means is None:
        return []
    variance = float(
        np.mean([pixel_variance(frame.mosaic[y::2, x::2].astype(np.float32)) for y in (0, 1) for x in (0, 1)])
    )
    noise = 2.0 * variance / PHASE_BLOCK**2
    blocks = means[0, 0].size
    threshold = 6.0 * noise * math.sqrt(2.0 / blocks)

    def excess(first: tuple[int, int], second: tuple[int, int]) -> float:
        return float(np.mean((means[first] - means[second]) ** 2)) - noise

    falling, rising = excess((0, 0), (1, 1)), excess((0, 1), (1, 0))
    if frame.cfa == MONO:
        beside = excess((0, 0), (0, 1))
        signal = float(np.mean(means)) - frame.black_level[1]
        if beside > max(threshold + 2.0 * max(min(falling, rising), 0.0), (0.02 * signal) ** 2):
            pair = 'rggb or bggr' if rising < falling else 'gbrg or grbg'
            return [
                'the image is labelled mono but its pixels alternate like a Bayer mosaic: set encoding_override to '
                f'{pair}'
            ]
        return []
    greens = sites(frame.cfa)['g']
    stated, other = (rising, falling) if (0, 1) in greens else (falling, rising)
    if stated > threshold + 2.0 * max(other, 0.0):
        pair = 'gbrg or grbg' if (0, 1) in greens else 'rggb or bggr'
        return [
            f'the green sites of {frame.cfa} disagree while those of {pair} agree: the phase is wrong by one row or '
            f'column; set encoding_override to {pair}, or encoding_origin if a region of interest is used'
        ]
    return []


def _site_means(mosaic: NDArray[np.uint16]) -> NDArray[np.float64] | None:
    """Block means (2, 2, h, w) of the four sites of the tile; None when the frame is smaller than one block."""
    side = 2 * PHASE_BLOCK
    height, width = mosaic.shape[0] // side, mosaic.shape[1] // side
    if not height or not width:
        return None
    cut = mosaic[: height * side, : width * side].reshape(height, PHASE_BLOCK, 2, width, PHASE_BLOCK, 2)
    return cut.mean(axis=(1, 4), dtype=np.float64).transpose(1, 3, 0, 2)


def _lattices(frame: Frame) -> list[tuple[int, NDArray[np.uint16]]]:
    if frame.cfa == MONO:
        return [(1, frame.mosaic)]
    return [
        (index, frame.mosaic[y::2, x::2]) for index, places in enumerate(sites(frame.cfa).values()) for y, x in places
    ]
