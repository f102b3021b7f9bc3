# SPDX-License-Identifier: Apache-2.0
"""What a batch of scenes consists of: solids, an enclosing shell, materials and the lights.

Worlds have z up and metres. Everything is a tensor with the scene as its first axis, so that many scenes are traced
at once; the same code runs on the CPU and on CUDA.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError
from dark3r_ros.simulation.texture import TextureBank

SOLID_KINDS = ('box', 'sphere', 'cylinder')

T = TypeVar('T')


def _moved(item: T, device: torch.device | str | None, dtype: torch.dtype | None) -> T:
    """Copy a dataclass of tensors onto a device; floating tensors change their type, others keep it."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(item):  # type: ignore[arg-type]
        value = getattr(item, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    return dataclasses.replace(item, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Solids:
    """Convex objects: boxes, ellipsoids (`sphere`) and cylinders with caps, axis z of the object.

    Attributes
    ----------
    kind: (P,) names out of SOLID_KINDS, the same in every scene of the batch.
    centre: (B, P, 3) float64 world position in metres.
    rotation: (B, P, 3, 3) float64 world_from_object.
    half: (B, P, 3) float64 half extents in metres; zero marks an empty slot.
    material: (B, P) int64 row of Materials.
    shift: (B, P) float64 metres by which the texture is moved, so that objects of one material differ.

    """

    kind: tuple[str, ...]
    centre: Tensor
    rotation: Tensor
    half: Tensor
    material: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        unknown = set(self.kind) - set(SOLID_KINDS)
        if unknown:
            raise ConfigError(f'unknown solid {sorted(unknown)[0]!r}; known: {", ".join(SOLID_KINDS)}')


@dataclass(frozen=True, eq=False)
class Room:
    """Axis-aligned box seen from inside: centre, half extents (B, 3); material (B, 3): walls, floor, ceiling."""

    centre: Tensor
    half: Tensor
    material: Tensor


@dataclass(frozen=True, eq=False)
class Tube:
    """Closed circuit of tunnel around the z axis of the world, with rough walls.

    A point has the coordinates turn = atan2(y, x), lateral = hypot(x, y) - radius(turn) and
    height = z - climb(turn); the wall is where the distance from the axis, hypot(lateral, height), equals the
    profile radius at (turn, angle). Angle 0 points outwards, a quarter turn up. Tables are (bi)linear between their
    nodes, run from -pi to pi and hold the closing node twice.

    Attributes
    ----------
    radius: (B,) metres of the mean circle of the circuit.
    axis: (B, 4, S) along the lap: its radius and climb in metres, and their derivatives per radian.
    profile: (B, 4, S, A) over lap and angle: profile radius in metres; a local `slope`; derivatives of the radius per
        turn of the lap and per turn of the angle.
    slope: (B,) bound in 1/m of the gradient of distance from the axis over profile radius, inside the tunnel.
        The local one of `profile` holds within `march.LOCAL_REACH` metres.
    material: (B, 3): walls, floor, ceiling.

    """

    radius: Tensor
    axis: Tensor
    profile: Tensor
    slope: Tensor
    material: Tensor


@dataclass(frozen=True, eq=False)
class Terrain:
    """Ground z = height(x, y), a bilinear table on a square that repeats periodically.

    Attributes
    ----------
    height: (B, 3, N, N) metres, and its derivatives along x and y (dimensionless); rows are y.
    side: (B,) metres of the square.
    top: (B,) metres: nothing of the ground is higher.
    slope: (B,) bound of the gradient of the distance field.
    material: (B,).

    """

    height: Tensor
    side: Tensor
    top: Tensor
    slope: Tensor
    material: Tensor


@dataclass(frozen=True, eq=False)
class Materials:
    """Rows of `COLUMNS` per material, (B, M, 10): how a surface looks."""

    table: Tensor

    COLUMNS = (
        'texture', 'tile', 'shift_u', 'shift_v',  # base texture, metres per tile, offsets in tiles
        'detail', 'detail_tile', 'strength',  # finer texture that multiplies it
        'red', 'green', 'blue',  # tint
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Light:
    """Lights of a batch, relative radiance units, given in the optical frame of the camera where they ride on it.

    Attributes
    ----------
    lamp: (B,) intensity of the lamp at one metre, 0 switches it off.
    lamp_position: (B, 3) metres in the optical frame.
    lamp_direction: (B, 3) unit axis of its beam in the optical frame.
    beam: (B,) angle in radians at which the beam has fallen to 1/e, with a broad spill around it.
    ambient: (B,) irradiance from all around.
    vignetting: (B,) exponent of the cosine of the field angle, 4 for a simple lens.

    """

    lamp: Tensor
    lamp_position: Tensor
    lamp_direction: Tensor
    beam: Tensor
    ambient: Tensor
    vignetting: Tensor


@dataclass(frozen=True, eq=False)
class Scene:
    """A batch of B scenes: one kind of shell for all, the same kinds of solids in the same slots, one texture bank."""

    solids: Solids | None
    shell: Room | Tube | None
    terrain: Terrain | None
    materials: Materials
    light: Light
    bank: TextureBank

    def __post_init__(self) -> None:
        if self.solids is None and self.shell is None and self.terrain is None:
            raise ConfigError('a scene needs solids, a shell or terrain')

    def __len__(self) -> int:
        return self.materials.table.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the scene lives."""
        return self.bank.atlas.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rays: that of the texture atlas."""
        return self.bank.atlas.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Scene:
        """Copy onto a device; `dtype` changes the precision of the rays, geometry stays float64."""
        parts = {
            name: None if part is None else _moved(part, device, None)
            for name, part in (('solids', self.solids), ('shell', self.shell), ('terrain', self.terrain))
        }
        return dataclasses.replace(
            self,
            **parts,  # type: ignore[arg-type]
            materials=_moved(self.materials, device, None),
            light=_moved(self.light, device, None),
            bank=self.bank.to(device, dtype),
        )

    def gather(self, index: Tensor) -> Scene:
        """Scenes of the rows `index` (I,), repeated or reordered."""
        parts = {
            name: None if part is None else _indexed(part, index)
            for name, part in (('solids', self.solids), ('shell', self.shell), ('terrain', self.terrain))
        }
        return dataclasses.replace(
            self,
            **parts,  # type: ignore[arg-type]
            materials=_indexed(self.materials, index),
            light=_indexed(self.light, index),
        )


def _indexed(item: T, index: Tensor) -> T:
    values = {
        field.name: getattr(item, field.name)[index]
        for field in dataclasses.fields(item)  # type: ignore[arg-type]
        if isinstance(getattr(item, field.name), Tensor)
    }
    return dataclasses.replace(item, **values)  # type: ignore[type-var]


def _concatenated(items: Sequence[T]) -> T:
    values = {
        field.name: torch.cat([getattr(item, field.name) for item in items])
        for field in dataclasses.fields(items[0])  # type: ignore[arg-type]
        if isinstance(getattr(items[0], field.name), Tensor)
    }
    return dataclasses.replace(items[0], **values)  # type: ignore[type-var]


def stack(scenes: Sequence[Scene]) -> Scene:
    """Join scenes of the same make-up that share a texture bank into one batch.

    Solids are padded with empty slots where scenes have fewer of a kind.
    """
    first = scenes[0]
    if any(s.bank is not first.bank for s in scenes):
        raise ConfigError('scenes of a batch must share one texture bank')
    parts: dict[str, Any] = {}
    for name in ('shell', 'terrain'):
        items = [getattr(s, name) for s in scenes]
        if len({type(item) for item in items}) != 1:
            raise ConfigError(f'scenes of a batch must have the same kind of {name}')
        parts[name] = None if items[0] is None else _concatenated(items)
    return Scene(
        solids=_stack_solids([s.solids for s in scenes]),
        materials=_stack_materials([s.materials for s in scenes]),
        light=_concatenated([s.light for s in scenes]),
        bank=first.bank,
        **parts,
    )


def _stack_solids(items: Sequence[Solids | None]) -> Solids | None:
    present = [item for item in items if item is not None]
    if not present:
        return None
    kinds: list[str] = []
    for kind in SOLID_KINDS:
        kinds += [kind] * max(item.kind.count(kind) for item in present)
    rows = []
    device = present[0].centre.device
    for item in items:
        count = 1 if item is None else item.centre.shape[0]
        centre = torch.zeros(count, len(kinds), 3, dtype=torch.float64, device=device)
        rotation = torch.eye(3, dtype=torch.float64, device=device).repeat(count, len(kinds), 1, 1)
        half = torch.zeros_like(centre)
        material = torch.zeros(count, len(kinds), dtype=torch.int64, device=device)
        shift = torch.zeros(count, len(kinds), dtype=torch.float64, device=device)
        if item is not None:
            for kind in SOLID_KINDS:
                target = kinds.index(kind) if kind in kinds else 0
                for slot in (number for number, name in enumerate(item.kind) if name == kind):
                    centre[:, target], rotation[:, target] = item.centre[:, slot], item.rotation[:, slot]
                    half[:, target], material[:, target] = item.half[:, slot], item.material[:, slot]
                    shift[:, target] = item.shift[:, slot]
                    target += 1
        rows.append(Solids(tuple(kinds), centre, rotation, half, material, shift))
    return _concatenated(rows)


def _stack_materials(items: Sequence[Materials]) -> Materials:
    most = max(item.table.shape[1] for item in items)
    padded = [torch.nn.functional.pad(item.table, (0, 0, 0, most - item.table.shape[1])) for item in items]
    return Materials(torch.cat(padded))
