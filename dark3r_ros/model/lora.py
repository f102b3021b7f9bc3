# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (Hu et al. 2021, LoRA): y = W x + (alpha / rank) B A x with W frozen.

An adapter lives inside the layer that it changes, as `lora_down` (A) and `lora_up` (B), added to the output by a
forward hook: the names of the network's own weights stay what they are, so that files load before and after.
Convolutions get a convolution of the same size for A and a 1x1 one for B.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dark3r_ros.config import Config, from_mapping, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError, OutputError

HEADER_KEY = 'dark3r_lora'
PARTS = ('encoder', 'decoder', 'all')
KINDS = ('qkv', 'projection', 'mlp', 'convolution')
_ENDINGS = {
    'qkv': ('attn.qkv', 'projq', 'projk', 'projv', 'self_qkv', 'cross_query', 'cross_key_value'),
    'projection': ('attn.proj', 'cross_attn.proj', 'self_out', 'cross_out'),
    'mlp': ('mlp.fc1', 'mlp.fc2', 'mlp.0', 'mlp.2'),
}
# What module names begin with: blocks of the two-view networks, stages of `mini`.
_ENCODER, _DECODER = (
    ('enc_blocks.', 'stage'),
    ('dec_blocks.', 'dec_blocks2.', 'up', 'coarse_head', 'fine_head', 'cross'),
)


@dataclass(frozen=True)
class LoraConfig(Config):
    """Which layers get an adapter, and how large it is."""

    rank: int = setting(16, 'Rank of an adapter.', minimum=1, maximum=1024)
    alpha: float = setting(16.0, 'Strength; the product of both matrices is scaled by alpha over rank.', minimum=0.0)
    part: str = setting('all', 'Part of the network.', choices=PARTS)
    kinds: tuple[str, ...] = setting(KINDS, 'Kinds of layers: qkv, projection, mlp, convolution.')
    layers: tuple[int, ...] = setting((), 'Numbers of the blocks, counted from 0 in each part; empty: all.')

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown or not self.kinds:
            raise ConfigError(f'unknown kind of layer {unknown[:1]}; known: {", ".join(KINDS)}')

    @property
    def scale(self) -> float:
        """Factor of the product of both matrices."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class AdapterInfo:
    """Header of an adapter file: what it fits, and where it comes from."""

    config: LoraConfig
    base: str = ''
    commit: str = ''
    data: str = ''
    licence: str = ''
    extra: Mapping[str, Any] | None = None


def targets(network: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Layers of a network that get an adapter, by name; ConfigError when there is none."""
    found = {name: module for name, module in network.named_modules() if _chosen(name, module, config)}
    if not found:
        raise ConfigError(
            f'no layer for adapters: part {config.part}, kinds {", ".join(config.kinds)}, '
            f'layers {list(config.layers) or "all"}'
        )
    return found


def _chosen(name: str, module: nn.Module, config: LoraConfig) -> bool:
    wanted = {'encoder': _ENCODER, 'decoder': _DECODER, 'all': _ENCODER + _DECODER}[config.part]
    if 'lora_' in name or not name.startswith(wanted):
        return False
    if isinstance(module, nn.Conv2d):
        return 'convolution' in config.kinds and module.groups == 1 and not config.layers
    if not isinstance(module, nn.Linear):
        return False
    block = next((int(part) for part in name.split('.') if part.isdigit()), -1)
    if config.layers and block not in config.layers:
        return False
    return any(name.endswith(f'.{ending}') for kind in config.kinds for ending in _ENDINGS.get(kind, ()))


def add_adapters(network: nn.Module, config: LoraConfig, seed: int = 0) -> list[str]:
    """Freeze a network and give it adapters that change nothing yet; returns the names of the adapted layers.

    A is drawn as a fresh layer would be (Kaiming, uniform), B is zero.
    """
    if any(True for _ in adapted(network)):
        raise ConfigError('the network has adapters already: merge or remove them first')
    chosen = targets(network, config)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in chosen.values():
        down, up = _pair(module, config.rank)
        with torch.no_grad():
            bound = 1.0 / math.sqrt(down.weight[0].numel())
            fresh = torch.empty(down.weight.shape).uniform_(-bound, bound, generator=generator)
            down.weight.copy_(fresh)
            up.weight.zero_()
        module.add_module('lora_down', down)
        module.add_module('lora_up', up)
        module.lora_scale = config.scale  # type: ignore[assignment]
        module.register_forward_hook(_add)
    return list(chosen)


