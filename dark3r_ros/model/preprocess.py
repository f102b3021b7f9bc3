# SPDX-License-Identifier: Apache-2.0
"""Preparation of ordinary 8-bit pictures as the public weights expect them: scaled, cropped, in [-1, 1].

Raw frames do not come this way; see `normalise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError, DependencyError
from dark3r_ros.geometry.camera import Camera

LONG_EDGE = 512
SQUARE = 224


@dataclass(frozen=True)
class CropGeometry:
    """How a picture becomes network input: scaled to `resized`, then cut to `box`.

    Attributes
    ----------
    source, resized: width and height before and after scaling.
    box: left, top, right, bottom in the scaled picture.

    """

    source: tuple[int, int]
    resized: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the network input."""
        left, top, right, bottom = self.box
        return right - left, bottom - top

    def camera(self, camera: Camera) -> Camera:
        """Intrinsics of the network input from those of the source picture; pixel centres follow the scaling."""
        scale_x = self.resized[0] / self.source[0]
        scale_y = self.resized[1] / self.source[1]
        width, height = self.size
        return Camera(
            width,
            height,
            camera.fx * scale_x,
            camera.fy * scale_y,
            (camera.cx + 0.5) * scale_x - 0.5 - self.box[0],
            (camera.cy + 0.5) * scale_y - 0.5 - self.box[1],
            camera.distortion_model,
            camera.distortion,
        )


def crop_geometry(
    width: int, height: int, size: int = LONG_EDGE, patch: int = 16, allow_square: bool = False
) -> CropGeometry:
    """Scaling and crop of a picture.

    Parameters
    ----------
    width, height: of the picture, after its orientation tag was applied.
    size: 224 scales the short side to 224 and cuts a square; any other value scales the long side to it and cuts the
        centre to multiples of the patch.
    patch: side of a patch in pixels.
    allow_square: keep a square picture square instead of cutting it to 4:3.

    Raises DataError when nothing of at least one patch would remain.
    """
    if width < 1 or height < 1:
        raise DataError(f'a picture of {width}x{height} pixels cannot be prepared')
    long_side = max(width, height)
    if size == SQUARE:
        # The long side, such that the short one becomes `size`.
        target = round(size * max(width / height, height / width))
    else:
        target = size
    resized = (round(width * target / long_side), round(height * target / long_side))
    # From the halved size, so that an odd one loses its last column or row.
    even_x, even_y = resized[0] // 2 * 2, resized[1] // 2 * 2
    if size == SQUARE:
        cut_x = cut_y = min(even_x, even_y)
    else:
        cut_x, cut_y = even_x // patch * patch, even_y // patch * patch
        if resized[0] == resized[1] and not allow_square:
            cut_y = 3 * cut_x // 4
    left, top = (even_x - cut_x) // 2, (even_y - cut_y) // 2
    box = (left, top, left + cut_x, top + cut_y)
    if cut_x < patch or cut_y < patch:
        raise DataError(
            f'a picture of {width}x{height} is too narrow: scaled to {resized[0]}x{resized[1]} '
            f'it does not hold one patch of {patch}x{patch}'
        )
    return CropGeometry((width, height), resized, box)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DependencyError('preparing 8-bit pictures needs Pillow: pip install pillow') from error
    return Image


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture file as RGB (H, W, 3) uint8, turned as its orientation tag says; DataError when it is none."""
    image_module = _pillow()
    from PIL import ImageOps

    try:
        with image_module.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert('RGB'))
    except FileNotFoundError as error:
        raise DataError(f'no picture at {path}') from error
    except (OSError, SyntaxError) as error:
        raise DataError(f'{path} is no readable picture: {error}') from error


def prepare_picture(
    picture: NDArray[np.uint8], size: int = LONG_EDGE, patch: int = 16, allow_square: bool = False
) -> tuple[Tensor, CropGeometry]:
    """Scale, crop and normalise one RGB picture (H, W, 3) uint8.

    Downscaling uses Lanczos resampling, upscaling and equal size bicubic. Returns network input (1, 3, h, w) float32 in
    [-1, 1] and the geometry. Raises DataError for another shape or type.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise DataError(f'expected an RGB picture (height, width, 3) uint8, got {picture.shape} {picture.dtype}')
    if size < patch:
        raise ConfigError(f'network size {size} is smaller than one patch of {patch}')
    geometry = crop_geometry(picture.shape[1], picture.shape[0], size, patch, allow_square)
    image_module = _pillow()
    shrinks = max(geometry.source) > max(geometry.resized)
    method = image_module.Resampling.LANCZOS if shrinks else image_module.Resampling.BICUBIC
    scaled = image_module.fromarray(picture).resize(geometry.resized, method).crop(geometry.box)
    values = np.asarray(scaled, dtype=np.float32) / np.float32(255)
    tensor = torch.from_numpy((values - np.float32(0.5)) / np.float32(0.5))
    return tensor.permute(2, 0, 1)[None].contiguous(), geometry
