# SPDX-License-Identifier: Apache-2.0
"""Attention between the views of a pair."""

import math

import pytest
import torch

from dark3r_ros.errors import ConfigError
from dark3r_ros.model.cross_view import CrossView, rotary_table, rotate
from dark3r_ros.model.mini import MiniConfig, MiniContext, MiniNetwork

SMALL = MiniConfig(
    stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4, pair_width=16, pair_heads=2
)


def _trained_looking(seed=0):
    torch.manual_seed(seed)
    module = CrossView(6, 16, 2, 2).double()
    with torch.no_grad():
        module.leave.weight.normal_()
        module.leave.bias.normal_()
    return module


def test_untrained_layers_change_nothing():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 3, 4), torch.randn(2, 6, 5, 2)
    for change, like in zip(CrossView(6, 16, 2, 2)(a, b), (a, b), strict=True):
        assert change.shape == like.shape
        assert not change.any()


def test_rotary_products_depend_on_the_shift_alone():
    table = rotary_table(6, 7, 8, torch.device('cpu'))
    torch.manual_seed(0)
    query, key = torch.randn(8).double(), torch.randn(8).double()
    table = tuple(part.double() for part in table)
    turned_q, turned_k = rotate(query.expand(42, 8), table), rotate(key.expand(42, 8), table)
    products = (turned_q @ turned_k.T).reshape(6, 7, 6, 7)
    assert products[1, 2, 3, 5].item() == pytest.approx(products[2, 1, 4, 4].item(), abs=1e-6)
    assert abs(products[1, 2, 3, 5].item() - products[1, 2, 3, 4].item()) > 1e-3


def test_one_layer_against_sums_written_out():
    module = _trained_looking()
    layer, heads = module.layers[0], 2
    torch.manual_seed(1)
    x, y = torch.randn(1, 4, 16).double(), torch.randn(1, 6, 16).double()
    tables = [tuple(p.double() for p in rotary_table(2, n, 8, torch.device('cpu'))) for n in (2, 3)]

    def attention(query, key, value):
        result = torch.zeros_like(query)
        size = query.shape[1] // heads
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(len(query)):
                weights = [math.exp((query[i, part] @ k[part]).item() / math.sqrt(size)) for k in key]
                for weight, v in zip(weights, value, strict=True):
                    result[i, part] += weight / sum(weights) * v[part]
        return result

    def around(tokens, table):
        q, k, v = layer.self_qkv(layer.self_norm(tokens)).chunk(3, dim=-1)
        turned = [torch.cat([rotate(z[:, s], table) for s in (slice(0, 8), slice(8, 16))], dim=1) for z in (q, k)]
        return tokens + layer.self_out(attention(turned[0], turned[1], v))

    def across(tokens, other):
        k, v = layer.cross_key_value(layer.cross_norm(other)).chunk(2, dim=-1)
        tokens = tokens + layer.cross_out(attention(layer.cross_query(layer.cross_norm(tokens)), k, v))
        return tokens + layer.mlp(layer.mlp_norm(tokens))

    near, far = around(x[0], tables[0]), around(y[0], tables[1])
    found = layer(x, y, *tables)
    assert torch.allclose(found[0][0], across(near, far), atol=1e-10)
    assert torch.allclose(found[1][0], across(far, near), atol=1e-10)


def test_both_views_are_treated_alike():
    module = _trained_looking()
    torch.manual_seed(2)
    a, b = torch.randn(1, 6, 3, 4).double(), torch.randn(1, 6, 2, 5).double()
    forward, backward = module(a, b), module(b, a)
    assert torch.allclose(forward[0], backward[1])
    assert torch.allclose(forward[1], backward[0])


def test_a_pair_is_described_beside_its_partner():
    torch.manual_seed(3)
    network = MiniNetwork(SMALL).eval()
    torch.nn.init.normal_(network.cross_view.leave.weight)
    context = [network(torch.randn(1, 3, 64, 96)).context for _ in range(3)]
    with torch.inference_mode():
        a, b = network.relate(context[0], context[1])
        other, _ = network.relate(context[0], context[2])
    assert a.coarse.shape == b.coarse.shape == (1, 8, 8, 12)
    assert a.seen.shape == (1, 8, 12)
    assert torch.allclose(a.coarse.norm(dim=1), torch.ones(()), atol=1e-5)
    assert float((a.coarse - other.coarse).abs().max()) > 1e-4


def test_weights_without_the_layers_say_so():
    network = MiniNetwork(MiniConfig(pair_layers=0))
    with pytest.raises(ConfigError, match='cross-view'):
        network.relate(MiniContext(torch.zeros(1), torch.zeros(1)), MiniContext(torch.zeros(1), torch.zeros(1)))
