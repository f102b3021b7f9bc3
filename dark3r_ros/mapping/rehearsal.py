# SPDX-License-Identifier: Apache-2.0
"""A short made-up drive before the first image, so that nothing has to be compiled while a camera waits."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.types import Frame

_FRAMES = 14
_WIDEST = 640  # planes that are made: what is compiled hardly depends on their size
_SHIFTS = (0.02, 0.04)  # of the picture from frame to frame, as shares of its width: a far and a near wall
_BLACK, _WHITE = 64.0, 4095.0


def rehearse(config: MappingConfig, predictor: Predictor) -> int:
    """Map two walls that pass by, and forget them; returns how many frames were posed."""
    width = min(config.network_width, _WIDEST)
    config = replace(
        config, network_width=width, binning=0, step_seconds=0.0, loops=False, rest_frames=1, camera_height=0.0
    )
    pipeline = MappingPipeline(config, predictor)
    for frame in _drive(width):
        pipeline.push(frame)
    return pipeline.status().posed


def _drive(width: int) -> list[Frame]:
    """Mosaics of twice the given width, three quarters as high."""
    side = 2 * width
    height = side * 3 // 4 // 4 * 4
    camera = Camera(side, height, 0.8 * side, 0.8 * side, (side - 1) / 2, (height - 1) / 2)
    most = math.ceil(_FRAMES * _SHIFTS[1] * side)
    walls = [_wall(number, height // 2, side + most) for number in range(2)]
    random = np.random.default_rng(2)
    frames = []
    for number in range(_FRAMES):
        offsets = [2 * round(number * shift * side / 2) for shift in _SHIFTS]
        signal = np.vstack([wall[:, offset : offset + side] for wall, offset in zip(walls, offsets, strict=True)])
        noisy = signal + random.normal(0.0, 10.0, signal.shape)
        mosaic = np.clip(np.round(noisy), 0, _WHITE).astype(np.uint16)
        frames.append(Frame(number * 100_000_000, mosaic, 'rggb', (_BLACK, _BLACK, _BLACK), _WHITE, camera, 'camera'))
    return frames


def _wall(seed: int, height: int, width: int) -> NDArray[np.float64]:
    """A texture (height, width) of blots of several sizes, in counts."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for blur in (2.0, 5.0, 12.0):
        blots = cv2.GaussianBlur(random.normal(size=(height, width)), (0, 0), blur)
        total += blots / blots.std()
    return _BLACK + 400.0 * np.exp(0.5 * total)
