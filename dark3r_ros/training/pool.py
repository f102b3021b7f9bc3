# SPDX-License-Identifier: Apache-2.0
"""Pairs of rendered rooms and tunnels: a pool of clean renderings, slowly renewed, from which crops are drawn.

Rendering a view costs as much as training on it; a crop with fresh noise, light and colours costs next to nothing.
Each rendered chunk therefore serves for `chunks * refresh` batches (`training/chunks.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.config import setting
from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.pairs import PairSource
from dark3r_ros.training.batch import DepthTruth, TrainingPairs
from dark3r_ros.training.chunks import ChunkPool, RefreshConfig
from dark3r_ros.training.exposure import ExposureConfig, expose
from dark3r_ros.training.light import random_gains, random_light, unit_mean, view_grid
from dark3r_ros.training.optics import through_lens


@dataclass(frozen=True)
class PoolConfig(RefreshConfig):
    """What is rendered, and how often."""

    rooms: float = setting(0.65, 'Share of chunks that are rooms, the others tunnels.', minimum=0.0, maximum=1.0)
    wide: float = setting(0.4, 'Share of pairs with a wide step between the cameras.', minimum=0.0, maximum=1.0)
    scenes: int = setting(4, 'Different scenes in a chunk.', minimum=1, maximum=64)
    pairs: int = setting(32, 'Pairs rendered for a chunk.', minimum=1, maximum=4096)
    margin: float = setting(1.3, 'Size of a rendering over that of a crop.', minimum=1.0, maximum=4.0)
    least_overlap: float = setting(0.12, 'Pairs with less of a in view of b are left out.', minimum=0.0, maximum=0.9)
    defocus: float = setting(0.0, 'Share of pairs with a lens out of focus in places.', minimum=0.0, maximum=1.0)
    shine: float = setting(0.0, 'Share of pairs whose surfaces have highlights.', minimum=0.0, maximum=1.0)


@dataclass(frozen=True, eq=False)
class Chunk:
    """N rendered pairs.

    Attributes
    ----------
    light_a, light_b: (N, 3, H, W) float16, mean 1. inverse_depth: (N, H, W) of a in 1/m. visible: (N, H, W) bool.
    b_from_a: (N, 4, 4). focal: (1,) in pixels; the principal point is the centre of the rendering.

    """

    light_a: Tensor
    light_b: Tensor
    inverse_depth: Tensor
    visible: Tensor
    b_from_a: Tensor
    focal: Tensor

    def __len__(self) -> int:
        return len(self.light_a)


class RenderedPairs:
    """Crops of rendered pairs.

    Parameters
    ----------
    width, height: of a crop in pixels. config: of the pool. exposure: how crops are darkened. seed: of everything.
    device: where pairs are rendered and made. photos: photographs (h, w, 3) for surfaces.
    cache: folder that keeps the chunks in use, so that a continued training need not render them again; None keeps them
        in memory only.

    """

    knows_truth = True

    def __init__(
        self,
        width: int,
        height: int,
        config: PoolConfig | None = None,
        exposure: ExposureConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = 'cpu',
        photos: Sequence[NDArray[np.uint8]] = (),
        cache: Path | None = None,
    ) -> None:
        self.width, self.height, self.seed = width, height, seed
        self.config = config or PoolConfig()
        self.exposure = exposure or ExposureConfig()
        self.device = torch.device(device)
        self._pool = ChunkPool(
            Chunk,
            lambda k: render_chunk(width, height, self.config, (seed, k), self.device, photos),
            self.config,
            self.device,
            cache,
            f'chunk_{width}x{height}_{seed}',
        )

    def make(self, number: int, count: int) -> TrainingPairs:
        """Make batch `number` of `count` pairs."""
        rng = np.random.default_rng([self.seed, number, 77])
        generator = torch.Generator(device=self.device).manual_seed(int(rng.integers(2**62)))
        chunks = self._pool.of(number)
        places = rng.choice(sum(len(chunk) for chunk in chunks), size=count)
        crops = [self._crop(rng, chunk, row) for chunk, row in _located(chunks, places)]
        light_a, light_b, inverse, visible, b_from_a, intrinsics_a, intrinsics_b = (
            torch.stack(part) for part in zip(*crops, strict=True)
        )
        gains = random_gains(rng, count).to(self.device)
        grid = view_grid(self.width, self.height, self.device)
        views = []
        for view in (light_a, light_b):
            light = random_light(rng, grid, count).reshape(count, 1, self.height, self.width)
            views.append(unit_mean(view.float() * light.sqrt() * gains))
        noisy, snr = expose(views, rng, generator, self.exposure)
        truth = DepthTruth(inverse, visible, b_from_a, intrinsics_a, intrinsics_b)
        return TrainingPairs(views[0], views[1], noisy[0], noisy[1], snr, truth)

    def _crop(self, rng: np.random.Generator, chunk: Chunk, row: int) -> tuple[Tensor, ...]:
        """One crop: light of a and b, inverse depth, visible, b_from_a, intrinsics of a and b."""
        height, width = chunk.visible.shape[1:]
        free = np.array([width - self.width, height - self.height])
        corner_a = rng.integers(free + 1)
        # b is cut where most of a's crop lies, give or take a few pixels.
        flow = _centre_flow(chunk, row, corner_a, self.width, self.height)
        jitter = rng.normal(0.0, 0.05 * self.width, 2)
        corner_b = np.clip(np.rint(corner_a + flow + jitter), 0, free).astype(int)
        focal = chunk.focal.float()
        parts = []
        for light, (x, y) in ((chunk.light_a, corner_a), (chunk.light_b, corner_b)):
            centre = torch.tensor([(width - 1) / 2 - x, (height - 1) / 2 - y], device=self.device)
            intrinsics = torch.cat([focal, focal, centre.float()])
            parts.append((light[row, :, y : y + self.height, x : x + self.width], intrinsics))
        (light_a, intrinsics_a), (light_b, intrinsics_b) = parts
        x, y = corner_a
        inverse = chunk.inverse_depth[row, y : y + self.height, x : x + self.width]
        visible = chunk.visible[row, y : y + self.height, x : x + self.width]
        if rng.random() < 0.5:
            light_a, light_b, inverse, visible = (part.flip(-1) for part in (light_a, light_b, inverse, visible))
            intrinsics_a, intrinsics_b = (_mirrored(part, self.width) for part in (intrinsics_a, intrinsics_b))
        return light_a, light_b, inverse, visible, chunk.b_from_a[row], intrinsics_a, intrinsics_b


def _mirrored(intrinsics: Tensor, width: int) -> Tensor:
    """Intrinsics of a view whose columns were reversed: x' = W - 1 - x."""
    fx, fy, cx, cy = intrinsics
    return torch.stack([-fx, fy, width - 1 - cx, cy])


