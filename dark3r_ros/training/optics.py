# SPDX-License-Identifier: Apache-2.0
"""What lenses and surfaces do to rendered light: blur out of focus, and highlights that move with the camera.

Surfaces of the simulation are sharp and matt. Photographs are neither: much of a picture is out of focus, and varnish,
tiles, wet rock and metal show highlights whose place depends on where the camera is. Both views of a pair see the same
lens and the same lights.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.simulation.render import Rendering
from dark3r_ros.simulation.views import Views

# Standard deviations in pixels of the copies that a blurred picture is mixed of.
_BLURS = (0.0, 0.7, 1.4, 2.8)
_SHARPNESS = (4.0, 120.0)  # of highlights: exponents of Blinn and Phong
_BRIGHTNESS = (0.2, 2.0)  # of highlights at their peak, in mean light of the picture


def through_lens(
    views: tuple[Views, Views],
    seen: tuple[Rendering, Rendering],
    rng: np.random.Generator,
    *,
    defocus: float,
    shine: float,
) -> tuple[Rendering, Rendering]:
    """Both views of B pairs, a share `defocus` of them blurred out of focus and a share `shine` with highlights."""
    count = len(seen[0].depth)
    shines, blurs = rng.random(count) < shine, rng.random(count) < defocus
    exponent = np.exp(rng.uniform(np.log(_SHARPNESS[0]), np.log(_SHARPNESS[1]), (count, 2)))
    strength = rng.uniform(*_BRIGHTNESS, (count, 2)) * shines[:, None]
    window = _downward(rng, count)
    # The lens is focused on something in the picture, neither the nearest nor the farthest.
    quantile = rng.uniform(0.25, 0.75, count)
    aperture = rng.uniform(0.5, 3.0, count) * blurs
    if not (shines.any() or blurs.any()):
        return seen
    inverse = seen[0].depth.reciprocal().flatten(1)[:, ::7]
    order = inverse.sort(dim=1).values
    focus = order[torch.arange(count), (torch.from_numpy(quantile) * (order.shape[1] - 1)).long()]
    spread = (order[:, int(0.9 * order.shape[1])] - order[:, int(0.1 * order.shape[1])]).clamp(min=1e-3)
    result = []
    for view, rendering in zip(views, seen, strict=True):
        light = rendering.radiance + highlights(view, rendering, window, exponent, strength)
        sigma = (rendering.depth.reciprocal() - focus[:, None, None]).abs() / spread[:, None, None]
        sigma = sigma * torch.from_numpy(aperture).to(sigma)[:, None, None]
        result.append(replace(rendering, radiance=blurred(light, sigma)))
    return result[0], result[1]


def highlights(views: Views, seen: Rendering, window: np.ndarray, exponent: np.ndarray, strength: np.ndarray) -> Tensor:
    """White light (B, 1, H, W) mirrored by rough surfaces: a power of the cosine to the half-way vector (Blinn 1977).

    Parameters
    ----------
    window: (B, 3) unit direction to a far light, in the world; a second light is at the camera.
    exponent, strength: (B, 2) of both lights, strength in mean light of the picture.

    """
    like = seen.radiance
    x, y = views.axes(like.dtype)
    ray = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None], torch.ones_like(x[:, None, :])), dim=1)
    to_camera = -functional.normalize(ray, dim=1)
    far = torch.einsum('bji,bj->bi', views.world_from_camera[:, :3, :3], torch.from_numpy(window).to(like.device))
    result = torch.zeros_like(like[:, :1])
    for k, to_light in enumerate((far.to(like)[:, :, None, None].expand_as(to_camera), to_camera)):
        half_way = functional.normalize(to_light + to_camera, dim=1)
        cosine = (seen.normal * half_way).sum(1, keepdim=True).clamp(min=0.0)
        lit = (seen.normal * to_light).sum(1, keepdim=True) > 0
        power, peak = (torch.from_numpy(part[:, k]).to(like)[:, None, None, None] for part in (exponent, strength))
        result = result + peak * cosine**power * lit
    return result * like.mean(dim=(1, 2, 3), keepdim=True) * torch.isfinite(seen.depth)[:, None]


def blurred(light: Tensor, sigma: Tensor) -> Tensor:
    """Light (B, 3, H, W) with a Gaussian of its own standard deviation (B, H, W) in pixels at every place, up to 2.8.

    A mixture of a few evenly blurred copies, of which the two nearest are weighted so that the variance is right.
    """
    wanted = sigma.square()[:, None].nan_to_num(posinf=_BLURS[-1] ** 2).clamp(max=_BLURS[-1] ** 2)
    result = light
    for narrow, wide in pairwise(_BLURS):
        share = ((wanted - narrow**2) / (wide**2 - narrow**2)).clamp(0.0, 1.0)
        if bool((share > 0).any()):
            result = result + share * (_gaussian(light, wide) - (_gaussian(light, narrow) if narrow else light))
    return result


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    radius = int(np.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, -1)
    padded = functional.pad(image, (radius,) * 4, mode='replicate')
    along = functional.conv2d(padded, kernel[:, :, None, :], groups=image.shape[1])
    return functional.conv2d(along, kernel[:, :, :, None], groups=image.shape[1])


def _downward(rng: np.random.Generator, count: int) -> np.ndarray:
    """Directions (count, 3) to lights above the horizon of the world, whose z axis is up."""
    direction = rng.normal(size=(count, 3))
    direction[:, 2] = np.abs(direction[:, 2])
    return direction / np.linalg.norm(direction, axis=1, keepdims=True)
