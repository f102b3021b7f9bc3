# SPDX-License-Identifier: Apache-2.0
"""Adapters change nothing at first, equal the matrix that they stand for, and come back from their file."""

import copy

import pytest
import torch
from torch import nn

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.lora import (
    AdapterInfo,
    LoraConfig,
    adapted,
    adapter_state,
    add_adapters,
    load_adapters,
    merge,
    remove_adapters,
    save_adapters,
    targets,
    unmerge,
)
from dark3r_ros.model.mini import MiniConfig, MiniNetwork
from dark3r_ros.model.network import TwoViewNetwork, initialise

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=3, enc_num_heads=2, dec_embed_dim=32, dec_depth=2, dec_num_heads=2, head='linear',
    output_stride=4, local_ratio=1.0, desc_dim=8,
)  # fmt: skip
SMALL = MiniConfig(stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4)


def two_view():
    return initialise(TwoViewNetwork(TINY), 0).double().eval()


def shaken(network, seed=1):
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter_state(network).values():
            value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype) * 0.1)
    return network


def image(seed, batch=1):
    return torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('part', ['encoder', 'decoder', 'all'])
def test_merged_equals_unmerged_in_float64(part):
    network = two_view()
    plain = network(image(0), image(1))
    add_adapters(network, LoraConfig(rank=4, alpha=8.0, part=part))
    for before, after in zip(plain, network(image(0), image(1)), strict=True):
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x, y)
    shaken(network)
    apart = network(image(0), image(1))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    merge(network)
    together = network(image(0), image(1))
    for x, y, z in zip(apart[1], together[1], plain[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)
        assert not torch.allclose(x, z, rtol=1e-3)
    unmerge(network)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    merge(network)
    remove_adapters(network)
    assert set(network.state_dict()) == set(two_view().state_dict())
    torch.testing.assert_close(network(image(0), image(1))[1].descriptors, apart[1].descriptors, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Linear(6, 5),
        nn.Conv2d(6, 5, 1),
        nn.Conv2d(6, 5, 3, stride=2, padding=1),
        nn.Conv2d(6, 5, 5, padding=2, bias=False),
    ],
)
def test_a_layer_gets_the_product_of_its_matrices(layer):
    network = nn.ModuleDict({'stage1': layer.double()})
    if isinstance(layer, nn.Linear):
        network = nn.ModuleDict({'enc_blocks': nn.ModuleList([nn.ModuleDict({'mlp': nn.ModuleDict({'fc1': layer})})])})
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    add_adapters(network, LoraConfig(rank=2, alpha=6.0))
    shaken(network)
    up, down = layer.lora_up.weight.flatten(1), layer.lora_down.weight.flatten(1)
    with torch.no_grad():
        plain.weight += 3.0 * (up @ down).view_as(plain.weight)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-12, atol=1e-12)


def test_mini_merges_too():
    network = MiniNetwork(SMALL).double().eval()
    names = add_adapters(network, LoraConfig(rank=2))
    adapted_kinds = {type(network.get_submodule(name)) for name in names}
    assert adapted_kinds == {nn.Conv2d, nn.Linear} and 'cross_view.layers.0.self_qkv' in names
    shaken(network)
    x = image(3, 2).repeat(1, 1, 2, 2)

    def described():
        context = network(x).context
        return network.relate(context, context)[0].coarse

    apart = described()
    merge(network)
    torch.testing.assert_close(described(), apart, rtol=1e-10, atol=1e-10)


def test_only_adapters_are_trained_and_only_where_asked():
    network = two_view()
    names = add_adapters(network, LoraConfig(rank=2, part='encoder', kinds=('qkv', 'mlp'), layers=(0, 2)))
    assert sorted(names) == sorted(
        f'enc_blocks.{block}.{layer}' for block in (0, 2) for layer in ('attn.qkv', 'mlp.fc1', 'mlp.fc2')
    )
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == set(adapter_state(network))
    decoder = targets(two_view(), LoraConfig(part='decoder', kinds=('projection',)))
    assert len(decoder) == 2 * 2 * 2 and all('.proj' in name and name.startswith('dec_blocks') for name in decoder)


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match='unknown kind'):
        LoraConfig(kinds=('qqq',))
    with pytest.raises(ConfigError, match='no layer for adapters'):
        add_adapters(two_view(), LoraConfig(layers=(9,)))
    network = two_view()
    add_adapters(network, LoraConfig())
    with pytest.raises(ConfigError, match='adapters already'):
        add_adapters(network, LoraConfig())


def test_file_of_adapters_comes_back(tmp_path):
    path = tmp_path / 'a.safetensors'
    network = two_view().float()
    add_adapters(network, LoraConfig(rank=3, part='encoder'))
    shaken(network)
    info = AdapterInfo(LoraConfig(rank=3, part='encoder'), base='abc', commit='c', data='d', licence='Apache-2.0')
    save_adapters(path, network, info)
    assert path.stat().st_size < 80_000
    other = two_view().float()
    found = load_adapters(path, other)
    assert (found.base, found.licence, found.config) == ('abc', 'Apache-2.0', info.config)
    x, y = image(0).float(), image(1).float()
    assert torch.equal(other(x, y)[0].points, network(x, y)[0].points)
    assert len(list(adapted(other))) == 3 * 4
    with pytest.raises(DataError, match='do not fit'):
        load_adapters(path, MiniNetwork(SMALL))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match='cannot read the adapters'):
        load_adapters(path, two_view())
