# SPDX-License-Identifier: Apache-2.0
"""From clean light to network input: noise of a random strength and kind, then the normalisation used when mapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.config import Config, setting
from dark3r_ros.model.normalise import MODES
from dark3r_ros.training.noise import add_noise, preset_shares, variance_shares

QUANTILES = (0.158655, 0.841345)  # those of model.normalise
# A 12-bit sensor whose mean signal is 20 counts: what `paper`, which keeps the black level in, is given.
BLACK, WHITE, COUNTS = 240.0, 4095.0, 20.0
_CLEAN_LEVEL = 0.7  # of the range above black that the brightest pixels of a clean exposure fill


@dataclass(frozen=True)
class ExposureConfig(Config):
    """How views are darkened and given to the network."""

    snr_low: float = setting(-10.0, 'Lowest SNR.', unit='dB')
    snr_high: float = setting(25.0, 'Highest SNR.', unit='dB')
    difference: float = setting(1.0, 'Spread of the SNR between the two views of a pair.', unit='dB', minimum=0.0)
    presets: float = setting(
        0.3, 'Share of pairs with the noise of a calibrated sensor; the others mix shot, read and row noise freely.',
        minimum=0.0, maximum=1.0,
    )  # fmt: skip
    heavy: float = setting(0.25, 'Share of pairs whose noise has heavy tails.', minimum=0.0, maximum=1.0)
    clip_black: bool = setting(False, 'Cut values below black off, as 8-bit pictures do: for comparison only.')
    normalisation: str = setting('signed', 'How planes become network input.', choices=MODES)


def expose(
    views: Sequence[Tensor], rng: np.random.Generator, generator: torch.Generator, config: ExposureConfig
) -> tuple[list[Tensor], Tensor]:
    """Noisy network input of clean views (B, 3, H, W), of one kind and about one SNR a row; SNR (B,) of the first."""
    count, device = len(views[0]), views[0].device
    snr = torch.from_numpy(rng.uniform(config.snr_low, config.snr_high, count)).float().to(device)
    shares = variance_shares(rng, count).to(device)
    if config.presets > 0:
        calibrated = torch.from_numpy(rng.random(count) < config.presets).to(device)
        known = preset_shares(rng, views[0].mean(dim=(2, 3)), views[0].square().mean(dim=(1, 2, 3)), snr)
        shares = torch.where(calibrated[:, None], known, shares)
    heavy = np.where(rng.random(count) < config.heavy, rng.uniform(0.2, 0.7, count), 0.0)
    heavy_t = torch.from_numpy(heavy).float().to(device)
    levels = [snr, *(snr + torch.from_numpy(rng.normal(0.0, config.difference, count)).to(snr) for _ in views[1:])]
    noisy = (add_noise(view, level, shares, heavy_t, generator) for view, level in zip(views, levels, strict=True))
    return [noisy_input(planes, config) for planes in noisy], snr


def noisy_input(planes: Tensor, config: ExposureConfig) -> Tensor:
    """Network input of noisy planes (B, 3, H, W) in units of the mean light, black being zero."""
    if config.clip_black:
        planes = planes.clamp(min=0.0)
    if config.normalisation == 'signed':
        return normalised(planes)
    return (BLACK + COUNTS * planes) * (2.0 / WHITE) - 1.0


def clean_input(light: Tensor, config: ExposureConfig) -> Tensor:
    """Network input of a clean exposure of light (B, 3, H, W)."""
    if config.normalisation == 'signed':
        return normalised(light)
    brightest = light.flatten(1)[:, ::7].quantile(0.999, dim=1)[:, None, None, None].clamp(min=1e-6)
    return (BLACK + _CLEAN_LEVEL * (WHITE - BLACK) * light / brightest) * (2.0 / WHITE) - 1.0


def normalised(planes: Tensor) -> Tensor:
    """Network input (B, 3, H, W) of planes, as `model.normalise` makes it up to the sampling of its quantiles.

    Every seventh value is enough for the spread; sorting all of them took longer than everything else here.
    """
    centred = planes - planes.mean(dim=(2, 3), keepdim=True)
    low, high = torch.quantile(
        centred.flatten(1)[:, ::7], torch.tensor(QUANTILES, device=planes.device), dim=1
    ).unsqueeze(-1)[..., None, None]
    return centred * (2.0 / (high - low).clamp(min=1e-9))
