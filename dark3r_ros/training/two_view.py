# SPDX-License-Identifier: Apache-2.0
"""Matching loss of the networks of the MASt3R family (Leroy, Cabon, Revaud 2024, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.model.network import ViewPrediction
from dark3r_ros.training.batch import TrainingPairs
from dark3r_ros.training.losses import sample_descriptors, sample_map

TEMPERATURE = 0.07
CLOSE = 6.0  # points of one image nearer than this are no counter-examples of each other, in pixels
_ALPHA = 0.2  # how dear low confidence is


def two_view_matching(
    views: tuple[ViewPrediction, ViewPrediction], pairs: TrainingPairs, generator: torch.Generator, points: int = 192
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE over random points, weighted by the confidence of both descriptors.

    Returns the loss and the share of the points whose descriptor found its partner.
    """
    first, second = views
    batch, rows, columns = first.descriptors.shape[:3]
    step = pairs.image_a.shape[3] // columns
    device = pairs.image_a.device
    cells = torch.rand(batch, rows * columns, generator=generator, device=device).argsort(dim=1)[:, :points]
    a = torch.stack([cells % columns, cells // columns], dim=-1) * float(step) + (step - 1) / 2
    b, valid = pairs.correspond(a)
    described_a = sample_descriptors(first.descriptors.float().permute(0, 3, 1, 2), a, step)
    described_b = sample_descriptors(second.descriptors.float().permute(0, 3, 1, 2), b, step)
    logits = described_a @ described_b.transpose(1, 2) / TEMPERATURE
    others = ~torch.eye(a.shape[1], dtype=torch.bool, device=device)
    close = (torch.cdist(a, a) < CLOSE) | (torch.cdist(b, b) < CLOSE)
    absent = ~valid[:, None, :] | ~valid[:, :, None]
    logits = logits.masked_fill((close | absent) & others, -1e4)
    target = torch.arange(a.shape[1], device=device).expand(batch, -1)
    loss = functional.cross_entropy(logits, target, reduction='none')
    loss = 0.5 * (loss + functional.cross_entropy(logits.transpose(1, 2), target, reduction='none'))
    sure = (_confidence(first, a, step) * _confidence(second, b, step)).sqrt()
    weight = valid.float()
    total = weight.sum().clamp(min=1.0)
    right = ((logits.argmax(2) == target) & valid).sum() / total
    return ((sure * loss - _ALPHA * sure.log()) * weight).sum() / total, right


def _confidence(view: ViewPrediction, points: Tensor, step: int) -> Tensor:
    """Confidence (B, P) of the descriptors at pixels (B, P, 2)."""
    return sample_map(view.descriptor_confidence.float()[:, None], points, step)[..., 0].clamp(min=1e-3)
