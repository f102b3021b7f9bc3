# SPDX-License-Identifier: Apache-2.0
"""Loss terms of the raw-domain field.

Values are counts above black divided by one common unit; they are noisy, signed and never clipped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError

_EPSILON = 1e-3  # RawNeRF's, in units of the white level


def photometric(
    predicted: Tensor,
    observed: Tensor,
    known: Tensor,
    *,
    kind: str,
    read_variance: Tensor,
    shot_gain: Tensor,
    offset: Tensor,
    white: float,
) -> Tensor:
    """Mean weighted squared residual over the known values.

    Parameters
    ----------
    predicted, observed, known: (R, 3); `known` is 1 where a colour was measured (one per ray of a mosaic), else 0.
    kind: `inverse_variance` divides by the variance expected of the prediction, so that noise alone gives 1; `rawnerf`
        divides by (prediction + 1e-3 white)^2 and cuts the prediction off at white (Mildenhall et al., CVPR 2022);
        `mse` does neither. The last two are scaled to be comparable at the mean signal. Weights get no
        gradient.
    read_variance, shot_gain: (3,) variance of a value = read + gain * signal.
    offset: (R, 3) black shift contained in the prediction.
    white: saturation in the unit of the values.

    """
    light = (predicted - offset).detach().clamp(min=0.0)
    if kind == 'inverse_variance':
        weight = 1.0 / (read_variance + shot_gain * light)
    elif kind == 'rawnerf':
        predicted = predicted.clamp(max=white)
        weight = (light + _EPSILON * white).square().reciprocal() / (read_variance + shot_gain).mean()
    elif kind == 'mse':
        weight = (read_variance + shot_gain).mean().reciprocal().expand_as(light)
    else:
        raise ConfigError(f'unknown photometric loss {kind!r}')
    return (weight * (predicted - observed).square() * known).sum() / known.sum().clamp(min=1.0)


def depth_loss(weights: Tensor, edges: Tensor, depth: Tensor, confidence: Tensor, width: float) -> Tensor:
    """Cross-entropy between where rays end and a Gaussian around a known depth (DS-NeRF, Deng et al., CVPR 2022).

    The Gaussian is integrated over each interval, so that intervals wider than it lose nothing.

    Parameters
    ----------
    weights: (R, n) of intervals with edges (R, n + 1). depth: (R,) distance along the ray.
    confidence: (R,) 0 where no depth is known. width: standard deviation relative to the depth.

    """
    sigma = (width * depth).clamp(min=1e-6)[:, None] * math.sqrt(2.0)
    below = 0.5 * torch.erf((edges.detach() - depth[:, None]) / sigma)
    mass = below[:, 1:] - below[:, :-1]
    entropy = -(mass * torch.log(weights + 1e-3)).sum(dim=1)
    # Over all rays, not those with depth: a few points must not weigh as much as a full depth map.
    return (entropy * confidence).mean()


def interlevel_loss(coarse_edges: Tensor, coarse: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """Penalty where coarse weights fall below what the field found there (mip-NeRF 360, eq. 13); edges in s.

    The field's weights are constants here: only the coarse density learns.
    """
    weights, edges = weights.detach(), edges.detach()
    cumulative = torch.cat([torch.zeros_like(coarse[:, :1]), torch.cumsum(coarse, dim=1)], dim=1)
    last = coarse_edges.shape[1] - 1
    low = (torch.searchsorted(coarse_edges, edges[:, :-1].contiguous(), right=True) - 1).clamp(0, last)
    high = torch.searchsorted(coarse_edges, edges[:, 1:].contiguous()).clamp(0, last)
    bound = cumulative.gather(1, high) - cumulative.gather(1, low)
    return ((weights - bound).clamp(min=0.0).square() / (weights + 1e-7)).sum(dim=1).mean()


def distortion_loss(weights: Tensor, edges: Tensor) -> Tensor:
    """Expected distance between two places where a ray ends, (mip-NeRF 360, eq. 15) in linear time; edges in s."""
    middle, size = (edges[:, 1:] + edges[:, :-1]) / 2.0, edges[:, 1:] - edges[:, :-1]
    before = torch.cumsum(weights, dim=1) - weights
    moment = torch.cumsum(weights * middle, dim=1) - weights * middle
    between = 2.0 * (weights * (middle * before - moment)).sum(dim=1)
    within = (weights.square() * size).sum(dim=1) / 3.0
    return (between + within).mean()


def decayed(start: float, end: float, share: float) -> float:
    """Exponential decay from start to end over a share 0..1 of the training; linear to zero."""
    if start <= 0.0:
        return 0.0
    if end <= 0.0:
        return start * (1.0 - share)
    return start * (end / start) ** share
