# SPDX-License-Identifier: Apache-2.0
"""Furnished rooms and corridors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dark3r_ros.simulation.build import MaterialList, SolidList, make_light, random_rotation, random_tint
from dark3r_ros.simulation.scene import Room, Scene
from dark3r_ros.simulation.texture import TextureBank, make_bank

Array = NDArray[np.float64]

INTERIOR_TEXTURES = ('bricks', 'speckle', 'mixed', 'noise', 'stripes', 'cracks', 'gravel', 'rock')
_WALL, _FLOOR, _CEILING = (0, 2, 5), (6, 1, 5), (3, 5)
_DETAIL = (1, 3)


def room_scene(
    seed: int,
    *,
    bank: TextureBank | None = None,
    light: str = 'both',
    size: ArrayLike = (8.0, 6.5, 2.9),
    keep_free: ArrayLike | None = None,
    things: int = 26,
    pictures: int = 10,
) -> Scene:
    """Room of `size` metres, floor at z = 0, centre at the origin, a table in the middle and things along the walls.

    `bank` must hold INTERIOR_TEXTURES in that order. Nothing but the table comes within half a metre of the points
    `keep_free` (N, 3).
    """
    rng = np.random.default_rng([seed, 11])
    bank = bank or make_bank(INTERIOR_TEXTURES, seed)
    half = 0.5 * np.asarray(size, dtype=np.float64)
    materials, solids = MaterialList(), SolidList()
    looks = _looks(rng, materials, 14)
    _table(rng, solids, looks, half)
    for _ in range(things):
        _beside_wall(rng, solids, looks, half, keep_free)
    for _ in range(pictures):
        _on_wall(rng, solids, looks, half)
    return _interior(rng, half, materials, solids, light, bank)


def corridor_scene(
    seed: int,
    length: float,
    *,
    bank: TextureBank | None = None,
    light: str = 'both',
    width: float = 2.4,
    height: float = 2.6,
    keep_free: ArrayLike | None = None,
) -> Scene:
    """Corridor along x from -2 to `length` metres with pillars, doors, cabinets, boxes and pipes; floor at z = 0."""
    rng = np.random.default_rng([seed, 12])
    bank = bank or make_bank(INTERIOR_TEXTURES, seed)
    half = np.array([0.5 * length + 1.0, 0.5 * width, 0.5 * height])
    materials, solids = MaterialList(), SolidList()
    looks = _looks(rng, materials, 14)
    shift = np.array([half[0] - 2.0, 0.0, 0.0])
    for x in np.arange(-half[0] + 1.0, half[0], 1.3):
        side = rng.choice([-1.0, 1.0])
        place = x + rng.uniform(-0.3, 0.3)
        kind = rng.choice(['pillar', 'door', 'cabinet', 'box', 'drum', 'sign'])
        look = int(rng.choice(looks))
        if kind == 'pillar':
            _put(
                solids, 'box', (place, side * (half[1] - 0.12), half[2]), (0.15, 0.12, half[2]), look, keep_free, shift
            )
        elif kind == 'door':
            _put(solids, 'box', (place, side * (half[1] - 0.02), 1.05), (0.45, 0.04, 1.05), look, keep_free, shift)
        elif kind == 'cabinet':
            tall = rng.uniform(0.5, 1.0)
            _put(solids, 'box', (place, side * (half[1] - 0.2), tall), (rng.uniform(0.25, 0.45), 0.2, tall), look,
                 keep_free, shift)  # fmt: skip
        elif kind == 'sign':
            sign = (place, side * (half[1] - 0.03), rng.uniform(1.3, 2.0))
            _put(solids, 'box', sign, (rng.uniform(0.2, 0.4), 0.03, rng.uniform(0.15, 0.3)), look, keep_free, shift)
        else:
            wide = rng.uniform(0.14, 0.3)
            tall = rng.uniform(0.15, 0.45)
            shape = 'cylinder' if kind == 'drum' else 'box'
            turn = random_rotation(rng, 0.0)
            _put(solids, shape, (place, side * (half[1] - 0.02 - 1.42 * wide), tall), (wide, wide, tall), look,
                 keep_free, shift, turn)  # fmt: skip
    along = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    for y in rng.uniform(-half[1] + 0.2, half[1] - 0.2, 3):
        at, extent = np.array([0.0, y, 2 * half[2] - 0.15]), (0.06, 0.06, half[0])
        solids.add('cylinder', at + shift, extent, int(rng.choice(looks)), along)
    return _interior(rng, half, materials, solids, light, bank, shift)


def _interior(
    rng: np.random.Generator,
    half: Array,
    materials: MaterialList,
    solids: SolidList,
    light: str,
    bank: TextureBank,
    shift: ArrayLike = (0.0, 0.0, 0.0),
) -> Scene:
    faces = [
        materials.add(
            int(rng.choice(kinds)),
            float(rng.uniform(1.2, 2.4)),
            detail=int(rng.choice(_DETAIL)),
            detail_tile=float(rng.uniform(0.4, 0.7)),
            strength=0.7,
            tint=random_tint(rng, 0.12, (0.8, 1.5)),
        )
        for kinds in (_WALL, _FLOOR, _CEILING)
    ]
    centre = torch.from_numpy(np.asarray(shift, dtype=np.float64) + (0.0, 0.0, half[2]))[None]
    room = Room(centre, torch.from_numpy(half)[None], torch.tensor([faces]))
    return Scene(solids.build(), room, None, materials.build(), make_light(light), bank)


def _looks(rng: np.random.Generator, materials: MaterialList, count: int) -> list[int]:
    return [
        materials.add(
            int(rng.integers(0, len(INTERIOR_TEXTURES))),
            float(rng.uniform(0.5, 1.2)),
            detail=int(rng.choice(_DETAIL)),
            detail_tile=float(rng.uniform(0.2, 0.35)),
            tint=random_tint(rng),
            shift=(float(rng.uniform()), float(rng.uniform())),
        )
        for _ in range(count)
    ]


def _put(
    solids: SolidList,
    kind: str,
    centre: ArrayLike,
    half: ArrayLike,
    look: int,
    keep_free: ArrayLike | None,
    shift: ArrayLike = (0.0, 0.0, 0.0),
    rotation: Array | None = None,
) -> bool:
    """Add a solid unless it comes within half a metre of the points to keep free."""
    centre = np.asarray(centre, dtype=np.float64) + np.asarray(shift)
    if keep_free is not None:
        alone = SolidList()
        alone.add(kind, centre, half, look, rotation)
        if float(alone.clearance(keep_free).min()) < 0.5:
            return False
    solids.add(kind, centre, half, look, rotation)
    return True


def _table(rng: np.random.Generator, solids: SolidList, looks: list[int], half: Array) -> None:
    """A table in the middle of the room with things on it."""
    top, wide, deep = 0.74, 0.6, 0.42
    look = int(rng.choice(looks))
    solids.add('box', (0.0, 0.0, top - 0.03), (wide, deep, 0.03), look)
    for x in (-1, 1):
        for y in (-1, 1):
            solids.add(
                'box', (x * (wide - 0.05), y * (deep - 0.05), 0.5 * (top - 0.06)), (0.04, 0.04, 0.5 * top - 0.03), look
            )
    for k in range(7):
        kind = ('box', 'sphere', 'cylinder')[k % 3]
        size = rng.uniform(0.05, 0.14, 3)
        size[:2] = size[0] if kind != 'box' else size[:2]
        place = (rng.uniform(-0.85, 0.85) * wide, rng.uniform(-0.8, 0.8) * deep, top + size[2])
        solids.add(kind, place, size, int(rng.choice(looks)), random_rotation(rng, 0.0))


def _beside_wall(
    rng: np.random.Generator, solids: SolidList, looks: list[int], half: Array, keep_free: ArrayLike | None
) -> None:
    """Cabinet, drum, ball or stack standing on the floor next to a random wall."""
    kind = rng.choice(['box', 'box', 'cylinder', 'sphere'])
    size = rng.uniform(0.15, 0.45, 3)
    size[2] = rng.uniform(0.15, 1.0) if kind == 'box' else rng.uniform(0.2, 0.5)
    if kind != 'box':
        size[:2] = size[0]
    wall, side = int(rng.integers(2)), rng.choice([-1.0, 1.0])
    place = rng.uniform(-0.92, 0.92, 3) * half
    place[wall] = side * (half[wall] - size[wall] - rng.uniform(0.02, 0.25))
    place[2] = size[2]
    if _put(solids, str(kind), place, size, int(rng.choice(looks)), keep_free) and rng.random() < 0.6:
        upper = size * rng.uniform(0.35, 0.7)
        place = place + (0.0, 0.0, size[2] + upper[2])
        _put(solids, str(rng.choice(['box', 'sphere', 'cylinder'])), place, (upper[0], upper[0], upper[2]),
             int(rng.choice(looks)), keep_free)  # fmt: skip


def _on_wall(rng: np.random.Generator, solids: SolidList, looks: list[int], half: Array) -> None:
    """Picture or shelf on a random wall."""
    wall, side = int(rng.integers(2)), rng.choice([-1.0, 1.0])
    size = np.array([rng.uniform(0.25, 0.7), rng.uniform(0.25, 0.7), rng.uniform(0.2, 0.5)])
    size[wall] = 0.03
    place = rng.uniform(-0.85, 0.85, 3) * half
    place[wall] = side * (half[wall] - size[wall])
    place[2] = rng.uniform(1.3, 2.0 * half[2] - 0.6)
    solids.add('box', place, size, int(rng.choice(looks)))