def _pair(module: nn.Module, rank: int) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    device, dtype = weight.device, weight.dtype
    if isinstance(module, nn.Linear):
        return (
            nn.Linear(module.in_features, rank, bias=False, device=device, dtype=dtype),
            nn.Linear(rank, module.out_features, bias=False, device=device, dtype=dtype),
        )
    assert isinstance(module, nn.Conv2d)
    down = nn.Conv2d(
        module.in_channels,
        rank,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=module.padding_mode,
        device=device,
        dtype=dtype,
    )
    return down, nn.Conv2d(rank, module.out_channels, 1, bias=False, device=device, dtype=dtype)


def _add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if 'lora_down' not in module._modules or getattr(module, 'lora_base', None) is not None:
        return output
    change: Tensor = module.lora_up(module.lora_down(inputs[0]))
    return output + module.lora_scale * change


def adapted(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and layers that have an adapter."""
    for name, module in network.named_modules():
        if 'lora_down' in module._modules:
            yield name, module


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Put the adapters into the weights, so that running costs nothing more; `unmerge` takes them out again."""
    for _, module in adapted(network):
        if getattr(module, 'lora_base', None) is None:
            module.lora_base = module.weight.detach().clone()
            module.weight.copy_((module.weight.double() + _change(module)).to(module.weight.dtype))


@torch.no_grad()
def unmerge(network: nn.Module) -> None:
    """Bring the weights back to what they were before `merge`, bit for bit."""
    for _, module in adapted(network):
        base = getattr(module, 'lora_base', None)
        if base is not None:
            module.weight.copy_(base)
            module.lora_base = None


def remove_adapters(network: nn.Module) -> None:
    """Take the adapters away; what was merged stays in the weights."""
    for _, module in list(adapted(network)):
        del module.lora_down, module.lora_up
        module.lora_base = None
        for key, hook in list(module._forward_hooks.items()):
            if hook is _add:
                del module._forward_hooks[key]


def _change(module: Any) -> Tensor:
    """What an adapter adds to a weight, in float64."""
    down, up = module.lora_down.weight.double(), module.lora_up.weight.double()
    product = up.flatten(1) @ down.flatten(1)
    return float(module.lora_scale) * product.view_as(module.weight)


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by name."""
    return {
        f'{name}.{side}.weight': getattr(module, side).weight.detach()
        for name, module in adapted(network)
        for side in ('lora_down', 'lora_up')
    }


def save_adapters(path: str | Path, network: nn.Module, info: AdapterInfo, *, half: bool = False) -> None:
    """Write the adapters alone; ConfigError without any, OutputError where the file cannot be written."""
    state = adapter_state(network)
    if not state:
        raise ConfigError('the network has no adapters to save')
    kept = {
        name: value.to('cpu', torch.float16 if half else torch.float32).contiguous() for name, value in state.items()
    }
    header = {**vars(info), 'config': to_mapping(info.config), 'extra': dict(info.extra or {})}
    temporary = Path(path).with_suffix('.new')
    try:
        save_file(kept, temporary, metadata={HEADER_KEY: json.dumps(header, sort_keys=True)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f'cannot write adapters to {path}: {error}') from error


def load_adapters(path: str | Path, network: nn.Module) -> AdapterInfo:
    """Give a network the adapters of a file; DataError for a file that is damaged or fits another network."""
    try:
        with safe_open(path, framework='pt') as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f'cannot read the adapters {path}: {error}') from error
    if text is None:
        raise DataError(f'{path} holds no adapters: its header lacks {HEADER_KEY!r}')
    try:
        header = json.loads(text)
        info = AdapterInfo(**{**header, 'config': from_mapping(LoraConfig, header['config'])})
        names = sorted(targets(network, info.config))
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f'the adapters {path} do not fit: {error}') from error
    wanted = sorted(f'{name}.{side}.weight' for name in names for side in ('lora_down', 'lora_up'))
    _check(wanted, state, path)
    add_adapters(network, info.config)
    with torch.no_grad():
        for name, module in adapted(network):
            for side in ('lora_down', 'lora_up'):
                target, value = getattr(module, side).weight, state[f'{name}.{side}.weight']
                if target.shape != value.shape:
                    remove_adapters(network)
                    raise DataError(f'the adapters {path} do not fit: {name} has another size')
                target.copy_(value)
    return info


def _check(wanted: Sequence[str], state: Mapping[str, Tensor], path: str | Path) -> None:
    wrong = sorted(set(wanted) ^ set(state))
    if wrong:
        raise DataError(f'the adapters {path} do not fit this network: {wrong[0]} is in one of them only')
