# SPDX-License-Identifier: Apache-2.0
"""The network against arrays that the published model gave on seeded random weights."""

import json

import numpy as np
import pytest
import torch
from network_golden import assert_matches, named_outputs, read_config, recipe_network, recipe_tensor
from safetensors.torch import load_file

from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.export import export_decoder, export_encoder
from dark3r_ros.model.network import TwoViewNetwork, activate
from dark3r_ros.model.weights import load_state

SMALL_CASES = ('landscape', 'portrait', 'mixed', 'odd')
DPT_HOOKS = {
    **{f'dpt_rn{n}': f'dpt.scratch.layer{n}_rn' for n in (1, 2, 3, 4)},
    **{f'dpt_path{n}': f'dpt.scratch.refinenet{n}' for n in (1, 2, 3, 4)},
    'dpt_raw': 'dpt.head.4',
}


@pytest.fixture(scope='module')
def small(shared_root):
    folder = shared_root / 'reference' / 'mast3r_small'
    config, _ = read_config(folder / 'config.json')
    network = TwoViewNetwork(config).eval()
    load_state(network, load_file(folder / 'weights.safetensors'))
    return network, folder


def run_traced(network, image1, image2):
    """All outputs and the inner states, under the names of the golden arrays."""
    inner = {}
    hooks = []

    def watch(name, module):
        hooks.append(module.register_forward_hook(lambda _m, _i, out: inner.__setitem__(name, out.numpy())))

    for view, head in (('1', network.downstream_head1), ('2', network.downstream_head2)):
        for name, path in DPT_HOOKS.items():
            watch(f'{name}_{view}', head.get_submodule(path))
    for index, block in enumerate(network.enc_blocks):
        watch(('enc', index), block)
    watch('patch_tokens', network.patch_embed)
    with torch.inference_mode():
        grids = [network.grid(*image.shape[2:]) for image in (image1, image2)]
        encoded = []
        for view, image in (('1', image1), ('2', image2)):
            encoded.append(network.encode(image))
            inner[f'enc_tokens_{view}'] = encoded[-1].numpy()
            inner[f'dec_embed_{view}'] = network.decoder_embed(encoded[-1]).numpy()
            inner[f'patch_tokens_{view}'] = inner.pop('patch_tokens')
            inner[f'enc_blocks_{view}'] = np.stack([inner.pop(('enc', i)) for i in range(len(network.enc_blocks))])
        for view, layers in zip('12', network.decode_tokens(*encoded, *grids), strict=True):
            inner[f'dec_blocks_{view}'] = np.stack([layer.numpy() for layer in layers[1:]])
            inner[f'dec_last_{view}'] = layers[-1].numpy()
        inner.update(named_outputs(*network.decode(*encoded, *grids)))
    for hook in hooks:
        hook.remove()
    return inner


@pytest.mark.parametrize('case', SMALL_CASES)
def test_small_every_array(small, case):
    network, folder = small
    arrays = dict(np.load(folder / f'{case}.npz'))
    got = run_traced(network, torch.from_numpy(arrays['img1']), torch.from_numpy(arrays['img2']))
    known = {name for name in arrays if not name.startswith(('img', 'pos_', 'sym_'))}
    assert known <= set(got)
    assert_matches({name: got[name] for name in known}, arrays)
    with torch.inference_mode():
        again = named_outputs(*network(torch.from_numpy(arrays['img1']), torch.from_numpy(arrays['img2'])))
    assert_matches(again, arrays)


def test_small_other_order_of_views(small):
    network, folder = small
    arrays = dict(np.load(folder / 'landscape.npz'))
    with torch.inference_mode():
        view2, view1 = network(torch.from_numpy(arrays['img2']), torch.from_numpy(arrays['img1']))
    got = {
        'sym_pts3d_22': view2.points.numpy(),
        'sym_conf_22': view2.confidence.numpy(),
        'sym_pts3d_12': view1.points.numpy(),
        'sym_conf_12': view1.confidence.numpy(),
    }
    assert_matches(got, arrays)


def test_batch_of_pairs_equals_single_pairs(small):
    network, folder = small
    arrays = dict(np.load(folder / 'landscape.npz'))
    one, two = torch.from_numpy(arrays['img1']), torch.from_numpy(arrays['img2'])
    with torch.inference_mode():
        batch = network(torch.cat((one, two)), torch.cat((two, one)))
        single = network(one, two)
    for view in (0, 1):
        for got, expected in zip(batch[view], single[view], strict=True):
            torch.testing.assert_close(got[:1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('case', ('landscape', 'odd'))
def test_recipe_mid(shared_root, case):
    folder = shared_root / 'reference' / 'mast3r_recipe'
    config, description = read_config(folder / 'mid_config.json')
    for key, probe in description['probes'].items():
        if 'layer_rn' not in key:
            shape = dict(TwoViewNetwork(config).state_dict())[key].shape
            values = recipe_tensor(key, tuple(shape), description['seed'], description['gains']).ravel()
            np.testing.assert_allclose(values[:4], probe['first4'], rtol=1e-6)
    network = recipe_network(config, description['seed'], description['gains'])
    arrays = dict(np.load(folder / f'mid_{case}.npz'))
    got = run_traced(network, torch.from_numpy(arrays['img1']), torch.from_numpy(arrays['img2']))
    assert_matches({name: got[name] for name in arrays if not name.startswith('img')}, arrays)


@pytest.fixture(scope='module')
def full(shared_root):
    folder = shared_root / 'reference' / 'mast3r_recipe'
    config, description = read_config(folder / 'full_config.json')
    network = recipe_network(config, description['seed'], description['gains'])
    return network, dict(np.load(folder / 'full_landscape.npz'))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recipe_full(full):
    network, arrays = full
    got = run_traced(network, torch.from_numpy(arrays['img1']), torch.from_numpy(arrays['img2']))
    assert_matches({name: got[name] for name in arrays if not name.startswith('img')}, arrays)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recipe_full_exported(full, tmp_path):
    """Encoder and decoder as ONNX graphs; one at a time, for the sake of memory and disk."""
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    network, arrays = full
    grid, path = (4, 6), tmp_path / 'graph.onnx'

    def run(**inputs):
        session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        return [torch.from_numpy(value) for value in session.run(None, inputs)]

    export_encoder(network, path, grid)
    (tokens,) = run(images=np.concatenate((arrays['img1'], arrays['img2'])))
    assert_matches({'enc_tokens_1': tokens[:1].numpy(), 'enc_tokens_2': tokens[1:].numpy()}, arrays)
    export_decoder(network, path, grid, grid)
    points1, local1, points2, local2 = run(tokens1=tokens[:1].numpy(), tokens2=tokens[1:].numpy())
    # Temporary folders outlive a test; this one would keep a gigabyte and a half.
    path.unlink()
    assert_matches(named_outputs(activate(points1, local1), activate(points2, local2)), arrays)


def test_keys_and_shapes_of_the_public_checkpoint(shared_root):
    listing = json.loads((shared_root / 'reference' / 'mast3r_state_dict.json').read_text())
    with torch.device('meta'):
        network = TwoViewNetwork(NetworkConfig())
    ours = {key: list(value.shape) for key, value in network.state_dict().items()}
    theirs = {key: value['shape'] for key, value in listing['tensors'].items()}
    assert all(theirs.get(key) == shape for key, shape in ours.items())
    unused = {k for k in theirs if k not in ours and k not in listing['aliases']}
    assert all(key == 'mask_token' or 'refinenet4.resConfUnit1' in key for key in unused)
