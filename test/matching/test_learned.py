# SPDX-License-Identifier: Apache-2.0
"""The learned predictor follows the protocol: one encode a frame, batches, geometry of padding and strides."""

import numpy as np
import pytest
import torch

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.matching.learned import LearnedConfig, NetworkPredictor, load_predictor, pad_to_patches
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.model.backend import TorchBackend
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.export import export_folder
from dark3r_ros.model.network import TwoViewNetwork, ViewPrediction, initialise
from dark3r_ros.model.weights import WeightsInfo, save_network
from dark3r_ros.types import Planes

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=24, dec_depth=2, dec_num_heads=2,
    head='linear', output_stride=4, desc_dim=6, local_ratio=1.0,
)  # fmt: skip


def frame(seed, height=48, width=64):
    values = 512 + np.random.default_rng(seed).normal(size=(3, height, width)) * 4
    return Planes(values.astype(np.float32), (512.0,) * 3, 16383.0, (4, 8, 4), 4, seed)


def backend(seed=0):
    return TorchBackend(initialise(TwoViewNetwork(TINY), seed), device='cpu')


class CountingBackend:
    """A real backend whose calls are counted."""

    def __init__(self):
        self.inner = backend()
        self.encoded, self.decoded = [], []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode(self, images):
        self.encoded.append(len(images))
        return self.inner.encode(images)

    def decode(self, tokens1, *args):
        self.decoded.append(len(tokens1))
        return self.inner.decode(tokens1, *args)


def test_window_of_8_keyframes_with_15_pairs_costs_8_encodes():
    counted = CountingBackend()
    predictor = NetworkPredictor(counted, LearnedConfig(batch_pairs=4))
    window = [predictor.encode(frame(seed)) for seed in range(8)]
    pairs = [(window[i], window[j]) for i in range(8) for j in (i + 1, i + 2, i + 3) if j < 8][:15]
    found = predictor.match(pairs)
    assert len(found) == len(pairs) == 15
    assert sum(counted.encoded) == 8
    assert counted.decoded == [4, 4, 4, 3]


def test_batches_do_not_change_results():
    frames = [frame(seed) for seed in range(3)] + [frame(3, 64, 48)]
    results = []
    for batch in (1, 8):
        predictor = NetworkPredictor(backend(), LearnedConfig(batch_pairs=batch))
        features = [predictor.encode(f) for f in frames]
        results.append(predictor.match([(features[i], features[j]) for i, j in ((0, 1), (3, 1), (1, 2), (0, 3))]))
    for one, many in zip(*results, strict=True):
        np.testing.assert_allclose(one.points_a, many.points_a)
        np.testing.assert_allclose(one.points_b, many.points_b, atol=1e-3)
        np.testing.assert_allclose(one.pointmap_b, many.pointmap_b, rtol=1e-3, atol=1e-5)


