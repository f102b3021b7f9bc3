# SPDX-License-Identifier: Apache-2.0
"""Weight files of the small networks: half precision, safetensors, a JSON header that says where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dark3r_ros.errors import DataError

_COUNTER = 'num_batches_tracked'  # of batch normalisation, without a use after training


def write_half(path: Path, network: nn.Module, key: str, header: Mapping[str, Any]) -> None:
    """Write the weights with a header under `key`."""
    state = {
        name: value.detach().cpu().to(torch.float16).contiguous() if value.is_floating_point() else value.cpu()
        for name, value in network.state_dict().items()
        if not name.endswith(_COUNTER)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={key: json.dumps(dict(header), sort_keys=True)})


def read_half_header(path: Path, key: str, holds: str) -> dict[str, Any]:
    """Header of a weight file; DataError where it is not one that `holds` what it should."""
    try:
        with safe_open(path, framework='pt') as file:
            text = (file.metadata() or {}).get(key)
    except (OSError, SafetensorError) as error:
        raise DataError(f'cannot read the weights {path}: {error}') from error
    if text is None:
        raise DataError(f'{path} holds no weights of {holds}: its header lacks {key!r}')
    return dict(json.loads(text))


def fill_from_half(network: nn.Module, path: Path) -> None:
    """Give a network in full precision the weights of a file; DataError where they do not fit."""
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f'cannot use the weights {path}: {error}') from error
    own = {key: value for key, value in network.state_dict().items() if not key.endswith(_COUNTER)}
    wrong = set(own) ^ set(state) or {key for key, value in own.items() if value.shape != state[key].shape}
    if wrong:
        raise DataError(f'the weights {path} do not fit their architecture: {sorted(wrong)[0]}')
    network.load_state_dict(state, strict=False)
