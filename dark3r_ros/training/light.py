# SPDX-License-Identifier: Apache-2.0
"""Random light and colour of training views."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def view_grid(width: int, height: int, device: torch.device) -> Tensor:
    """View coordinates (1, H * W, 2) of all pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    points = torch.stack([x - (width - 1) / 2, y - (height - 1) / 2], dim=-1) * (2.0 / width)
    return points.reshape(1, -1, 2).float().to(device)


def random_light(rng: np.random.Generator, grid: Tensor, count: int) -> Tensor:
    """Light (count, H * W) at view coordinates (1, H * W, 2): an ambient part and a beam with a random centre."""
    device = grid.device
    ambient = torch.from_numpy(rng.uniform(0.15, 1.0, (count, 1))).float().to(device)
    centre = torch.from_numpy(rng.uniform(-0.6, 0.6, (count, 2))).float().to(device)
    width = torch.from_numpy(rng.uniform(0.35, 1.2, (count, 1))).float().to(device)
    distance = (grid - centre[:, None]).square().sum(-1) / width.square()
    return ambient + (1 - ambient) * torch.exp(-0.5 * distance)


def random_gains(rng: np.random.Generator, count: int) -> Tensor:
    """Sensitivity (count, 3, 1, 1) of red, green and blue: raw files of daylight sensors are green."""
    gains = rng.uniform((0.35, 0.9, 0.3), (1.0, 1.1, 0.95), (count, 3))
    return torch.from_numpy(gains).float()[:, :, None, None]


def unit_mean(view: Tensor) -> Tensor:
    """Light (B, 3, H, W) whose mean over each image is 1."""
    return view / view.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
