# SPDX-License-Identifier: Apache-2.0
"""Textures that training pairs are cut from: photographs of folders that the user names, and procedural ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dark3r_ros.errors import DataError
from dark3r_ros.simulation.texture import TEXTURE_KINDS, procedural_texture, srgb_to_linear

SIDE = 384
SUFFIXES = ('.jpg', '.jpeg', '.png')


def load_textures(folders: Sequence[Path], procedural: int, seed: int = 0) -> Tensor:
    """Squares (N, 3, SIDE, SIDE) float16 of linear light in [0, 1], photographs first, in the order of their names.

    A photograph clearly longer than wide gives two squares, one from each end. Raises DataError for a folder
    without pictures.
    """
    made: list[Tensor] = []
    for folder in folders:
        names = sorted(path for path in folder.glob('*') if path.suffix.lower() in SUFFIXES)
        if not names:
            raise DataError(f'no pictures (.jpg, .png) in {folder}: name a folder of textures')
        for name in names:
            made += _squares(name)
    for number in range(procedural):
        kind = TEXTURE_KINDS[number % len(TEXTURE_KINDS)]
        tile = procedural_texture(kind, seed * 1009 + number, 256)
        made.append(tile.repeat(1, 2, 2)[:, :SIDE, :SIDE])
    if not made:
        raise DataError('training needs textures: name folders of photographs, or ask for procedural ones')
    return torch.stack(made).to(torch.float16)


def _squares(name: Path) -> list[Tensor]:
    image = cv2.imread(str(name), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f'cannot read the picture {name}')
    linear = srgb_to_linear(np.asarray(image[:, :, ::-1], dtype=np.uint8))
    height, width = linear.shape[:2]
    side = min(height, width)
    crops = [linear[:side, :side]]
    if max(height, width) > 1.2 * side:
        crops.append(linear[height - side :, width - side :])
    method = cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC
    scaled = [np.clip(cv2.resize(crop, (SIDE, SIDE), interpolation=method), 0.0, 1.0) for crop in crops]
    return [torch.from_numpy(crop.transpose(2, 0, 1).copy()) for crop in scaled]
