# SPDX-License-Identifier: Apache-2.0
"""Raw to network input: what must survive the affine map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.normalise import MODES, normalise, normalise_batch
from dark3r_ros.raw.noise import preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.simulation.sensor import RawSensor, SignalStatistics
from dark3r_ros.types import Frame, Planes


def planes_of(values, black=(512.0, 512.0, 512.0), white=16383.0):
    return Planes(np.asarray(values, np.float32), black, white, (4, 8, 4), 4, 1_000)


def dark_scene(seed, shape=(48, 64), signal=2.0, sigma=3.0, black=512.0):
    """Counts of a smooth scene, dimmer than its noise, as a sensor without rail gives them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = 1 + 0.5 * np.sin(rows / 7 + seed) * np.cos(columns / 9)
    clean = signal * waves * np.array([0.8, 1.2, 1.0])[:, None, None]
    return clean + black, (clean + black + sigma * rng.normal(size=clean.shape)).astype(np.float32)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('seed', range(4))
def test_map_is_lossless(mode, seed):
    _, values = dark_scene(seed)
    image = normalise(planes_of(values), mode)
    assert image.values.dtype == np.float32
    # A float32 count of 512 is known to 3e-5.
    np.testing.assert_allclose(image.counts(), values, atol=6e-4 if mode == 'paper' else 4e-5)


@pytest.mark.parametrize('mode', MODES)
def test_mean_is_preserved_from_simulation_to_network_input(mode):
    """The network input, taken back through the map, has the mean of the clean scene within its standard error."""
    clean, values = dark_scene(1, (120, 160), signal=1.0, sigma=4.0)
    recovered = normalise(planes_of(values), mode).counts()
    standard_error = 4.0 / np.sqrt(clean[0].size)
    difference = recovered.mean(axis=(1, 2)) - clean.mean(axis=(1, 2))
    assert np.abs(difference).max() < 4 * standard_error
    # Clipping at black, the usual mistake, would shift it by far more than that.
    clipped = np.maximum(values, 512.0).mean(axis=(1, 2)) - clean.mean(axis=(1, 2))
    assert clipped.min() > 20 * standard_error


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', ['starvis', 'alpha1_iso102400'])
def test_mean_of_the_simulated_sensor_arrives_at_the_network(mode, name):
    """From radiance over sensor, binning and normalisation: the mean of 24 exposures at -4 dB is that of the light."""
    rows, columns = np.mgrid[:96, :128]
    light = (1 + 0.6 * np.sin(rows / 9) * np.cos(columns / 11)) * np.array([1.0, 0.7, 1.3])[:, None, None]
    light = light.astype(np.float32)
    sensor, statistics = RawSensor(preset(name)), SignalStatistics()
    noise = sensor.noise
    statistics.add(sensor.planes(light, 4))
    exposure = statistics.exposure(noise, -4.0, sensor.samples(4))
    mosaic, means, rail = sensor.mosaic(light, exposure), [], 0
    for seed in range(24):
        counts = sensor.expose(mosaic, np.random.default_rng(seed))
        frame = Frame(seed, counts, 'rggb', (noise.black_level,) * 3, noise.white_level)
        image = normalise(to_planes(frame, 4), mode)
        rail = max(rail, *((image.values == edge).sum() for edge in (image.values.min(), image.values.max())))
        means.append(image.counts().mean(axis=(1, 2)))
    expected = noise.black_level + exposure * sensor.planes(light, 4).mean(axis=(1, 2))
    error = np.mean(means, axis=0) - expected
    assert np.abs(error).max() < 4.5 * np.std(means, axis=0).max() / np.sqrt(len(means))
    assert np.abs(error).max() < 0.1 * (expected - noise.black_level).max()
    assert rail <= 3


