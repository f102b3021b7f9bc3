# SPDX-License-Identifier: Apache-2.0
"""Every backend against the fp32 torch reference, and what each says when it cannot run."""

import builtins
import sys

import numpy as np
import pytest
import torch
from network_golden import assert_matches, named_outputs, read_config, recipe_network
from safetensors.torch import load_file

from dark3r_ros.cli.main import main
from dark3r_ros.errors import ConfigError, DataError, DependencyError, OutputError
from dark3r_ros.model import tensorrt_backend
from dark3r_ros.model.backend import TorchBackend, choose_device, choose_precision
from dark3r_ros.model.config import PRESETS, NetworkConfig
from dark3r_ros.model.export import decoder_file, export_folder, read_manifest
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.model.onnx_backend import OnnxBackend
from dark3r_ros.model.tensorrt_backend import TensorRtBackend
from dark3r_ros.model.weights import WeightsInfo, load_state, save_network

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2,
    head='linear', output_stride=4, desc_dim=6, local_ratio=1.0,
)  # fmt: skip
GRID = (3, 4)


@pytest.fixture(scope='module')
def network():
    return initialise(TwoViewNetwork(TINY), 0).eval()


@pytest.fixture(scope='module')
def exported(network, tmp_path_factory):
    pytest.importorskip('onnx')
    folder = tmp_path_factory.mktemp('export')
    export_folder(network, folder, [(64, 48)], normalisation='paper')
    return folder


@pytest.fixture(scope='module')
def exported_half(network, tmp_path_factory):
    pytest.importorskip('onnx')
    folder = tmp_path_factory.mktemp('half')
    export_folder(network, folder, [(64, 48)], precision='fp16')
    return folder


def images(batch, seed=0):
    return torch.randn(batch, 3, 48, 64, generator=torch.Generator().manual_seed(seed))


def both(backend, batch=2):
    tokens1, tokens2 = backend.encode(images(batch)), backend.encode(images(batch, 1))
    return tokens1, backend.decode(tokens1, tokens2, GRID, GRID)


def assert_close_to_reference(backend, network, tolerance, batch=2):
    tokens, views = both(backend, batch)
    reference_tokens, reference = both(TorchBackend(network, device='cpu', precision='fp32'), batch)
    assert (tokens.float() - reference_tokens).abs().max() < tolerance * reference_tokens.abs().max()
    for got, expected in zip(views, reference, strict=True):
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == torch.float32
            assert a.shape == b.shape
            assert (a - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize('precision, tolerance', [('auto', 1e-6), ('tf32', 1e-6), ('bf16', 5e-2), ('fp16', 1e-2)])
def test_torch_precisions_on_the_cpu(network, precision, tolerance):
    backend = TorchBackend(network, device='cpu', precision=precision)
    assert backend.name == f'torch-cpu-{"fp32" if precision == "auto" else precision}'
    assert_close_to_reference(backend, network, tolerance)


def test_global_tf32_switches_are_put_back(network):
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    for before in (True, False):
        for switch in switches:
            switch.allow_tf32 = before
        with pytest.raises(DataError):
            TorchBackend(network, device='cpu').encode(torch.zeros(1, 3, 8, 8))
        assert all(switch.allow_tf32 is before for switch in switches)


@pytest.mark.parametrize('precision', ['fp32', 'tf32', 'bf16', 'fp16'])
def test_only_asked_for_products_are_rounded_to_tf32(network, precision):
    """Under half precision as well, what is left in float32 must be float32: a dark signal is below a rounding step."""
    backend, seen = TorchBackend(network, device='cpu', precision=precision), {}
    handles = [
        module.register_forward_pre_hook(
            lambda *_, name=name: seen.update(
                {name: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)}
            )
        )
        for name, module in (('patches', network.patch_embed), ('head', network.downstream_head2))
    ]
    tokens = backend.encode(images(1))
    backend.decode(tokens, tokens, GRID, GRID)
    for handle in handles:
        handle.remove()
    assert seen == dict.fromkeys(('patches', 'head'), (precision == 'tf32', False))


