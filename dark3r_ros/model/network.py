# SPDX-License-Identifier: Apache-2.0
"""Two-view network: pointmaps, descriptors and confidences of a pair of images.

An independent implementation of the published MASt3R architecture (Leroy, Cabon, Revaud 2024: Grounding Image
Matching in 3D with MASt3R), written from a description of it. Parameter names are those of the public checkpoints.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dark3r_ros.errors import DataError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.heads import ViewHead
from dark3r_ros.model.layers import DecoderBlock, EncoderBlock, Norm, Rotation, rope_tables

Grid = tuple[int, int]


class ViewPrediction(NamedTuple):
    """Maps of one view, H' = H / output_stride.

    Attributes
    ----------
    points: (B, H', W', 3) in the optical frame of view 1 (x right, y down, z forward).
    confidence: (B, H', W') confidence of the points, at least 1.
    descriptors: (B, H', W', desc_dim) of unit length, or zero where the network gave a zero vector.
    descriptor_confidence: (B, H', W'), positive; unrelated to `confidence`.

    """

    points: Tensor
    confidence: Tensor
    descriptors: Tensor
    descriptor_confidence: Tensor


def activate(points: Tensor, local: Tensor) -> ViewPrediction:
    """Turn raw head outputs, (B, 4, H, W) and (B, D + 1, H, W), into the maps of a view."""
    points = points.permute(0, 2, 3, 1)
    local = local.permute(0, 2, 3, 1)
    xyz = points[..., :3]
    distance = xyz.norm(dim=-1, keepdim=True)
    raw = local[..., :-1]
    length = raw.norm(dim=-1, keepdim=True)
    return ViewPrediction(
        xyz / distance.clamp(min=1e-8) * torch.expm1(distance),
        1 + points[..., 3].exp(),
        # A vector of nothing, as a constant frame may give, stays nothing.
        raw / torch.where(length > 0, length, torch.inf),
        local[..., -1].exp(),
    )


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off; shapes-only (meta) tensors know no autocast."""
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


def token_grid(height: int, width: int, patch: int) -> Grid:
    """Rows and columns of tokens of an image; DataError when its size is no multiple of the patch."""
    if height < patch or width < patch or height % patch or width % patch:
        raise DataError(
            f'an image of {width}x{height} does not divide into patches of {patch}x{patch}: '
            'pad or crop it to a multiple of the patch size'
        )
    return height // patch, width // patch


def images_grid(images: Tensor, config: NetworkConfig) -> Grid:
    """Token grid of images (B, C, H, W); DataError when a network of this configuration cannot take them."""
    if images.ndim != 4 or images.shape[1] != config.in_channels:
        raise DataError(
            f'the network takes images (batch, {config.in_channels}, height, width), '
            f'got an array of shape {tuple(images.shape)}'
        )
    return token_grid(int(images.shape[2]), int(images.shape[3]), config.patch_size)


