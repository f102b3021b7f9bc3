# SPDX-License-Identifier: Apache-2.0
"""Sweeps with exact depth: groups of rendered views, darkened, described by `mini`, swept along their rays.

Groups come from a pool that is slowly renewed (`training/chunks.py`); light, colours, noise, the views that take part
and the range of depths are new each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import setting
from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.model.mini import FINE, MiniNetwork
from dark3r_ros.model.sweep import PLACE, Evidence, Projector, SweepView, coarse_evidence
from dark3r_ros.model.sweep_depth import MOST_PARTNERS, Surroundings, surroundings
from dark3r_ros.simulation.pairs import PairSource
from dark3r_ros.training.chunks import ChunkPool, RefreshConfig
from dark3r_ros.training.exposure import ExposureConfig, expose
from dark3r_ros.training.light import random_gains, random_light, unit_mean, view_grid

_KINDS, _SHARES = ('room', 'tunnel', 'corridor'), (0.45, 0.25, 0.3)
_PER_GROUP = 6  # sweeps of one group in a batch
_MANY = 16  # images rendered at a time


@dataclass(frozen=True)
class SweepPoolConfig(RefreshConfig):
    """What is rendered, and what is swept."""

    scenes: int = setting(2, 'Different scenes in a chunk.', minimum=1, maximum=64)
    groups: int = setting(8, 'Groups of views rendered for a chunk.', minimum=1, maximum=4096)
    views: int = setting(6, 'Views of a group.', minimum=2, maximum=32)
    wide: float = setting(0.4, 'Share of wide steps in a group that is no drive.', minimum=0.0, maximum=1.0)
    drives: float = setting(0.4, 'Share of groups that are drives.', minimum=0.0, maximum=1.0)
    dark: float = setting(0.15, 'Share of sweeps that are not shown the light of their view.', minimum=0.0, maximum=1.0)


@dataclass(frozen=True, eq=False)
class Groups:
    """G groups of N views.

    Attributes
    ----------
    light: (G, N, 3, H, W) float16, mean 1. depth: (G, N, H, W) in metres, infinite where nothing is hit.
    world_from_camera: (G, N, 4, 4) float32. focal: (1,) in pixels; the principal point is the centre.

    """

    light: Tensor
    depth: Tensor
    world_from_camera: Tensor
    focal: Tensor

    def __len__(self) -> int:
        return len(self.light)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One view before its partners: descriptors, geometry and truth.

    Attributes
    ----------
    view, partners: descriptors. project: from its pixels to theirs. inverse: (D,) inverse depths.
    evidence: (D, h, w) of these. image: (3, H, W) normalised planes, None where they are kept from the network.
    depth: (H, W) true.

    """

    view: SweepView
    partners: tuple[SweepView, ...]
    project: Projector
    inverse: Tensor
    evidence: Evidence
    image: Tensor | None
    depth: Tensor


