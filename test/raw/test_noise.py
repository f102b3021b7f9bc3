# SPDX-License-Identifier: Apache-2.0
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.raw.noise import (
    PRESETS,
    NoiseModel,
    eld_model,
    load_yaml,
    preset,
    resolve_noise,
    save_yaml,
    tukey_lambda_variance,
)
from dark3r_ros.raw.planes import to_planes

# Wide range and high pedestal: nothing is clipped.
PLAIN = NoiseModel(gain=4.0, read_sigma=7.0, row_sigma=2.0, black_level=1000.0, white_level=65535.0)


def test_published_numbers_of_the_presets():
    # "worked out medians" of the shared noise facts: Sony A7S II at 4 DN per electron.
    sony = preset('sony_a7s2')
    assert sony.gain == 4.0
    assert sony.read_sigma == pytest.approx(7.155, abs=0.001)
    assert sony.row_sigma == pytest.approx(1.15, abs=0.001)
    assert preset('nikon_d850').read_sigma == pytest.approx(10.609, abs=0.001)
    assert preset('canon_5d4').read_sigma == pytest.approx(18.546, abs=0.002)
    assert preset('canon_700d').row_sigma == pytest.approx(2.583, abs=0.001)
    assert preset('canon_70d').read_sigma == pytest.approx(35.638, abs=0.002)
    alpha = preset('alpha1_iso102400')
    assert alpha.read_sigma / alpha.gain == pytest.approx(1.0)
    assert alpha.black_level == 1024.0
    assert eld_model('sony_a7s2', 1.0).read_sigma == pytest.approx(3.381, abs=0.001)
    with pytest.raises(ConfigError, match=r'0\.0939'):
        eld_model('sony_a7s2', 40.0)
    with pytest.raises(ConfigError, match='pregius'):
        preset('sony')
    for name, model in PRESETS.items():
        assert model.source and model.name == name


@pytest.mark.parametrize('shape', [-0.3, -0.1, 0.0, 1e-4, 0.1436, 0.2])
def test_tukey_lambda_variance_is_that_of_scipy(shape):
    assert tukey_lambda_variance(shape) == pytest.approx(scipy.stats.tukeylambda.var(shape), rel=1e-4)


@pytest.mark.parametrize('electrons', [0.0, 0.3, 5.0, 200.0])
def test_mean_and_variance_of_samples(electrons):
    rng = np.random.default_rng(1)
    clean = np.full((1000, 1000), electrons * PLAIN.gain)
    raw = PLAIN.sample(clean, rng).astype(np.float64) - PLAIN.black_level
    # 3.5 sigma: row noise dominates the error of the mean (1000 rows).
    error = math.sqrt(PLAIN.row_sigma**2 / 1000 + PLAIN.variance(clean[0, 0]) / 1e6)
    assert raw.mean() == pytest.approx(electrons * PLAIN.gain, abs=3.5 * error)
    assert raw.var() == pytest.approx(PLAIN.variance(electrons * PLAIN.gain), rel=0.01)


def test_electrons_are_whole():
    clean = NoiseModel(gain=10.0, black_level=100.0)
    values = np.unique(clean.sample(np.full((200, 200), 15.0), np.random.default_rng(2)))
    assert set(values) <= {100 + 10 * n for n in range(20)}
    # Poisson: share of zero electrons is exp(-1.5).
    raw = clean.sample(np.full((500, 500), 15.0), np.random.default_rng(3))
    assert np.mean(raw == 100) == pytest.approx(math.exp(-1.5), abs=0.004)


@pytest.mark.parametrize('shape', [-0.2, -0.0001, 0.1])
def test_tails_follow_the_tukey_lambda(shape):
    model = NoiseModel(read_sigma=300.0, tukey_lambda=shape, black_level=30000.0)
    raw = model.sample(np.zeros((500, 500)), np.random.default_rng(4)).astype(np.float64) - 30000.0
    assert raw.std() == pytest.approx(300.0, rel=0.02)
    scale = 300.0 / math.sqrt(tukey_lambda_variance(shape))
    for probability in (0.001, 0.01, 0.25, 0.5, 0.9, 0.999):
        expected = scipy.stats.tukeylambda.ppf(probability, shape) * scale
        assert np.mean(raw < expected) == pytest.approx(probability, abs=4 * math.sqrt(probability / 250_000) + 1e-3)


def test_row_noise_is_common_to_a_row_and_offset_to_a_colour():
    rows = NoiseModel(row_sigma=50.0, black_level=1000.0).sample(np.zeros((400, 30)), np.random.default_rng(5))
    assert np.ptp(rows.astype(int), axis=1).max() == 0
    assert rows[:, 0].std() == pytest.approx(50.0, rel=0.15)
    offsets = NoiseModel(offset_sigma=50.0, black_level=1000.0)
    frames = [offsets.sample(np.zeros((4, 4)), np.random.default_rng(seed), 'grbg') for seed in range(300)]
    for frame in frames[:20]:
        assert frame[0, 0] == frame[1, 1] == frame[2, 2]
    assert sum(len({frame[0, 0], frame[0, 1], frame[1, 0]}) == 3 for frame in frames) > 270
    assert np.std([frame[0, 1] for frame in frames]) == pytest.approx(50.0, rel=0.15)
    mono = offsets.sample(np.zeros((4, 4)), np.random.default_rng(0), 'mono')
    assert np.unique(mono).size == 1