class PatchEmbed(nn.Module):
    """Image -> one token a patch, in raster order."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H/p * W/p, width)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class TwoViewNetwork(nn.Module):
    """Encoder shared by both views, one decoder and head a view.

    A frame is encoded once (`encode`), however many pairs it joins (`decode`). The patch embedding and the heads always
    compute in float32, also under autocast: a dark raw signal is smaller than one bfloat16 step.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        enc, dec = config.enc_embed_dim, config.dec_embed_dim
        ratio, eps = config.mlp_ratio, config.norm_eps
        self.patch_embed = PatchEmbed(config.in_channels, enc, config.patch_size)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(enc, config.enc_num_heads, ratio, eps) for _ in range(config.enc_depth)
        )
        self.enc_norm = Norm(enc, eps=eps)
        self.decoder_embed = nn.Linear(enc, dec)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(DecoderBlock(dec, config.dec_num_heads, ratio, eps) for _ in range(config.dec_depth))
            for _ in range(2)
        )
        self.dec_norm = Norm(dec, eps=eps)
        self.downstream_head1 = ViewHead(config)
        self.downstream_head2 = ViewHead(config)
        self._rotations: dict[tuple[int, int, str], tuple[Rotation, Rotation]] = {}

    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of tokens of an image; DataError when its size is no multiple of the patch."""
        return token_grid(height, width, self.config.patch_size)

    def rotations(self, grid: Grid, device: torch.device) -> tuple[Rotation, Rotation]:
        """Position tables of a token grid for encoder and decoder; made once a grid and device."""
        key = (*grid, str(device))
        if key not in self._rotations:
            config = self.config
            # Tables made during inference must also serve a later training step.
            with torch.inference_mode(False), torch.no_grad():
                self._rotations[key] = (
                    rope_tables(*grid, config.enc_embed_dim // config.enc_num_heads, config.rope_base, device),
                    rope_tables(*grid, config.dec_embed_dim // config.dec_num_heads, config.rope_base, device),
                )
        return self._rotations[key]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> normalised tokens (B, H/p * W/p, enc_embed_dim) in raster order.

        Raises DataError for a wrong number of channels or a size that is no multiple of the patch.
        """
        grid = images_grid(images, self.config)
        with _full_precision(images.device):
            tokens = self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))
        rotation, _ = self.rotations(grid, images.device)
        for block in self.enc_blocks:
            tokens = block(tokens, rotation)
        return self.enc_norm(tokens)

    def decode_tokens(
        self, encoded1: Tensor, encoded2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Let both views look at each other.

        Returns for each view [encoder output, output of decoder layer 1, .., of the last layer, normalised].
        """
        layers1, layers2 = [encoded1], [encoded2]
        # The residual stream keeps full precision, also under autocast.
        full = self.decoder_embed.weight.dtype
        x1, x2 = self.decoder_embed(encoded1).to(full), self.decoder_embed(encoded2).to(full)
        _, rotation1 = self.rotations(grid1, x1.device)
        _, rotation2 = self.rotations(grid2, x2.device)
        for block1, block2 in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            # Both read the previous layer of the other view.
            x1, x2 = block1(x1, x2, rotation1, rotation2), block2(x2, x1, rotation2, rotation1)
            layers1.append(x1)
            layers2.append(x2)
        layers1[-1], layers2[-1] = self.dec_norm(x1), self.dec_norm(x2)
        return layers1, layers2

    def decode_raw(
        self, encoded1: Tensor, encoded2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Head outputs before their activation: points (B, 4, H', W') and descriptors (B, D + 1, H', W') a view."""
        layers1, layers2 = self.decode_tokens(encoded1, encoded2, grid1, grid2)
        full = self.decoder_embed.weight.dtype
        with _full_precision(encoded1.device):
            raw1 = self.downstream_head1([layer.to(full) for layer in layers1], grid1)
            raw2 = self.downstream_head2([layer.to(full) for layer in layers2], grid2)
        return raw1, raw2

    def decode(
        self, encoded1: Tensor, encoded2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[ViewPrediction, ViewPrediction]:
        """Maps of both views from their encoder outputs (B, N1, E), (B, N2, E) and token grids (rows, columns)."""
        raw1, raw2 = self.decode_raw(encoded1, encoded2, grid1, grid2)
        return activate(*raw1), activate(*raw2)

    def forward(self, images1: Tensor, images2: Tensor) -> tuple[ViewPrediction, ViewPrediction]:
        """Images (B, C, H1, W1) and (B, C, H2, W2) -> maps of both views, in the frame of view 1."""
        grid1 = self.grid(int(images1.shape[2]), int(images1.shape[3]))
        grid2 = self.grid(int(images2.shape[2]), int(images2.shape[3]))
        if images1.shape == images2.shape:
            encoded1, encoded2 = self.encode(torch.cat((images1, images2))).chunk(2)
        else:
            encoded1, encoded2 = self.encode(images1), self.encode(images2)
        return self.decode(encoded1, encoded2, grid1, grid2)


def initialise(network: TwoViewNetwork, seed: int) -> TwoViewNetwork:
    """Draw fresh weights for training: Xavier-uniform linear layers, zero biases; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                matrix = module.weight.view(module.weight.shape[0], -1)
                nn.init.xavier_uniform_(matrix, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
    return network