@pytest.mark.parametrize('mode, torch_mode', [('default', None), ('cuda-graphs', 'reduce-overhead')])
def test_compiled_backend_gives_its_own_memory(network, monkeypatch, mode, torch_mode):
    """A recorded graph reuses its outputs: results of an earlier call must survive a later one."""
    modes, reused = [], {}

    def compile_like_a_recorder(function, mode):
        modes.append(mode)

        def run(*args):
            result = function(*args)
            if mode is None or not isinstance(result, torch.Tensor):
                return result
            return reused.setdefault(result.shape, torch.empty_like(result)).copy_(result)

        return run

    monkeypatch.setattr(torch, 'compile', compile_like_a_recorder)
    backend = TorchBackend(network, device='cpu', compile_mode=mode)
    first = backend.encode(images(1))
    kept = first.clone()
    backend.encode(images(1, 9))
    assert torch.equal(first, kept)
    assert modes == [torch_mode, torch_mode]
    assert_close_to_reference(backend, network, 1e-6)


def test_devices_and_precisions_that_are_not_there(network):
    for name, message in (('gpu0', 'unknown device'), ('meta', 'not supported')):
        with pytest.raises(ConfigError, match=message):
            choose_device(name)
    if not torch.cuda.is_available():
        assert choose_device('auto').type == 'cpu'
        with pytest.raises(ConfigError, match='PyTorch sees none'):
            choose_device('cuda')
    with pytest.raises(ConfigError, match='fp32, tf32'):
        choose_precision('int8', torch.device('cpu'))
    with pytest.raises(ConfigError, match='compile mode'):
        TorchBackend(network, device='cpu', compile_mode='fast')


@pytest.mark.parametrize('capability, expected', [((9, 0), 'bf16'), ((8, 0), 'bf16'), ((7, 5), 'fp16')])
def test_precision_follows_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    assert choose_precision('auto', torch.device('cuda')) == expected


@pytest.mark.parametrize('batch', [1, 3])
def test_onnx_equals_torch(network, exported, batch):
    backend = OnnxBackend(exported, 'cpu', threads=1)
    assert_close_to_reference(backend, network, 1e-5, batch)
    assert backend.normalisation == 'paper'
    assert backend.config == TINY
    assert backend.name == 'onnx-cpu-fp32'


