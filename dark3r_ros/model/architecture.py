# SPDX-License-Identifier: Apache-2.0
"""Sizes of a network from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.config import NetworkConfig

# The one thing that shapes do not tell; 64 in every published model of this family.
HEAD_DIM = 64


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(rf'{prefix}\.(\d+)\.', key))]
    return max(numbers, default=-1) + 1


def infer_config(state: Mapping[str, Tensor], where: str = 'the weights', head_dim: int = HEAD_DIM) -> NetworkConfig:
    """Read the sizes of a MASt3R-like network (DPT head) off its state dict.

    Raises DataError when the keys or shapes are not those of such a network.
    """
    try:
        return _infer(state, head_dim)
    except KeyError as error:
        raise DataError(f'{where}: wrong architecture: no {error.args[0]} among {len(state)} tensors') from error
    except (ConfigError, IndexError, ValueError, ZeroDivisionError) as error:
        raise DataError(f'{where}: wrong architecture: {error}') from error


def _infer(state: Mapping[str, Tensor], head_dim: int) -> NetworkConfig:
    head = 'downstream_head1.'
    enc, channels, patch, _ = state['patch_embed.proj.weight'].shape
    dec = state['decoder_embed.weight'].shape[0]
    dims = tuple(state[f'{head}dpt.act_postprocess.{level}.0.weight'].shape[0] for level in range(4))
    scratch = f'{head}dpt.scratch.refinenet1.out_conv.weight'
    local = state[f'{head}head_local_features.fc2.weight'].shape[0]
    return NetworkConfig(
        enc_embed_dim=enc,
        enc_depth=_depth(state, 'enc_blocks'),
        enc_num_heads=max(1, enc // head_dim),
        dec_embed_dim=dec,
        dec_depth=_depth(state, 'dec_blocks'),
        dec_num_heads=max(1, dec // head_dim),
        in_channels=channels,
        patch_size=patch,
        mlp_ratio=state['enc_blocks.0.mlp.fc1.weight'].shape[0] / enc,
        desc_dim=local // patch**2 - 1,
        local_ratio=state[f'{head}head_local_features.fc1.weight'].shape[0] / (enc + dec),
        dpt_feature_dim=state[scratch].shape[0],
        dpt_last_dim=state[f'{head}dpt.head.2.weight'].shape[0],
        dpt_layer_dims=dims,
    )
