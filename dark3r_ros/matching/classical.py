# SPDX-License-Identifier: Apache-2.0
"""The classical predictor: SIFT on binned, variance-stabilised raw.

It is the baseline that needs no training. Raw counts are stabilised first, so that noise has the same strength in
bright and dark parts and the detector's threshold means the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.raw.blind import plane_noise_variance
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Correspondences, Planes


@dataclass(frozen=True)
class ClassicalConfig(Config):
    """Settings of the classical matcher."""

    max_keypoints: int = setting(1000, 'Keypoints kept per frame, spread over the picture.', minimum=50, maximum=20000)
    contrast_threshold: float = setting(
        0.005, "SIFT's threshold on the stabilised picture stretched to unit range.", minimum=0.0, maximum=1.0
    )
    ratio: float = setting(
        0.85, 'Largest ratio of the best to the second best descriptor distance.', minimum=0.1, maximum=1.0
    )
    grid: int = setting(8, 'The picture is cut into grid x grid cells that share the keypoints.', minimum=1, maximum=64)


@dataclass(frozen=True, eq=False)
class ClassicalFeatures:
    """Keypoints (N, 2) float32 in pixels of the planes, and RootSIFT descriptors (N, 128) uint8."""

    keypoints: NDArray[np.float32]
    descriptors: NDArray[np.uint8]
    responses: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.keypoints.nbytes + self.descriptors.nbytes + self.responses.nbytes


def stabilise(planes: Planes, noise: NoiseModel | None) -> NDArray[np.float32]:
    """Grey picture (h, w) float32 whose noise has unit strength everywhere, from binned planes.

    Generalised Anscombe transform of the mean over all raw pixels of a block, continued linearly below black, so
    that negative values stay. Without a noise model its two parameters come from the picture itself.
    Source: Makitalo and Foi, Optimal inversion of the generalized Anscombe transformation, 2013, equation 3.
    """
    weights = np.array(planes.samples, dtype=np.float32)
    total = float(weights.sum())
    grey = np.tensordot(weights / total, planes.signal(), axes=1).astype(np.float32)
    if noise is not None and not planes.processed:
        slope = noise.gain / total
        floor = noise.dark_variance / total
    else:
        known = planes.noise_variance
        measured = plane_noise_variance(planes) if known is None else np.array(known)
        variance = max(float((weights / total) ** 2 @ measured), 1e-6)
        slope = variance / max(float(np.median(grey)), 1e-3)
        floor = 0.1 * variance
    floor = max(floor, 1e-6)
    argument = slope * np.maximum(grey, 0.0) + 0.375 * slope**2 + floor
    offset = np.sqrt(0.375 * slope**2 + floor)
    positive = 2.0 / slope * (np.sqrt(argument) - offset) if slope > 0 else grey / offset
    return np.where(grey >= 0, positive, grey / offset).astype(np.float32)


def _to_byte(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    low, high = np.percentile(picture, (0.1, 99.9))
    # A picture of pure noise spans six sigmas; stretching less than that would invent contrast.
    scale = 255.0 / max(float(high - low), 6.0)
    return np.clip((picture - low) * scale, 0, 255).astype(np.uint8)


def _spread(
    points: NDArray[np.float32], responses: NDArray[np.float32], size: tuple[int, int], config: ClassicalConfig
) -> NDArray[np.int64]:
    """Indices of the strongest keypoints, every grid cell in its turn, in a repeatable order."""
    cells = np.minimum((points / np.array(size) * config.grid).astype(np.int64), config.grid - 1)
    cell = cells[:, 1] * config.grid + cells[:, 0]
    order = np.lexsort((-responses, cell))
    _, first, counts = np.unique(cell[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    by_turn = order[np.lexsort((-responses[order], rank))]
    return np.sort(by_turn[: config.max_keypoints])


class ClassicalPredictor:
    """SIFT keypoints, mutual nearest RootSIFT descriptors with the ratio test."""

    name = 'classical'

    def __init__(self, config: ClassicalConfig | None = None, noise: NoiseModel | None = None) -> None:
        self._config = config or ClassicalConfig()
        self._noise = noise
        # More keypoints than are kept, so that there is a choice when they are spread; describing them costs most.
        self._sift = cv2.SIFT.create(8 * self._config.max_keypoints, 3, self._config.contrast_threshold, 10.0, 1.6)

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        text = json.dumps([self.name, cv2.__version__, to_mapping(self._config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(self, planes: Planes) -> ClassicalFeatures:
        """Detect and describe keypoints of one frame; a picture without texture gives none."""
        picture = _to_byte(stabilise(planes, self._noise))
        keypoints, descriptors = self._sift.detectAndCompute(picture, None)
        if not keypoints:
            return ClassicalFeatures(
                np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8), np.zeros(0, np.float32)
            )
        points = np.array([point.pt for point in keypoints], dtype=np.float32)
        responses = np.array([point.response for point in keypoints], dtype=np.float32)
        kept = _spread(points, responses, planes.size, self._config)
        root = np.sqrt(descriptors[kept] / np.maximum(descriptors[kept].sum(axis=1, keepdims=True), 1e-9))
        # A byte holds a RootSIFT entry to 1/512: a quarter of the memory and no measurable loss of matches.
        quantised = np.minimum(np.rint(root * 512.0), 255).astype(np.uint8)
        return ClassicalFeatures(points[kept], quantised, responses[kept])

    def match(self, pairs: Sequence[tuple[ClassicalFeatures, ClassicalFeatures]]) -> list[Correspondences]:
        """Match each pair; confidence is one minus the ratio of best to second best distance."""
        return [self._match_one(a, b) for a, b in pairs]

    def _match_one(self, a: ClassicalFeatures, b: ClassicalFeatures) -> Correspondences:
        if len(a.keypoints) < 2 or len(b.keypoints) < 2:
            nothing = np.zeros(0, dtype=np.int64)
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), nothing, nothing)
        left, right = a.descriptors.astype(np.float32), b.descriptors.astype(np.float32)
        # Quantised descriptors have almost the same length, so the largest product is the smallest distance.
        product = left @ right.T
        rows = np.arange(len(left))
        best, mutual = product.argmax(axis=1), product.argmax(axis=0)
        closest = product[rows, best]
        product[rows, best] = -np.inf
        length_a, length_b = (left**2).sum(axis=1), (right**2).sum(axis=1)
        nearest = np.maximum(length_a + length_b[best] - 2.0 * closest, 0.0)
        following = np.maximum(length_a + float(length_b.mean()) - 2.0 * product.max(axis=1), 1e-9)
        ratio = np.sqrt(nearest / following)
        kept = (mutual[best] == rows) & (ratio < self._config.ratio)
        index_a, index_b = rows[kept], best[kept]
        return Correspondences(
            a.keypoints[index_a].astype(np.float64),
            b.keypoints[index_b].astype(np.float64),
            (1.0 - ratio[kept]).astype(np.float64),
            index_a.astype(np.int64),
            index_b.astype(np.int64),
        )
