# SPDX-License-Identifier: Apache-2.0
"""Losses of `mini`: descriptors of two scales that agree where two views show the same, and calibrated chances.

Points of one view are matched against every cell of the other, as they are when it is used; the target is shared by the
four cells around the true place. Descriptors are brought to unit length only where a loss looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from dark3r_ros.model.mini import COARSE, FINE, MiniContext, MiniNetwork, MiniOutput, PairOutput
from dark3r_ros.model.patches import FineMaps, patch_similarity, square
from dark3r_ros.training.batch import TrainingPairs

SURROUNDINGS = 40.0  # pixels: places that near are held to move alike, but for relief
_LEAST_AROUND = 4  # places, itself among them
_LARGEST_RELIEF = 6.0  # fine pixels
RADIUS = 4  # of the window around the true place that the fine stage looks through, in fine pixels
_WEIGHTS = {'single': 0.5, 'pair': 1.0, 'fine': 1.0, 'reliability': 0.3, 'seen': 0.2}


@dataclass(frozen=True, eq=False)
class MiniViews:
    """What `mini` said of N pairs.

    Attributes
    ----------
    output: of all views a, then all b; descriptors of any length. pair: of both views beside each other, None without
        cross-view layers.

    """

    output: MiniOutput
    pair: tuple[PairOutput, PairOutput] | None

    def __len__(self) -> int:
        return len(self.output.coarse) // 2

    def select(self, chosen: slice) -> MiniViews:
        """The part that belongs to some of the pairs."""
        count = len(self)
        if chosen.indices(count) == (0, count, 1):
            return self

        def rows(values: Tensor) -> Tensor:
            return torch.cat([values[:count][chosen], values[count:][chosen]])

        output = MiniOutput(rows(self.output.coarse), rows(self.output.fine), rows(self.output.reliability))
        if self.pair is None:
            return MiniViews(output, None)
        first, second = (PairOutput(view.coarse[chosen], view.seen[chosen]) for view in self.pair)
        return MiniViews(output, (first, second))


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses (scalars) and the shares of points that were matched right.

    Attributes
    ----------
    single, pair: of the coarse descriptors of images by themselves and beside their partner. fine: of the fine ones.
    flattening: squared slope of fine errors on how far a place moves otherwise than its surroundings.
    reliability: of the chance that a match is right. seen: of the chance that the other view sees a place.

    """

    single: Tensor
    pair: Tensor
    fine: Tensor
    flattening: Tensor
    reliability: Tensor
    seen: Tensor
    single_right: Tensor
    pair_right: Tensor
    fine_right: Tensor

    @property
    def matching(self) -> Tensor:
        """Of the descriptors."""
        return self._sum('single', 'pair', 'fine')

    @property
    def chances(self) -> Tensor:
        """Of the stated chances, that of a right match with weight one."""
        return self._sum('reliability', 'seen') / _WEIGHTS['reliability']

    @property
    def total(self) -> Tensor:
        """What a training from nothing minimises."""
        return self._sum(*_WEIGHTS)

    def _sum(self, *names: str) -> Tensor:
        return torch.stack([_WEIGHTS[name] * getattr(self, name) for name in names]).sum()

    def figures(self) -> dict[str, Tensor]:
        """All values for the log."""
        return {item.name: getattr(self, item.name).detach() for item in fields(self)}


@dataclass(frozen=True, eq=False)
class SampledPoints:
    """Points that a loss looks at: pixels of a (B, P, 2), on the fine grid, of b (B, P, 2), and which count (B, P)."""

    a: Tensor
    b: Tensor
    valid: Tensor

    def first(self, count: int) -> SampledPoints:
        """The first points of each pair."""
        return SampledPoints(self.a[:, :count], self.b[:, :count], self.valid[:, :count])


