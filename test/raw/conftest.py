# SPDX-License-Identifier: Apache-2.0
"""Simulated truth for the tests of the raw room, written apart from the package."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.types import Frame


def reference_planes(mosaic: np.ndarray, cfa: str, n: int) -> np.ndarray:
    """Plain float64 binning, block by block."""
    height, width = mosaic.shape[0] // n, mosaic.shape[1] // n
    result = np.zeros((3, height, width))
    ys, xs = np.mgrid[:n, :n]
    for row in range(height):
        for column in range(width):
            block = mosaic[row * n : (row + 1) * n, column * n : (column + 1) * n].astype(np.float64)
            for index, colour in enumerate('rgb'):
                if cfa == 'mono':
                    mask = np.ones((n, n), dtype=bool)
                else:
                    letters = np.array(list(cfa)).reshape(2, 2)
                    mask = letters[ys % 2, xs % 2] == colour
                result[index, row, column] = block[mask].mean()
    return result


def fast_clean_planes(mosaic: np.ndarray, n: int) -> np.ndarray:
    """Binned float64 planes of a clean RGGB mosaic."""
    half = n // 2
    height, width = mosaic.shape[0] // n, mosaic.shape[1] // n

    def mean(part: np.ndarray) -> np.ndarray:
        return part.reshape(height, half, width, half).mean(axis=(1, 3))

    green = (mean(mosaic[0::2, 1::2]) + mean(mosaic[1::2, 0::2])) / 2
    return np.stack([mean(mosaic[0::2, 0::2]), green, mean(mosaic[1::2, 1::2])])


def make_scene(height: int, width: int) -> np.ndarray:
    """Relative radiance of an RGGB mosaic, (H, W) float64: smooth shading, textured fields, coloured sites."""
    y, x = np.mgrid[:height, :width]
    smooth = 0.5 + 0.4 * np.sin(x / 90) * np.cos(y / 70)
    cells = np.random.default_rng(1).random((-(-height // 8), -(-width // 8)))
    texture = 0.4 + cells.repeat(8, 0).repeat(8, 1)[:height, :width]
    radiance = np.where((x // 160 + y // 160) % 2, smooth * texture, smooth)
    colour = np.ones((2, 2))
    colour[0, 0], colour[1, 1] = 0.6, 0.5
    return radiance * np.tile(colour, (height // 2 + 1, width // 2 + 1))[:height, :width]


@pytest.fixture
def scene() -> Callable[[int, int], np.ndarray]:
    return make_scene


@pytest.fixture
def reference() -> Callable[[np.ndarray, str, int], np.ndarray]:
    return reference_planes


@pytest.fixture
def clean_planes() -> Callable[[np.ndarray, int], np.ndarray]:
    return fast_clean_planes


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    def make(mosaic: np.ndarray, noise: NoiseModel | None = None, cfa: str = 'rggb', **more: object) -> Frame:
        black, white = (0.0, 65535.0) if noise is None else (noise.black_level, noise.white_level)
        fields = {'black_level': (black,) * 3, 'white_level': white, **more}
        return Frame(stamp_ns=1, mosaic=mosaic, cfa=cfa, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def image_message() -> Callable[..., SimpleNamespace]:
    """Make a message like sensor_msgs/Image from an array; `pad` adds bytes to every row, `big` swaps the bytes."""

    def make(values: np.ndarray, encoding: str, pad: int = 0, big: bool = False, kind: type = bytes) -> SimpleNamespace:
        data = values.astype(values.dtype.newbyteorder('>' if big else '<'))
        rows = np.ascontiguousarray(data).view(np.uint8).reshape(values.shape[0], -1)
        rows = np.pad(rows, ((0, 0), (0, pad)), constant_values=0xAB)
        return SimpleNamespace(
            encoding=encoding,
            height=values.shape[0],
            width=values.shape[1],
            step=rows.shape[1],
            is_bigendian=int(big),
            data=kind(rows.tobytes()),
            header=SimpleNamespace(frame_id='camera_optical'),
        )

    return make
