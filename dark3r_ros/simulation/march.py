# SPDX-License-Identifier: Apache-2.0
"""Rough surfaces (tunnel walls, ground) found by marching along the rays.

A field is positive in free space and its gradient is bounded, so a step of field/bound cannot pass a wall
(sphere tracing; Hart 1996). First cones that hold a block of pixels march together, then each ray goes on from where
its cone stopped; the crossing is closed in on by the Illinois variant of regula falsi.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from dark3r_ros.simulation.scene import Terrain, Tube
from dark3r_ros.simulation.views import Hits, Views

BLOCK = 8
_CONE_STEPS = 400
_RAY_STEPS = 2000
_REFINEMENTS = 7


class Field(Protocol):
    """A surface as the zero of a function of the position."""

    def value(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Field at world points (I, N): positive in free space."""
        ...

    def step(self, value: Tensor) -> Tensor:
        """Distance (I, N) in metres that is surely free around points with this value."""
        ...


class TubeField:
    """Gauge of a Tube: one minus the distance from the axis in units of the profile radius.

    Unlike the plain difference its gradient stays bounded on the axis itself.
    """

    def __init__(self, tube: Tube, dtype: torch.dtype) -> None:
        self.radius = tube.radius.to(dtype)[:, None]
        self.sway = tube.sway.to(dtype)
        self.climb = tube.climb.to(dtype)
        self.profile = tube.profile.to(dtype)
        self.slope = tube.slope.to(dtype)[:, None]

    def step(self, value: Tensor) -> Tensor:
        """Free distance by the bound of the gradient."""
        return value / self.slope

    def local(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Angle round the circuit (rad), lateral and vertical distance from the axis (m)."""
        phi = torch.atan2(y, x)
        lateral = torch.hypot(x, y) - self.radius - _waves(self.sway, phi)
        return phi, lateral, z - _waves(self.climb, phi)

    def table(self, phi: Tensor, lateral: Tensor, height: Tensor, channels: int) -> Tensor:
        """First `channels` of the profile table, (I, channels, N)."""
        angle = torch.atan2(height, lateral)
        grid = torch.stack([angle, phi], dim=-1)[:, None] * (1.0 / math.pi)
        return functional.grid_sample(self.profile[:, :channels], grid, align_corners=True)[:, :, 0]

    def value(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """One minus the distance from the axis over the profile radius."""
        phi, lateral, height = self.local(x, y, z)
        return 1.0 - torch.hypot(lateral, height) / self.table(phi, lateral, height, 1)[:, 0]


def _waves(waves: Tensor, phi: Tensor) -> Tensor:
    """Sum of a cos(n phi + p) of waves (I, K, 3) at (I, N)."""
    total = torch.zeros_like(phi)
    for k in range(waves.shape[1]):
        amplitude, periods, phase = waves[:, k, :, None].unbind(1)
        total = total + amplitude * torch.cos(periods * phi + phase)
    return total


def _waves_slope(waves: Tensor, phi: Tensor) -> Tensor:
    total = torch.zeros_like(phi)
    for k in range(waves.shape[1]):
        amplitude, periods, phase = waves[:, k, :, None].unbind(1)
        total = total - amplitude * periods * torch.sin(periods * phi + phase)
    return total


class TerrainField:
    """Height above a Terrain in metres."""

    def __init__(self, terrain: Terrain, dtype: torch.dtype) -> None:
        self.height = terrain.height.to(dtype)
        self.side = terrain.side.to(dtype)[:, None]
        self.slope = terrain.slope.to(dtype)[:, None]

    def step(self, value: Tensor) -> Tensor:
        """Free distance by the bound of the gradient."""
        return value / self.slope

    def table(self, x: Tensor, y: Tensor, channels: int) -> Tensor:
        """First `channels` of the height table, (I, channels, N)."""
        u, v = x / self.side, y / self.side
        grid = torch.stack([u - torch.floor(u), v - torch.floor(v)], dim=-1)[:, None] * 2.0 - 1.0
        return functional.grid_sample(self.height[:, :channels], grid, align_corners=True)[:, :, 0]

    def value(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Height above the ground."""
        return z - self.table(x, y, 1)[:, 0]


class _Bundle:
    """Rays of images: origins (I, 3, 1), directions (I, 3, N) of unit depth in world axes, their lengths (I, N)."""

    def __init__(self, views: Views, x: Tensor, y: Tensor, dtype: torch.dtype) -> None:
        rotation = views.world_from_camera[:, :3, :3].to(dtype)
        self.origin = views.world_from_camera[:, :3, 3:].to(dtype)
        across = rotation[:, :, 0, None, None] * x[:, None, None, :] + rotation[:, :, 2, None, None]
        self.direction = (across + rotation[:, :, 1, None, None] * y[:, None, :, None]).flatten(2)
        squares = (x * x)[:, None, :] + (y * y)[:, :, None] + 1.0
        self.length = squares.sqrt().flatten(1)

    def points(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.origin + self.direction * t[:, None]
        return p[:, 0], p[:, 1], p[:, 2]

    def select(self, index: Tensor) -> _Bundle:
        """Keep some rays of a single image."""
        part = object.__new__(_Bundle)
        part.origin = self.origin
        part.direction = self.direction.index_select(2, index)
        part.length = self.length.index_select(1, index)
        return part


def _cone_depth(field: Field, views: Views, far: Tensor | float, start: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Depth (I, N) up to which all rays of the block of each pixel are surely free."""
    x, y = views.axes(dtype)
    rows, columns = -(-views.height // BLOCK), -(-views.width // BLOCK)
    step_x, step_y = (1.0 / views.intrinsics[:, :2].to(dtype)).unbind(1)
    middle = (BLOCK - 1) / 2
    block_x = x[:, :1] + step_x[:, None] * (middle + BLOCK * torch.arange(columns, device=x.device, dtype=dtype))
    block_y = y[:, :1] + step_y[:, None] * (middle + BLOCK * torch.arange(rows, device=x.device, dtype=dtype))
    rays = _Bundle(views, block_x, block_y, dtype)
    spread = torch.hypot(step_x, step_y)[:, None] * (BLOCK / 2)
    t = torch.zeros_like(rays.length)
    if start is not None:
        blocks = start.reshape(len(views), 1, views.height, views.width)
        padded = functional.pad(
            blocks, (0, columns * BLOCK - views.width, 0, rows * BLOCK - views.height), mode='replicate'
        )
        t = -functional.max_pool2d(-padded, BLOCK).flatten(1)
    for number in range(_CONE_STEPS):
        free = field.step(field.value(*rays.points(t)))
        gain = (free - spread * t) / (rays.length + spread)
        moving = (gain > 0.25 * spread * t + 1e-3) & (t < far)
        t = torch.where(moving, t + gain, t)
        if number % 8 == 7 and not bool(moving.any()):
            break
    grid = t.reshape(len(views), rows, columns)
    grid = grid.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    return grid[:, : views.height, : views.width].flatten(1)


def march(field: Field, views: Views, dtype: torch.dtype, far: float = 200.0, start: Tensor | None = None) -> Tensor:
    """Depth (I, H, W) of the first crossing of each ray, infinity where there is none before the depth `far`.

    `start` (I, H*W) is a depth before which nothing can be hit. Steps are at least half a pixel wide, so that
    features thinner than that along a grazing ray may be passed.
    """
    rays = _Bundle(views, *views.axes(dtype), dtype)
    low = _cone_depth(field, views, far, start, dtype)
    if start is not None:
        low = torch.maximum(low, start)
    low, high = _bracket(field, rays, low, views, far)
    depth = _refine(field, rays, low, high)
    return depth.reshape(len(views), views.height, views.width)


def _bracket(field: Field, rays: _Bundle, low: Tensor, views: Views, far: float) -> tuple[Tensor, Tensor]:
    """Last free and first solid depth (I, N) around the crossing of each ray; both infinite where there is none."""
    smallest = (0.5 / views.intrinsics[:, :1]).to(low.dtype)
    low = torch.where(low < far, low, torch.inf)
    high = torch.full_like(low, torch.inf)
    index: Tensor | None = None
    part, part_low, part_high = rays, low, high
    if len(views) == 1:
        index = torch.nonzero(torch.isfinite(low[0]))[:, 0]
        part, part_low, part_high = rays.select(index), low[:, index], high[:, index]
    value = field.value(*part.points(part_low))
    for number in range(_RAY_STEPS):
        open_ = torch.isinf(part_high) & (part_low < far)
        step = torch.maximum(field.step(value) / part.length, smallest * part_low)
        trial = torch.where(open_, part_low + step, part_low)
        value = field.value(*part.points(trial))
        solid = (value <= 0) & open_
        part_high = torch.where(solid, trial, part_high)
        part_low = torch.where(solid, part_low, trial)
        if number % 4 != 3:
            continue
        alive = torch.isinf(part_high) & (part_low < far)
        if index is None:
            if not bool(alive.any()):
                break
            continue
        low[0, index], high[0, index] = part_low[0], part_high[0]
        keep = torch.nonzero(alive[0])[:, 0]
        if len(keep) == 0:
            break
        index, part = index[keep], part.select(keep)
        part_low, part_high, value = part_low[:, keep], part_high[:, keep], value[:, keep]
    if index is None:
        return part_low, part_high
    return low, high


def _refine(field: Field, rays: _Bundle, low: Tensor, high: Tensor) -> Tensor:
    """Depth of the crossing within each bracket, by the Illinois method; infinity stays."""
    found = torch.isfinite(high)
    low, high = torch.where(found, low, 0.0), torch.where(found, high, 0.0)
    value_low, value_high = field.value(*rays.points(low)), field.value(*rays.points(high))
    middle = low
    last_free = torch.zeros_like(found)
    last_solid = torch.zeros_like(found)
    for _ in range(_REFINEMENTS):
        span = value_low - value_high
        share = torch.where(span > 0, value_low / span.clamp(min=1e-12), 0.5).clamp(0.0, 1.0)
        middle = low + (high - low) * share
        value = field.value(*rays.points(middle))
        free = value > 0
        # Halving the value of an end that stays twice keeps the secant from creeping up on one side only.
        value_low = torch.where(free, value, torch.where(last_solid, 0.5 * value_low, value_low))
        value_high = torch.where(free, torch.where(last_free, 0.5 * value_high, value_high), value)
        low, high = torch.where(free, middle, low), torch.where(free, high, middle)
        last_free, last_solid = free, ~free
    return torch.where(found, middle, torch.inf)


def trace_tube(tube: Tube, views: Views, hits: Hits) -> None:
    """Fill `hits` with the walls of the tunnel, the tube's tensors being gathered per image."""
    dtype = hits.depth.dtype
    field = TubeField(tube, dtype)
    depth = march(field, views, dtype)
    rays = _Bundle(views, *views.axes(dtype), dtype)
    x, y, z = rays.points(depth.flatten(1))
    phi, lateral, height = field.local(x, y, z)
    radius = torch.hypot(x, y)
    table = field.table(phi, lateral, height, 3)
    rho2 = lateral * lateral + height * height
    rho = rho2.sqrt()
    turn_slope, angle_slope = table[:, 1] / (2 * math.pi), table[:, 2] / (2 * math.pi)
    across = -angle_slope * height / rho2 - lateral / rho
    up = angle_slope * lateral / rho2 - height / rho
    along = (turn_slope - across * _waves_slope(field.sway, phi) - up * _waves_slope(field.climb, phi)) / radius
    cos, sin = x / radius, y / radius
    gradient = torch.stack([across * cos - along * sin, across * sin + along * cos, up], dim=1)
    floor = (height < 0) & (lateral.abs() < -1.2 * height)
    ceiling = (height > 0) & (lateral.abs() < 0.7 * height)
    material = torch.where(floor, tube.material[:, 1:2], tube.material[:, 0:1])
    material = torch.where(ceiling, tube.material[:, 2:3], material)
    girth = 1.5 * torch.atan2(height, lateral.abs())
    uv = torch.stack([phi * field.radius, torch.where(floor | ceiling, lateral, girth)], dim=1)
    _store(hits, views, depth, gradient, uv, material)


def trace_terrain(terrain: Terrain, views: Views, hits: Hits, far: float = 60.0) -> None:
    """Fill `hits` with the ground where it is nearer than what is there already."""
    dtype = hits.depth.dtype
    field = TerrainField(terrain, dtype)
    rays = _Bundle(views, *views.axes(dtype), dtype)
    drop = rays.direction[:, 2]
    above = rays.origin[:, 2] - terrain.top.to(dtype)[:, None]
    start = torch.where(drop < 0, above / -drop, torch.where(above > 0, torch.inf, 0.0)).clamp(min=0.0)
    start = torch.where(torch.isnan(start), 0.0, start).clamp(max=far)
    depth = march(field, views, dtype, far, start)
    found = depth < hits.depth
    x, y, _ = rays.points(torch.where(found, depth, 1.0).flatten(1))
    table = field.table(x, y, 3)
    gradient = torch.stack([-table[:, 1], -table[:, 2], torch.ones_like(x)], dim=1)
    material = terrain.material[:, None].expand(x.shape)
    _store(hits, views, depth, gradient, torch.stack([x, y], 1), material)


def _store(hits: Hits, views: Views, depth: Tensor, gradient: Tensor, uv: Tensor, material: Tensor) -> None:
    """Write surface data (I, C, N) where it is nearer; the gradient is turned into the optical frame."""
    nearer = depth < hits.depth
    rotation = views.world_from_camera[:, :3, :3].to(gradient.dtype)
    normal = functional.normalize(torch.einsum('iwc,iwn->icn', rotation, gradient), dim=1)
    shape = depth.shape
    hits.normal = torch.where(nearer[:, None], normal.reshape(hits.normal.shape), hits.normal)
    hits.uv = torch.where(nearer[:, None], uv.reshape(hits.uv.shape), hits.uv)
    hits.material = torch.where(nearer, material.reshape(shape), hits.material)
    hits.depth = torch.where(nearer, depth, hits.depth)
