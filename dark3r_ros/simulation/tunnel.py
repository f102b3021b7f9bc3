# SPDX-License-Identifier: Apache-2.0
"""A mine tunnel: a closed circuit with an arched, rough profile, and rubble and fittings along it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from dark3r_ros.simulation.build import MaterialList, SolidList, make_light, random_rotation, random_tint
from dark3r_ros.simulation.march import LOCAL_REACH
from dark3r_ros.simulation.scene import Scene, Tube
from dark3r_ros.simulation.texture import TextureBank, lattice_noise, make_bank

Array = NDArray[np.float64]

TUNNEL_TEXTURES = ('rock', 'gravel', 'cracks', 'mixed', 'bricks', 'speckle', 'noise', 'stripes')
_FLOOR = 1.05  # metres from the axis down to the floor
_RELIEF = ((64, 0.10), (32, 0.06), (16, 0.025), (8, 0.008))  # texels of a cell, metres


@dataclass(frozen=True)
class TunnelShape:
    """Centre line of the circuit and size of the tunnel.

    Attributes
    ----------
    length: metres of one lap along the mean circle.
    sway, climb: rows of amplitude (m), whole periods a lap, phase (rad).
    width, height: half width and height above the axis of the arch in metres.
    bays: into how many stretches, exact copies of each other, the lap is divided; 1 for none.

    """

    length: float
    sway: tuple[tuple[float, float, float], ...]
    climb: tuple[tuple[float, float, float], ...]
    width: float
    height: float
    bays: int = 1

    @property
    def radius(self) -> float:
        """Radius of the mean circle in metres."""
        return self.length / (2.0 * math.pi)

    @property
    def bay(self) -> float:
        """Metres after which everything repeats."""
        return self.length / self.bays

    def axis(self, arc: Array) -> Array:
        """Points (N, 3) on the axis at arc lengths (N,) along the mean circle."""
        phi = np.asarray(arc, dtype=np.float64) / self.radius
        r = self.radius + sum(a * np.cos(n * phi + p) for a, n, p in self.sway)
        z = sum((a * np.cos(n * phi + p) for a, n, p in self.climb), np.zeros_like(phi))
        return np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=-1)

    def axis_slope(self, phi: Array) -> tuple[Array, Array]:
        """Derivatives (N,) per radian of the axis' distance from the centre and of its height."""
        radial = -sum((a * n * np.sin(n * phi + p) for a, n, p in self.sway), np.zeros_like(phi))
        return radial, -sum((a * n * np.sin(n * phi + p) for a, n, p in self.climb), np.zeros_like(phi))

    @property
    def steepness(self) -> float:
        """Bound of the axis' sideways and vertical motion together, in metres per radian of the lap."""
        return math.hypot(sum(abs(a * n) for a, n, _ in self.sway), sum(abs(a * n) for a, n, _ in self.climb))

    def frame(self, arc: Array) -> Array:
        """Axes (N, 3, 3) at arc lengths (N,): columns outwards (right of the drive is inwards), forwards, up."""
        step = 1e-4 * self.length
        forward = self.axis(arc + step) - self.axis(arc - step)
        forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
        up = np.array([0.0, 0.0, 1.0])
        outward = np.cross(forward, up)
        outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
        return np.stack([outward, forward, np.cross(outward, forward)], axis=-1)


def tunnel_shape(seed: int, length: float = 120.0) -> TunnelShape:
    """Random circuit of `length` metres with gentle curves, the same for the same seed."""
    rng = np.random.default_rng([seed, 1])
    phases = rng.uniform(0.0, 2.0 * np.pi, 4)
    laps = length / 120.0
    sway = tuple(
        (float(rng.uniform(0.4, 0.6) * 1.6 / k), float(round(k * 2 * laps) or 1), float(p))
        for k, p in zip((1, 2), phases[:2], strict=True)
    )
    climb = tuple(
        (float(rng.uniform(0.1, 0.2) / k), float(round(k * 2 * laps) or 1), float(p))
        for k, p in zip((1, 2), phases[2:], strict=True)
    )
    return TunnelShape(length, sway, climb, float(rng.uniform(1.5, 1.8)), float(rng.uniform(1.35, 1.6)))


