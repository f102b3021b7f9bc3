# SPDX-License-Identifier: Apache-2.0
"""Weight files: what is read, what is refused, what the report says."""

import argparse
import json
import os
import pickle
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dark3r_ros.cli.main import main
from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.constructor import parse_constructor, stated_sizes
from dark3r_ros.model.layers import hidden_width
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.model.weights import (
    WeightsInfo,
    canonical_state,
    fingerprint,
    load_network,
    load_state,
    read_weights,
    save_network,
)

# Head dimension 64, so that the shapes alone tell everything.
SMALL = NetworkConfig(
    enc_embed_dim=64, enc_depth=1, enc_num_heads=1, dec_embed_dim=64, dec_depth=4, dec_num_heads=1,
    desc_dim=2, local_ratio=0.5, dpt_feature_dim=8, dpt_last_dim=6, dpt_layer_dims=(4, 6, 8, 10),
)  # fmt: skip
TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2,
    head='linear', output_stride=4, desc_dim=6, local_ratio=1.0,
)  # fmt: skip
CALL = (
    "AsymmetricMASt3R(pos_embed='RoPE100', patch_embed_cls='ManyAR_PatchEmbed', img_size=(512, 512), "
    "head_type='catmlp+dpt', output_mode='pts3d+desc24', depth_mode=('exp', -inf, inf), conf_mode=('exp', 1, inf), "
    'enc_embed_dim=1024, enc_depth=24, enc_num_heads=16, dec_embed_dim=768, dec_depth=12, dec_num_heads=12, '
    "two_confs=True, desc_conf_mode=('exp', 0, inf))"
)


@pytest.fixture(scope='module')
def small():
    return initialise(TwoViewNetwork(SMALL), 1).eval()


def official_state(network):
    """What a public checkpoint holds: our tensors, the second names, and tensors that nothing uses."""
    state = dict(network.state_dict())
    for key in list(state):
        if '.scratch.layer' in key:
            head, tail = key.split('.scratch.layer')
            state[f'{head}.scratch.layer_rn.{int(tail[0]) - 1}.weight'] = state[key]
    state['mask_token'] = torch.zeros(1, 1, 64)
    for head in (1, 2):
        state[f'downstream_head{head}.dpt.scratch.refinenet4.resConfUnit1.conv1.weight'] = torch.zeros(8, 8, 3, 3)
    return state


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_own_file_round_trip(tmp_path):
    network = initialise(TwoViewNetwork(TINY), 3)
    info = WeightsInfo(TINY, 'signed', 'abc123', 'procedural rooms', 'Apache-2.0', {'steps': 7})
    save_network(tmp_path / 'w.safetensors', network, info)
    loaded, weights, report = load_network(tmp_path / 'w.safetensors')
    assert weights.info == info
    assert weights.normalisation == 'signed'
    assert not report.unexpected and not report.ignored
    assert_same(network, loaded)
    assert fingerprint(loaded) == fingerprint(network)
    assert fingerprint(loaded) != fingerprint(network, 'paper')
    assert not loaded.training


