# SPDX-License-Identifier: Apache-2.0
"""Losses of `mini`: descriptors of two scales that agree where two views show the same, and a calibrated confidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.model.mini import COARSE, FINE, MiniNetwork, MiniOutput
from dark3r_ros.training.batch import TrainingPairs

RADIUS = 4  # of the window around the true place that the fine stage looks through, in fine pixels
RELIABILITY = 0.3  # weight of the loss of the reliability
CLOSE = 6.0  # points of one image nearer than this are no counter-examples of each other, in pixels


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of the coarse and fine descriptors and of the reliability, and the shares of points matched right."""

    coarse: Tensor
    fine: Tensor
    reliability: Tensor
    coarse_right: Tensor
    fine_right: Tensor

    @property
    def matching(self) -> Tensor:
        """Of both kinds of descriptors."""
        return self.coarse + self.fine

    @property
    def total(self) -> Tensor:
        """What a training from nothing minimises."""
        return self.matching + RELIABILITY * self.reliability


@dataclass(frozen=True, eq=False)
class SampledPoints:
    """Points that a loss looks at: pixels of a (B, P, 2), on the fine grid, of b (B, P, 2), and which count (B, P)."""

    a: Tensor
    b: Tensor
    valid: Tensor


def sample_descriptors(descriptors: Tensor, points: Tensor, step: int) -> Tensor:
    """Descriptors (B, P, C) of unit length at pixels (B, P, 2), bilinear in a map (B, C, H/step, W/step)."""
    height, width = descriptors.shape[2:]
    size = torch.tensor([width, height], device=points.device, dtype=points.dtype) * step
    place = (points + 0.5) * (2.0 / size) - 1.0
    found = functional.grid_sample(descriptors, place[:, None], padding_mode='border', align_corners=False)
    return functional.normalize(found[:, :, 0].transpose(1, 2), dim=-1)


def sample_points(pairs: TrainingPairs, count: int, generator: torch.Generator) -> SampledPoints:
    """One random fine pixel in each of `count` random coarse cells of a."""
    batch, _, height, width = pairs.image_a.shape
    device = pairs.image_a.device
    rows, columns = height // COARSE, width // COARSE
    cells = torch.rand(batch, rows * columns, generator=generator, device=device).argsort(dim=1)[:, :count]
    inner = torch.randint(COARSE // FINE, (batch, cells.shape[1], 2), generator=generator, device=device)
    corner = torch.stack([cells % columns, cells // columns], dim=-1) * COARSE
    a = corner + inner * FINE + (FINE - 1) / 2
    b, valid = pairs.correspond(a)
    return SampledPoints(a, b, valid)


def compute_losses(
    network: MiniNetwork, pairs: TrainingPairs, generator: torch.Generator, *, points: int = 192, fine_points: int = 96
) -> Losses:
    """Losses of a batch; the network is run once on both views together."""
    both = network(torch.cat([pairs.image_a, pairs.image_b]))
    return matching_losses(network, both, pairs, generator, points=points, fine_points=fine_points)


def matching_losses(
    network: MiniNetwork,
    both: MiniOutput,
    pairs: TrainingPairs,
    generator: torch.Generator,
    *,
    points: int = 192,
    fine_points: int = 96,
) -> Losses:
    """Losses of what the network said of the noisy views, all of a first, then all of b."""
    chosen = sample_points(pairs, points, generator)
    count = len(pairs)
    a = MiniOutput(both.coarse[:count], both.fine[:count], both.reliability[:count])
    b = MiniOutput(both.coarse[count:], both.fine[count:], both.reliability[count:])
    coarse, coarse_right = _coarse_loss(network.coarse_scale.clamp(max=4.0).exp(), a.coarse, b.coarse, chosen)
    few = SampledPoints(chosen.a[:, :fine_points], chosen.b[:, :fine_points], chosen.valid[:, :fine_points])
    fine, fine_right = _fine_loss(network.fine_scale.clamp(max=4.0).exp(), a.fine, b.fine, few, generator)
    right = coarse_right[:, :fine_points] & fine_right
    place = ((few.a - (FINE - 1) / 2) / FINE).round().long()
    logit = a.reliability.flatten(1).gather(1, place[..., 1] * a.reliability.shape[2] + place[..., 0])
    weight = few.valid.float()
    total_weight = weight.sum().clamp(min=1.0)
    reliability = functional.binary_cross_entropy_with_logits(logit, right.float(), weight, reduction='sum')
    reliability = reliability / total_weight
    return Losses(
        coarse,
        fine,
        reliability,
        (coarse_right & chosen.valid).sum() / chosen.valid.sum().clamp(min=1),
        (fine_right.float() * weight).sum() / total_weight,
    )


def _coarse_loss(scale: Tensor, map_a: Tensor, map_b: Tensor, points: SampledPoints) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE between the points of one pair; also which points of a found theirs (B, P)."""
    a = sample_descriptors(map_a, points.a, COARSE)
    b = sample_descriptors(map_b, points.b, COARSE)
    logits = scale * a @ b.transpose(1, 2)
    others = ~torch.eye(a.shape[1], dtype=torch.bool, device=a.device)
    close = (torch.cdist(points.a, points.a) < CLOSE) | (torch.cdist(points.b, points.b) < CLOSE)
    absent = ~points.valid[:, None, :] | ~points.valid[:, :, None]
    logits = logits.masked_fill((close | absent) & others, -1e4)
    target = torch.arange(a.shape[1], device=a.device).expand(len(a), -1)
    loss = functional.cross_entropy(logits, target, reduction='none')
    loss = loss + functional.cross_entropy(logits.transpose(1, 2), target, reduction='none')
    weight = points.valid.float()
    right = (logits.argmax(2) == target) & (logits.argmax(1) == target)
    return 0.5 * (loss * weight).sum() / weight.sum().clamp(min=1.0), right


def _fine_loss(
    scale: Tensor, map_a: Tensor, map_b: Tensor, points: SampledPoints, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the place within a window against bilinear weights of the true one; also who hit it (B, P)."""
    height, width = map_b.shape[2:]
    query = sample_descriptors(map_a, points.a, FINE)
    truth = (points.b - (FINE - 1) / 2) / FINE
    shape = truth.shape
    jitter = torch.rand(shape, generator=generator, device=truth.device) * 5.0 - 2.5
    centre = (truth + jitter).round()
    side = torch.arange(-RADIUS, RADIUS + 1, device=truth.device, dtype=truth.dtype)
    offsets = torch.stack(torch.meshgrid(side, side, indexing='xy'), dim=-1).reshape(-1, 2)
    window = centre[:, :, None] + offsets
    inside = (window >= 0).all(-1) & (window[..., 0] < width) & (window[..., 1] < height)
    index = window[..., 1].clamp(0, height - 1) * width + window[..., 0].clamp(0, width - 1)
    table = map_b.flatten(2).transpose(1, 2)
    batch = torch.arange(len(table), device=truth.device)[:, None, None]
    logits = scale * torch.einsum('bpc,bpkc->bpk', query, table[batch, index.long()])
    logits = logits.masked_fill(~inside, -1e4)
    weights = (1 - (window - truth[:, :, None]).abs()).clamp(min=0).prod(-1) * inside
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-3)
    loss = -(weights * functional.log_softmax(logits, dim=-1)).sum(-1)
    best = window.gather(2, logits.argmax(2)[:, :, None, None].expand(-1, -1, 1, 2))[:, :, 0]
    right = (best - truth).norm(dim=-1) < 1.0
    weight = points.valid.float()
    return (loss * weight).sum() / weight.sum().clamp(min=1.0), right