def bays_shape(seed: int, bays: int = 20, length: float = 120.0) -> TunnelShape:
    """Plain ring of `length` metres in which `bays` exact copies of one stretch follow each other."""
    straight = ((0.0, 1.0, 0.0),)
    return replace(tunnel_shape(seed, length), sway=straight, climb=straight, bays=bays)


def tunnel_scene(
    seed: int,
    shape: TunnelShape | None = None,
    *,
    bank: TextureBank | None = None,
    light: str = 'lamp',
    spacing: float = 1.1,
    texel: float = 0.03,
) -> Scene:
    """One tunnel with clutter about every `spacing` metres; `bank` must hold TUNNEL_TEXTURES in that order.

    `texel` is the side in metres of a cell of the wall's relief.
    """
    shape = shape or tunnel_shape(seed)
    rng = np.random.default_rng([seed, 2])
    bank = bank or make_bank(TUNNEL_TEXTURES, seed)
    materials = MaterialList()

    def tile(metres: float) -> float:
        # A whole number of tiles a bay, so that the texture closes.
        return shape.bay / max(1, round(shape.bay / metres))

    rock, gravel, cracks, _, _, speckle, noise, _ = range(8)
    wall = materials.add(rock, tile(2.6), detail=speckle, detail_tile=tile(0.7), tint=(1.04, 1.0, 0.94))
    floor = materials.add(gravel, tile(1.9), detail=noise, detail_tile=tile(0.61), tint=(0.75, 0.72, 0.7))
    roof = materials.add(cracks, tile(3.1), detail=speckle, detail_tile=tile(0.83), tint=(0.9, 0.92, 0.95))
    tube = _tube(seed, shape, (wall, floor, roof), texel)
    solids = _clutter(rng, shape, materials, spacing)
    return Scene(solids.build(), tube, None, materials.build(), make_light(light), bank)


def _profile(shape: TunnelShape, angle: Array) -> Array:
    """Radius (N,) of the smooth arch at angles (N,): ellipse above and at the sides, rounded flat floor."""
    ellipse = 1.0 / np.hypot(np.cos(angle) / shape.width, np.sin(angle) / shape.height)
    ground = _FLOOR / np.maximum(-np.sin(angle), 1e-3)
    sharp = 9.0
    return (ellipse**-sharp + ground**-sharp) ** (-1.0 / sharp)


def _tube(seed: int, shape: TunnelShape, material: tuple[int, int, int], texel: float) -> Tube:
    generator = torch.Generator().manual_seed(seed * 1013 + 7)
    # Powers of two and whole cells of the relief's largest octave.
    girth = math.pi * (shape.width + shape.height) * 0.92
    columns = 1 << round(math.log2(girth / texel))
    largest = _RELIEF[0][0]
    bay_rows = max(1, round(shape.bay / texel / largest)) * largest
    rows = bay_rows * shape.bays
    relief = _relief(generator, bay_rows, columns).repeat(shape.bays, 1)
    angle = (np.arange(columns) / columns - 0.5) * 2.0 * np.pi
    smooth = torch.from_numpy(_profile(shape, angle)).float()
    floor = torch.from_numpy(1.0 / (1.0 + np.exp(-12.0 * (-np.sin(angle) - 0.75)))).float()
    profile = smooth + relief * (1.0 - 0.75 * floor)
    slope_turn = (profile.roll(-1, 0) - profile.roll(1, 0)) * (rows / 2.0)
    slope_angle = (profile.roll(-1, 1) - profile.roll(1, 1)) * (columns / 2.0)
    bound = _slope_bound(shape, profile)
    table = torch.stack([profile, _spread(shape, bound), slope_turn, slope_angle])
    table = torch.cat([table, table[:, :1]], dim=1)
    table = torch.cat([table, table[:, :, :1]], dim=2)
    phi = np.linspace(-np.pi, np.pi, rows + 1)
    centre = shape.axis(phi * shape.radius)
    axis = np.stack([np.hypot(centre[:, 0], centre[:, 1]), centre[:, 2], *shape.axis_slope(phi)])
    return Tube(
        radius=torch.tensor([shape.radius], dtype=torch.float64),
        axis=torch.from_numpy(axis)[None],
        profile=table[None],
        slope=bound.max().double()[None],
        material=torch.tensor([material]),
    )


