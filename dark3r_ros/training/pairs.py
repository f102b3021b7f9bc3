# SPDX-License-Identifier: Apache-2.0
"""Random pairs of dark images with exact correspondence, many at a time, on the device.

A view shows a textured plane and, in front of it, up to two smaller ones that move differently, so that there are
parallax and occlusion. View coordinates are (x - (W-1)/2, y - (H-1)/2) * 2 / W; a homography `warp` of each layer leads
from those of a to those of b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import Config, setting
from dark3r_ros.training.batch import TrainingPairs
from dark3r_ros.training.exposure import ExposureConfig, expose
from dark3r_ros.training.light import random_gains, random_light, unit_mean, view_grid

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairConfig(Config):
    """What training pairs look like."""

    width: int = setting(192, 'Width of a crop.', unit='px', minimum=64, maximum=1024)
    height: int = setting(160, 'Height of a crop.', unit='px', minimum=64, maximum=1024)
    layers: int = setting(2, 'Planes in front of the background, each present in half of the pairs.', minimum=0)
    turn: float = setting(14.0, 'Spread of the rotation from a to b.', unit='deg', minimum=0.0, maximum=90.0)
    zoom: float = setting(0.16, 'Spread of the logarithm of the scale from a to b.', minimum=0.0, maximum=1.0)
    shift: float = setting(0.3, 'Largest shift from a to b, in half widths.', minimum=0.0, maximum=1.0)
    tilt: float = setting(0.12, 'Spread of the perspective terms.', minimum=0.0, maximum=0.3)


@dataclass(frozen=True, eq=False)
class LayerTruth:
    """Correspondence between views of layers.

    Attributes
    ----------
    warp: (B, L, 3, 3) from view coordinates of a to those of b, background first.
    blobs: (B, L - 1, 6) shapes of the layers in view coordinates of a: centre x, y, radii, angle, exponent.
    source: (B, L, 3, 3) from view coordinates of a to texture coordinates in [-1, 1].
    width, height: of the views in pixels.

    """

    warp: Tensor
    blobs: Tensor
    source: Tensor
    width: int
    height: int

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `batch.Truth.correspond`."""
        width, height = self.width, self.height
        centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=points.device)
        view_a = (points - centre) * (2.0 / width)
        layer = top_layer(view_a, self.blobs)
        batch = torch.arange(len(points), device=points.device)[:, None]
        view_b, ahead = _project(self.warp[batch, layer], view_a)
        texture, _ = _project(self.source[batch, layer], view_a)
        back = torch.linalg.inv(self.warp)
        seen = torch.stack([_in_a(back[:, k], view_b) for k in range(self.warp.shape[1])], dim=2)
        on_top = _top_of(seen, self.blobs)
        target = view_b * (width / 2) + centre
        limit = torch.tensor([width - 1, height - 1], device=points.device)
        inside = ((target >= 0) & (target <= limit)).all(-1)
        return target, ahead & inside & (on_top == layer) & (texture.abs() <= 1).all(-1)

    def select(self, chosen: slice) -> LayerTruth:
        """See `batch.Truth.select`."""
        return LayerTruth(self.warp[chosen], self.blobs[chosen], self.source[chosen], self.width, self.height)


