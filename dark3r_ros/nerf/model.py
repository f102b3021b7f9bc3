# SPDX-License-Identifier: Apache-2.0
"""Rays in, values out: field, coarse density, camera terms and volume rendering together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dark3r_ros.nerf.box import SceneBox, reflect
from dark3r_ros.nerf.cameras import FrameTerms, Lamp, Vignetting
from dark3r_ros.nerf.compositing import composite, median_distance, ray_weights
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.field import CoarseDensity, Field
from dark3r_ros.nerf.rays import Rays
from dark3r_ros.nerf.sampling import distance, edges_from_weights, even_edges


@dataclass(frozen=True, eq=False)
class Rendered:
    """What R rays see.

    Attributes
    ----------
    radiance: (R, 3) linear light at exposure 1, vignetting and lamp included, without black shift.
    distance: (R,) along the ray, normalised; opacity: (R,) share of the ray that ends.
    weights (R, n), edges (R, n + 1) in s: of the field; coarse_weights, coarse_edges: of the coarse density.

    """

    radiance: Tensor
    distance: Tensor
    opacity: Tensor
    weights: Tensor
    edges: Tensor
    coarse_weights: Tensor
    coarse_edges: Tensor


class RadianceModel(nn.Module):
    """Everything that is learned."""

    def __init__(self, config: NerfConfig, box: SceneBox, views: int) -> None:
        super().__init__()
        self.config = config
        self.box = box
        self.field = Field(config, box.sides)
        self.coarse = CoarseDensity(config.proposal_grid, box.sides)
        self.frames = FrameTerms(views, config)
        self.vignetting = Vignetting() if config.vignetting else None
        self.lamp = Lamp() if config.lamp else None

    def forward(
        self, rays: Rays, *, generator: torch.Generator | None = None, sigma: float = 0.0, guidance: float = 1.0
    ) -> Rendered:
        """Render rays.

        Parameters
        ----------
        rays: in normalised coordinates.
        generator: for jitter while training; None renders the same picture every time.
        sigma: standard deviation of the noise on sample positions (stochastic preconditioning); 0 outside training.
        guidance: exponent on the coarse weights; below 1 the samples stay more spread early in the training.

        """
        config = self.config
        device = rays.origins.device
        coarse_edges = even_edges(len(rays), config.proposal_samples, config.near, config.far, generator, device)
        coarse_t = distance(coarse_edges)
        middle = (coarse_t[:, 1:] + coarse_t[:, :-1]) / 2.0
        density = self.coarse(self._places(rays, middle, generator, sigma)).reshape(middle.shape)
        coarse_weights = ray_weights(density, coarse_t)
        edges = edges_from_weights(coarse_edges, coarse_weights.detach() ** guidance, config.samples, generator)
        t = distance(edges)
        middle = (t[:, 1:] + t[:, :-1]) / 2.0
        places = self._places(rays, middle, generator, sigma)
        density, radiance = self.field(places, rays.directions)
        weights = ray_weights(density.reshape(middle.shape), t)
        radiance = radiance.reshape(*middle.shape, 3)
        if self.lamp is not None:
            radiance = radiance * self.lamp(rays.local, middle)[..., None]
        seen = composite(weights, radiance)
        if self.vignetting is not None:
            seen = seen * self.vignetting(rays.radius2)
        with torch.no_grad():
            reached, opacity = median_distance(weights, t), weights.sum(dim=1)
        return Rendered(seen, reached, opacity, weights, edges, coarse_weights, coarse_edges)

    def _places(self, rays: Rays, middle: Tensor, generator: torch.Generator | None, sigma: float) -> Tensor:
        """Domain coordinates (R * n, 3) of samples, shaken by sigma and mirrored at the border."""
        points = rays.origins[:, None] + rays.directions[:, None] * middle[..., None]
        x = self.box.domain(points.reshape(-1, 3))
        if sigma > 0.0:
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            x = x + noise * (sigma / (1.0 + self.box.margin)) / x.new_tensor(self.box.sides)
        return reflect(x)
