# SPDX-License-Identifier: Apache-2.0
"""Batches of training pairs, whatever made them, and where points of one view lie in the other.

Batches are numbered: what `PairData.make` returns depends on its seed and the number alone, so that a training can be
stopped, continued and spread over processes without a state of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.errors import ConfigError

# Neighbouring pixels whose inverse depths differ by more than this share lie on different surfaces.
_SAME_SURFACE = 0.08


class Truth(Protocol):
    """Correspondence between the views of B pairs."""

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where pixels (B, P, 2) as (x, y) of a lie in b (B, P, 2), and which are seen in both views (B, P)."""

    def select(self, chosen: slice) -> Truth:
        """The truth of some of the pairs."""


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """B pairs.

    Attributes
    ----------
    clean_a, clean_b: (B, 3, H, W) light at the planes without noise, mean 1.
    image_a, image_b: (B, 3, H, W) noisy network input.
    snr_db: (B,), NaN where it is not known.
    truth: where points of a lie in b.

    """

    clean_a: Tensor
    clean_b: Tensor
    image_a: Tensor
    image_b: Tensor
    snr_db: Tensor
    truth: Truth

    def __len__(self) -> int:
        return len(self.snr_db)

    def select(self, chosen: slice) -> TrainingPairs:
        """Some of the pairs."""
        return TrainingPairs(
            self.clean_a[chosen],
            self.clean_b[chosen],
            self.image_a[chosen],
            self.image_b[chosen],
            self.snr_db[chosen],
            self.truth.select(chosen),
        )

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Truth.correspond`."""
        return self.truth.correspond(points)


class PairData(Protocol):
    """Something that makes training pairs."""

    @property
    def device(self) -> torch.device:
        """Where they are made."""

    @property
    def knows_truth(self) -> bool:
        """Whether points can be matched by the truth."""

    def make(self, number: int, count: int) -> TrainingPairs:
        """Batch `number` of `count` pairs."""


class NoTruth:
    """Pairs whose geometry is not known: no point counts."""

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Every point stays where it is and is not seen."""
        return points, torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)

    def select(self, chosen: slice) -> NoTruth:
        """The same for some of the pairs."""
        return self


@dataclass(frozen=True, eq=False)
class DepthTruth:
    """Correspondence from the depth of view a.

    Attributes
    ----------
    inverse_depth: (B, H, W) 1/m along the optical axis of a, bilinear between pixels, which is exact on planes.
    visible: (B, H, W) whether b, as large as it was rendered, sees the point.
    b_from_a: (B, 4, 4) float32. intrinsics_a, intrinsics_b: (B, 4) fx, fy, cx, cy; fx < 0 for a mirrored view.

    """

    inverse_depth: Tensor
    visible: Tensor
    b_from_a: Tensor
    intrinsics_a: Tensor
    intrinsics_b: Tensor

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Truth.correspond`; b has the size of a."""
        height, width = self.inverse_depth.shape[1:]
        limit = torch.tensor([width - 1, height - 1], device=points.device)
        grid = (points * (2.0 / limit) - 1.0)[:, None]
        inverse = _bilinear(self.inverse_depth[:, None], grid)
        ray = (points - self.intrinsics_a[:, None, 2:]) / self.intrinsics_a[:, None, :2]
        ray = torch.cat([ray, torch.ones_like(ray[..., :1])], dim=-1)
        # Times the inverse depth: no division by what may be zero.
        moved = ray @ self.b_from_a[:, :3, :3].transpose(1, 2) + inverse[..., None] * self.b_from_a[:, None, :3, 3]
        ahead = moved[..., 2] > 1e-3
        place = moved[..., :2] / moved[..., 2:].clamp(min=1e-3)
        target = place * self.intrinsics_b[:, None, :2] + self.intrinsics_b[:, None, 2:]
        inside = ((target >= 0) & (target <= limit)).all(-1)
        sure = _bilinear(self.visible[:, None].float(), grid) > 0.999
        return target, ahead & inside & sure & self._one_surface(points)

    def _one_surface(self, points: Tensor) -> Tensor:
        """Whether the four pixels around each point lie on one surface."""
        batch, height, width = self.inverse_depth.shape
        x, y = points.floor().long().unbind(-1)
        row = torch.arange(batch, device=points.device)[:, None]
        around = torch.stack(
            [
                self.inverse_depth[row, (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)]
                for dy in (0, 1)
                for dx in (0, 1)
            ]
        )
        most, least = around.amax(0), around.amin(0)
        return (most > 0) & (most - least < _SAME_SURFACE * most)

    def select(self, chosen: slice) -> DepthTruth:
        """See `Truth.select`."""
        return DepthTruth(
            self.inverse_depth[chosen],
            self.visible[chosen],
            self.b_from_a[chosen],
            self.intrinsics_a[chosen],
            self.intrinsics_b[chosen],
        )


def _bilinear(values: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(values, grid, align_corners=True, padding_mode='border')[:, 0, 0]


@dataclass(frozen=True, eq=False)
class JoinedTruth:
    """Truths of several kinds one after the other, each with its number of pairs."""

    parts: tuple[tuple[int, Truth], ...]

    def correspond(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Truth.correspond`."""
        pieces = points.split([count for count, _ in self.parts])
        found = [truth.correspond(piece) for (_, truth), piece in zip(self.parts, pieces, strict=True)]
        return torch.cat([target for target, _ in found]), torch.cat([seen for _, seen in found])

    def select(self, chosen: slice) -> JoinedTruth:
        """See `Truth.select`."""
        start, stop, step = chosen.indices(sum(count for count, _ in self.parts))
        if step != 1:
            raise ConfigError('pairs are selected one after the other')
        kept, begin = [], 0
        for count, truth in self.parts:
            low, high = max(start - begin, 0), min(stop - begin, count)
            if low < high:
                kept.append((high - low, truth.select(slice(low, high))))
            begin += count
        return JoinedTruth(tuple(kept))


def join(parts: Sequence[TrainingPairs]) -> TrainingPairs:
    """One batch of several; their images must have one size."""
    if len(parts) == 1:
        return parts[0]
    return TrainingPairs(
        torch.cat([part.clean_a for part in parts]),
        torch.cat([part.clean_b for part in parts]),
        torch.cat([part.image_a for part in parts]),
        torch.cat([part.image_b for part in parts]),
        torch.cat([part.snr_db for part in parts]),
        JoinedTruth(tuple((len(part), part.truth) for part in parts)),
    )
