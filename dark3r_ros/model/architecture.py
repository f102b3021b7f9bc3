# SPDX-License-Identifier: Apache-2.0
"""Sizes of a network from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.config import NetworkConfig

# The one thing that shapes do not tell; 64 in every published model of this family.
HEAD_DIM = 64


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(rf'{prefix}\.(\d+)\.', key))]
    return max(numbers, default=-1) + 1


def infer_config(
    state: Mapping[str, Tensor], where: str = 'the weights', stated: Mapping[str, Any] | None = None
) -> NetworkConfig:
    """Read the sizes of a MASt3R-like network (DPT head) off its state dict.

    Parameters
    ----------
    state: tensors under the names of the public checkpoints. where: what errors call them.
    stated: fields of `NetworkConfig` known from elsewhere. They give what shapes do not tell: the numbers of heads
        (otherwise a head has 64 channels) and the frequency base.

    Raises DataError when keys or shapes are not those of such a network, or contradict what is stated.

    """
    try:
        return _infer(state, stated or {})
    except KeyError as error:
        raise DataError(f'{where}: wrong architecture: no {error.args[0]} among {len(state)} tensors') from error
    except (ConfigError, IndexError, ValueError, ZeroDivisionError) as error:
        raise DataError(f'{where}: wrong architecture: {error}') from error


def _infer(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> NetworkConfig:
    seen = _sizes(state)
    for key, value in stated.items():
        if seen.get(key, value) != value:
            raise ConfigError(f'{key} is stated as {value!r}, the tensors have {seen[key]!r}')
    heads = {
        f'{side}_num_heads': _heads(side, seen[f'{side}_embed_dim'])
        for side in ('enc', 'dec')
        if f'{side}_num_heads' not in stated
    }
    return NetworkConfig(**{**seen, **heads, **stated})


def _heads(side: str, width: int) -> int:
    if width % HEAD_DIM:
        raise ConfigError(
            f'{side}_embed_dim {width} is no multiple of {HEAD_DIM}, so that the shapes do not tell {side}_num_heads: '
            'state the sizes'
        )
    return int(width // HEAD_DIM)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    head = 'downstream_head1.'
    enc, channels, patch, _ = state['patch_embed.proj.weight'].shape
    dec = state['decoder_embed.weight'].shape[0]
    local = state[f'{head}head_local_features.fc2.weight'].shape[0]
    return {
        'enc_embed_dim': enc,
        'enc_depth': _depth(state, 'enc_blocks'),
        'dec_embed_dim': dec,
        'dec_depth': _depth(state, 'dec_blocks'),
        'in_channels': channels,
        'patch_size': patch,
        'mlp_ratio': state['enc_blocks.0.mlp.fc1.weight'].shape[0] / enc,
        'desc_dim': local // patch**2 - 1,
        'local_ratio': state[f'{head}head_local_features.fc1.weight'].shape[0] / (enc + dec),
        'dpt_feature_dim': state[f'{head}dpt.scratch.refinenet1.out_conv.weight'].shape[0],
        'dpt_last_dim': state[f'{head}dpt.head.2.weight'].shape[0],
        'dpt_layer_dims': tuple(state[f'{head}dpt.act_postprocess.{level}.0.weight'].shape[0] for level in range(4)),
    }
