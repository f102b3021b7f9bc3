# SPDX-License-Identifier: Apache-2.0
"""How well a network matches pairs that it never saw, with the very matcher that is used later."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.model.mini import MiniNetwork, save_mini
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.training.noise import add_noise, variance_shares
from dark3r_ros.training.pairs import PairConfig, PairMaker, TrainingPairs
from dark3r_ros.types import Correspondences, Planes


@dataclass(frozen=True)
class MatchScore:
    """Over all pairs: mean number of matches, share within 2 px and 1 px of the truth, median error of those in px."""

    matches: float
    within_2px: float
    within_1px: float
    median_px: float


def dark_planes(clean: Tensor, snr_db: float, seed: int) -> list[Planes]:
    """Noisy planes of clean views (B, 3, H, W), as 16 averaged pixels of a 12-bit sensor with a pedestal give them."""
    generator = torch.Generator().manual_seed(seed)
    count = len(clean)
    shares = variance_shares(np.random.default_rng(seed), count)
    noisy = add_noise(clean, torch.full((count,), snr_db), shares, torch.zeros(count), generator)
    counts = (240.0 + 20.0 * noisy).numpy().astype(np.float32)
    return [Planes(values, (240.0,) * 3, 4095.0, (4, 8, 4), 4, k) for k, values in enumerate(counts)]


def match_errors(pairs: TrainingPairs, number: int, found: Correspondences) -> np.ndarray:
    """Distance (M,) in pixels of b of the matches of one pair from the truth; infinite where a's point is not seen."""
    points = torch.from_numpy(found.points_a).float()[None]
    one = replace(
        pairs,
        **{name: getattr(pairs, name)[number : number + 1] for name in ('image_a', 'warp', 'blobs', 'source')},
    )
    target, valid = one.correspond(points)
    error = np.linalg.norm(target[0].numpy() - found.points_b, axis=1)
    return np.where(valid[0].numpy(), error, np.inf)


def score(predictor: Predictor, pairs: TrainingPairs, snr_db: float, seed: int = 5) -> MatchScore:
    """Match pairs darkened to an SNR, with independent noise in the views, and compare with the truth."""
    planes_a = dark_planes(pairs.clean_a, snr_db, seed)
    planes_b = dark_planes(pairs.clean_b, snr_db, seed + 1)
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
    """Scores of a network on fixed held-out pairs at some levels of SNR.

    Parameters
    ----------
    textures: on the CPU, not among those trained on. count: pairs. levels: dB.

    """

    def __init__(self, textures: Tensor, count: int = 12, levels: tuple[float, ...] = (-4.0, 20.0)) -> None:
        self.pairs = PairMaker(textures, PairConfig(width=256, height=192), seed=977).make(0, count)
        self.levels = levels

    def __call__(self, network: MiniNetwork) -> dict[str, float]:
        """Figures for the log."""
        figures: dict[str, float] = {}
        with TemporaryDirectory() as folder:
            # Through the file, so that what is scored is what would ship: half precision and all.
            path = Path(folder) / 'mini.safetensors'
            save_mini(path, copy.deepcopy(network), {})
            predictor = MiniPredictor(path, device='cpu')
        for level in self.levels:
            result = score(predictor, self.pairs, level)
            figures |= {f'{level:+g}dB_{key}': round(float(value), 4) for key, value in vars(result).items()}
        return figures