@given(
    black=st.floats(0, 4000), gain=st.floats(0.05, 50), seed=st.integers(0, 1000),
    per_plane=st.tuples(*[st.floats(-30, 30)] * 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_signed_mode_does_not_depend_on_black_level_and_gain(black, gain, seed, per_plane):
    _, values = dark_scene(seed, black=0.0)
    # Exact in float32: the property is that of the map, not of the storage of the counts.
    coarse = np.round(values * 64) / 64
    reference = normalise(planes_of(coarse, (0.0, 0.0, 0.0))).values
    offsets = black + np.array(per_plane)
    shifted = planes_of((coarse + offsets[:, None, None]) * gain, tuple(offsets * gain))
    got = normalise(shifted).values
    storage = 4e-7 * gain * (4000 + 30) / (normalise(shifted).scale)
    np.testing.assert_allclose(got, reference, atol=1e-5 + storage)


def test_exact_invariance_to_1e_5_where_storage_is_exact():
    _, values = dark_scene(5, black=0.0)
    coarse = np.round(values * 64) / 64
    reference = normalise(planes_of(coarse, (0.0,) * 3)).values
    for black, gain in ((256.0, 1.0), (1024.0, 4.0), (64.0, 0.5)):
        got = normalise(planes_of((coarse + black) * gain, (black * gain,) * 3)).values
        assert np.abs(got - reference).max() <= 1e-5


def test_no_value_is_at_a_rail():
    _, values = dark_scene(2, signal=0.5, sigma=3.0)
    values[:, 10, 10] = 16383.0
    image = normalise(planes_of(values)).values
    for edge in (image.min(), image.max()):
        assert (image == edge).sum() <= 3
    assert image.max() > 1000
    assert len(np.unique(image[0])) > 0.99 * len(np.unique(values[0]))


def test_unit_spread_and_zero_mean_and_a_lamp_does_not_matter():
    _, values = dark_scene(3)
    image = normalise(planes_of(values))
    np.testing.assert_allclose(image.values.mean(axis=(1, 2)), 0, atol=1e-5)
    assert image.values.std() == pytest.approx(1, abs=0.1)
    lit = values.copy()
    lit[:, :3, :3] += 10000
    assert normalise(planes_of(lit)).scale == pytest.approx(image.scale, rel=0.02)


def test_paper_mode_is_raw_over_white_with_black_left_in():
    values = np.stack([np.full((2, 2), v) for v in (0.0, 8191.5, 16383.0)])
    image = normalise(planes_of(values), 'paper').values
    np.testing.assert_allclose(image[:, 0, 0], [-1, 0, 1])


def test_flat_images():
    assert (normalise(planes_of(np.full((3, 8, 8), 512.0))).values == 0).all()
    one = np.full((3, 8, 8), 512.0)
    one[1, 2, 3] = 600
    image = normalise(planes_of(one)).values
    assert np.isfinite(image).all()
    assert np.unravel_index(image.argmax(), image.shape) == (1, 2, 3)


def test_bad_frames_are_refused_in_one_line():
    values = dark_scene(0)[1]
    values[1, 2, 3] = np.nan
    with pytest.raises(DataError, match='1 values that are not finite') as caught:
        normalise(planes_of(values))
    assert '\n' not in str(caught.value)
    with pytest.raises(DataError, match='three'):
        normalise(planes_of(values[:1]))
    with pytest.raises(DataError, match=r'empty: its planes have the shape \(3, 0, 64\)'):
        normalise(planes_of(dark_scene(0)[1][:, :0]))
    with pytest.raises(ConfigError, match='signed, paper'):
        normalise(planes_of(dark_scene(0)[1]), 'imagenet')


@pytest.mark.parametrize('mode', MODES)
def test_training_sees_what_inference_sees(mode):
    scenes = [dark_scene(seed, signal=signal)[1] for seed, signal in ((1, 0.5), (2, 300.0))]
    sparse = np.full_like(scenes[0], 512)
    sparse[1, 2, 3] = 600
    scenes += [np.full_like(scenes[0], 700), sparse]
    batch = normalise_batch(torch.from_numpy(np.stack(scenes)), 16383.0, mode)
    assert batch.dtype == torch.float32
    for got, values in zip(batch.numpy(), scenes, strict=True):
        np.testing.assert_allclose(got, normalise(planes_of(values), mode).values, rtol=1e-6, atol=1e-6)
