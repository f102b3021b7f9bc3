# SPDX-License-Identifier: Apache-2.0
"""Pictures of matches for people."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.types import Correspondences

Image = NDArray[np.uint8]

GREEN, RED = (40, 200, 80), (230, 60, 50)


def draw_matches(
    first: Image,
    second: Image,
    matches: Correspondences,
    inliers: NDArray[np.bool_],
    *,
    most: int = 120,
    enlarge: int = 2,
) -> Image:
    """Two pictures (h, w, 3) side by side with lines between matches: inliers green, others red and below.

    At most `most` matches are drawn, evenly chosen from the inliers first.
    """
    height = max(first.shape[0], second.shape[0])
    canvas = np.full((height, first.shape[1] + second.shape[1] + 2, 3), 255, dtype=np.uint8)
    canvas[: first.shape[0], : first.shape[1]] = first
    canvas[: second.shape[0], first.shape[1] + 2 :] = second
    canvas = np.asarray(cv2.resize(canvas, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_NEAREST), np.uint8)
    good, bad = np.flatnonzero(inliers), np.flatnonzero(~inliers)
    shown_good = good[np.linspace(0, len(good) - 1, min(most, len(good))).astype(int)] if len(good) else good
    shown_bad = bad[: max(0, min(most - len(shown_good), len(bad)))]
    for numbers, color in ((shown_bad, RED), (shown_good, GREEN)):
        for number in numbers.tolist():
            start = _place(matches.points_a[number], 0.0, enlarge)
            end = _place(matches.points_b[number], first.shape[1] + 2.0, enlarge)
            cv2.line(canvas, start, end, color, 1, cv2.LINE_AA)
            cv2.circle(canvas, start, 3, color, 1, cv2.LINE_AA)
            cv2.circle(canvas, end, 3, color, 1, cv2.LINE_AA)
    return canvas


def _place(point: NDArray[np.float64], shift: float, enlarge: int) -> tuple[int, int]:
    x, y = (point[0] + shift + 0.5) * enlarge - 0.5, (point[1] + 0.5) * enlarge - 0.5
    return round(float(x)), round(float(y))
