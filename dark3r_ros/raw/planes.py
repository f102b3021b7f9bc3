# SPDX-License-Identifier: Apache-2.0
"""From the mosaic to the binned colour planes that every predictor sees.

Binning is an area mean over blocks of raw pixels: all red, all green and all blue sites of a block become one value
each. The black level stays in, nothing is clipped, and sums are exact integers until the final division.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.types import Frame, Planes

# 65535 * 65536 still fits into the uint32 sums of one colour of one block.
MAX_BINNING = 256


def to_planes(frame: Frame, binning: int) -> Planes:
    """Average the sites of each colour over blocks of `binning` x `binning` mosaic pixels.

    Parameters
    ----------
    frame: any Bayer phase or mono. Rows and columns that do not fill a block are cut off at the bottom and right.
    binning: even for a Bayer mosaic, any positive number for mono.

    Returns
    -------
    Planes of (3, H // binning, W // binning) float32 counts, black level in. `samples` is (n*n/4, n*n/2, n*n/4) for
    Bayer; a mono mosaic is repeated in the three planes with n*n samples each. Intrinsics are scaled to match.

    Raises ConfigError for a factor that cannot be used, DataError when the mosaic is smaller than one block.

    """
    check_binning(frame.cfa, binning)
    height, width = (side // binning for side in frame.mosaic.shape)
    if not height or not width:
        raise DataError(
            f'a mosaic of {frame.size[0]}x{frame.size[1]} pixels is smaller than one {binning}x{binning} block: '
            'choose a smaller binning'
        )
    mosaic = frame.mosaic[: height * binning, : width * binning]
    pixels = binning * binning
    if frame.cfa == MONO:
        mean = _tile_sums(mosaic, binning, 1)[:, 0, :, 0].astype(np.float32) / np.float32(pixels)
        values = np.repeat(mean[None], 3, axis=0)
        samples = (pixels, pixels, pixels)
    else:
        values = np.empty((3, height, width), dtype=np.float32)
        sums = _tile_sums(mosaic, binning // 2, 2)
        for plane, places in zip(values, sites(frame.cfa).values(), strict=True):
            total = sum(sums[:, y, :, x].astype(np.float64) for y, x in places)
            plane[:] = total / (len(places) * pixels // 4)
        samples = (pixels // 4, pixels // 2, pixels // 4)
    return Planes(
        values=values,
        black_level=frame.black_level,
        white_level=frame.white_level,
        samples=samples,
        binning=binning,
        stamp_ns=frame.stamp_ns,
        camera=None if frame.camera is None else frame.camera.binned(binning),
        processed=frame.processed,
    )


def check_binning(cfa: str, binning: int) -> None:
    """Raise ConfigError when mosaics of this phase cannot be binned by this factor."""
    if not 1 <= binning <= MAX_BINNING:
        raise ConfigError(f'binning {binning} is outside 1..{MAX_BINNING}')
    if cfa != MONO and binning % 2:
        raise ConfigError(f'binning {binning} would mix the colours of a {cfa} mosaic: use an even factor')


def choose_binning(width: int, target_width: int = 320) -> int:
    """Even factor that brings a mosaic of `width` pixels nearest (in ratio) to `target_width` columns; at least 2."""
    if width < 2 or target_width < 1:
        raise ConfigError(f'no binning brings a width of {width} to {target_width} pixels')
    below = max(2, 2 * int(width / target_width / 2))
    return min((below, below + 2), key=lambda n: abs(math.log(width / n / target_width)))


def _tile_sums(mosaic: NDArray[np.uint16], repeats: int, period: int) -> NDArray[np.uint32]:
    """Sum same-site pixels of blocks of repeats x repeats tiles of period x period sites.

    Returns (h, period, w, period) uint32. Rows first: their additions run over contiguous memory.
    """
    side = repeats * period
    height, width = mosaic.shape[0] // side, mosaic.shape[1] // side
    rows = mosaic.reshape(height, repeats, period, width * side)
    by_row = rows[:, 0].astype(np.uint32)
    for index in range(1, repeats):
        by_row += rows[:, index]
    columns = by_row.reshape(height, period, width, repeats, period)
    total = columns[:, :, :, 0].copy()
    for index in range(1, repeats):
        total += columns[:, :, :, index]
    return total


def display_image(planes: Planes, white_balance: str = 'auto') -> NDArray[np.uint8]:
    """Picture for people, never for a network: (h, w, 3) uint8 sRGB.

    `white_balance` is `auto` (grey world: the three planes get the same mean) or `none`. The 99th percentile of the
    brightest plane becomes white, black is clipped. Works on frames that are all noise.
    """
    if white_balance not in ('auto', 'none'):
        raise ConfigError(f'white balance {white_balance!r} is not one of auto, none')
    signal = planes.signal()
    gains = _grey_world(signal) if white_balance == 'auto' else np.ones(3)
    signal = signal * gains.astype(np.float32)[:, None, None]
    # All planes end where the first one saturates; otherwise clipped lamps turn magenta.
    saturation = float(np.min(gains * (planes.white_level - np.array(planes.black_level))))
    white = min(float(np.percentile(signal.max(axis=0), 99.0)), saturation)
    linear = np.clip(signal / max(white, 1e-6), 0.0, 1.0)
    return np.ascontiguousarray(np.moveaxis(np.rint(encode_srgb(linear) * 255.0).astype(np.uint8), 0, -1))


def _grey_world(signal: NDArray[np.float32]) -> NDArray[np.float64]:
    means = signal.mean(axis=(1, 2), dtype=np.float64)
    # In the dark a mean may be zero or negative; such a plane, and extreme gains, say nothing about the light.
    usable = means > 0.05 * max(means.max(), 0.0)
    return np.clip(np.where(usable, means.max() / np.where(usable, means, 1.0), 1.0), 0.1, 10.0)


def encode_srgb(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the sRGB curve (IEC 61966-2-1) to linear values in [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.power(linear, 1 / 2.4) - 0.055)


def decode_srgb(encoded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo the sRGB curve; values in [0, 1] to linear light in [0, 1]."""
    return np.where(encoded <= 0.04045, encoded / 12.92, np.power((encoded + 0.055) / 1.055, 2.4))
