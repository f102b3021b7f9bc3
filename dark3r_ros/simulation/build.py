# SPDX-License-Identifier: Apache-2.0
"""Small tools that scene builders share: lists of objects and materials turned into tensors, and lamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from dark3r_ros.errors import ConfigError
from dark3r_ros.simulation.scene import SOLID_KINDS, Light, Materials, Solids

LIGHTS = ('lamp', 'ambient', 'both')


@dataclass
class MaterialList:
    """Materials of one scene in the making."""

    rows: list[list[float]] = field(default_factory=list)

    def add(
        self,
        texture: int,
        tile: float,
        *,
        detail: int,
        detail_tile: float,
        strength: float = 0.6,
        tint: ArrayLike = (1.0, 1.0, 1.0),
        shift: tuple[float, float] = (0.0, 0.0),
    ) -> int:
        """Append a material and return its row: texture and detail are rows of the bank, tiles are metres."""
        red, green, blue = np.asarray(tint, dtype=np.float64)
        self.rows.append([texture, tile, *shift, detail, detail_tile, strength, float(red), float(green), float(blue)])
        return len(self.rows) - 1

    def build(self) -> Materials:
        """Tensors of one scene."""
        return Materials(torch.tensor([self.rows], dtype=torch.float64))


class Solid(NamedTuple):
    """A row of `Solids`."""

    kind: str
    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    rotation: NDArray[np.float64]
    material: int
    shift: float


@dataclass
class SolidList:
    """Solids of one scene in the making."""

    items: list[Solid] = field(default_factory=list)

    def add(
        self, kind: str, centre: ArrayLike, half: ArrayLike, material: int, rotation: ArrayLike | None = None
    ) -> None:
        """Append a solid: centre and half extents (3,) in metres, rotation (3, 3) world_from_object."""
        turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
        centre, half = np.asarray(centre, dtype=np.float64), np.asarray(half, dtype=np.float64)
        self.items.append(Solid(kind, centre, half, turn, material, float(centre.sum())))

    def repeat_around(self, copies: int) -> None:
        """Put all solids `copies` times around the z axis of the world, alike to the texture."""
        first = tuple(self.items)
        for angle in 2.0 * np.pi * np.arange(1, copies) / copies:
            turn = Rotation.from_rotvec([0.0, 0.0, angle]).as_matrix()
            self.items += [item._replace(centre=turn @ item.centre, rotation=turn @ item.rotation) for item in first]

    def build(self) -> Solids | None:
        """Tensors of one scene, grouped by kind, or None when empty."""
        if not self.items:
            return None
        items = sorted(self.items, key=lambda item: SOLID_KINDS.index(item.kind))

        def stacked(name: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([np.asarray(getattr(item, name)) for item in items]))[None]

        kinds = tuple(item.kind for item in items)
        columns = (stacked(name) for name in ('centre', 'rotation', 'half', 'material', 'shift'))
        return Solids(kinds, *columns)

    def clearance(self, points: ArrayLike) -> NDArray[np.float64]:
        """Lower bound of the distance in metres of each point (N, 3) from the nearest solid, by their boxes."""
        points = np.asarray(points, dtype=np.float64)
        best = np.full(len(points), np.inf)
        for item in self.items:
            outside = np.maximum(np.abs((points - item.centre) @ item.rotation) - item.half, 0.0)
            best = np.minimum(best, np.linalg.norm(outside, axis=1))
        return best


def random_tint(
    rng: np.random.Generator, spread: float = 0.35, brightness: tuple[float, float] = (0.5, 1.5)
) -> ArrayLike:
    """Random colour (3,) whose mean lies within `brightness`."""
    colour = 1.0 + spread * rng.uniform(-1.0, 1.0, 3)
    return colour / colour.mean() * rng.uniform(*brightness)


def random_rotation(rng: np.random.Generator, tilt: float) -> NDArray[np.float64]:
    """Rotation (3, 3) with any heading about z and a tilt of at most `tilt` radians."""
    heading = Rotation.from_rotvec([0.0, 0.0, rng.uniform(-np.pi, np.pi)])
    axis = rng.uniform(-np.pi, np.pi)
    lean = Rotation.from_rotvec(np.array([np.cos(axis), np.sin(axis), 0.0]) * rng.uniform(0.0, tilt))
    return np.asarray((lean * heading).as_matrix())


def make_light(
    kind: str,
    *,
    lamp: float = 10.0,
    ambient: float = 1.0,
    position: Sequence[float] = (0.12, -0.18, -0.05),
    aim: Sequence[float] = (0.0, -0.03, 1.0),
    beam_deg: float = 32.0,
    vignetting: float = 2.0,
) -> Light:
    """Lights of one scene: 'lamp' on the robot, 'ambient' or 'both'; position (m) and aim in the optical frame."""
    if kind not in LIGHTS:
        raise ConfigError(f'unknown light {kind!r}; known: {", ".join(LIGHTS)}')
    axis = np.asarray(aim, dtype=np.float64)

    def row(*values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    return Light(
        lamp=row(lamp if kind != 'ambient' else 0.0)[:, 0],
        lamp_position=row(*position),
        lamp_direction=row(*(axis / np.linalg.norm(axis))),
        beam=row(np.radians(beam_deg))[:, 0],
        ambient=row(ambient if kind != 'lamp' else 0.0)[:, 0],
        vignetting=row(vignetting)[:, 0],
    )
