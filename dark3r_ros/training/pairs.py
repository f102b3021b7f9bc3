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
from dark3r_ros.training.noise import add_noise, variance_shares

Array = NDArray[np.float64]
QUANTILES = (0.158655, 0.841345)  # those of model.normalise


@dataclass(frozen=True)
class PairConfig(Config):
    """What training pairs look like."""

    width: int = setting(192, 'Width of a crop.', unit='px', minimum=64, maximum=1024)
    height: int = setting(160, 'Height of a crop.', unit='px', minimum=64, maximum=1024)
    layers: int = setting(2, 'Planes in front of the background, each present in half of the pairs.', minimum=0)
    snr_low: float = setting(-10.0, 'Lowest SNR.', unit='dB')
    snr_high: float = setting(25.0, 'Highest SNR.', unit='dB')
    turn: float = setting(14.0, 'Spread of the rotation from a to b.', unit='deg', minimum=0.0, maximum=90.0)
    zoom: float = setting(0.16, 'Spread of the logarithm of the scale from a to b.', minimum=0.0, maximum=1.0)
    shift: float = setting(0.3, 'Largest shift from a to b, in half widths.', minimum=0.0, maximum=1.0)
    tilt: float = setting(0.12, 'Spread of the perspective terms.', minimum=0.0, maximum=0.3)


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """B pairs.

    Attributes
    ----------
    clean_a, clean_b: (B, 3, H, W) light at the planes without noise, mean 1.
    image_a, image_b: (B, 3, H, W) noisy network input.
    warp: (B, L, 3, 3) from view coordinates of a to those of b, background first.
    blobs: (B, L - 1, 6) shapes of the layers in view coordinates of a: centre x, y, radii, angle, exponent.
    source: (B, L, 3, 3) from view coordinates of a to texture coordinates in [-1, 1].
    snr_db: (B,).

    """

    clean_a: Tensor
    clean_b: Tensor
    image_a: Tensor
    image_b: Tensor
    warp: Tensor
    blobs: Tensor
    source: Tensor
    snr_db: Tensor

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where pixels (B, P, 2) as (x, y) of a lie in b (B, P, 2), and which are seen in both views (B, P)."""
        height, width = self.image_a.shape[2:]
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

    """

    def __init__(self, textures: Tensor, config: PairConfig | None = None, seed: int = 0) -> None:
        self.textures = textures
        self.config = config or PairConfig()
        self.seed = seed

    def make(self, number: int, count: int) -> TrainingPairs:
        """Make batch `number` of `count` pairs."""
        config, device = self.config, self.textures.device
        rng = np.random.default_rng([self.seed, number])
        generator = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
        layers = config.layers + 1
        warp, source, blobs = _geometry(rng, count, config)
        texture = torch.from_numpy(rng.integers(len(self.textures), size=(count, layers))).to(device)
        tensors = (torch.from_numpy(value).float().to(device) for value in (warp, source, blobs))
        warp_t, source_t, blobs_t = tensors
        seen_a = torch.eye(3, device=device).expand(count, layers, 3, 3)
        tint = _tints(rng, count, layers).to(device)
        gains = torch.from_numpy(rng.uniform((0.35, 0.9, 0.3), (1.0, 1.1, 0.95), (count, 3))).float().to(device)
        views = []
        for back in (seen_a, torch.linalg.inv(warp_t)):
            light = self._light(rng, count)
            view = self._view(texture, source_t, back, blobs_t, tint) * light * gains[:, :, None, None]
            views.append(view / view.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6))
        snr = torch.from_numpy(rng.uniform(config.snr_low, config.snr_high, count)).float().to(device)
        shares = variance_shares(rng, count).to(device)
        heavy = np.where(rng.random(count) < 0.25, rng.uniform(0.2, 0.7, count), 0.0)
        heavy_t = torch.from_numpy(heavy).float().to(device)
        noisy = [normalised(add_noise(view, snr, shares, heavy_t, generator)) for view in views]
        return TrainingPairs(views[0], views[1], noisy[0], noisy[1], warp_t, blobs_t, source_t, snr)

    def _grid(self) -> Tensor:
        """View coordinates (1, H * W, 2) of all pixels."""
        height, width = self.config.height, self.config.width
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        points = torch.stack([x - (width - 1) / 2, y - (height - 1) / 2], dim=-1) * (2.0 / width)
        return points.reshape(1, -1, 2).float().to(self.textures.device)

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

    def _light(self, rng: np.random.Generator, count: int) -> Tensor:
        """Light (B, 1, H, W): an ambient part and a beam with a random centre and width."""
        ambient = torch.from_numpy(rng.uniform(0.15, 1.0, count)).float()
        centre = torch.from_numpy(rng.uniform(-0.6, 0.6, (count, 2))).float()
        width = torch.from_numpy(rng.uniform(0.35, 1.2, count)).float()
        grid = self._grid()
        device = grid.device
        distance = (grid - centre.to(device)[:, None]).square().sum(-1) / width.to(device)[:, None].square()
        light = ambient.to(device)[:, None] + (1 - ambient.to(device))[:, None] * torch.exp(-0.5 * distance)
        return light.reshape(count, 1, self.config.height, self.config.width)


def normalised(planes: Tensor) -> Tensor:
    """Network input (B, 3, H, W) of planes, as `model.normalise` makes it up to the sampling of its quantiles.

    Every seventh value is enough for the spread; sorting all of them took longer than everything else here.
    """
    centred = planes - planes.mean(dim=(2, 3), keepdim=True)
    low, high = torch.quantile(
        centred.flatten(1)[:, ::7], torch.tensor(QUANTILES, device=planes.device), dim=1
    ).unsqueeze(-1)[..., None, None]
    return centred * (2.0 / (high - low).clamp(min=1e-9))


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
    """Warps, texture maps and shapes of the layers of `count` pairs, see `TrainingPairs`."""
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
