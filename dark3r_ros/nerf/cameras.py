# SPDX-License-Identifier: Apache-2.0
"""What belongs to the cameras rather than the scene: black shifts, brightness, lens falloff, lamp, pose corrections.

A frame's value is `exposure * vignetting * radiance + offset`, the lamp acting on the radiance of each sample.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dark3r_ros.nerf.config import NerfConfig

_LAMP_NEAREST = 0.05  # of the box; the falloff does not grow closer to the lamp
_EXPOSURE_SIGMA = 0.5


class FrameTerms(nn.Module):
    """Per view: black shift (3), logarithm of brightness, pose correction. Shifts and brightness average zero."""

    def __init__(self, views: int, config: NerfConfig) -> None:
        super().__init__()
        self.config = config
        self.offset = nn.Parameter(torch.zeros(views, 3), requires_grad=config.offset_sigma > 0)
        self.log_exposure = nn.Parameter(torch.zeros(views), requires_grad=config.exposure == 'learned')
        self.twist = nn.Parameter(torch.zeros(views, 6), requires_grad=config.refine_poses)

    def offsets(self) -> Tensor:
        """Black shift (V, 3) per view and colour, mean zero over the views: a common shift belongs to black itself."""
        return self.offset - self.offset.mean(dim=0)

    def exposures(self) -> Tensor:
        """Learned factor (V,) on the brightness that the metadata state."""
        return torch.exp(self.log_exposure - self.log_exposure.mean())

    def poses(self, given: Tensor) -> Tensor:
        """Corrected poses (V, 4, 4) in normalised coordinates; turned about each camera's own centre."""
        if not self.config.refine_poses:
            return given
        rotation = rotation_matrices(self.twist[:, 3:]) @ given[:, :3, :3]
        translation = given[:, :3, 3] + self.twist[:, :3]
        top = torch.cat([rotation, translation[:, :, None]], dim=2)
        return torch.cat([top, given[:, 3:]], dim=1)

    def prior(self, observations: int) -> Tensor:
        """Negative logarithm of the priors, per observation: shifts and brightness are small."""
        total = self.offset.new_zeros(())
        if self.config.offset_sigma > 0:
            total = total + (self.offset / self.config.offset_sigma).square().sum()
        if self.config.exposure == 'learned':
            total = total + (self.log_exposure / _EXPOSURE_SIGMA).square().sum()
        return total / max(observations, 1)


class Vignetting(nn.Module):
    """Falloff of the lens: exp(-(a r^2 + b r^4)) with r the tangent of the angle to the axis."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.Parameter(torch.zeros(2))

    def forward(self, radius2: Tensor) -> Tensor:
        """Factor (R, 1)."""
        return torch.exp(-(self.terms[0] * radius2 + self.terms[1] * radius2.square()))[:, None]


class Lamp(nn.Module):
    """A light fixed to the camera: inverse square of the distance, a beam about the optical axis, and ambient light.

    The cosine at the surface depends on the viewing direction and is left to the field's colours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(3))
        self.beam = nn.Parameter(torch.zeros(1))
        self.ambient = nn.Parameter(torch.full((1,), -3.0))
        # Brightness 1 at this distance; the colours take up the rest.
        self.reach = nn.Parameter(torch.full((1,), -1.0))

    def forward(self, local: Tensor, middle: Tensor) -> Tensor:
        """Factor (R, n) on the radiance at distances (R, n) along optical-frame unit vectors (R, 3)."""
        way = local[:, None, :] * middle[..., None] - self.position
        square = way.square().sum(dim=-1).clamp(min=_LAMP_NEAREST**2)
        cosine = way[..., 2] / square.sqrt()
        beam = torch.exp(-torch.exp(self.beam) * (1.0 - cosine))
        ambient = torch.sigmoid(self.ambient)
        return ambient + (1.0 - ambient) * beam * torch.exp(2.0 * self.reach) / square


def rotation_matrices(vectors: Tensor) -> Tensor:
    """Rotation matrices (N, 3, 3) of small rotation vectors (N, 3), differentiable at zero (Rodrigues)."""
    angle2 = vectors.square().sum(dim=1)[:, None, None]
    # Series: good to 1e-9 below half a radian, far beyond any correction.
    a = 1.0 - angle2 / 6.0 + angle2.square() / 120.0
    b = 0.5 - angle2 / 24.0 + angle2.square() / 720.0
    x, y, z = vectors.unbind(dim=1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    return torch.eye(3, device=vectors.device) + a * skew + b * (skew @ skew)
