# SPDX-License-Identifier: Apache-2.0
"""Optimise a field. Every step draws its random numbers from (seed, step), so that a resumed training repeats it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.nerf.agreement import agreed_depths
from dark3r_ros.nerf.box import SceneBox, box_around, normalised_poses
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.losses import decayed, depth_loss, distortion_loss, interlevel_loss, photometric
from dark3r_ros.nerf.memory import keep_freed_memory
from dark3r_ros.nerf.model import RadianceModel, Rendered
from dark3r_ros.nerf.rays import lens_of, make_rays
from dark3r_ros.nerf.sampling import distance
from dark3r_ros.nerf.views import Views

_FEWEST_RAYS = 64
_MOST_SKIPPED = 100  # in a row
_NETWORK_RATE = 0.5  # of the rate of the grids
_FRAME_RATE = 0.3
_WARM_UP = 0.02
_GUIDED_FROM = 0.1  # share of the steps after which samples follow the coarse density entirely


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes
    ----------
    step, steps: done and wanted. loss: all terms. photometric: mean weighted squared residual, 1 for noise alone with
        inverse-variance weights. depth: depth term, unweighted.
    rays_per_second, seconds_left: measured over this run. skipped: steps left out for numbers that were not finite.

    """

    step: int
    steps: int
    loss: float
    photometric: float
    depth: float
    rays_per_second: float
    seconds_left: float
    skipped: int


