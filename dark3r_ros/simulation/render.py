# SPDX-License-Identifier: Apache-2.0
"""Radiance, depth and normals of a batch of scenes seen from many cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dark3r_ros.simulation.march import trace_terrain, trace_tube
from dark3r_ros.simulation.raycast import trace_room, trace_solids
from dark3r_ros.simulation.scene import Light, Room, Scene, Tube
from dark3r_ros.simulation.texture import MEAN_REFLECTANCE
from dark3r_ros.simulation.views import Hits, Views, empty_hits

_LUMA = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True, eq=False)
class Rendering:
    """Images with their truth.

    Attributes
    ----------
    radiance: (I, 3, H, W) linear R, G, B in relative units, zero where nothing is hit.
    depth: (I, H, W) metres along the optical axis, infinity where nothing is hit.
    normal: (I, 3, H, W) unit normals towards the camera in the optical frame.

    """

    radiance: Tensor
    depth: Tensor
    normal: Tensor


def trace(scene: Scene, views: Views) -> Hits:
    """Nearest surface of every pixel of every image; `scene` holds the scenes that `views.scene` counts."""
    parts = scene.gather(views.scene)
    hits = empty_hits(views, scene.dtype)
    if isinstance(parts.shell, Room):
        trace_room(parts.shell, views, hits)
    elif isinstance(parts.shell, Tube):
        trace_tube(parts.shell, views, hits)
    if parts.terrain is not None:
        trace_terrain(parts.terrain, views, hits)
    if parts.solids is not None:
        trace_solids(parts.solids, views, hits)
    return hits


def render(scene: Scene, views: Views) -> Rendering:
    """Render all images. On the CPU they are traced one after the other, which lets hidden objects be skipped."""
    if scene.device.type == 'cpu' and len(views) > 1:
        single = [_render(scene, views[i : i + 1]) for i in range(len(views))]
        return Rendering(
            torch.cat([r.radiance for r in single]),
            torch.cat([r.depth for r in single]),
            torch.cat([r.normal for r in single]),
        )
    return _render(scene, views)


def _render(scene: Scene, views: Views) -> Rendering:
    hits = trace(scene, views)
    x, y = views.axes(scene.dtype)
    depth = torch.where(torch.isfinite(hits.depth), hits.depth, 1.0)
    length = (1.0 + (x * x)[:, None, :] + (y * y)[:, :, None]).sqrt()
    facing = -(hits.normal[:, 0] * x[:, None, :] + hits.normal[:, 1] * y[:, :, None] + hits.normal[:, 2]) / length
    focal = views.intrinsics[:, 0].to(scene.dtype)[:, None, None]
    # A compromise between the long and the short side of a slanted pixel: neither aliasing nor blur dominates.
    footprint = depth / focal / facing.abs().clamp(min=0.05) ** 0.7
    albedo = reflectance(scene, views, hits, footprint)
    shade = irradiance(scene.light, views, hits.normal, depth, x, y) * torch.isfinite(hits.depth)
    return Rendering(albedo * (shade / math.pi)[:, None], hits.depth, hits.normal)


def reflectance(scene: Scene, views: Views, hits: Hits, footprint: Tensor) -> Tensor:
    """Reflectance (I, 3, H, W) of what was hit; `footprint` (I, H, W) is the size in metres that a pixel covers."""
    count = scene.materials.table.shape[1]
    table = scene.materials.table.to(scene.dtype).reshape(-1, scene.materials.table.shape[2])
    row = (hits.material + count * views.scene[:, None, None]).flatten()
    m = table.T[:, row]
    u, v, size = hits.uv[:, 0].flatten(), hits.uv[:, 1].flatten(), footprint.flatten()
    bank = scene.bank
    base = bank.sample(m[0], u / m[1] + m[2], v / m[1] + m[3], torch.log2(size / m[1] * bank.size))
    fine = bank.sample(m[4], u / m[5], v / m[5], torch.log2(size / m[5] * bank.size))
    luma = sum(weight * channel for weight, channel in zip(_LUMA, fine, strict=True))
    detail = 1.0 + m[6] * (luma / MEAN_REFLECTANCE - 1.0)
    colour = (base * detail * m[7:10]).reshape(3, *hits.depth.shape)
    return colour.transpose(0, 1)


def irradiance(light: Light, views: Views, normal: Tensor, depth: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Light (I, H, W) that surfaces receive and the lens lets through: lamp by Lambert and 1/r^2, plus ambient.

    The lamp's beam falls off as a Gaussian of the angle with a broad spill of a tenth; no shadows are cast.
    """
    dtype = depth.dtype
    rows = views.scene

    def of(item: Tensor) -> Tensor:
        return item[rows].to(dtype)[..., None, None]

    position, direction = of(light.lamp_position), of(light.lamp_direction)
    to_x = position[:, 0] - depth * x[:, None, :]
    to_y = position[:, 1] - depth * y[:, :, None]
    to_z = position[:, 2] - depth
    square = to_x * to_x + to_y * to_y + to_z * to_z
    inverse = square.clamp(min=1e-4).rsqrt()
    cosine = (normal[:, 0] * to_x + normal[:, 1] * to_y + normal[:, 2] * to_z) * inverse
    axis = -(direction[:, 0] * to_x + direction[:, 1] * to_y + direction[:, 2] * to_z) * inverse
    # (angle / beam)^2 for small angles without an arc cosine.
    beam = torch.exp(-2.0 * (1.0 - axis) / of(light.beam) ** 2)
    spill = 0.1 * axis.clamp(min=0.0)
    lamp = of(light.lamp) * (0.9 * beam + spill) * cosine.clamp(min=0.0) * inverse * inverse
    up = views.world_from_camera[:, 2, :3].to(dtype)
    skyward = torch.einsum('ic,ichw->ihw', up, normal)
    sideways = normal[:, 0] * up[:, 2, None, None] - normal[:, 2] * up[:, 0, None, None]
    ambient = of(light.ambient) * (0.65 + 0.25 * skyward + 0.1 * sideways)
    cosine_field = (1.0 + (x * x)[:, None, :] + (y * y)[:, :, None]).rsqrt()
    return (lamp + ambient) * cosine_field ** of(light.vignetting)
