# SPDX-License-Identifier: Apache-2.0
"""Open ground: a height field strewn with boulders under a dark sky."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike

from dark3r_ros.simulation.build import MaterialList, SolidList, make_light, random_rotation, random_tint
from dark3r_ros.simulation.interiors import INTERIOR_TEXTURES
from dark3r_ros.simulation.scene import Scene, Terrain
from dark3r_ros.simulation.texture import TextureBank, lattice_noise, make_bank

_SIDE = 16.0  # metres after which the ground repeats
_CELLS = 512
_RELIEF = ((128, 0.12), (64, 0.07), (32, 0.035), (16, 0.015))  # texels of a cell, metres
_GRAVEL, _SPECKLE, _ROCK = (INTERIOR_TEXTURES.index(name) for name in ('gravel', 'speckle', 'rock'))


def terrain(seed: int, material: int) -> Terrain:
    """Random rolling ground around z = 0."""
    generator = torch.Generator().manual_seed(seed * 1013 + 9)
    height = torch.zeros(_CELLS, _CELLS)
    for cell, amplitude in _RELIEF:
        height += amplitude * lattice_noise(generator, _CELLS, _CELLS, cell)
    texel = _SIDE / _CELLS
    slope_x = (height.roll(-1, 1) - height.roll(1, 1)) / (2.0 * texel)
    slope_y = (height.roll(-1, 0) - height.roll(1, 0)) / (2.0 * texel)
    table = torch.stack([height, slope_x, slope_y])
    table = torch.cat([table, table[:, :1]], dim=1)
    table = torch.cat([table, table[:, :, :1]], dim=2)
    steep = math.hypot(*(float(table[0].diff(dim=k).abs().max()) / texel for k in (0, 1)))
    return Terrain(
        height=table[None],
        side=torch.tensor([_SIDE], dtype=torch.float64),
        top=torch.tensor([float(height.max())], dtype=torch.float64),
        slope=torch.tensor([math.hypot(1.0, steep)], dtype=torch.float64),
        material=torch.tensor([material]),
    )


def ground_scene(
    seed: int,
    length: float,
    *,
    bank: TextureBank | None = None,
    light: str = 'both',
    keep_free: ArrayLike | None = None,
) -> Scene:
    """Ground with boulders from x = 0 to `length` metres; `bank` must hold INTERIOR_TEXTURES in that order."""
    rng = np.random.default_rng([seed, 13])
    bank = bank or make_bank(INTERIOR_TEXTURES, seed)
    materials, solids = MaterialList(), SolidList()
    floor = materials.add(_GRAVEL, _SIDE / 8, detail=_SPECKLE, detail_tile=_SIDE / 23, strength=0.7)
    looks = [
        materials.add(_ROCK, float(rng.uniform(0.8, 1.4)), detail=_SPECKLE, detail_tile=0.3, tint=random_tint(rng, 0.1))
        for _ in range(5)
    ]
    route = None if keep_free is None else np.asarray(keep_free, dtype=np.float64) * (1.0, 1.0, 0.0)
    for _ in range(int(3.0 * length)):
        size = rng.uniform(0.1, 0.5) * rng.uniform(0.6, 1.0, 3)
        place = np.array([rng.uniform(0.5, length + 10.0), rng.uniform(-6.0, 6.0), 0.3 * size[2]])
        alone = SolidList()
        alone.add('sphere', place, size, 0)
        if route is None or float(alone.clearance(route).min()) > 0.4:
            kind = 'sphere' if rng.random() < 0.8 else 'box'
            solids.add(kind, place, size, int(rng.choice(looks)), random_rotation(rng, 0.4))
    return Scene(solids.build(), None, terrain(seed, floor), materials.build(), make_light(light), bank)