def _centre_flow(chunk: Chunk, row: int, corner: np.ndarray, width: int, height: int) -> np.ndarray:
    """Median displacement (2,) in pixels of a grid of points of a crop of a that b sees."""
    full_height, full_width = chunk.visible.shape[1:]
    device = chunk.visible.device
    x = torch.linspace(corner[0] + 0.1 * width, corner[0] + 0.9 * width, 6, device=device)
    y = torch.linspace(corner[1] + 0.1 * height, corner[1] + 0.9 * height, 6, device=device)
    points = torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1).reshape(1, -1, 2)
    centre = torch.tensor([(full_width - 1) / 2, (full_height - 1) / 2], device=device)
    intrinsics = torch.cat([chunk.focal, chunk.focal, centre])[None].float()
    one = slice(row, row + 1)
    truth = DepthTruth(chunk.inverse_depth[one], chunk.visible[one], chunk.b_from_a[one], intrinsics, intrinsics)
    target, seen = truth.correspond(points)
    if not bool(seen.any()):
        return np.zeros(2)
    return np.asarray((target - points)[seen].median(dim=0).values.cpu().numpy())


def _located(chunks: Sequence[Chunk], places: np.ndarray) -> list[tuple[Chunk, int]]:
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    which = np.searchsorted(starts, places, side='right') - 1
    return [(chunks[k], int(place - starts[k])) for k, place in zip(which, places, strict=True)]


def render_chunk(
    width: int,
    height: int,
    config: PoolConfig,
    seed: tuple[int, int],
    device: torch.device,
    photos: Sequence[NDArray[np.uint8]] = (),
) -> Chunk:
    """Render a chunk for crops of a size; `seed` is that of the training and the number of the chunk.

    Raises ConfigError when no pair of the chunk overlaps as asked.
    """
    rng = np.random.default_rng([*seed, 78])
    kind = 'room' if rng.random() < config.rooms else 'tunnel'
    w, h = round(width * config.margin), round(height * config.margin)
    focal = float(rng.uniform(0.65, 1.15)) * w
    camera = Camera(w, h, focal, focal, (w - 1) / 2, (h - 1) / 2)
    number = int(rng.integers(2**31))
    source = PairSource(kind, config.scenes, camera, seed=number, device=device, wide=config.wide, photos=photos)
    batches = []
    # A few at a time: the buffers of the ray caster grow with the number of images.
    for start in range(0, config.pairs, 16):
        made = source.sample(min(16, config.pairs - start))
        a, b = through_lens(
            (made.views_a, made.views_b), (made.a, made.b), rng, defocus=config.defocus, shine=config.shine
        )
        kept = (made.overlap >= config.least_overlap) & a.radiance.flatten(1).isfinite().all(1)
        b_from_a = torch.linalg.inv(made.views_b.world_from_camera) @ made.views_a.world_from_camera
        batches.append(
            [
                unit_mean(a.radiance).half()[kept],
                unit_mean(b.radiance).half()[kept],
                made.a.depth.reciprocal()[kept].float(),
                made.flow.visible[kept],
                b_from_a[kept].float(),
            ]
        )
    light_a, light_b, inverse, visible, b_from_a = (torch.cat(part) for part in zip(*batches, strict=True))
    if not len(light_a):
        raise ConfigError(f'no rendered pair overlaps by {config.least_overlap}: lower least_overlap or wide')
    return Chunk(light_a, light_b, inverse, visible, b_from_a, torch.tensor([focal], device=device))
