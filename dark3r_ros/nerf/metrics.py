# SPDX-License-Identifier: Apache-2.0
"""Image metrics: PSNR, SSIM, and the per-channel affine fit that RawNeRF compares after."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def psnr(image: NDArray[np.floating], truth: NDArray[np.floating], peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal images."""
    error = float(np.mean((np.asarray(image, np.float64) - np.asarray(truth, np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(peak**2 / error)


def ssim(image: NDArray[np.floating], truth: NDArray[np.floating], peak: float) -> float:
    """Mean structural similarity of (C, H, W) images over the channels (Wang et al., 2004): Gaussian window, sigma 1.5.

    The window is 11x11; borders where it does not fit are left out when the images are larger than it.
    """
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2

    def blur(plane: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(plane, (11, 11), 1.5))

    values = []
    for a, b in zip(np.asarray(image, np.float64), np.asarray(truth, np.float64), strict=True):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        both = blur(a * b) - mean_a * mean_b
        score = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        inner = score[5:-5, 5:-5] if min(score.shape) > 16 else score
        values.append(float(inner.mean()))
    return float(np.mean(values))


def affine_fit(image: NDArray[np.floating], truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (C, H, W) `a * image + b` with a and b per channel of least squares towards the truth."""
    result = np.empty(image.shape, dtype=np.float64)
    for channel, (x, y) in enumerate(zip(np.asarray(image, np.float64), np.asarray(truth, np.float64), strict=True)):
        spread = x - x.mean()
        power = float((spread**2).mean())
        slope = float((spread * (y - y.mean())).mean()) / power if power > 0.0 else 0.0
        result[channel] = slope * spread + y.mean()
    return result