class _Data:
    """The views as tensors on the device."""

    def __init__(self, views: Views, box: SceneBox, device: str, config: NerfConfig) -> None:
        count, channels = views.values.shape[:2]
        self.values = torch.from_numpy(views.values.reshape(count, channels, -1)).to(device)
        self.usable = torch.from_numpy(views.usable().reshape(count, channels, -1)).to(device)
        self.colour = None if views.colour is None else torch.from_numpy(views.colour.ravel()).to(device)
        self.lens = lens_of(views.camera)
        self.pixels = self.lens.usable.nonzero()[:, 0]
        if not len(self.pixels):
            raise DataError('the lens model gives no pixel a direction: check the distortion coefficients')
        self.lens = self.lens.to(device)
        self.poses = normalised_poses(box, views.world_from_camera).to(device)
        self.exposure = torch.from_numpy(views.exposure).to(device)
        self.read = torch.tensor(views.read_variance, dtype=torch.float32, device=device)
        self.shot = torch.tensor(views.shot_gain, dtype=torch.float32, device=device)
        self.training = torch.from_numpy(views.training)
        self.depth: Tensor | None = None
        if views.depth is not None and views.confidence is not None:
            voted = config.depth_vote and config.depth_weight > 0
            depth, confidence = agreed_depths(views) if voted else (views.depth, views.confidence)
            self.depth = torch.from_numpy(depth.reshape(count, -1)).to(device) / box.scale
            self.confidence = torch.from_numpy(confidence.reshape(count, -1)).to(device)
            self.depth_site = _depth_sites(views, *depth.shape[1:]).to(device)

    def targets(self, view: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
        """Observed values (R, 3) and which of them were measured (R, 3)."""
        observed, known = self.values[view, :, pixel], self.usable[view, :, pixel].float()
        if self.colour is None:
            return observed, known
        mask = torch.nn.functional.one_hot(self.colour[pixel], 3).float()
        return observed * mask, known * mask


def _depth_sites(views: Views, height: int, width: int) -> Tensor:
    """Pixel of a depth image (height * width) behind each pixel (H * W) of a view."""
    rows = ((torch.arange(views.camera.height) + 0.5) * height / views.camera.height).long()
    columns = ((torch.arange(views.camera.width) + 0.5) * width / views.camera.width).long()
    return (rows[:, None] * width + columns).ravel()


class Trainer:
    """A field in the making."""

    def __init__(self, views: Views, config: NerfConfig, *, device: str = 'cpu', box: SceneBox | None = None) -> None:
        self.views, self.config, self.device = views, config, device
        self.box = box or box_around(views.world_from_camera[:, :3, 3], views.scene_points(), config.margin)
        if device == 'cpu':
            keep_freed_memory()
        torch.manual_seed(config.seed)
        self.model = RadianceModel(config, self.box, len(views)).to(device)
        self.data = _Data(views, self.box, device, config)
        self.names = [name for name, value in self.model.named_parameters() if value.requires_grad]
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.average = [value.detach().clone() for value in self.parameters]
        self.optimiser = torch.optim.Adam(self._groups(), eps=1e-15, betas=(0.9, 0.99), fused=True)
        # Set by a continuation: hashes of what it was given, and the factor that brought its lengths to the field's.
        self.origin: dict[str, str] = {}
        self.scale = 1.0
        self.step_number = 0
        self.skipped = 0
        self.rays = config.rays
        self.elapsed = 0.0
        self.history: list[tuple[int, float, float, float]] = []
        self._skipped_in_a_row = 0

    def _groups(self) -> list[dict[str, object]]:
        groups: dict[float, list[Tensor]] = {}
        for name, value in zip(self.names, self.parameters, strict=True):
            groups.setdefault(self._rate_of(name), []).append(value)
        return [{'params': values, 'lr': rate, 'base': rate} for rate, values in groups.items()]

    def _rate_of(self, name: str) -> float:
        if name == 'frames.twist':
            return self.config.pose_rate
        if name.startswith(('frames.', 'vignetting.', 'lamp.')):
            return self.config.rate * _FRAME_RATE
        return self.config.rate * (1.0 if 'encoding' in name else _NETWORK_RATE)

    def schedule(self, step: int) -> dict[str, float]:
        """Decaying quantities at a step: rate (factor), sigma, depth_weight, depth_width, guidance."""
        config = self.config
        share = step / max(config.steps - 1, 1)
        warm = min(1.0, (step + 1) / max(1.0, _WARM_UP * config.steps))
        until = config.precondition_share
        early = share / _GUIDED_FROM
        return {
            'rate': warm * decayed(1.0, config.rate_end / config.rate, share),
            'sigma': config.precondition * max(0.0, 1.0 - share / until) if until > 0 else 0.0,
            'depth_weight': decayed(config.depth_weight, config.depth_weight_end, share),
            'depth_width': decayed(config.depth_width, config.depth_width_end, share),
            'guidance': min(1.0, 10.0 * early / (9.0 * early + 1.0)),
        }

    def step(self) -> tuple[float, float, float]:
        """Do one step; total loss, photometric and depth term. A step whose numbers are not finite changes nothing."""
        while True:
            try:
                return self._step()
            except torch.OutOfMemoryError:
                if self.rays <= _FEWEST_RAYS:
                    raise DataError(
                        f'the GPU has no memory left even for {self.rays} rays: choose a smaller profile'
                    ) from None
                self.rays //= 2
                torch.cuda.empty_cache()

    def _step(self) -> tuple[float, float, float]:
        now = self.schedule(self.step_number)
        for group in self.optimiser.param_groups:
            group['lr'] = group['base'] * now['rate']
        self.optimiser.zero_grad(set_to_none=True)
        terms = self.losses(self.step_number, now)
        total = terms['total']
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_gradient)
        self.step_number += 1
        if not bool(torch.isfinite(total) & torch.isfinite(norm)):
            self._skip()
        else:
            self._skipped_in_a_row = 0
            self.optimiser.step()
            decay = min(self.config.average, (1.0 + self.step_number) / (10.0 + self.step_number))
            values = [value.detach() for value in self.parameters]
            torch._foreach_lerp_(self.average, values, 1.0 - decay)
        return float(total.detach()), float(terms['photometric'].detach()), float(terms['depth'].detach())

    def _skip(self) -> None:
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _MOST_SKIPPED:
            raise ReconstructionError(
                f'{_MOST_SKIPPED} steps in a row gave numbers that are not finite: lower the rate, check the poses'
            )

    def losses(self, step: int, now: dict[str, float]) -> dict[str, Tensor]:
        """All terms of one step and their weighted sum `total`."""
        config, data, frames = self.config, self.data, self.model.frames
        seed = config.seed * 10_000_019 + step
        host = torch.Generator().manual_seed(seed)
        view = data.training[torch.randint(len(data.training), (self.rays,), generator=host)].to(self.device)
        pixel = data.pixels[torch.randint(len(data.pixels), (self.rays,), generator=host)].to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed + 1)
        rays = make_rays(data.lens, frames.poses(data.poses)[view], pixel)
        seen = self.model(rays, generator=generator, sigma=now['sigma'], guidance=now['guidance'])
        brightness = (data.exposure[view] * frames.exposures()[view])[:, None]
        offset = frames.offsets()[view]
        observed, known = data.targets(view, pixel)
        light = photometric(
            seen.radiance * brightness + offset,
            observed,
            known,
            kind=config.photometric,
            read_variance=data.read,
            shot_gain=data.shot,
            offset=offset,
            white=self.views.white,
        )
        depth = self._depth_term(seen, view, pixel, rays.local[:, 2], now['depth_width'])
        observations = len(data.training) * len(data.pixels) * (3 if data.colour is None else 1)
        total = (
            light
            + now['depth_weight'] * depth
            + config.distortion_weight * distortion_loss(seen.weights, seen.edges)
            + config.interlevel_weight
            * interlevel_loss(seen.coarse_edges, seen.coarse_weights, seen.edges, seen.weights)
            + frames.prior(observations)
        )
        return {'total': total, 'photometric': light, 'depth': depth}

    def _depth_term(self, seen: Rendered, view: Tensor, pixel: Tensor, axis: Tensor, width: float) -> Tensor:
        data = self.data
        if data.depth is None or not self.config.depth_weight:
            return seen.weights.new_zeros(())
        site = data.depth_site[pixel]
        # Depths are along the optical axis, edges along the ray.
        along, trust = data.depth[view, site] / axis, data.confidence[view, site]
        fine = depth_loss(seen.weights, distance(seen.edges), along, trust, width)
        coarse = depth_loss(seen.coarse_weights, distance(seen.coarse_edges), along, trust, width)
        return 0.5 * (fine + coarse)

    def run(
        self,
        *,
        report: Callable[[Progress], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
        preview: Callable[[], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
        report_every: int = 20,
    ) -> None:
        """Train to the end, or until `stopped` between two steps, calling back for all that is to be shown or kept."""
        began, first = time.perf_counter(), self.step_number
        before = self.elapsed
        sums, count = [0.0, 0.0, 0.0], 0
        steps = self.config.steps
        while self.step_number < steps and not stopped():
            values = self.step()
            sums, count = [a + b for a, b in zip(sums, values, strict=True)], count + 1
            self.elapsed = before + time.perf_counter() - began
            if self.step_number % report_every == 0 or self.step_number == steps:
                mean = [value / count for value in sums]
                self.history.append((self.step_number, mean[0], mean[1], mean[2]))
                sums, count = [0.0, 0.0, 0.0], 0
                if report:
                    speed = (self.step_number - first) / max(time.perf_counter() - began, 1e-9)
                    left = (steps - self.step_number) / speed
                    report(
                        Progress(
                            self.step_number, steps, mean[0], mean[1], mean[2], speed * self.rays, left, self.skipped
                        )
                    )
            if checkpoint and (self.step_number % self.config.checkpoint_every == 0 or self.step_number == steps):
                checkpoint()
            every = self.config.preview_every
            if preview and every and (self.step_number % every == 0 or self.step_number == steps):
                preview()

    def averaged_state(self) -> dict[str, Tensor]:
        """Weights to render with: the running average, and what is not learned."""
        state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        state.update({name: value.clone() for name, value in zip(self.names, self.average, strict=True)})
        return state