def test_half_file_is_half_the_size_and_read_as_float32(tmp_path):
    network = initialise(TwoViewNetwork(TINY), 3)
    for half in (False, True):
        save_network(tmp_path / f'{half}.safetensors', network, WeightsInfo(TINY), half)
    sizes = [(tmp_path / f'{half}.safetensors').stat().st_size for half in (False, True)]
    assert sizes[1] < 0.6 * sizes[0]
    loaded, _, _ = load_network(tmp_path / 'True.safetensors')
    for a, b in zip(network.parameters(), loaded.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('with_args', [True, False])
@pytest.mark.parametrize('legacy', [True, False])
def test_pickled_checkpoint_with_namespace(tmp_path, small, with_args, legacy):
    path = tmp_path / 'official.pth'
    call = CALL.replace('1024', '64').replace('768', '64').replace('desc24', 'desc2')
    call = call.replace('enc_depth=24', 'enc_depth=1').replace('dec_depth=12', 'dec_depth=4')
    call = call.replace('num_heads=16', 'num_heads=4').replace('num_heads=12', 'num_heads=2')
    content = {'model': official_state(small), 'epoch': 3}
    if with_args:
        content['args'] = argparse.Namespace(model=call, lr=1e-4)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    weights = read_weights(path)
    assert weights.normalisation == 'paper'
    # The call tells the numbers of attention heads, the shapes the sizes of the output heads.
    assert weights.config == (replace(SMALL, enc_num_heads=4, dec_num_heads=2) if with_args else SMALL)
    loaded, _, report = load_network(weights)
    assert_same(small, loaded)
    assert 'mask_token' in report.ignored
    assert len(report.ignored) == 8 + 1 + 2
    assert not report.unexpected


def test_constructor_that_contradicts_the_tensors(tmp_path, small):
    path = tmp_path / 'official.pth'
    for call, message in (
        (CALL, 'enc_embed_dim is stated as 1024, the tensors have 64'),
        ('AsymmetricMASt3R(enc_depth=2)', 'enc_depth is stated as 2, the tensors have 1'),
        ('AsymmetricMASt3R(enc_num_heads=7)', 'encoder width 64 over 7 heads'),
        ('AsymmetricMASt3R(two_confs=False)', 'two_confs=False; only True is supported'),
    ):
        torch.save({'model': small.state_dict(), 'args': argparse.Namespace(model=call)}, path)
        with pytest.raises(DataError, match=message) as caught:
            read_weights(path)
        assert str(path) in str(caught.value)


def test_shapes_that_do_not_tell_the_numbers_of_heads(shared_root):
    from network_golden import read_config

    folder = shared_root / 'reference' / 'mast3r_small'
    with pytest.raises(DataError, match='enc_embed_dim 48 is no multiple of 64'):
        read_weights(folder / 'weights.safetensors')
    config, _ = read_config(folder / 'config.json')
    network, weights, report = load_network(folder / 'weights.safetensors', config)
    assert network.config == weights.config == config
    assert report.unexpected == ()


def test_prefix_of_parallel_training_is_taken_away(tmp_path, small):
    state = {f'module.{key}': value for key, value in official_state(small).items()}
    torch.save({'model': state}, tmp_path / 'parallel.pth')
    loaded, weights, report = load_network(tmp_path / 'parallel.pth')
    assert weights.config == SMALL
    assert not report.unexpected
    assert_same(small, loaded)


def test_hidden_width_read_off_shapes_comes_back():
    assert all(hidden_width(w, h / w) == h for w in range(4, 120) for h in range(1, 5 * w))
    config = replace(TINY, enc_embed_dim=44, enc_num_heads=11, mlp_ratio=15 / 11)
    with torch.device('meta'):
        network = TwoViewNetwork(config)
    assert network.enc_blocks[0].mlp.fc1.out_features == 60


def test_safetensors_export_without_header_and_with_second_names_only(tmp_path, small):
    state = {}
    for key, value in small.state_dict().items():
        if '.scratch.layer' in key:
            head, tail = key.split('.scratch.layer')
            key = f'{head}.scratch.layer_rn.{int(tail[0]) - 1}.weight'
        state[key] = value
    save_file(state, tmp_path / 'model.safetensors')
    loaded, weights, _ = load_network(tmp_path / 'model.safetensors')
    assert weights.config == SMALL
    assert weights.format == 'safetensors'
    assert_same(small, loaded)


def test_file_without_second_decoder_gets_a_copy_of_the_first(small):
    state = {key: value for key, value in small.state_dict().items() if not key.startswith('dec_blocks2')}
    full, _ = canonical_state(state)
    assert set(full) == set(small.state_dict())
    assert torch.equal(full['dec_blocks2.3.norm_y.bias'], state['dec_blocks.3.norm_y.bias'])


def test_report_of_missing_unexpected_and_surplus_keys(small):
    state = dict(small.state_dict())
    state['extra.weight'] = torch.zeros(2)
    assert load_state(TwoViewNetwork(SMALL), state).unexpected == ('extra.weight',)
    removed = dict(state)
    for name in ('enc_norm.weight', 'enc_norm.bias', 'dec_norm.bias', 'dec_norm.weight'):
        del removed[name]
    with pytest.raises(DataError, match=r'4 missing keys: dec_norm.bias, dec_norm.weight, enc_norm.bias and 1 more'):
        load_state(TwoViewNetwork(SMALL), removed)
    with pytest.raises(DataError, match=r'surplus keys: enc_blocks.1.norm1.bias'):
        load_state(TwoViewNetwork(SMALL), {**state, 'enc_blocks.1.norm1.bias': torch.zeros(64)})
    with pytest.raises(DataError, match=r'enc_norm.bias has shape \(3,\)'):
        load_state(TwoViewNetwork(SMALL), {**state, 'enc_norm.bias': torch.zeros(3)})


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'plain pickle', 'oldest pickle', 'inside args'])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, form):
    witness, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    payload = Payload(f'touch {witness}')
    if 'pickle' in form:
        path.write_bytes(pickle.dumps({'model': payload}, protocol=0 if form == 'oldest pickle' else None))
    elif form == 'inside args':
        torch.save({'model': {'a': torch.zeros(1)}, 'args': argparse.Namespace(model=payload)}, path)
    else:
        torch.save({'model': payload}, path, _use_new_zipfile_serialization=form == 'zip')
    with pytest.raises(DataError, match='refused') as caught:
        read_weights(path)
    assert '\n' not in str(caught.value)
    assert not witness.exists()
    # The payload is live: an unrestricted loader would have run it.
    if 'pickle' in form:
        pickle.loads(path.read_bytes())
        assert witness.exists()