def look(network: MiniNetwork, images_a: Tensor, images_b: Tensor) -> MiniViews:
    """Run the network on both views (N, 3, H, W) together, then on the pairs."""
    raw = network.describe(torch.cat([images_a, images_b]))
    # Losses are computed in full precision, also where the network is not.
    output = MiniOutput(raw.coarse.float(), raw.fine.float(), raw.reliability.float(), raw.context)
    if network.cross_view is None:
        return MiniViews(output, None)
    assert raw.context is not None
    (a16, b16), (a8, b8) = raw.context.sixteenth.chunk(2), raw.context.eighth.chunk(2)
    first, second = network.relate(MiniContext(a16, a8), MiniContext(b16, b8))
    return MiniViews(output, (_full(first), _full(second)))


def _full(view: PairOutput) -> PairOutput:
    return PairOutput(view.coarse.float(), view.seen.float())


def sample_map(values: Tensor, points: Tensor, step: int) -> Tensor:
    """Values (B, P, C) at pixels (B, P, 2), bilinear in a map (B, C, H/step, W/step)."""
    height, width = values.shape[2:]
    size = torch.tensor([width, height], device=points.device, dtype=points.dtype) * step
    place = (points + 0.5) * (2.0 / size) - 1.0
    found = functional.grid_sample(values, place[:, None], padding_mode='border', align_corners=False)
    return found[:, :, 0].transpose(1, 2)


def sample_descriptors(descriptors: Tensor, points: Tensor, step: int) -> Tensor:
    """Descriptors (B, P, C) of unit length at pixels (B, P, 2), bilinear in a map (B, C, H/step, W/step)."""
    return functional.normalize(sample_map(descriptors, points, step), dim=-1)


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
    """Losses of a batch of noisy pairs."""
    views = look(network, pairs.image_a, pairs.image_b)
    return matching_losses(network, views, pairs, generator, points=points, fine_points=fine_points)


def matching_losses(
    network: MiniNetwork,
    views: MiniViews,
    pairs: TrainingPairs,
    generator: torch.Generator,
    *,
    points: int = 192,
    fine_points: int = 96,
) -> Losses:
    """Losses of what the network said of noisy pairs, against their truth."""
    chosen = sample_points(pairs, points, generator)
    few = chosen.first(fine_points)
    output = views.output
    coarse_a, coarse_b = output.coarse.chunk(2)
    fine_a, fine_b = output.fine.chunk(2)
    scale = network.coarse_factor
    single, single_right = _coarse_loss(scale, coarse_a, coarse_b, chosen)
    pair, pair_right, seen = torch.zeros_like(single), single_right, torch.zeros_like(single)
    if views.pair is not None:
        first, second = views.pair
        pair, pair_right = _coarse_loss(scale, first.coarse, second.coarse, chosen)
        logit = sample_map(first.seen[:, None], chosen.a, COARSE)[..., 0]
        seen = functional.binary_cross_entropy_with_logits(logit, chosen.valid.to(logit.dtype))
    fine, fine_right, flattening = _fine_loss(network.fine_factor, fine_a, fine_b, few, generator)
    right = pair_right[:, :fine_points] & fine_right
    weight, few_weight = chosen.valid.float(), few.valid.float()
    return Losses(
        single,
        pair,
        fine,
        flattening,
        _reliability_loss(output.reliability.chunk(2)[0], few, right),
        seen,
        _mean(single_right, weight),
        _mean(pair_right, weight),
        _mean(fine_right, few_weight),
    )


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def _reliability_loss(reliability: Tensor, points: SampledPoints, right: Tensor) -> Tensor:
    place = ((points.a - (FINE - 1) / 2) / FINE).round().long()
    logit = reliability.flatten(1).gather(1, place[..., 1] * reliability.shape[2] + place[..., 0])
    loss = functional.binary_cross_entropy_with_logits(logit, right.to(logit.dtype), reduction='none')
    return _mean(loss, points.valid.float())


