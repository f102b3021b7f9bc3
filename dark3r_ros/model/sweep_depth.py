# SPDX-License-Identifier: Apache-2.0
"""Depth from a plane sweep, read by a network that has learnt what rooms, corridors and tunnels look like.

A sweep alone says little where nothing is to be seen: bare walls, and the direction the camera moves in. A U-shaped
convolutional network looks at the evidence of all depths (`model/sweep.py`) beside the descriptors and the light of the
view, and gives chances of 64 inverse depths at 1/8 of the image; a second, small one looks at the evidence of fine
descriptors around them at 1/4. Both say how likely the depth is right within 5 %.

Reading a cost volume with a network is from Wang and Shen, MVDepthNet, 3DV 2018, and Yao et al., MVSNet, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dark3r_ros.config import Config, from_mapping, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.half_file import fill_from_half, read_half_header, write_half
from dark3r_ros.model.mini import COARSE, Residual, Up, conv
from dark3r_ros.model.sweep import Evidence, SweepView

HEADER_KEY = 'dark3r_sweep_depth'
MOST_PARTNERS = 6
_BRIGHTEST = 8.0  # spreads from the mean, where light is cut off
_NEAR = 2  # depths beside the likeliest that are averaged


@dataclass(frozen=True)
class SweepDepthConfig(Config):
    """Sizes of the network."""

    depths: int = setting(64, 'Inverse depths tried between the farthest and the nearest.', minimum=8, maximum=512)
    offsets: int = setting(13, 'Inverse depths tried around the first answer.', minimum=3, maximum=99)
    reach: float = setting(2.0, 'How far these go either way, in steps of the first.', minimum=0.5, maximum=16.0)
    coarse_dim: int = setting(64, 'Length of a coarse descriptor.', minimum=4, maximum=512)
    fine_dim: int = setting(24, 'Length of a fine descriptor.', minimum=4, maximum=256)
    eighth: int = setting(64, 'Channels at 1/8.', minimum=4, maximum=512)
    sixteenth: int = setting(96, 'Channels at 1/16.', minimum=4, maximum=512)
    thirtysecond: int = setting(128, 'Channels at 1/32.', minimum=4, maximum=512)
    quarter: int = setting(32, 'Channels at 1/4.', minimum=4, maximum=512)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the network knows of B views besides evidence.

    Attributes
    ----------
    coarse: (B, C, h, w), fine: (B, F, 2h, 2w) descriptors of unit length, the latter at every second fine pixel.
    light: (B, 3, h, w) normalised planes, mean of each cell; zero where they are not at hand.
    partners: (B,) how many views the evidence is from.

    """

    coarse: Tensor
    fine: Tensor
    light: Tensor
    partners: Tensor


@dataclass(frozen=True, eq=False)
class SweptDepth:
    """Chances of inverse depths: logits (B, D, h, w), right (B, h, w) logit of the chance that the likeliest is right.

    `features` (B, E, h, w) are those that the logits come from.
    """

    logits: Tensor
    right: Tensor
    features: Tensor


def surroundings(view: SweepView, image: Tensor | None, partners: int) -> Surroundings:
    """Of one view, with its normalised and padded planes (3, H, W) where they are at hand."""
    coarse = view.coarse[None]
    light = torch.zeros_like(coarse[:, :3])
    if image is not None:
        light = functional.avg_pool2d(image[None], COARSE).clamp(-_BRIGHTEST, _BRIGHTEST)
    return Surroundings(
        coarse, view.fine[None, :, 1::2, 1::2], light, torch.tensor([partners], device=coarse.device)
    )  # fmt: skip


