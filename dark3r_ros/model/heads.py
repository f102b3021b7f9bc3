# SPDX-License-Identifier: Apache-2.0
"""Heads that turn tokens into maps: points with confidence, and local descriptors with confidence.

`DptHead` follows Ranftl et al. 2021 (Vision Transformers for Dense Prediction); `LinearHead` is the cheap one of our
own small configurations. All heads compute in the dtype of their weights, which the network keeps at float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.layers import Mlp, hidden_width

POINT_CHANNELS = 4


def upsample(x: Tensor) -> Tensor:
    """Double height and width bilinearly, corners kept in place."""
    return functional.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, h*w, C) in raster order -> (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))); the skip is the un-rectified input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class FusionBlock(nn.Module):
    """Add a finer level to the coarser one, refine, and double the resolution."""

    def __init__(self, width: int, merges: bool) -> None:
        super().__init__()
        if merges:
            self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        """(B, width, h, w) twice -> (B, width, 2h, 2w)."""
        if fine is not None:
            coarse = coarse + self.resConfUnit1(fine)
        # A 1x1 convolution commutes with the interpolation, and costs a quarter before it.
        return upsample(self.out_conv(self.resConfUnit2(coarse)))


class _Scratch(nn.Module):
    """The fusion part of the DPT head, under the name that its weights carry."""

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in dims
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (FusionBlock(width, merges=True) for _ in range(3))
        self.refinenet4 = FusionBlock(width, merges=False)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C_n, ..) at 4, 2, 1 and 1/2 times the token grid -> (B, width, 8h, 8w)."""
        third = self.layer3_rn(levels[2])
        path = self.refinenet4(self.layer4_rn(levels[3]))
        # An odd grid was rounded up by the strided convolution: the surplus row or column is cut, not resized.
        path = self.refinenet3(path[:, :, : third.shape[2], : third.shape[3]], third)
        path = self.refinenet2(path, self.layer2_rn(levels[1]))
        return self.refinenet1(path, self.layer1_rn(levels[0]))


class DptHead(nn.Module):
    """Four levels of tokens -> (B, 4, 16h, 16w): x, y, z and the logit of the confidence."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.hooks = config.hooks
        a, b, c, d = dims = config.dpt_layer_dims
        width, last = config.dpt_feature_dim, config.dpt_last_dim
        inputs = [config.enc_embed_dim if hook == 0 else config.dec_embed_dim for hook in self.hooks]
        self.act_postprocess = nn.ModuleList(
            (
                nn.Sequential(nn.Conv2d(inputs[0], a, 1), nn.ConvTranspose2d(a, a, 4, stride=4)),
                nn.Sequential(nn.Conv2d(inputs[1], b, 1), nn.ConvTranspose2d(b, b, 2, stride=2)),
                nn.Sequential(nn.Conv2d(inputs[2], c, 1)),
                nn.Sequential(nn.Conv2d(inputs[3], d, 1), nn.Conv2d(d, d, 3, stride=2, padding=1)),
            )
        )
        self.scratch = _Scratch(dims, width)
        # Numbered as in the weights: 1 is the upsampling, 3 the rectifier.
        self.head = nn.ModuleDict(
            {
                '0': nn.Conv2d(width, width // 2, 3, padding=1),
                '2': nn.Conv2d(width // 2, last, 3, padding=1),
                '4': nn.Conv2d(last, POINT_CHANNELS, 1),
            }
        )

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Encoder and decoder tokens, each (B, h*w, C), of a grid (h, w) -> (B, 4, 16h, 16w)."""
        levels = [
            project(as_map(layers[hook], grid)) for hook, project in zip(self.hooks, self.act_postprocess, strict=True)
        ]
        path = self.scratch(levels)
        path = functional.relu(self.head['2'](upsample(self.head['0'](path))))
        return self.head['4'](path)


class LinearHead(nn.Module):
    """Last decoder tokens -> (B, 4, H/s, W/s) by one linear layer and a pixel shuffle, s the output stride."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.factor = config.patch_size // config.output_stride
        self.proj = nn.Linear(config.dec_embed_dim, POINT_CHANNELS * self.factor**2)

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Encoder and decoder tokens, each (B, h*w, C), of a grid (h, w) -> (B, 4, H/s, W/s)."""
        return functional.pixel_shuffle(as_map(self.proj(layers[-1]), grid), self.factor)


class ViewHead(nn.Module):
    """Both heads of one view."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.kind = config.head
        self.add_module(self.kind, DptHead(config) if config.head == 'dpt' else LinearHead(config))
        self.factor = config.patch_size // config.output_stride
        width = config.enc_embed_dim + config.dec_embed_dim
        self.head_local_features = Mlp(
            width, hidden_width(width, config.local_ratio), (config.desc_dim + 1) * self.factor**2
        )

    def forward(self, layers: Sequence[Tensor], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Encoder and decoder tokens -> points (B, 4, H/s, W/s) and descriptors (B, desc_dim + 1, H/s, W/s)."""
        points = getattr(self, self.kind)(layers, grid)
        local = self.head_local_features(torch.cat((layers[0], layers[-1]), dim=-1))
        return points, functional.pixel_shuffle(as_map(local, grid), self.factor)
