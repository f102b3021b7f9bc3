# SPDX-License-Identifier: Apache-2.0
"""Tileable textures, made from a seed or from photographs, in one mip-mapped atlas.

A texture holds linear reflectance with a mean of `MEAN_REFLECTANCE`. Its coarse mip levels tend to that mean, so that
detail fades out by itself where a pixel covers more than a texel: nothing aliases, which would break matching.
All textures of all scenes of a batch share one atlas, so that one `grid_sample` serves every ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError

MEAN_REFLECTANCE = 0.35
_BORDER = 2  # texels of wrap-around on each side of a level


@dataclass(frozen=True, eq=False)
class TextureBank:
    """Atlas of tileable textures with their mip levels.

    Attributes
    ----------
    atlas: (1, 3, rows, columns) linear reflectance.
    size: side of a texture in texels, a power of two.
    count: number of textures.
    per_row: textures side by side in the atlas.

    """

    atlas: Tensor
    size: int
    count: int
    per_row: int

    @property
    def levels(self) -> int:
        """Number of mip levels, down to 2x2 texels."""
        return self.size.bit_length() - 1

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextureBank:
        """Copy onto another device or type."""
        return TextureBank(self.atlas.to(device=device, dtype=dtype), self.size, self.count, self.per_row)

    def sample(self, index: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Reflectance (3, N) at texture coordinates u, v (N,), one tile being the unit, trilinear over levels.

        `index` (N,) is the texture (any numeric type), `level` (N,) the mip level, 0 the finest; both are clamped.
        """
        u, v = u - torch.floor(u), v - torch.floor(v)
        level = level.clamp(0, self.levels - 1)
        lower = torch.floor(level)
        weight = level - lower
        fine = self._sample_level(index, u, v, lower)
        coarse = self._sample_level(index, u, v, (lower + 1).clamp(max=self.levels - 1))
        return torch.lerp(fine, coarse, weight)

    def _sample_level(self, index: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        cell_width, cell_height = _cell_size(self.size)
        index = index.to(u.dtype)
        row = torch.floor((index + 0.5) / self.per_row)
        scale = torch.exp2(-level)
        side = self.size * scale
        below = level > 0.5
        x = (index - row * self.per_row) * cell_width + torch.where(below, self.size + 2.0 * _BORDER, 0.0)
        y = row * cell_height
        # Levels 1, 2, ... are stacked on the right of level 0: a geometric sum of their sides.
        y = y + torch.where(below, self.size * (1.0 - 2.0 * scale) + 2.0 * _BORDER * (level - 1.0), 0.0)
        x, y = x + _BORDER + u * side - 0.5, y + _BORDER + v * side - 0.5
        rows, columns = self.atlas.shape[2:]
        grid = torch.stack([x * (2.0 / (columns - 1)) - 1.0, y * (2.0 / (rows - 1)) - 1.0], dim=-1)
        return functional.grid_sample(self.atlas, grid[None, None], align_corners=True)[0, :, 0]


def _cell_size(size: int) -> tuple[int, int]:
    """Width and height of the atlas cell of one texture."""
    levels = size.bit_length() - 1
    right = size + 2 * _BORDER * levels  # sum of size/2^l + borders, l >= 1, is below this
    return size + size // 2 + 4 * _BORDER, max(size + 2 * _BORDER, right)


def _wrap_pad(image: Tensor) -> Tensor:
    return functional.pad(image[None], (_BORDER,) * 4, mode='circular')[0]


def bank_from_textures(textures: Sequence[Tensor]) -> TextureBank:
    """Build the atlas of square textures (3, S, S) of one power-of-two size S >= 16."""
    if not textures:
        raise ConfigError('a texture bank needs at least one texture')
    size = textures[0].shape[-1]
    if size < 16 or size & (size - 1) or any(t.shape != (3, size, size) for t in textures):
        raise ConfigError('textures must share one shape (3, S, S) with S a power of two, 16 or more')
    count = len(textures)
    per_row = int(np.ceil(np.sqrt(count / 1.5)))
    width, height = _cell_size(size)
    rows = -(-count // per_row)
    atlas = torch.full((3, rows * height, per_row * width), MEAN_REFLECTANCE, dtype=textures[0].dtype)
    for number, texture in enumerate(textures):
        x, y = number % per_row * width, number // per_row * height
        level = texture.to('cpu')
        for depth in range(size.bit_length() - 1):
            padded = _wrap_pad(level)
            side = padded.shape[-1]
            atlas[:, y : y + side, x : x + side] = padded
            if depth == 0:
                x += side
            else:
                y += side
            level = functional.avg_pool2d(level[None], 2)[0]
    return TextureBank(atlas[None], size, count, per_row)


def lattice_noise(generator: torch.Generator, rows: int, columns: int, cell: int) -> Tensor:
    """Tileable value noise (rows, columns): random values every `cell` texels, bicubic between them."""
    grid = torch.randn(1, 1, rows // cell, columns // cell, generator=generator)
    if cell == 1:
        return grid[0, 0]
    pad = (min(2, grid.shape[3]),) * 2 + (min(2, grid.shape[2]),) * 2
    padded = functional.pad(grid, pad, mode='circular')
    big = functional.interpolate(padded, scale_factor=cell, mode='bicubic', align_corners=False)[0, 0]
    return big[pad[2] * cell : pad[2] * cell + rows, pad[0] * cell : pad[0] * cell + columns]


def fractal_noise(
    generator: torch.Generator, size: int, first: int = 2, persistence: float = 0.6, last: int | None = None
) -> Tensor:
    """Tileable noise (size, size) of zero mean and unit variance: value noise in octaves of `first`..`last` cells."""
    last = last or size // 2
    total = torch.zeros(size, size)
    cells, amplitude = first, 1.0
    while cells <= last:
        total += amplitude * lattice_noise(generator, size, size, size // cells)
        cells, amplitude = cells * 2, amplitude * persistence
    return (total - total.mean()) / total.std().clamp(min=1e-6)


def _cellular(generator: torch.Generator, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Voronoi pattern: distance to the border between cells in cell units, and a random value per cell (size, size)."""
    points = torch.rand(2, cells, cells, generator=generator)
    values = torch.rand(cells, cells, generator=generator)
    axis = (torch.arange(size) + 0.5) / size * cells
    cell = axis.long()
    nearest = torch.full((2, size, size), 9.0)
    value = torch.zeros(size, size)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = cell + dy, cell + dx
            pick = ((row % cells)[:, None], (column % cells)[None, :])
            x = points[0][pick] + column[None, :] - axis[None, :]
            y = points[1][pick] + row[:, None] - axis[:, None]
            distance = torch.hypot(x, y)
            closer = distance < nearest[0]
            value = torch.where(closer, values[pick], value)
            nearest[1] = torch.where(closer, nearest[0], torch.minimum(nearest[1], distance))
            nearest[0] = torch.minimum(nearest[0], distance)
    return nearest[1] - nearest[0], value


def _noise(generator: torch.Generator, size: int) -> Tensor:
    return fractal_noise(generator, size, persistence=0.78)


def _rock(generator: torch.Generator, size: int) -> Tensor:
    ridges = -fractal_noise(generator, size, first=4, persistence=0.65).abs()
    edge, shade = _cellular(generator, size, 12)
    return ridges + 0.8 * fractal_noise(generator, size, persistence=0.8) + 0.9 * shade - 0.8 * (edge < 0.07)


def _bricks(generator: torch.Generator, size: int) -> Tensor:
    rows, columns = 8, 4
    warp = 0.06 * fractal_noise(generator, size, first=4, persistence=0.5)
    axis = (torch.arange(size) + 0.5) / size
    y = (axis * rows)[:, None] + warp
    row = torch.floor(y)
    x = (axis * columns)[None, :] + 0.5 * (row % 2) + warp
    shades = torch.randn(rows, columns, generator=generator)
    shade = shades[(row % rows).long(), (torch.floor(x) % columns).long()]
    mortar = ((y - row) < 0.1) | ((x - torch.floor(x)) < 0.05)
    return torch.where(mortar, torch.tensor(-2.2), shade) + 0.8 * _noise(generator, size)


def _cracks(generator: torch.Generator, size: int) -> Tensor:
    total = fractal_noise(generator, size, persistence=0.7)
    for cells, width, depth in ((6, 0.04, 2.5), (14, 0.06, 1.5)):
        edge, shade = _cellular(generator, size, cells)
        total = total - depth * torch.exp(-((edge / width) ** 2)) + 0.7 * shade
    return total


def _speckle(generator: torch.Generator, size: int) -> Tensor:
    total = 0.6 * _noise(generator, size)
    for cells in (size // 16, size // 8, size // 4):
        noise = fractal_noise(generator, size, first=cells, last=cells)
        total = total + 1.4 * ((noise > 1.3).float() - (noise < -1.3).float())
    return total


def _gravel(generator: torch.Generator, size: int) -> Tensor:
    total = 0.5 * _noise(generator, size)
    for cells, weight in ((20, 1.6), (44, 1.0)):
        edge, shade = _cellular(generator, size, cells)
        total = total + weight * (shade * edge.clamp(max=0.25) * 6.0)
    return total


def _stripes(generator: torch.Generator, size: int) -> Tensor:
    axis = (torch.arange(size) + 0.5) / size
    phase = 8 * axis[None, :] + 0.25 * fractal_noise(generator, size, first=2, last=8, persistence=0.5)
    return 1.3 * torch.sin(2 * torch.pi * phase) + _noise(generator, size)


def _mixed(generator: torch.Generator, size: int) -> Tensor:
    names = sorted(set(_MAKERS) - {'mixed'})
    first, second = (names[int(torch.randint(len(names), (1,), generator=generator))] for _ in range(2))
    mask = torch.sigmoid(4.0 * fractal_noise(generator, size, first=2, last=16))
    return mask * _MAKERS[first](generator, size) + (1 - mask) * _MAKERS[second](generator, size)


_MAKERS: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    'noise': _noise,
    'rock': _rock,
    'bricks': _bricks,
    'cracks': _cracks,
    'speckle': _speckle,
    'gravel': _gravel,
    'stripes': _stripes,
    'mixed': _mixed,
}
TEXTURE_KINDS = tuple(_MAKERS)


def procedural_texture(kind: str, seed: int, size: int = 256) -> Tensor:
    """Tileable reflectance (3, size, size), the same for the same kind and seed on every device."""
    if kind not in _MAKERS:
        raise ConfigError(f'unknown texture {kind!r}; known: {", ".join(TEXTURE_KINDS)}')
    generator = torch.Generator().manual_seed(seed)
    structure = _MAKERS[kind](generator, size)
    structure = (structure - structure.mean()) / structure.std().clamp(min=1e-6)
    # A log-normal tone keeps reflectance positive; its spread sets the contrast that features live on.
    tone = torch.exp(0.42 * structure.clamp(-2.6, 2.2))
    hue = torch.sigmoid(1.5 * fractal_noise(generator, size, first=2, persistence=0.7))
    colours = 1.0 + 0.14 * (torch.rand(2, 3, 1, 1, generator=generator) * 2.0 - 1.0)
    return _normalised(tone[None] * torch.lerp(colours[0], colours[1], hue[None]))


def _normalised(texture: Tensor) -> Tensor:
    """Scale to the mean reflectance of the package, all channels alike; at most 0.97."""
    texture = texture * (MEAN_REFLECTANCE / texture.mean().clamp(min=1e-4))
    return texture.clamp(0.01, 0.97)


def photo_texture(image: NDArray[np.uint8], size: int = 256) -> Tensor:
    """Tileable reflectance (3, size, size) of an 8-bit sRGB photograph (h, w, 3), mirrored so that its edges meet."""
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 8 or image.dtype != np.uint8:
        raise DataError(
            f'a photo texture must be (h, w, 3) uint8 of at least 8 pixels, got {image.shape} {image.dtype}'
        )
    side = min(image.shape[:2])
    linear = srgb_to_linear(image[:side, :side])
    chw = torch.from_numpy(linear).permute(2, 0, 1)[None]
    half = functional.interpolate(chw, (size // 2, size // 2), mode='area')[0]
    wide = torch.cat([half, half.flip(2)], dim=2)
    return _normalised(torch.cat([wide, wide.flip(1)], dim=1))


def srgb_to_linear(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Linear light in [0, 1] of 8-bit sRGB values of any shape (IEC 61966-2-1)."""
    x = np.arange(256) / 255.0
    table = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return table[image]


def make_bank(
    kinds: Sequence[str], seed: int, size: int = 256, photos: Sequence[NDArray[np.uint8]] = ()
) -> TextureBank:
    """Bank of procedural textures of the given kinds, followed by photographs, on the CPU in float32."""
    textures = [procedural_texture(kind, seed * 1009 + number, size) for number, kind in enumerate(kinds)]
    textures += [photo_texture(image, size) for image in photos]
    return bank_from_textures(textures)
