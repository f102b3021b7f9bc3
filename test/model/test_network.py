# SPDX-License-Identifier: Apache-2.0
"""Properties of the network that hold for any weights; no reference files needed."""

import numpy as np
import pytest
import torch

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.config import PRESETS, NetworkConfig, preset
from dark3r_ros.model.heads import DptHead, FusionBlock, as_map
from dark3r_ros.model.network import TwoViewNetwork, activate, initialise

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2,
    head='linear', output_stride=4, desc_dim=6, local_ratio=1.0,
)  # fmt: skip
TINY_DPT = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, dec_num_heads=2,
    desc_dim=6, local_ratio=1.0, dpt_feature_dim=8, dpt_last_dim=6, dpt_layer_dims=(4, 6, 8, 10),
)  # fmt: skip


def make(config, seed=0):
    return initialise(TwoViewNetwork(config), seed).eval()


@pytest.mark.parametrize('config', [TINY, TINY_DPT])
@pytest.mark.parametrize('size1, size2', [((48, 80), (48, 80)), ((80, 48), (80, 48)), ((16, 64), (112, 16))])
def test_shapes_and_units_of_the_maps(config, size1, size2):
    torch.manual_seed(0)
    with torch.inference_mode():
        views = make(config)(torch.randn(2, 3, *size1), torch.randn(2, 3, *size2))
    for view, (height, width) in zip(views, (size1, size2), strict=True):
        shape = (2, height // config.output_stride, width // config.output_stride)
        assert view.points.shape == (*shape, 3)
        assert view.descriptors.shape == (*shape, 6)
        assert view.confidence.shape == view.descriptor_confidence.shape == shape
        torch.testing.assert_close(view.descriptors.norm(dim=-1), torch.ones(shape))
        assert (view.confidence >= 1).all()
        assert (view.descriptor_confidence > 0).all()
        assert all(bool(part.isfinite().all()) for part in view)


def test_activation_keeps_directions_and_grows_exponentially():
    raw = torch.tensor([[0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [0.0, 1e-9, 0.0]]).T.reshape(1, 3, 1, 3)
    local = torch.ones(1, 3, 1, 3)
    local[0, :2, 0] = torch.tensor([[3.0, 0.0, 1e-30], [4.0, 0.0, 0.0]])
    view = activate(torch.cat((raw, torch.zeros(1, 1, 1, 3)), 1), local)
    np.testing.assert_allclose(view.descriptors[0, 0].numpy(), [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    expected = [[0, 0, np.expm1(2)], [np.expm1(3), 0, 0], [0, 1e-10, 0]]
    np.testing.assert_allclose(view.points[0, 0].numpy(), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(view.confidence.numpy(), 2.0)


def test_tokens_of_one_view_do_not_depend_on_its_neighbours_in_the_batch():
    torch.manual_seed(1)
    network, images = make(TINY), torch.randn(3, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(network.encode(images)[1:2], network.encode(images[1:2]), rtol=1e-5, atol=1e-5)


def test_view_1_reads_view_2_of_the_previous_layer():
    network, config = make(TINY), TINY
    torch.manual_seed(2)
    encoded = torch.randn(2, 1, 6, config.enc_embed_dim)
    with torch.inference_mode():
        before, _ = network.decode_tokens(encoded[0], encoded[1], (2, 3), (2, 3))
        after, _ = network.decode_tokens(encoded[0], encoded[1] + 1, (2, 3), (2, 3))
    assert (before[1] - after[1]).abs().max() > 1e-4
    network.dec_blocks2[0].mlp.fc2.weight.data += 1
    with torch.inference_mode():
        changed, _ = network.decode_tokens(encoded[0], encoded[1], (2, 3), (2, 3))
    assert torch.equal(before[1], changed[1])
    assert not torch.equal(before[2], changed[2])


def test_odd_grid_is_cut_not_resized():
    """On a grid of 3x5 tokens the coarsest level has 2x3: its upsampled map must keep its upper left part in place."""
    head = initialise(TwoViewNetwork(TINY_DPT), 3).downstream_head1.dpt.eval()
    seen = {}
    head.scratch.refinenet4.register_forward_hook(lambda _m, _i, out: seen.update(coarse=out))
    head.scratch.refinenet3.register_forward_pre_hook(lambda _m, inputs: seen.update(cut=inputs[0]))
    layers = [torch.randn(1, 15, 32), *(torch.randn(1, 15, 24) for _ in range(4))]
    with torch.inference_mode():
        assert head(layers, (3, 5)).shape == (1, 4, 48, 80)
    assert seen['coarse'].shape[2:] == (4, 6)
    assert torch.equal(seen['cut'], seen['coarse'][:, :, :3, :5])


def test_fusion_block_order_of_convolution_and_upsampling_does_not_matter():
    torch.manual_seed(4)
    block = FusionBlock(4, merges=False).double()
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    late = block.out_conv(
        torch.nn.functional.interpolate(block.resConfUnit2(x), size=(6, 10), mode='bilinear', align_corners=True)
    )
    torch.testing.assert_close(block(x), late)


def test_as_map_is_raster_order():
    tokens = torch.arange(6.0).reshape(1, 6, 1)
    assert as_map(tokens, (2, 3))[0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_first_layers_and_heads_stay_in_float32_under_autocast():
    """A signal of a hundredth of a bfloat16 step on a pedestal still reaches the tokens."""
    network = make(TINY)
    pedestal = torch.full((1, 3, 32, 32), -0.875)
    torch.manual_seed(5)
    signal = 4e-5 * torch.randn(1, 3, 32, 32)
    assert torch.equal((pedestal + signal).bfloat16(), pedestal.bfloat16())
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        seen = network.patch_embed.register_forward_hook
        outputs = []
        handle = seen(lambda _m, _i, out: outputs.append(out))
        views = network.decode(network.encode(pedestal), network.encode(pedestal + signal), (2, 2), (2, 2))
        handle.remove()
    assert outputs[0].dtype == torch.float32
    difference = (outputs[0] - outputs[1]).abs().max()
    assert 1e-6 < difference < 1e-2
    assert all(part.dtype == torch.float32 for view in views for part in view)


def test_same_seed_same_weights():
    first, second, other = make(TINY, 7), make(TINY, 7), make(TINY, 8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.patch_embed.proj.weight, other.patch_embed.proj.weight)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'enc_embed_dim': 30}, 'multiple of 4'),
        ({'output_stride': 3}, 'does not divide'),
        ({'head': 'dpt'}, 'output_stride 1'),
        ({'head': 'dpt', 'output_stride': 1, 'dpt_hooks': (0, 1, 2, 9)}, 'leave the range'),
        ({'head': 'dpt', 'output_stride': 1, 'dpt_layer_dims': (4, 4)}, 'four levels'),
    ],
)
def test_contradicting_sizes_are_refused(changes, message):
    values = {**TINY.__dict__, **changes}
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**values)


def test_presets_have_the_sizes_of_their_names():
    with torch.device('meta'):
        counts = {name: sum(p.numel() for p in TwoViewNetwork(config).parameters()) for name, config in PRESETS.items()}
    assert counts['mini-2m'] == pytest.approx(2e6, rel=0.25)
    assert counts['compact-10m'] == pytest.approx(10e6, rel=0.1)
    # The published 688,638,856 less the mask token and two residual units that no output depends on.
    assert counts['mast3r-large'] == 688_638_856 - 768 - 2 * 2 * (256 * 256 * 9 + 256)
    with pytest.raises(ConfigError, match='mini-2m'):
        preset('huge')


@pytest.mark.parametrize(
    'shape, message', [((1, 1, 32, 32), r'\(batch, 3'), ((1, 3, 8, 32), 'patches'), ((1, 3, 40, 32), 'multiple')]
)
def test_wrong_images_are_refused(shape, message):
    with pytest.raises(DataError, match=message):
        make(TINY).encode(torch.zeros(shape))


def test_dpt_head_takes_the_encoder_only_at_hook_0():
    config = NetworkConfig(**{**TINY_DPT.__dict__, 'dpt_hooks': (1, 2, 3, 4)})
    assert DptHead(config).act_postprocess[0][0].in_channels == config.dec_embed_dim
    assert DptHead(TINY_DPT).act_postprocess[0][0].in_channels == config.enc_embed_dim


@pytest.mark.parametrize('config', [TINY, TINY_DPT])
def test_float64_network_computes_in_float64(config):
    torch.manual_seed(6)
    first, second = torch.randn(2, 3, 48, 80), torch.randn(2, 3, 80, 48)
    with torch.inference_mode():
        single = make(config)(first, second)
        double = make(config).double()(first, second)
    for low, high in zip((*single[0], *single[1]), (*double[0], *double[1]), strict=True):
        assert high.dtype == torch.float64
        assert 0 < (low - high).abs().max() < 1e-4 * high.abs().max()


def test_inference_does_not_spoil_a_later_training_step():
    network = initialise(TwoViewNetwork(TINY), 0)
    image = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        network(image, image)
    network(image, image)[0].points.sum().backward()
    assert network.patch_embed.proj.weight.grad.abs().sum() > 0


def test_compiler_sees_one_graph_with_the_positions_in_it():
    network, graphs = make(TINY), []

    def record(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    network.rotations((2, 3), torch.device('cpu'))
    encode = torch.compile(network.encode, backend=record, fullgraph=True)
    decode = torch.compile(network.decode, backend=record, fullgraph=True)
    with torch.inference_mode():
        for seed in range(2):
            image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(seed))
            tokens = encode(image)
            views = decode(tokens, tokens, (2, 3), (2, 3))
            assert torch.equal(tokens, network.encode(image))
            assert torch.equal(views[1].points, network.decode(tokens, tokens, (2, 3), (2, 3))[1].points)
    assert len(graphs) == 2
    operations = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert not any('arange' in name or 'cos' in name for name in operations)