@dataclass(frozen=True, eq=False)
class Sweeps:
    """B sweeps of one size."""

    items: tuple[Sweep, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def inverse(self) -> Tensor:
        """Inverse depths (B, D)."""
        return torch.stack([item.inverse for item in self.items])

    @property
    def evidence(self) -> Evidence:
        """Evidence (B, D, h, w)."""
        return stacked([item.evidence for item in self.items])

    @property
    def about(self) -> Surroundings:
        """What else the network is shown."""
        single = [surroundings(item.view, item.image, len(item.partners)) for item in self.items]
        return Surroundings(
            torch.cat([one.coarse for one in single]),
            torch.cat([one.fine for one in single]),
            torch.cat([one.light for one in single]),
            torch.cat([one.partners for one in single]),
        )

    def true_depth(self, size: int) -> Tensor:
        """Depth (B, h, w) in the middle of cells of 8 pixels, or of places of 4 as `model.sweep` has them."""
        first = FINE if size == PLACE else size // 2
        return torch.stack([item.depth[first::size, first::size] for item in self.items])


def stacked(evidence: Sequence[Evidence]) -> Evidence:
    """Evidence of a batch."""
    return Evidence(torch.stack([one.mean for one in evidence]), torch.stack([one.seen for one in evidence]))


class RenderedSweeps:
    """Sweeps of rendered groups.

    Parameters
    ----------
    network: `mini`, frozen. width, height: of the views. depths: inverse depths of a sweep. config: of the pool.
    exposure: how views are darkened. seed: of everything. photos: photographs (h, w, 3) for surfaces.
    cache: folder that keeps the groups in use.

    """

    def __init__(
        self,
        network: MiniNetwork,
        width: int,
        height: int,
        depths: int,
        config: SweepPoolConfig | None = None,
        exposure: ExposureConfig | None = None,
        *,
        seed: int = 0,
        photos: Sequence[NDArray[np.uint8]] = (),
        cache: Path | None = None,
    ) -> None:
        self.network, self.width, self.height, self.depths, self.seed = network, width, height, depths, seed
        self.config = config or SweepPoolConfig()
        self.exposure = exposure or ExposureConfig()
        self.device = next(network.parameters()).device
        self._factor = float(network.coarse_factor)
        self._pool = ChunkPool(
            Groups,
            lambda k: render_groups(width, height, self.config, (seed, k), self.device, photos),
            self.config,
            self.device,
            cache,
            f'groups_{width}x{height}_{seed}',
        )

    def make(self, number: int, count: int) -> Sweeps:
        """Batch `number` of `count` sweeps."""
        rng = np.random.default_rng([self.seed, number, 79])
        generator = torch.Generator(device=self.device).manual_seed(int(rng.integers(2**62)))
        chunks = self._pool.of(number)
        items: list[Sweep] = []
        while len(items) < count:
            chunk = chunks[int(rng.integers(len(chunks)))]
            group = int(rng.integers(len(chunk)))
            items += self._swept(chunk, group, min(_PER_GROUP, count - len(items)), rng, generator)
        return Sweeps(tuple(items))

    def _swept(
        self, chunk: Groups, group: int, most: int, rng: np.random.Generator, generator: torch.Generator
    ) -> list[Sweep]:
        """Up to `most` sweeps of one group, each with partners of its own."""
        images = self._darkened(chunk.light[group].float(), rng, generator)
        described = _described(self.network, images)
        views = len(images)
        found = []
        for own in rng.permutation(views)[:most].tolist():
            count = int(rng.integers(1, min(views - 1, MOST_PARTNERS) + 1))
            others = rng.permutation([other for other in range(views) if other != own])[:count].tolist()
            limits = _random_range(rng, chunk.depth[group, own])
            project = self._projector(chunk, group, own, others)
            inverse = torch.linspace(1.0 / limits[1], 1.0 / limits[0], self.depths, device=self.device)
            partners = tuple(described[other] for other in others)
            with torch.no_grad():
                evidence = coarse_evidence(described[own], partners, project, inverse, self._factor)
            image = None if rng.random() < self.config.dark else images[own]
            depth = chunk.depth[group, own].float()
            found.append(Sweep(described[own], partners, project, inverse, evidence, image, depth))
        return found

    def _darkened(self, light: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Network input (N, 3, H, W) of the views of a group, of one colour, one kind of noise and about one SNR."""
        gains = random_gains(rng, 1).to(self.device)
        falls = random_light(rng, view_grid(self.width, self.height, self.device), len(light))
        views = unit_mean(light * falls.reshape(-1, 1, self.height, self.width).sqrt() * gains)
        noisy, _ = expose([view[None] for view in views], rng, generator, self.exposure)
        return torch.cat(noisy)

    def _projector(self, chunk: Groups, group: int, own: int, others: Sequence[int]) -> Projector:
        poses = chunk.world_from_camera[group].double()
        moves = torch.linalg.inv(poses[others]) @ poses[own]
        focal = float(chunk.focal)
        centre = torch.tensor([(self.width - 1) / 2, (self.height - 1) / 2], device=self.device)

        def project(pixels: Tensor, inverse: Tensor) -> Tensor:
            rays = functional.pad((pixels - centre) / focal, (0, 1), value=1.0)
            turned = torch.einsum('kij,mj->kmi', moves[:, :3, :3].float(), rays)
            points = turned[:, :, None] + moves[:, None, None, :3, 3].float() * inverse[None, :, :, None]
            ahead = points[..., 2:] > 1e-6
            at = points[..., :2] / points[..., 2:].clamp(min=1e-6) * focal + centre
            return torch.where(ahead, at, torch.full_like(at, -1e4))

        return project


def _described(network: MiniNetwork, images: Tensor) -> list[SweepView]:
    with torch.no_grad():
        output = network(images)
    return [SweepView(*parts) for parts in zip(output.coarse.float(), output.fine.float(), strict=True)]


def _random_range(rng: np.random.Generator, depth: Tensor) -> tuple[float, float]:
    """Nearest and farthest depth of a sweep, as the points that a map holds of a view may say."""
    known = depth[torch.isfinite(depth)].float()[::7].cpu().numpy()
    near, far = np.percentile(known, [rng.uniform(0.0, 4.0), rng.uniform(85.0, 100.0)])
    return 0.7 * float(near), 1.6 * float(far)


def render_groups(
    width: int,
    height: int,
    config: SweepPoolConfig,
    seed: tuple[int, int],
    device: torch.device,
    photos: Sequence[NDArray[np.uint8]] = (),
) -> Groups:
    """Render a chunk; `seed` is that of the training and the number of the chunk.

    Raises ConfigError where no group can be used.
    """
    rng = np.random.default_rng([*seed, 80])
    kind = str(rng.choice(_KINDS, p=_SHARES))
    focal = float(rng.uniform(0.6, 1.2)) * width
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    source = PairSource(
        kind, config.scenes, camera, seed=int(rng.integers(2**31)), device=device, wide=config.wide, photos=photos
    )  # fmt: skip
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    at_once = max(1, _MANY // config.views)
    for start in range(0, config.groups, at_once):
        count = min(at_once, config.groups - start)
        made = source.groups(count, config.views, config.drives)
        light = unit_mean(made.images.radiance).half().reshape(count, config.views, 3, height, width)
        depth = made.images.depth.float().reshape(count, config.views, height, width)
        poses = made.views.world_from_camera.float().reshape(count, config.views, 4, 4)
        usable = light.flatten(1).isfinite().all(1) & (depth.isfinite().flatten(2).float().mean(2) > 0.2).all(1)
        kept.append((light[usable], depth[usable], poses[usable]))
    light, depth, poses = (torch.cat(part) for part in zip(*kept, strict=True))
    if not len(light):
        raise ConfigError('no rendered group of views can be used: render more of them')
    return Groups(light, depth, poses, torch.tensor([focal], device=device))