def test_constructor_string_with_code_is_not_run(tmp_path, small):
    witness, path = tmp_path / 'ran', tmp_path / 'evil.pth'
    text = f"AsymmetricMASt3R(enc_depth=__import__('os').system('touch {witness}'))"
    torch.save({'model': small.state_dict(), 'args': argparse.Namespace(model=text)}, path)
    with pytest.raises(DataError, match='no plain value'):
        read_weights(path)
    assert not witness.exists()


@pytest.mark.parametrize('suffix', ['safetensors', 'pth', 'legacy.pth'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.999])
def test_truncated_files(tmp_path, suffix, share):
    network = initialise(TwoViewNetwork(TINY), 0)
    path = tmp_path / f'w.{suffix}'
    if suffix == 'safetensors':
        save_network(path, network, WeightsInfo(TINY))
    else:
        torch.save({'model': network.state_dict()}, path, _use_new_zipfile_serialization=suffix == 'pth')
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r'w\.') as caught:
        read_weights(path)
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_foreign_files(tmp_path):
    cases = {
        'empty': b'',
        'text': b'<!doctype html><html>404</html>',
        'zeros': bytes(5000),
        'huge header': struct.pack('<Q', 2**62) + b'{}',
    }
    for name, content in cases.items():
        path = tmp_path / f'{name}.safetensors'
        path.write_bytes(content)
        with pytest.raises(DataError, match=r'complete safetensors'):
            read_weights(path)
        path = path.rename(path.with_suffix('.pth'))
        with pytest.raises(DataError, match=r'no complete (checkpoint|safetensors file)|or is damaged'):
            read_weights(path)
    with pytest.raises(DataError, match='no weight file'):
        read_weights(tmp_path / 'absent.safetensors')
    save_file({'conv.weight': torch.zeros(3)}, tmp_path / 'other.safetensors')
    with pytest.raises(DataError, match=r'wrong architecture: no patch_embed.proj.weight among 1 tensors'):
        read_weights(tmp_path / 'other.safetensors')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(DataError, match='no state dict'):
        read_weights(tmp_path / 'list.pth')