def _relief(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Displacement (rows, columns) in metres: bulges, boulders and facets."""
    relief = torch.zeros(rows, columns)
    for cell, amplitude in _RELIEF:
        relief += amplitude * lattice_noise(generator, rows, columns, cell).clamp(-2.0, 2.0)
    return relief


def _slope_bound(shape: TunnelShape, profile: torch.Tensor) -> torch.Tensor:
    """Bound in 1/m, per cell (S, A), of the gradient of (distance from the axis / profile radius) inside the tunnel.

    With profile radius R(turn, angle) the gradient across the axis is at most hypot(1, R_angle/R) / R and along it
    R_along/R; the waves of the axis shear it. Differences of neighbours bound the slopes of the bilinear table.
    """
    rows, columns = profile.shape
    inner = shape.radius - sum(abs(a) for a, _, _ in shape.sway) - float(profile.max())
    shear = shape.steepness / inner
    closed = functional.pad(profile[None, None], (0, 1, 0, 1), mode='circular')
    smallest = -functional.max_pool2d(-closed, 2, 1)[0, 0]
    closed = closed[0, 0]
    along = closed.diff(dim=0).abs() * (rows / (2.0 * math.pi) / inner)
    along = torch.maximum(along[:, 1:], along[:, :-1])
    around = closed.diff(dim=1).abs() * (columns / (2.0 * math.pi))
    around = torch.maximum(around[1:], around[:-1])
    return (torch.hypot(torch.ones(()), around / smallest) * (1.0 + shear) + along) / smallest


def _spread(shape: TunnelShape, bound: torch.Tensor) -> torch.Tensor:
    """Largest bound within reach of each cell: a ball of LOCAL_REACH a metre from the axis spans this lap and angle."""
    rows, columns = bound.shape
    reach_rows = math.ceil(LOCAL_REACH * 1.3 / shape.length * rows) + 1
    reach_columns = math.ceil(math.asin(LOCAL_REACH * 1.25) / (2.0 * math.pi) * columns) + 1
    wide = functional.pad(bound[None, None], (reach_columns,) * 2 + (reach_rows,) * 2, mode='circular')
    wide = functional.max_pool2d(wide, (2 * reach_rows + 1, 1), 1)
    return functional.max_pool2d(wide, (1, 2 * reach_columns + 1), 1)[0, 0]


def _clutter(rng: np.random.Generator, shape: TunnelShape, materials: MaterialList, spacing: float) -> SolidList:
    """Boulders, crates, drums and pipes beside the free lane, ribs of timber along the walls."""
    solids = SolidList()
    looks = [
        materials.add(
            int(rng.integers(0, 8)),
            float(rng.uniform(0.5, 1.0)),
            detail=int(rng.choice([5, 6])),
            detail_tile=float(rng.uniform(0.2, 0.3)),
            tint=random_tint(rng),
            shift=(float(rng.uniform()), float(rng.uniform())),
        )
        for _ in range(8)
    ]
    for arc in np.arange(0.5 * spacing, shape.bay, spacing):
        place = arc + rng.uniform(-0.3, 0.3) * spacing
        origin, axes = shape.axis(np.array([place]))[0], shape.frame(np.array([place]))[0]
        side = rng.choice([-1.0, 1.0])
        look = looks[int(rng.integers(len(looks)))]
        kind = rng.choice(['box', 'sphere', 'cylinder', 'pipe'])
        if kind == 'pipe':
            half = np.array([0.07, 0.07, rng.uniform(0.6, 0.9)])
            turn = np.stack([axes[:, 0], axes[:, 2], axes[:, 1]], axis=1)
            turn[:, 1] *= np.sign(np.linalg.det(turn))
            centre = origin + axes @ np.array([side * (shape.width - 0.32), 0.0, rng.uniform(0.2, 0.5)])
            solids.add('cylinder', centre, half, look, turn)
            continue
        half = rng.uniform(0.1, 0.26, 3)
        if kind == 'cylinder':
            half[1] = half[0]
            half[2] = rng.uniform(0.2, 0.42)
        lateral = side * rng.uniform(0.72 + half[:2].max(), max(shape.width - 0.35, 0.75 + half[:2].max()))
        centre = origin + axes @ np.array([lateral, 0.0, -_FLOOR + 0.85 * half[2]])
        solids.add(str(kind), centre, half, look, random_rotation(rng, 0.15))
    solids.repeat_around(shape.bays)
    return solids