def cell_weights(points: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear weights (B, P, rows * columns) of pixels (B, P, 2) on the grid of coarse cells; each row sums to one."""
    x = ((points[..., :1] + 0.5) / COARSE - 0.5).clamp(0, columns - 1)
    y = ((points[..., 1:] + 0.5) / COARSE - 0.5).clamp(0, rows - 1)
    across = (1 - (x - torch.arange(columns, device=points.device)).abs()).clamp(min=0)
    down = (1 - (y - torch.arange(rows, device=points.device)).abs()).clamp(min=0)
    return (down[..., :, None] * across[..., None, :]).flatten(2)


def _coarse_loss(scale: Tensor, map_a: Tensor, map_b: Tensor, points: SampledPoints) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the true place among all cells of the other view, both ways; also who found it (B, P)."""
    rows, columns = map_a.shape[2:]
    weight = points.valid.float()
    loss = torch.zeros((), device=map_a.device)
    right = torch.ones_like(points.valid)
    for (here, start), (there, goal) in (
        ((map_a, points.a), (map_b, points.b)),
        ((map_b, points.b), (map_a, points.a)),
    ):
        every = functional.normalize(there.flatten(2), dim=1)
        logits = scale * torch.bmm(sample_descriptors(here, start, COARSE), every)
        log_chance = functional.log_softmax(logits.float(), dim=2)
        loss = loss - 0.5 * _mean((cell_weights(goal, rows, columns) * log_chance).sum(2), weight)
        best = logits.argmax(2)
        centre = torch.stack([best % columns, best // columns], dim=-1) * COARSE + (COARSE - 1) / 2
        right = right & ((centre - goal).abs().amax(-1) <= COARSE)
    return loss, right


def _fine_loss(
    scale: Tensor, map_a: Tensor, map_b: Tensor, points: SampledPoints, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the place within a window against bilinear weights of the true one.

    Also who hit it (B, P), and the square of `flattening_slope`.
    """
    height, width = map_b.shape[2:]
    home = ((points.a - (FINE - 1) / 2) / FINE).round().long()
    truth = (points.b - (FINE - 1) / 2) / FINE
    jitter = torch.rand(truth.shape, generator=generator, device=truth.device) * 5.0 - 2.5
    centre = (truth + jitter).round()
    image = torch.arange(len(truth), device=truth.device)[:, None].expand(truth.shape[:2]).flatten()
    similarity = patch_similarity(
        _fine_maps(map_a), home.flatten(0, 1), _fine_maps(map_b), centre.long().flatten(0, 1), image, RADIUS
    )
    logits = scale * similarity.unflatten(0, truth.shape[:2]).float()
    window = centre[:, :, None] + torch.stack(square(RADIUS, truth.device), dim=-1)
    inside = (window >= 0).all(-1) & (window[..., 0] < width) & (window[..., 1] < height)
    logits = logits.masked_fill(~inside, -1e4)
    weights = (1 - (window - truth[:, :, None]).abs()).clamp(min=0).prod(-1) * inside
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-3)
    log_chance = functional.log_softmax(logits, dim=-1)
    loss = -(weights * log_chance).sum(-1)
    best = window.gather(2, logits.argmax(2)[:, :, None, None].expand(-1, -1, 1, 2))[:, :, 0]
    slope = flattening_slope((log_chance.exp()[..., None] * window).sum(2) - truth, points)
    return _mean(loss, points.valid.float()), (best - truth).norm(dim=-1) < 1.0, slope.square()


def flattening_slope(error: Tensor, points: SampledPoints) -> Tensor:
    """Slope of errors (B, P, 2), in fine pixels, on how far places move otherwise than those around them.

    0 is unbiased; -1 says that all around a place moves alike, so that relief is lost.
    """
    moved = (points.b - points.a) / FINE
    near = (torch.cdist(points.a, points.a) < SURROUNDINGS) & points.valid[:, None]
    count = near.sum(-1, keepdim=True)
    mean = torch.where(near[..., None], moved[:, None], 0.0).sum(2) / count.clamp(min=1)
    away = moved - mean
    # What jumps is another surface, not relief.
    used = points.valid & (count[..., 0] >= _LEAST_AROUND) & (away.norm(dim=-1) < _LARGEST_RELIEF)
    weight = used.to(away.dtype)[..., None]
    slope: Tensor = (weight * error * away).sum() / (weight * away.square()).sum().clamp(min=1.0)
    return slope


def _fine_maps(maps: Tensor) -> FineMaps:
    """Maps (B, F, H, W) of descriptors of any length as those of unit length."""
    rows = functional.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    return FineMaps(rows, maps.shape[2], maps.shape[3])