def _project(matrix: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Apply homographies (..., 3, 3) to points (..., 2); also whether they stay in front of the camera."""
    x, y = points.unbind(-1)
    result = matrix[..., 0] * x[..., None] + matrix[..., 1] * y[..., None] + matrix[..., 2]
    depth = result[..., 2]
    return result[..., :2] / depth.clamp(min=0.1)[..., None], depth > 0.3


def _in_a(matrix: Tensor, points: Tensor) -> Tensor:
    """One homography (B, 3, 3) an image applied to points (B, P, 2)."""
    return _project(matrix[:, None], points)[0]


def _inside(points: Tensor, blob: Tensor) -> Tensor:
    """Whether points (B, P, 2) of a lie inside of shapes (B, 6)."""
    x, y = (points - blob[:, None, :2]).unbind(-1)
    cos, sin = torch.cos(blob[:, 4])[:, None], torch.sin(blob[:, 4])[:, None]
    u = ((cos * x + sin * y) / blob[:, 2:3]).abs()
    v = ((cos * y - sin * x) / blob[:, 3:4]).abs()
    power = blob[:, 5:6]
    return u**power + v**power < 1


def _top_of(points: Tensor, blobs: Tensor) -> Tensor:
    """Front layer (B, P), given where each layer's point of a lies (B, P, L, 2)."""
    layer = torch.zeros(points.shape[:2], dtype=torch.int64, device=points.device)
    for k in range(blobs.shape[1]):
        layer = torch.where(_inside(points[:, :, k + 1], blobs[:, k]), k + 1, layer)
    return layer


def top_layer(points: Tensor, blobs: Tensor) -> Tensor:
    """Front layer (B, P) at points (B, P, 2) of view a; 0 is the background."""
    return _top_of(points[:, :, None].expand(-1, -1, blobs.shape[1] + 1, -1), blobs)


class PairMaker:
    """Makes pairs out of textures (N, 3, S, S) of linear light; batch `number` depends on nothing but the seed.

    Parameters
    ----------
    textures: on the device where pairs are made. config: what they look like. seed: of all random choices.
    exposure: how they are darkened.

    """

    knows_truth = True

    def __init__(
        self,
        textures: Tensor,
        config: PairConfig | None = None,
        seed: int = 0,
        exposure: ExposureConfig | None = None,
    ) -> None:
        self.textures = textures
        self.device = textures.device
        self.config = config or PairConfig()
        self.exposure = exposure or ExposureConfig()
        self.seed = seed

    def make(self, number: int, count: int) -> TrainingPairs:
        """Make batch `number` of `count` pairs."""
        config, device = self.config, self.device
        rng = np.random.default_rng([self.seed, number])
        generator = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
        layers = config.layers + 1
        warp, source, blobs = _geometry(rng, count, config)
        texture = torch.from_numpy(rng.integers(len(self.textures), size=(count, layers))).to(device)
        tensors = (torch.from_numpy(value).float().to(device) for value in (warp, source, blobs))
        warp_t, source_t, blobs_t = tensors
        seen_a = torch.eye(3, device=device).expand(count, layers, 3, 3)
        tint = _tints(rng, count, layers).to(device)
        gains = random_gains(rng, count).to(device)
        views = []
        for back in (seen_a, torch.linalg.inv(warp_t)):
            light = random_light(rng, self._grid(), count).reshape(count, 1, config.height, config.width)
            views.append(unit_mean(self._view(texture, source_t, back, blobs_t, tint) * light * gains))
        noisy, snr = expose(views, rng, generator, self.exposure)
        truth = LayerTruth(warp_t, blobs_t, source_t, config.width, config.height)
        return TrainingPairs(views[0], views[1], noisy[0], noisy[1], snr, truth)

    def _grid(self) -> Tensor:
        return view_grid(self.config.width, self.config.height, self.device)

    def _view(self, texture: Tensor, source: Tensor, back: Tensor, blobs: Tensor, tint: Tensor) -> Tensor:
        """Reflectance (B, 3, H, W) of a view; `back` (B, L, 3, 3) leads from its coordinates to those of a."""
        count, layers = texture.shape
        height, width = self.config.height, self.config.width
        grid = self._grid()
        result = torch.zeros(count, 3, height, width, device=grid.device)
        for k in range(layers):
            in_a = _in_a(back[:, k], grid.expand(count, -1, -1))
            inside = _inside(in_a, blobs[:, k - 1]) if k else None
            if inside is not None and not bool(inside.any()):
                continue
            place = _in_a(source[:, k], in_a).reshape(count, height, width, 2)
            image = functional.grid_sample(
                self.textures[texture[:, k]].float(), place, padding_mode='reflection', align_corners=False
            )
            image = (image + 0.01) * tint[:, k, :, None, None]
            result = image if inside is None else torch.where(inside.reshape(count, 1, height, width), image, result)
        return result


def _tints(rng: np.random.Generator, count: int, layers: int) -> Tensor:
    strength = np.exp(rng.normal(0.0, 0.4, (count, layers, 1))) * np.exp(rng.normal(0.0, 0.15, (count, layers, 3)))
    return torch.from_numpy(strength).float()


def _similarity(angle: Array, scale: Array, shift: Array, tilt: Array) -> Array:
    """Homographies (N, 3, 3): perspective first, then turn and scale, then shift."""
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 0, 2] = cos, -sin, shift[:, 0]
    matrix[:, 1, 0], matrix[:, 1, 1], matrix[:, 1, 2] = sin, cos, shift[:, 1]
    perspective = np.tile(np.eye(3), (len(angle), 1, 1))
    perspective[:, 2, :2] = tilt
    return np.asarray(matrix @ perspective)


def _geometry(rng: np.random.Generator, count: int, config: PairConfig) -> tuple[Array, Array, Array]:
    """Warps, texture maps and shapes of the layers of `count` pairs, see `LayerTruth`."""
    layers = config.layers + 1

    def tilts(spread: float) -> Array:
        return np.clip(rng.normal(0.0, spread, (count, 2)), -2 * spread, 2 * spread)

    common = _similarity(
        np.radians(config.turn) * np.clip(rng.normal(size=count), -2.5, 2.5),
        np.exp(config.zoom * np.clip(rng.normal(size=count), -2.5, 2.5)),
        rng.uniform(-config.shift, config.shift, (count, 2)),
        tilts(config.tilt),
    )
    warps, sources, blobs = [common], [], []
    for k in range(layers):
        quarter = rng.choice([0.0, 0.0, 0.0, 0.5, 1.0, 1.5], count) * np.pi
        scale = np.exp(rng.uniform(np.log(0.35), np.log(0.8), count))
        sources.append(
            _similarity(quarter + rng.normal(0.0, 0.2, count), scale, rng.uniform(-0.3, 0.3, (count, 2)), tilts(0.1))
        )
        if k == 0:
            continue
        parallax = _similarity(
            rng.normal(0.0, 0.03, count),
            np.exp(rng.normal(0.0, 0.08, count)),
            rng.uniform(-0.25, 0.25, (count, 2)),
            tilts(0.05),
        )
        warps.append(parallax @ common)
        blob = np.concatenate(
            [
                rng.uniform((-0.9, -0.8), (0.9, 0.8), (count, 2)),
                rng.uniform(0.15, 0.7, (count, 2)),
                rng.uniform(0.0, np.pi, (count, 1)),
                rng.choice([2.0, 8.0], (count, 1)),
            ],
            axis=1,
        )
        # A layer that is absent lies far outside of every view.
        blob[rng.random(count) < 0.5, :2] = 1e3
        blobs.append(blob)
    shapes = np.stack(blobs, axis=1) if blobs else np.zeros((count, 0, 6))
    return np.stack(warps, axis=1), np.stack(sources, axis=1), shapes
