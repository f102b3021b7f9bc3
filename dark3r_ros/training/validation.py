# SPDX-License-Identifier: Apache-2.0
"""How well a network matches pairs that it never saw, with the very matcher that is used later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.matching.draw import draw_matches
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.planes import display_image
from dark3r_ros.training.batch import TrainingPairs
from dark3r_ros.training.noise import add_noise, variance_shares
from dark3r_ros.training.pool import PoolConfig, RenderedPairs
from dark3r_ros.types import Correspondences, Planes

_RIGHT_PX = 2.0


@dataclass(frozen=True)
class MatchScore:
    """Over all pairs: mean number of matches, share within 2 px and 1 px of the truth, median error of those in px."""

    matches: float
    within_2px: float
    within_1px: float
    median_px: float


def dark_planes(clean: Tensor, snr_db: float, seed: int, *, clip_black: bool = False) -> list[Planes]:
    """Noisy planes of clean views (B, 3, H, W), as 16 averaged pixels of a 12-bit sensor with a pedestal give them."""
    generator = torch.Generator().manual_seed(seed)
    count = len(clean)
    shares = variance_shares(np.random.default_rng(seed), count)
    noisy = add_noise(clean, torch.full((count,), snr_db), shares, torch.zeros(count), generator)
    if clip_black:
        noisy = noisy.clamp(min=0.0)
    counts = (240.0 + 20.0 * noisy).numpy().astype(np.float32)
    return [Planes(values, (240.0,) * 3, 4095.0, (4, 8, 4), 4, k) for k, values in enumerate(counts)]


def match_errors(pairs: TrainingPairs, number: int, found: Correspondences) -> np.ndarray:
    """Distance (M,) in pixels of b of the matches of one pair from the truth; infinite where a's point is not seen."""
    points = torch.from_numpy(found.points_a).float()[None]
    target, valid = pairs.select(slice(number, number + 1)).correspond(points)
    error = np.linalg.norm(target[0].numpy() - found.points_b, axis=1)
    return np.where(valid[0].numpy(), error, np.inf)


def score(
    predictor: Predictor, pairs: TrainingPairs, snr_db: float, seed: int = 5, *, clip_black: bool = False
) -> MatchScore:
    """Match pairs darkened to an SNR, with independent noise in the views, and compare with the truth."""
    planes_a = dark_planes(pairs.clean_a, snr_db, seed, clip_black=clip_black)
    planes_b = dark_planes(pairs.clean_b, snr_db, seed + 1, clip_black=clip_black)
    errors = []
    for number, (a, b) in enumerate(zip(planes_a, planes_b, strict=True)):
        found = predictor.match([(predictor.encode(a), predictor.encode(b))])[0]
        errors.append(match_errors(pairs, number, found))
    every = np.concatenate(errors)
    if not len(every):
        return MatchScore(0.0, 0.0, 0.0, float('nan'))
    near = every[every < 2]
    return MatchScore(
        len(every) / len(errors),
        float((every < 2).mean()),
        float((every < 1).mean()),
        float(np.median(near)) if len(near) else float('nan'),
    )


class Validation:
    """Scores and pictures of a network on fixed pairs that it is not trained on.

    Parameters
    ----------
    pairs: on the CPU. predictor: makes a predictor of the weights as they are at that moment. levels: dB.
    clip_black: whether values below black are cut off, for a network that was trained so.
    reference: makes a predictor, such as the teacher's, whose matches pictures show as well.

    """

    def __init__(
        self,
        pairs: TrainingPairs,
        predictor: Callable[[], Predictor],
        levels: tuple[float, ...] = (-4.0, 20.0),
        *,
        clip_black: bool = False,
        reference: Callable[[], Predictor] | None = None,
    ) -> None:
        self.pairs, self.predictor, self.levels, self.clip_black = pairs, predictor, levels, clip_black
        self.reference = reference

    def figures(self) -> dict[str, float]:
        """Scores for the log."""
        figures: dict[str, float] = {}
        predictor = self.predictor()
        for level in self.levels:
            result = score(predictor, self.pairs, level, clip_black=self.clip_black)
            figures |= {f'{level:+g}dB_{key}': round(float(value), 4) for key, value in vars(result).items()}
        return figures

    def picture(self) -> NDArray[np.uint8]:
        """Matches of the first pair at the lowest level: right ones green, others red; the reference below."""
        level = min(self.levels)
        planes_a = dark_planes(self.pairs.clean_a[:1], level, 5, clip_black=self.clip_black)[0]
        planes_b = dark_planes(self.pairs.clean_b[:1], level, 6, clip_black=self.clip_black)[0]
        rows = []
        for make in (self.predictor, *([self.reference] if self.reference else [])):
            predictor = make()
            found = predictor.match([(predictor.encode(planes_a), predictor.encode(planes_b))])[0]
            right = match_errors(self.pairs, 0, found) < _RIGHT_PX
            rows.append(draw_matches(display_image(planes_a), display_image(planes_b), found, right))
        return np.concatenate(rows)


def held_out_rooms(count: int) -> TrainingPairs:
    """Pairs of rendered rooms that training does not see, wide steps among them."""
    config = PoolConfig(rooms=1.0, pairs=2 * count, scenes=4, chunks=1, first_chunks=1)
    return RenderedPairs(256, 192, config, seed=977).make(0, count)
