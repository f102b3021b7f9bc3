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

BLOCKS = (16, 4)  # sides in pixels of the blocks whose rays march together, coarse to fine
_CONE_STEPS = 400
_RAY_STEPS = 2000
_REFINEMENTS = 6
_SECANTS = 2
_SETTLED = 3e-4  # relative last step of the secants below which their result stands: the next is its square
_COARSEST = 100  # columns below which an image is marched ray by ray
_SMOOTH = 1.08  # ratio of depths within a neighbourhood that counts as one surface
LOCAL_REACH = 0.4  # metres up to which a tube's local bound of the gradient holds, at a metre from the axis


class Field(Protocol):
    """A surface as the zero of a function of the position."""

    def value(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Field at world points (I, N): positive in free space."""
        ...

    def probe(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Field at world points (I, N), and the distance in metres that is surely free around them."""
        ...


class TubeField:
    """Gauge of a Tube: one minus the distance from the axis in units of the profile radius.

    Unlike the plain difference its gradient stays bounded on the axis itself.
    """

    def __init__(self, tube: Tube, dtype: torch.dtype) -> None:
        self.radius = tube.radius.to(dtype)[:, None]
        self.axis = tube.axis.to(dtype)[:, :, None]
        self.profile = tube.profile.to(dtype)
        self.slope = tube.slope.to(dtype)[:, None]

    def local(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Angle round the circuit in half turns, lateral and vertical distance from the axis (m)."""
        turn = torch.atan2(y, x) * (1.0 / math.pi)
        axis = self.along(turn, 2)
        return turn, torch.hypot(x, y) - axis[:, 0], z - axis[:, 1]

    def along(self, turn: Tensor, channels: int) -> Tensor:
        """First `channels` of the axis table, (I, channels, N)."""
        grid = torch.stack([turn, torch.zeros_like(turn)], dim=-1)[:, None]
        return functional.grid_sample(self.axis[:, :channels], grid, align_corners=True)[:, :, 0]

    def table(self, turn: Tensor, lateral: Tensor, height: Tensor, channels: int) -> Tensor:
        """First `channels` of the profile table, (I, channels, N)."""
        angle = torch.atan2(height, lateral) * (1.0 / math.pi)
        grid = torch.stack([angle, turn], dim=-1)[:, None]
        return functional.grid_sample(self.profile[:, :channels], grid, align_corners=True)[:, :, 0]

    def value(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """One minus the distance from the axis over the profile radius."""
        turn, lateral, height = self.local(x, y, z)
        return 1.0 - torch.hypot(lateral, height) / self.table(turn, lateral, height, 1)[:, 0]

    def probe(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Value and free distance: by the local bound as far as that holds, else by the global one."""
        turn, lateral, height = self.local(x, y, z)
        table = self.table(turn, lateral, height, 2)
        rho = torch.hypot(lateral, height)
        value = 1.0 - rho / table[:, 0]
        near = torch.minimum(value / table[:, 1], LOCAL_REACH * rho.clamp(max=1.0))
        return value, torch.maximum(near, value / self.slope)


class TerrainField:
    """Height above a Terrain in metres."""

    def __init__(self, terrain: Terrain, dtype: torch.dtype) -> None:
        self.height = terrain.height.to(dtype)
        self.side = terrain.side.to(dtype)[:, None]
        self.slope = terrain.slope.to(dtype)[:, None]
        self.top = terrain.top.to(dtype)[:, None]

    def probe(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Value and free distance: by the bound of the gradient, or the height above the highest point."""
        value = self.value(x, y, z)
        return value, torch.maximum(value / self.slope, z - self.top)

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
        part.direction = torch.stack([row[index] for row in self.direction[0]])[None]
        part.length = self.length[:, index]
        return part


def _free_depth(field: Field, views: Views, dtype: torch.dtype, far: float) -> Tensor:
    """Depth (I, H*W) up to which each ray is surely free, from cones round blocks of pixels, coarse to fine."""
    x, y = views.axes(dtype)
    step_x, step_y = (1.0 / views.intrinsics[:, :2].to(dtype)).unbind(1)
    known = torch.zeros((len(views), 1, views.height, views.width), dtype=dtype, device=x.device)
    for block in BLOCKS:
        rows, columns = -(-views.height // block), -(-views.width // block)
        middle = (block - 1) / 2
        block_x = x[:, :1] + step_x[:, None] * (middle + block * torch.arange(columns, device=x.device, dtype=dtype))
        block_y = y[:, :1] + step_y[:, None] * (middle + block * torch.arange(rows, device=x.device, dtype=dtype))
        rays = _Bundle(views, block_x, block_y, dtype)
        spread = torch.hypot(step_x, step_y)[:, None] * (block / 2)
        edge = (0, columns * block - views.width, 0, rows * block - views.height)
        t = -functional.max_pool2d(-functional.pad(known, edge, mode='replicate'), block).flatten(1)
        t = _advance(field, rays, t, spread, far).reshape(len(views), 1, rows, columns)
        wide = t.repeat_interleave(block, 2).repeat_interleave(block, 3)
        known = torch.maximum(known, wide[:, :, : views.height, : views.width])
    return known.flatten(1)


def _advance(field: Field, rays: _Bundle, t: Tensor, spread: Tensor, far: float) -> Tensor:
    """March cones (I, N) on from depth t until what is free around the axis hardly covers their width."""
    index: Tensor | None = None
    part, current = rays, t
    for number in range(_CONE_STEPS):
        _, free = field.probe(*part.points(current))
        gain = (free - spread * current) / (part.length + spread)
        moving = (gain > 0.3 * spread * current + 1e-3) & (current < far)
        current = torch.where(moving, current + gain, current)
        if number % 4 != 3:
            continue
        if len(t) > 1:
            if not bool(moving.any()):
                break
            continue
        if index is None:
            index, t = torch.arange(t.shape[1], device=t.device), current.clone()
        else:
            t[:, index] = current
        keep = torch.nonzero(moving[0])[:, 0]
        if len(keep) == 0:
            return t
        index, part, current = index[keep], part.select(keep), current[:, keep]
    if index is None:
        return current
    t[:, index] = current
    return t


def march(field: Field, views: Views, dtype: torch.dtype, far: float = 200.0) -> Tensor:
    """Depth (I, H, W) of the first crossing of each ray, infinity where there is none before the depth `far`.

    Steps are at least half a pixel wide, so that features thinner than that along a grazing ray may be passed. A single
    image is found coarse to fine: where the depths of a 3x3 neighbourhood agree they bracket the crossings of its rays.
    """
    if len(views) == 1 and views.width % 2 == 0 and views.height % 2 == 0 and views.width >= 2 * _COARSEST:
        return _march_from_coarse(field, views, dtype, far)
    rays = _Bundle(views, *views.axes(dtype), dtype)
    depth = _crossing(field, rays, _free_depth(field, views, dtype, far), views, far)
    return depth.reshape(len(views), views.height, views.width)


def _march_from_coarse(field: Field, views: Views, dtype: torch.dtype, far: float) -> Tensor:
    inverse = march(field, views.binned(2), dtype, far).reciprocal()[:, None]

    def extremes(side: int) -> tuple[Tensor, Tensor]:
        largest = functional.max_pool2d(inverse, side, 1, side // 2)
        smallest = -functional.max_pool2d(-inverse, side, 1, side // 2)
        return tuple(i.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1) for i in (largest, smallest))  # type: ignore[return-value]

    rays = _Bundle(views, *views.axes(dtype), dtype)
    nearest, farthest = extremes(3)
    margin = 0.3 * (nearest - farthest) + 1e-3 * nearest
    low, high = (nearest + margin).reciprocal(), (farthest - margin).clamp(min=1e-6).reciprocal()
    value_low, value_high = field.value(*rays.points(low)), field.value(*rays.points(high))
    previous, value_previous = high, value_high
    depth = low + (high - low) * (value_low / (value_low - value_high))
    for _ in range(_SECANTS):
        value = field.value(*rays.points(depth))
        step = value * (depth - previous) / (value_previous - value)
        previous, value_previous, depth = depth, value, depth + step
    bracketed = (nearest < _SMOOTH * farthest) & (value_low > 0) & (value_high <= 0)
    settled = bracketed & (depth >= low) & (depth <= high) & (step.abs() < _SETTLED * depth)
    depth = torch.where(settled, depth, torch.inf)
    index = torch.nonzero((bracketed & ~settled)[0])[:, 0]
    ends = (item[:, index] for item in (low, high, value_low, value_high))
    depth[:, index] = _refine(field, rays.select(index), *ends)
    index = torch.nonzero(~bracketed[0] & (nearest[0] > 0))[:, 0]
    start = (0.97 / extremes(5)[0][:, index]).clamp(max=far)
    depth[:, index] = _crossing(field, rays.select(index), start, views, far)
    return depth.reshape(1, views.height, views.width)


def _crossing(field: Field, rays: _Bundle, low: Tensor, views: Views, far: float) -> Tensor:
    """Depth (I, N) of the first crossing after `low`, infinity where there is none before `far`."""
    smallest = (0.5 / views.intrinsics[:, :1]).to(low.dtype)
    t, last = low.clamp(max=far), torch.zeros_like(low)
    value, free = field.probe(*rays.points(t))
    before = value
    result: tuple[Tensor, ...] = (t, last, value, before)
    index: Tensor | None = None
    part = rays
    for number in range(_RAY_STEPS):
        moving = (value > 0) & (t < far)
        # Rays that creep along a wall may take wider steps the longer they do.
        step = torch.maximum(free / part.length, smallest * (1.0 + number / 12) * t)
        last, before = torch.where(moving, step, last), torch.where(moving, value, before)
        t = torch.where(moving, t + step, t)
        value, free = field.probe(*part.points(t))
        if number % 4 != 3:
            continue
        moving = (value > 0) & (t < far)
        if len(views) > 1:
            if not bool(moving.any()):
                break
            continue
        state = (t, last, value, before)
        if index is None:
            index, result = torch.arange(t.shape[1], device=t.device), tuple(item.clone() for item in state)
        else:
            for whole, item in zip(result, state, strict=True):
                whole[:, index] = item
        keep = torch.nonzero(moving[0])[:, 0]
        if len(keep) == 0:
            break
        index, part = index[keep], part.select(keep)
        t, last, value, before, free = (item[:, keep] for item in (*state, free))
    if index is None:
        result = (t, last, value, before)
    high, span, value_high, value_low = result
    depth = _refine(field, rays, high - span, high, value_low, value_high)
    return torch.where(value_high <= 0, depth, torch.inf)


def _refine(field: Field, rays: _Bundle, low: Tensor, high: Tensor, value_low: Tensor, value_high: Tensor) -> Tensor:
    """Depth (I, N) of the zero between `low`, where the field is positive, and `high`, by the Illinois method."""
    middle = low
    last_free = torch.zeros_like(low, dtype=torch.bool)
    last_solid = last_free
    for _ in range(_REFINEMENTS):
        span = (value_low - value_high).clamp(min=1e-12)
        middle = low + (high - low) * (value_low / span).clamp(0.0, 1.0)
        value = field.value(*rays.points(middle))
        free = value > 0
        # Halving the value of an end that stays twice keeps the secant from creeping up on one side only.
        value_low = torch.where(free, value, torch.where(last_solid, 0.5 * value_low, value_low))
        value_high = torch.where(free, torch.where(last_free, 0.5 * value_high, value_high), value)
        low, high = torch.where(free, middle, low), torch.where(free, high, middle)
        last_free, last_solid = free, ~free
    return middle


def trace_tube(tube: Tube, views: Views, hits: Hits) -> None:
    """Fill `hits` with the walls of the tunnel, the tube's tensors being gathered per image."""
    dtype = hits.depth.dtype
    field = TubeField(tube, dtype)
    depth = march(field, views, dtype)
    rays = _Bundle(views, *views.axes(dtype), dtype)
    x, y, z = rays.points(depth.flatten(1))
    turn, lateral, height = field.local(x, y, z)
    radius = torch.hypot(x, y)
    table = field.table(turn, lateral, height, 4)
    rho2 = lateral * lateral + height * height
    rho = rho2.sqrt()
    turn_slope, angle_slope = table[:, 2] / (2 * math.pi), table[:, 3] / (2 * math.pi)
    across = -angle_slope * height / rho2 - lateral / rho
    up = angle_slope * lateral / rho2 - height / rho
    axis_slope = field.along(turn, 4)[:, 2:]
    along = (turn_slope - across * axis_slope[:, 0] - up * axis_slope[:, 1]) / radius
    cos, sin = x / radius, y / radius
    gradient = torch.stack([across * cos - along * sin, across * sin + along * cos, up], dim=1)
    floor = (height < 0) & (lateral.abs() < -1.2 * height)
    ceiling = (height > 0) & (lateral.abs() < 0.7 * height)
    material = torch.where(floor, tube.material[:, 1:2], tube.material[:, 0:1])
    material = torch.where(ceiling, tube.material[:, 2:3], material)
    girth = 1.5 * torch.atan2(height, lateral.abs())
    uv = torch.stack([turn * (math.pi * field.radius), torch.where(floor | ceiling, lateral, girth)], dim=1)
    _store(hits, views, depth, gradient, uv, material)


def trace_terrain(terrain: Terrain, views: Views, hits: Hits, far: float = 60.0) -> None:
    """Fill `hits` with the ground where it is nearer than what is there already."""
    dtype = hits.depth.dtype
    field = TerrainField(terrain, dtype)
    rays = _Bundle(views, *views.axes(dtype), dtype)
    depth = march(field, views, dtype, far)
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
    normal = rotation.transpose(1, 2) @ gradient
    normal = normal * (normal * normal).sum(dim=1, keepdim=True).clamp(min=1e-20).rsqrt()
    shape = depth.shape
    hits.normal = torch.where(nearer[:, None], normal.reshape(hits.normal.shape), hits.normal)
    hits.uv = torch.where(nearer[:, None], uv.reshape(hits.uv.shape), hits.uv)
    hits.material = torch.where(nearer, material.reshape(shape), hits.material)
    hits.depth = torch.where(nearer, depth, hits.depth)