def test_bad_headers(tmp_path):
    state = initialise(TwoViewNetwork(TINY), 0).state_dict()
    architecture = {key: value for key, value in TINY.__dict__.items() if not key.startswith('dpt')}
    for header in ('not json', '{}', json.dumps({'architecture': {**architecture, 'depth': 3}}), '[1]'):
        save_file(state, tmp_path / 'w.safetensors', metadata={'dark3r': header})
        with pytest.raises(DataError, match='unreadable dark3r header'):
            read_weights(tmp_path / 'w.safetensors')


def test_header_must_describe_the_network(tmp_path):
    network = initialise(TwoViewNetwork(TINY), 0)
    with pytest.raises(ConfigError, match='another architecture'):
        save_network(tmp_path / 'w', network, WeightsInfo(SMALL))
    with pytest.raises(OutputError, match='cannot write'):
        save_network(tmp_path / 'no' / 'such' / 'folder', network, WeightsInfo(TINY))


def test_constructor_of_the_public_model():
    assert NetworkConfig(**stated_sizes(CALL)) == NetworkConfig()
    other = CALL.replace('RoPE100', 'RoPE10000').replace('desc24', 'desc16').replace('two_', "desc_mode=('norm'), two_")
    assert NetworkConfig(**stated_sizes(other)) == NetworkConfig(rope_base=10000.0, desc_dim=16)
    name, values = parse_constructor(CALL)
    assert name == 'AsymmetricMASt3R'
    assert values['depth_mode'] == ('exp', -np.inf, np.inf)
    assert values['two_confs'] is True


@pytest.mark.parametrize(
    'text, message',
    [
        ("Other(pos_embed='RoPE100')", 'architecture Other'),
        ("AsymmetricMASt3R(head_type='linear')", "head_type='linear'"),
        ("AsymmetricMASt3R(pos_embed='cosine')", "pos_embed='cosine'"),
        ("AsymmetricMASt3R(output_mode='pts3d')", "output_mode='pts3d'"),
        ("AsymmetricMASt3R(depth_mode=('linear', -inf, inf))", "depth_mode=('linear', -inf, inf)"),
        ("AsymmetricMASt3R(conf_mode=('exp', 1, 10))", "conf_mode=('exp', 1, 10)"),
        ('AsymmetricMASt3R(strange=1)', 'unknown architecture setting strange=1'),
        ('AsymmetricMASt3R(enc_depth=10**10**10)', 'no plain value'),
        ('AsymmetricMASt3R(**{})', 'unpacked'),
        ('AsymmetricMASt3R(24)', 'of the form'),
        ('a.b(c=1)', 'of the form'),
        ('AsymmetricMASt3R(', 'no readable'),
        ('(' * 5000, 'no readable'),
        ('', 'no readable'),
    ],
)
def test_foreign_constructors(text, message):
    with pytest.raises(DataError, match=re.escape(message)):
        stated_sizes(text)


def test_golden_small_weights_load_without_leftovers(shared_root):
    from network_golden import read_config

    folder = shared_root / 'reference' / 'mast3r_small'
    config, _ = read_config(folder / 'config.json')
    report = load_state(TwoViewNetwork(config), load_file(folder / 'weights.safetensors'))
    assert report.unexpected == ()


def test_info_command(tmp_path, capsys):
    network = initialise(TwoViewNetwork(TINY), 3)
    path = tmp_path / 'w.safetensors'
    save_network(path, network, WeightsInfo(TINY, 'signed', 'abc123', 'procedural rooms', 'Apache-2.0', {'steps': 7}))
    assert main(['weights', 'info', str(path), '--json']) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['parameters'] == sum(p.numel() for p in network.parameters())
    assert facts['fingerprint'] == fingerprint(network)
    assert (facts['commit'], facts['licence'], facts['extra']) == ('abc123', 'Apache-2.0', {'steps': 7})
    assert facts['architecture']['enc_embed_dim'] == 32
    assert main(['weights', 'info', str(path)]) == 0
    text = capsys.readouterr().out
    assert 'procedural rooms' in text
    assert 'none' in text
    path.write_bytes(path.read_bytes()[:-10])
    assert main(['weights', 'info', str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('dark3r: error:') and error.count('\n') == 1