def test_quantisation_and_clipping():
    coarse = NoiseModel(read_sigma=20.0, black_level=100.0, white_level=255.0, quantisation_step=4.0)
    raw = coarse.sample(np.full((300, 300), 120.0), np.random.default_rng(6))
    assert raw.max() == 255 and not np.any(raw[raw < 255] % 4)
    low = NoiseModel(read_sigma=50.0, black_level=10.0)
    assert np.mean(low.sample(np.zeros((300, 300)), np.random.default_rng(7)) == 0) > 0.3
    # Uniform rounding error adds step^2 / 12.
    fine = NoiseModel(read_sigma=6.0, black_level=500.0, quantisation_step=8.0)
    raw = fine.sample(np.zeros((700, 700)), np.random.default_rng(8))
    assert raw.var() == pytest.approx(fine.variance(0.0), rel=0.01)


@pytest.mark.parametrize('binning', [2, 4, 8])
def test_variance_after_binning_with_correlated_rows(binning, make_frame):
    model = replace(PLAIN, row_sigma=3.0)
    rng = np.random.default_rng(9)
    clean = np.full((256, 256), 20.0)
    stack = np.stack([to_planes(make_frame(model.sample(clean, rng), model), binning).values for _ in range(150)])
    measured = stack.var(axis=0, ddof=1).mean(axis=(1, 2))
    samples = (binning**2 // 4, binning**2 // 2, binning**2 // 4)
    np.testing.assert_allclose(measured, model.planes_variance(np.full(3, 20.0), samples), rtol=0.02)
    without_rows = replace(model, row_sigma=0.0).planes_variance(np.full(3, 20.0), samples)
    if binning == 8:
        # Row noise is a fifth of what is left after binning; without its own term the test above would fail.
        assert (measured > 1.2 * without_rows).all()


def test_variance_of_a_binned_mono_frame(make_frame):
    rng = np.random.default_rng(10)
    stack = np.stack(
        [to_planes(make_frame(PLAIN.sample(np.full((96, 96), 8.0), rng), PLAIN, 'mono'), 3).values for _ in range(200)]
    )
    measured = stack.var(axis=0, ddof=1).mean(axis=(1, 2))
    np.testing.assert_allclose(measured, PLAIN.planes_variance(np.full(3, 8.0), (9, 9, 9)), rtol=0.03)


def test_the_same_seed_gives_the_same_frame():
    model = preset('sony_a7s2')
    clean = np.full((60, 80), 5.0)
    first, again = (model.sample(clean, np.random.default_rng(11)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != model.sample(clean, np.random.default_rng(12))).mean() > 0.5


def test_a_large_frame_is_sampled_fast():
    model = preset('sony_a7s2')
    clean = np.full((960, 1280), 6.0, dtype=np.float32)
    rng = np.random.default_rng(13)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        model.sample(clean, rng)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15


def test_yaml_round_trip(tmp_path):
    path = tmp_path / 'noise.yaml'
    for model in (preset('nikon_d850'), preset('starvis')):
        save_yaml(model, path, {'calibration': {'r_squared': 0.99}})
        loaded = load_yaml(path)
        assert math.isnan(loaded.tukey_lambda) == math.isnan(model.tukey_lambda)
        assert replace(loaded, tukey_lambda=0.0) == replace(model, tukey_lambda=0.0)
        assert resolve_noise(str(path)).gain == model.gain
    assert resolve_noise('pregius') is PRESETS['pregius']


def test_bad_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='gain'):
        NoiseModel(gain=0.0)
    with pytest.raises(ConfigError, match='white level'):
        NoiseModel(black_level=500.0, white_level=400.0)
    with pytest.raises(ConfigError, match='lambda'):
        NoiseModel(tukey_lambda=-0.6)
    with pytest.raises(ConfigError, match='neither'):
        resolve_noise('sony')
    path = tmp_path / 'bad.yaml'
    with pytest.raises(DataError, match=r'bad\.yaml'):
        load_yaml(path)
    for text, kind in (('{', DataError), ('a: 1', DataError), ('noise: {gian: 1}', ConfigError)):
        path.write_text(text)
        with pytest.raises(kind, match=r'bad\.yaml'):
            load_yaml(path)
    with pytest.raises(OutputError, match='cannot write'):
        save_yaml(PLAIN, tmp_path / 'missing' / 'noise.yaml')
    with pytest.raises(DataError, match='finite'):
        PLAIN.sample(np.array([[np.nan]]), np.random.default_rng(0))
    with pytest.raises(ConfigError, match='samples'):
        PLAIN.planes_variance(np.zeros(3), (4, 4, 8))