def test_onnx_on_cuda_is_asked_for_full_float32(exported, monkeypatch):
    runtime, seen = pytest.importorskip('onnxruntime'), []
    real = runtime.InferenceSession

    def session(path, options, providers):
        seen.extend(providers)
        return real(path, options, providers=['CPUExecutionProvider'])

    monkeypatch.setattr(runtime, 'get_available_providers', lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider'])
    monkeypatch.setattr(runtime, 'InferenceSession', session)
    backend = OnnxBackend(exported)
    backend.encode(images(1))
    assert backend.name == 'onnx-cuda-fp32'
    assert seen == [('CUDAExecutionProvider', {'use_tf32': '0'})]


def test_half_precision_graph_is_close_and_differs(network, exported, exported_half):
    half = OnnxBackend(exported_half, 'cpu', threads=1)
    assert_close_to_reference(half, network, 2e-2)
    assert not torch.equal(half.encode(images(1)), OnnxBackend(exported, 'cpu', 1).encode(images(1)))
    assert half.fingerprint != OnnxBackend(exported, 'cpu').fingerprint
    # A signal far below one half-precision step of its pedestal still reaches the tokens.
    pedestal = torch.full((1, 3, 48, 64), -0.875)
    faint = pedestal + 4e-5 * images(1)
    assert torch.equal(pedestal.half(), faint.half())
    assert (half.encode(pedestal) - half.encode(faint)).abs().max() > 1e-4


def golden_outputs(backend, arrays):
    pair = [torch.from_numpy(arrays[name]) for name in ('img1', 'img2')]
    grids = [(image.shape[2] // 16, image.shape[3] // 16) for image in pair]
    tokens = [backend.encode(image) for image in pair]
    views = backend.decode(*tokens, *grids)
    return {'enc_tokens_1': tokens[0].numpy(), 'enc_tokens_2': tokens[1].numpy(), **named_outputs(*views)}


def test_onnx_reproduces_the_golden_small_cases(shared_root, tmp_path):
    pytest.importorskip('onnx')
    folder = shared_root / 'reference' / 'mast3r_small'
    config, _ = read_config(folder / 'config.json')
    network = TwoViewNetwork(config).eval()
    load_state(network, load_file(folder / 'weights.safetensors'))
    export_folder(network, tmp_path, [(96, 64), (64, 96)])
    export_folder(network, tmp_path / 'odd', [(80, 48)])
    for case in ('landscape', 'portrait', 'mixed', 'odd'):
        backend = OnnxBackend(tmp_path / 'odd' if case == 'odd' else tmp_path, 'cpu', threads=1)
        arrays = dict(np.load(folder / f'{case}.npz'))
        assert_matches(golden_outputs(backend, arrays), arrays)
        assert_head_outputs_close(backend, network, [torch.from_numpy(arrays[name]) for name in ('img1', 'img2')])


def assert_head_outputs_close(backend, network, pair):
    """Before their activation all outputs agree to 1e-5: what is left in a descriptor is its length over the largest.

    A unit vector made of a raw one n times shorter than the largest has n times its rounding, in any float32 program.
    """
    grids = [network.grid(*image.shape[2:]) for image in pair]
    with torch.inference_mode():
        expected = network.decode_raw(*map(network.encode, pair), *grids)
    tokens = {f'tokens{n}': backend.encode(image) for n, image in enumerate(pair, start=1)}
    got = backend._run(decoder_file(*grids), **tokens)
    for one, other in zip(got, (*expected[0], *expected[1]), strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_every_backend_refuses_images_that_it_cannot_take(network, exported):
    for backend in (TorchBackend(network, device='cpu'), OnnxBackend(exported, 'cpu', threads=1)):
        for shape, message in (
            ((1, 1, 48, 64), r'takes images \(batch, 3'),
            ((3, 48, 64), r'takes images \(batch, 3'),
            ((1, 3, 8, 64), '64x8 does not divide into patches'),
            ((1, 3, 50, 64), '64x50 does not divide into patches'),
        ):
            with pytest.raises(DataError, match=message):
                backend.encode(torch.zeros(shape))


@pytest.mark.slow
def test_onnx_reproduces_the_golden_mid_case(shared_root, tmp_path):
    pytest.importorskip('onnx')
    folder = shared_root / 'reference' / 'mast3r_recipe'
    config, description = read_config(folder / 'mid_config.json')
    network = recipe_network(config, description['seed'], description['gains'])
    export_folder(network, tmp_path, [(80, 48)])
    arrays = dict(np.load(folder / 'mid_odd.npz'))
    got = golden_outputs(OnnxBackend(tmp_path, 'cpu', threads=1), arrays)
    assert_matches(got, arrays)


def test_export_of_the_mini_network_for_a_camera_frame(tmp_path):
    pytest.importorskip('onnx')
    network = initialise(TwoViewNetwork(PRESETS['mini-2m']), 0).eval()
    save_network(tmp_path / 'mini.safetensors', network, WeightsInfo(network.config))
    out = tmp_path / 'engine'
    assert main(['export-engine', str(tmp_path / 'mini.safetensors'), '-o', str(out), '--size', '320x232']) == 0
    manifest = read_manifest(out)
    assert manifest.sizes == ((320, 240),)
    assert sorted(p.name for p in out.iterdir()) == ['decoder_15x20_15x20.onnx', 'encoder_15x20.onnx', 'engine.json']
    frame = torch.randn(1, 3, 240, 320, generator=torch.Generator().manual_seed(0))
    expected = TorchBackend(network, device='cpu').encode(frame)
    torch.testing.assert_close(OnnxBackend(out, 'cpu', 1).encode(frame), expected, rtol=1e-4, atol=1e-4)


def test_folders_that_do_not_serve(network, exported, tmp_path):
    with pytest.raises(DataError, match='export-engine'):
        OnnxBackend(tmp_path)
    with pytest.raises(DataError, match='exported for frames of 64x48'):
        OnnxBackend(exported).encode(torch.zeros(1, 3, 32, 32))
    (tmp_path / 'engine.json').write_text('{"config": 3}')
    with pytest.raises(DataError, match='unreadable'):
        read_manifest(tmp_path)
    (tmp_path / 'engine.json').write_text((exported / 'engine.json').read_text())
    (tmp_path / 'encoder_3x4.onnx').write_bytes(b'nonsense')
    with pytest.raises(DataError, match='no usable ONNX graph') as caught:
        OnnxBackend(tmp_path).encode(images(1))
    assert '\n' not in str(caught.value)
    with pytest.raises(ConfigError, match='unknown device'):
        OnnxBackend(exported, 'tpu')
    with pytest.raises(DataError, match='patches'):
        export_folder(network, tmp_path / 'x', [(50, 48)])
    with pytest.raises(ConfigError, match='precision'):
        export_folder(network, tmp_path / 'x', [(64, 48)], precision='int8')
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError, match='folder'):
        export_folder(network, tmp_path / 'file' / 'x', [(64, 48)])


@pytest.fixture
def trt(monkeypatch):
    pytest.importorskip('onnxruntime')
    import fake_tensorrt

    monkeypatch.setitem(sys.modules, 'tensorrt', fake_tensorrt)
    monkeypatch.setattr(tensorrt_backend, 'DEVICE', 'cpu')
    monkeypatch.setattr(tensorrt_backend, '_gpu_name', lambda: 'Fake GPU')
    monkeypatch.setattr(tensorrt_backend, '_stream', lambda: 7)
    monkeypatch.setattr(fake_tensorrt, '__version__', '10.0')
    fake_tensorrt.builds.clear()
    return fake_tensorrt


def copy_folder(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize('batch', [1, 4, 5])
def test_tensorrt_binds_shapes_and_addresses(network, exported, tmp_path, trt, batch):
    folder = copy_folder(exported, tmp_path / 'engine')
    assert_close_to_reference(TensorRtBackend(folder, max_batch=4), network, 1e-5, batch)


def test_tensorrt_engines_are_kept_until_something_changes(exported, tmp_path, trt, monkeypatch):
    folder = copy_folder(exported, tmp_path / 'engine')
    files = TensorRtBackend(folder, 2).prepare()
    assert len(files) == len(trt.builds) == 2
    assert all(path.is_file() for path in files)
    assert TensorRtBackend(folder, 2).prepare() == files
    assert len(trt.builds) == 2
    files[0].write_bytes(b'damaged')
    TensorRtBackend(folder, 2).prepare()
    assert len(trt.builds) == 3
    TensorRtBackend(folder, 3).prepare()
    assert len(trt.builds) == 5
    monkeypatch.setattr(trt, '__version__', '10.1')
    TensorRtBackend(folder, 3).prepare()
    assert len(trt.builds) == 7
    monkeypatch.setattr(tensorrt_backend, '_gpu_name', lambda: 'Other GPU')
    TensorRtBackend(folder, 3).prepare()
    assert len(trt.builds) == 9


def test_tensorrt_that_cannot_read_a_graph(exported, tmp_path, trt):
    folder = copy_folder(exported, tmp_path / 'engine')
    (folder / 'encoder_3x4.onnx').write_bytes(b'nonsense')
    with pytest.raises(DataError, match='INVALID_GRAPH'):
        TensorRtBackend(folder).encode(images(1))


@pytest.mark.parametrize('package, make', [('tensorrt', TensorRtBackend), ('onnxruntime', OnnxBackend)])
def test_missing_packages_are_named_in_one_line(exported, monkeypatch, package, make):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == package:
            raise ImportError(f'libnv{package}.so: cannot open shared object file')
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(DependencyError, match=package) as caught:
        make(exported)
    assert '\n' not in str(caught.value)


def test_tensorrt_without_a_gpu(exported, trt, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, 'tensorrt', trt)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='CUDA device'):
        TensorRtBackend(exported)
