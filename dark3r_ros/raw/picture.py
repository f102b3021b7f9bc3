# SPDX-License-Identifier: Apache-2.0
"""Approximate raw from finished pictures.

Camera, tone curve, white balance, denoising and 8 bits cannot be undone. What can be undone is the sRGB curve; the
result is linear light on a pedestal, sampled as an RGGB mosaic, good enough to run on bright pictures, not in the dark.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.raw.planes import decode_srgb

# Pedestal and saturation of the approximated raw, chosen for room below black and full use of 16 bits.
PICTURE_BLACK = 1024.0
PICTURE_WHITE = 65535.0
PICTURE_CFA = 'rggb'


def unprocess_picture(picture: NDArray[np.uint8] | NDArray[np.uint16], red_first: bool = True) -> NDArray[np.uint16]:
    """Mosaic (H, W) uint16 of an sRGB picture.

    (H, W, 3 or 4) becomes an RGGB mosaic, (H, W) grey a mono one; both on `PICTURE_BLACK` and up to `PICTURE_WHITE`.
    A fourth channel is ignored. Raises DataError for another type than uint8 or uint16.
    """
    if picture.dtype not in (np.uint8, np.uint16):
        raise DataError(f'a picture of type {picture.dtype} cannot be read: give 8 or 16 bit')
    curve = _linear_counts(8 * picture.dtype.itemsize)
    if picture.ndim == 2:
        return curve[picture]
    red, blue = (0, 2) if red_first else (2, 0)
    mosaic = np.empty(picture.shape[:2], dtype=np.uint16)
    mosaic[0::2, 0::2] = curve[picture[0::2, 0::2, red]]
    mosaic[0::2, 1::2] = curve[picture[0::2, 1::2, 1]]
    mosaic[1::2, 0::2] = curve[picture[1::2, 0::2, 1]]
    mosaic[1::2, 1::2] = curve[picture[1::2, 1::2, blue]]
    return mosaic


@lru_cache(maxsize=2)
def _linear_counts(bits: int) -> NDArray[np.uint16]:
    encoded = np.arange(2**bits, dtype=np.float64) / (2**bits - 1)
    linear = decode_srgb(encoded.astype(np.float32)).astype(np.float64)
    return np.rint(PICTURE_BLACK + linear * (PICTURE_WHITE - PICTURE_BLACK)).astype(np.uint16)