class SweepDepthNetwork(nn.Module):
    """Evidence of a sweep to depths, in two stages."""

    def __init__(self, config: SweepDepthConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or SweepDepthConfig()
        self.enter = conv(2 * c.depths + c.coarse_dim + 4, c.eighth, 1)
        self.stage8 = nn.Sequential(Residual(c.eighth), Residual(c.eighth))
        self.stage16 = nn.Sequential(conv(c.eighth, c.sixteenth, 3, 2), Residual(c.sixteenth), Residual(c.sixteenth))
        self.stage32 = nn.Sequential(
            conv(c.sixteenth, c.thirtysecond, 3, 2), *(Residual(c.thirtysecond) for _ in range(3))
        )
        self.up16 = Up(c.thirtysecond, c.sixteenth)
        self.up8 = Up(c.sixteenth, c.eighth)
        self.after = Residual(c.eighth)
        self.leave = nn.Conv2d(c.eighth, c.depths + 1, 1)
        self.evidence_gain = nn.Parameter(torch.tensor(1.0))
        self.fine_enter = conv(2 * c.offsets + c.fine_dim + 1, c.quarter, 3)
        self.fine_up = Up(c.eighth, c.quarter)
        self.fine_stage = nn.Sequential(Residual(c.quarter), Residual(c.quarter))
        self.fine_leave = nn.Conv2d(c.quarter, c.offsets + 1, 1)
        self.fine_gain = nn.Parameter(torch.tensor(1.0))
        # Evidence alone speaks before anything is learnt.
        for last in (self.leave, self.fine_leave):
            nn.init.zeros_(last.weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, evidence: Evidence, about: Surroundings) -> SweptDepth:
        """First stage: evidence (B, D, h, w) of all depths."""
        partners = (about.partners.to(evidence.mean) / MOST_PARTNERS)[:, None, None, None].expand_as(about.light[:, :1])
        relative = evidence.mean - evidence.mean.mean(1, keepdim=True)
        described = about.coarse * about.coarse.shape[1] ** 0.5
        x = torch.cat([relative, evidence.seen, 0.5 * described, 0.5 * about.light, partners], dim=1)
        eighth = self.stage8(self.enter(x.contiguous(memory_format=torch.channels_last)))
        sixteenth = self.stage16(eighth)
        eighth = self.after(self.up8(self.up16(self.stage32(sixteenth), sixteenth), eighth))
        result = self.leave(eighth)
        return SweptDepth(result[:, :-1] + self.evidence_gain * _smooth(evidence.mean), result[:, -1], eighth)

    def refine(self, first: SweptDepth, evidence: Evidence, about: Surroundings) -> SweptDepth:
        """Second stage: evidence (B, S, 2h, 2w) of `offsets` around the first answer."""
        right = functional.interpolate(first.right[:, None], scale_factor=2, mode='bilinear', align_corners=False)
        described = about.fine * about.fine.shape[1] ** 0.5
        x = torch.cat([evidence.mean, evidence.seen, 0.5 * described, 0.5 * right], dim=1)
        quarter = self.fine_enter(x.contiguous(memory_format=torch.channels_last))
        quarter = self.fine_stage(self.fine_up(first.features, quarter))
        result = self.fine_leave(quarter)
        return SweptDepth(result[:, :-1] + self.fine_gain * _smooth(evidence.mean), result[:, -1], quarter)

    def tried_around(self, start: Tensor, inverse: Tensor) -> Tensor:
        """Inverse depths (B, S, 2h, 2w) of the second stage around starts (B, h, w) among depths (B, D)."""
        step = (inverse[:, 1] - inverse[:, 0])[:, None, None, None]
        reach = torch.linspace(-self.config.reach, self.config.reach, self.config.offsets, device=start.device)
        raised = functional.interpolate(start[:, None], scale_factor=2, mode='bilinear', align_corners=False)
        return (raised + reach[None, :, None, None] * step).maximum(0.2 * inverse[:, 0, None, None, None])

    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.parameters())


def _smooth(evidence: Tensor) -> Tensor:
    """Mean over 3 x 3 cells."""
    return functional.avg_pool2d(functional.pad(evidence, (1, 1, 1, 1), mode='replicate'), 3, 1)


def peak(logits: Tensor, inverse: Tensor) -> Tensor:
    """Inverse depth (B, h, w) around the likeliest of (B, D) or (B, D, h, w), between those that were tried."""
    chance = logits.softmax(1)
    inverse = inverse if inverse.ndim == 4 else inverse[:, :, None, None].expand_as(chance)
    beside = torch.arange(-_NEAR, _NEAR + 1, device=logits.device)[None, :, None, None]
    index = chance.argmax(1, keepdim=True) + beside
    inside = (index >= 0) & (index < chance.shape[1])
    index = index.clamp(0, chance.shape[1] - 1)
    near = chance.gather(1, index) * inside
    return (near * inverse.gather(1, index)).sum(1) / near.sum(1)


def save_sweep_depth(path: Path, network: SweepDepthNetwork, header: Mapping[str, Any]) -> None:
    """Write a network in half precision as safetensors.

    `header` holds commit, data, licence and `weights`, the hash of the weights of `mini` whose descriptors it reads.
    """
    content = {**header, 'architecture': {'name': 'sweep-depth', **to_mapping(network.config)}}
    write_half(path, network, HEADER_KEY, content)


def load_sweep_depth(path: Path) -> tuple[SweepDepthNetwork, dict[str, Any]]:
    """Network in evaluation mode, in float32, and its header.

    Raises DataError for a file that is damaged or of another architecture.
    """
    header = read_half_header(path, HEADER_KEY, 'depth')
    try:
        architecture = {key: value for key, value in header['architecture'].items() if key != 'name'}
        network = SweepDepthNetwork(from_mapping(SweepDepthConfig, architecture))
    except (ConfigError, KeyError) as error:
        raise DataError(f'cannot use the weights {path}: {error}') from error
    fill_from_half(network, path)
    return network.eval().requires_grad_(False), header
