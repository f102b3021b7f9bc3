# SPDX-License-Identifier: Apache-2.0
"""Noise of binned planes as training sees it, made on the device.

What is left of a sensor's noise after binning: shot noise that grows with the light, read noise, row noise shared by
all pixels of a line, an offset per colour. Red and blue average half as many pixels as green, and lie in different
sensor rows, of which green averages both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.raw.noise import PRESETS

# Pixels of green that are averaged for one of red or blue.
_GREEN = 2.0


def variance_shares(rng: np.random.Generator, count: int) -> Tensor:
    """Shares (count, 3) of shot, read and row noise in the whole variance; each row sums to one."""
    row = rng.uniform(0.0, 0.12, count)
    shot = rng.uniform(0.05, 0.9, count) * (1.0 - row)
    return torch.from_numpy(np.stack([shot, 1.0 - row - shot, row], axis=1)).float()


def preset_shares(rng: np.random.Generator, mean: Tensor, power: Tensor, snr_db: Tensor) -> Tensor:
    """Shares (count, 3) of shot, read and row noise for calibrated sensors, drawn at random from `raw.noise.PRESETS`.

    A sensor's exposure a (counts per unit of light) follows from the SNR: a^2 power = snr (a shot + dark).

    Parameters
    ----------
    mean: (count, 3) light of the planes. power: (count,) mean square of it. snr_db: (count,).

    """
    names = sorted(PRESETS)
    chosen = rng.integers(len(names), size=len(snr_db))
    # Binnings of 2, 4 and 8 mosaic pixels.
    samples = np.array([1, 4, 16])[rng.integers(3, size=len(snr_db))]
    terms = []
    for number, red in zip(chosen, samples, strict=True):
        model, count = PRESETS[names[number]], (int(red), 2 * int(red), int(red))
        dark = model.planes_variance(np.zeros(3), count)
        shot = model.planes_variance(np.ones(3), count) - dark
        pixel = model.dark_variance / np.array(count)
        terms.append([*shot, pixel.mean(), (dark - pixel).mean()])
    table = torch.tensor(terms, dtype=torch.float64, device=mean.device)
    light = (table[:, :3] * mean.double()).mean(1)
    ratio, floor = 10 ** (snr_db.double() / 10), table[:, 3] + table[:, 4]
    scale = (ratio * light + ((ratio * light) ** 2 + 4 * power * ratio * floor).sqrt()) / (2 * power).clamp(min=1e-12)
    parts = torch.stack([scale * light, table[:, 3], table[:, 4]], dim=1)
    return (parts / parts.sum(1, keepdim=True)).float()


def noise_variances(signal: Tensor, snr_db: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance of shot (B, 3, H, W), read (B, 3, 1, 1) and row noise (B, 3, 1, 1) at the stated SNR.

    SNR is 10 log10(mean(signal^2) / mean(variance)) over the three planes.

    Parameters
    ----------
    signal: (B, 3, H, W) light, not negative. snr_db: (B,). shares: (B, 3) of shot, read, row.

    """
    total = signal.square().mean(dim=(1, 2, 3)) / 10 ** (snr_db / 10)
    weights = torch.tensor([1.0, 1.0 / _GREEN, 1.0], device=signal.device)[None, :, None, None]
    part = (total[:, None] * shares)[:, :, None, None, None]
    light = signal * weights
    flat = weights / weights.mean()
    shot = light / light.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) * part[:, 0]
    return shot, flat * part[:, 1], flat * part[:, 2]


def add_noise(signal: Tensor, snr_db: Tensor, shares: Tensor, heavy: Tensor, generator: torch.Generator) -> Tensor:
    """Noisy planes (B, 3, H, W) of the clean ones; negative values stay.

    Parameters
    ----------
    signal, snr_db, shares: see `noise_variances`.
    heavy: (B,) spread of the logarithm of the noise strength from pixel to pixel; 0 is Gaussian.
    generator: of the device of the signal.

    """
    batch, _, height, width = signal.shape
    device = signal.device
    shot, read, row = noise_variances(signal, snr_db, shares)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    pixel = normal(batch, 3, height, width)
    if bool((heavy > 0).any()):
        spread = heavy[:, None, None, None]
        # exp(2 s z) has the mean exp(2 s^2): the variance stays what it was.
        pixel = pixel * torch.exp(spread * normal(batch, 3, height, width) - spread.square())
    noise = (shot + read).sqrt() * pixel
    red, blue = normal(batch, height), normal(batch, height)
    lines = torch.stack([red, (red + blue) / 2, blue], dim=1)[..., None]
    noise = noise + row[:, :1].sqrt() * lines
    offset = normal(batch, 3, 1, 1) * 0.5 * read.sqrt()
    return signal + noise + offset