class ShiftBackend:
    """Stands in for a trained network: descriptors of smooth scene coordinates, each frame displaced by its number."""

    name = 'shift'
    fingerprint = 'shift'
    normalisation = 'signed'

    def __init__(self, stride, displacement):
        self.config = NetworkConfig(**{**TINY.__dict__, 'output_stride': stride, 'desc_dim': 24})
        self.displacement = displacement
        self.order = 0

    def encode(self, images):
        number = self.order
        self.order += 1
        return torch.full((1, images.shape[2] * images.shape[3] // 256, 4), float(number))

    def _view(self, number, grid, reference):
        stride = self.config.output_stride
        height, width = (16 * n // stride for n in grid)
        rng = np.random.default_rng(0)
        frequency, phase = rng.normal(size=(24, 2)) / (12 * stride), rng.uniform(0, 6, 24)
        rows, columns = np.mgrid[:height, :width]
        pixel = (np.stack((columns, rows), -1) + 0.5) * stride - 0.5
        scene = pixel - number * np.array(self.displacement)
        values = np.cos(2 * np.pi * (scene @ frequency.T) + phase)
        descriptors = torch.from_numpy(values / np.linalg.norm(values, axis=-1, keepdims=True)).float()[None]
        points = np.concatenate((pixel, np.full((height, width, 1), 1.0 + reference)), -1)
        ones = torch.ones(1, height, width)
        return ViewPrediction(torch.from_numpy(points).float()[None], ones * 2, descriptors, ones * (1 + number))

    def decode(self, tokens1, tokens2, grid1, grid2):
        first, second = tokens1[0, 0, 0].item(), tokens2[0, 0, 0].item()
        return self._view(first, grid1, first), self._view(second, grid2, first)


@pytest.mark.parametrize('search', ['dense', 'fast', 'coarse'])
@pytest.mark.parametrize('stride', [1, 4])
@pytest.mark.parametrize('size, symmetric', [((96, 112), False), ((90, 101), True)])
def test_matches_follow_the_true_displacement_on_any_size_and_stride(search, stride, size, symmetric):
    shift = np.array((5.4, -2.7))
    stand_in = ShiftBackend(stride, shift)
    predictor = NetworkPredictor(stand_in, LearnedConfig(search=search, subsample=2, pooling=2, symmetric=symmetric))
    a, b = predictor.encode(frame(0, *size)), predictor.encode(frame(1, *size))
    (found,) = predictor.match([(a, b)])
    assert len(found) > 60
    error = found.points_b - found.points_a - shift
    assert np.median(np.abs(error)) < 0.06 * stride
    assert (found.points_b > -0.5).all()
    assert (found.points_b < np.array(size[::-1]) - 0.5).all()
    np.testing.assert_allclose(found.confidence, np.sqrt(2.0))


@pytest.mark.parametrize('stride', [1, 4])
def test_pointmaps_lie_on_the_pixels_of_the_planes(stride):
    predictor = NetworkPredictor(ShiftBackend(stride, (1.0, 0.0)))
    a, b = predictor.encode(frame(0, 40, 53)), predictor.encode(frame(1, 33, 64))
    (found,) = predictor.match([(a, b)])
    for points, confidence, (height, width), encoded in (
        (found.pointmap_a, found.pointmap_confidence_a, (40, 53), a),
        (found.pointmap_b, found.pointmap_confidence_b, (33, 64), b),
    ):
        assert points.shape == (height, width, 3)
        assert confidence.shape == (height, width)
        assert points.dtype == np.float32
        rows, columns = np.mgrid[:height, :width]
        expected = np.stack((columns + encoded.margin[0], rows + encoded.margin[1]), -1)
        # Interpolation holds its outermost value constant over half a stride.
        np.testing.assert_allclose(points[4:-4, 4:-4, :2], expected[4:-4, 4:-4], atol=1e-4)
        assert (points[..., 2] == 1).all()


def test_sub_pixel_can_be_switched_off_and_matches_limited():
    shift = (5.4, -2.7)
    predictor = NetworkPredictor(ShiftBackend(1, shift), LearnedConfig(sub_pixel=False, pointmaps=False))
    a, b = predictor.encode(frame(0, 48, 64)), predictor.encode(frame(1, 48, 64))
    (found,) = predictor.match([(a, b)])
    assert (found.points_b == np.round(found.points_b)).all()
    assert found.pointmap_a is None
    limited = NetworkPredictor(predictor.backend, LearnedConfig(max_matches=17)).match([(a, b)])[0]
    assert len(limited) == 17
    assert len(NetworkPredictor(predictor.backend, LearnedConfig(min_confidence=1.5)).match([(a, b)])[0]) == 0


def test_result_does_not_depend_on_black_level_and_gain():
    base = frame(0)
    values = np.round((base.values - 512) * 64) / 64
    variants = [
        Planes(((values + black) * gain).astype(np.float32), (black * gain,) * 3, 16383.0, (4, 8, 4), 4, 0)
        for black, gain in ((0.0, 1.0), (512.0, 2.0))
    ]
    predictor = NetworkPredictor(backend())
    tokens = [predictor.encode(planes).tokens for planes in variants]
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-4, atol=1e-5)


def test_constant_frame_matches_without_an_error():
    """The cap is on: fresh weights, without biases, make zero vectors of it."""
    black = Planes(np.full((3, 48, 64), 512, np.float32), (512.0,) * 3, 16383.0, (4, 8, 4), 4, 0)
    for search in ('dense', 'coarse', 'fast'):
        predictor = NetworkPredictor(backend(), LearnedConfig(search=search))
        features = predictor.encode(black)
        (found,) = predictor.match([(features, features)])
        assert len(found) <= 1
        assert np.isfinite(found.pointmap_a).all()


def test_fingerprint_follows_weights_and_settings():
    prints = {
        NetworkPredictor(backend(seed), LearnedConfig(symmetric=symmetric)).fingerprint
        for seed in (0, 1)
        for symmetric in (False, True)
    }
    assert len(prints) == 4
    assert NetworkPredictor(backend(0)).fingerprint == NetworkPredictor(backend(0)).fingerprint


def test_predictor_from_a_weight_file(tmp_path):
    network = initialise(TwoViewNetwork(TINY), 4)
    save_network(tmp_path / 'w.safetensors', network, WeightsInfo(TINY, 'paper'))
    predictor = load_predictor(tmp_path / 'w.safetensors', device='cpu')
    assert predictor.backend.normalisation == 'paper'
    assert predictor.name == 'learned-torch-cpu-fp32'
    direct = NetworkPredictor(TorchBackend(network, 'paper', 'cpu'))
    assert predictor.fingerprint == direct.fingerprint
    torch.testing.assert_close(predictor.encode(frame(0)).tokens, direct.encode(frame(0)).tokens)
    assert predictor.encode(frame(0)).nbytes == 12 * 32 * 4


def test_registry_takes_weight_files_and_export_folders(tmp_path):
    pytest.importorskip('onnx')
    network = initialise(TwoViewNetwork(TINY), 4)
    save_network(tmp_path / 'w.safetensors', network, WeightsInfo(TINY))
    export_folder(network, tmp_path / 'engine', [(64, 48)])
    predictors = [make_predictor(str(tmp_path / name), device='cpu') for name in ('w.safetensors', 'engine')]
    assert [p.name for p in predictors] == ['learned-torch-cpu-fp32', 'learned-onnx-cpu-fp32']
    results = []
    for predictor in predictors:
        features = [predictor.encode(frame(seed)) for seed in (0, 1)]
        results.append(predictor.match([tuple(features)])[0])
    np.testing.assert_allclose(results[0].points_a, results[1].points_a)
    np.testing.assert_allclose(results[0].points_b, results[1].points_b, atol=1e-2)
    with pytest.raises(ConfigError, match=r'weight file \(.safetensors, .pth\)'):
        make_predictor('neural')
    with pytest.raises(DataError, match='no weight file'):
        make_predictor(str(tmp_path / 'absent.pth'))


def test_padding_mirrors_and_small_frames_are_refused():
    image = np.arange(3 * 20 * 33, dtype=np.float32).reshape(3, 20, 33)
    padded, (left, top) = pad_to_patches(image, 16)
    assert padded.shape == (1, 3, 32, 48)
    assert (left, top) == (7, 6)
    np.testing.assert_array_equal(padded[0, :, 6:26, 7:40].numpy(), image)
    np.testing.assert_array_equal(padded[0, :, 5, 7:40].numpy(), image[:, 1])
    predictor = NetworkPredictor(backend())
    with pytest.raises(DataError, match='smaller than one patch'):
        predictor.encode(frame(0, 12, 64))
    broken = frame(0)
    broken.values[0, 0, 0] = np.inf
    with pytest.raises(DataError, match='not finite'):
        predictor.encode(broken)
