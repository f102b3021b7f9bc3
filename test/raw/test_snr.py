# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.errors import DataError
from dark3r_ros.raw.blind import pixel_variance, row_variance
from dark3r_ros.raw.noise import NoiseModel, preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.raw.snr import FLOOR_DB, estimate_snr, snr_db

LEVELS = (-10, -4, 0, 10, 20)


def truth_db(clean: np.ndarray, model: NoiseModel, n: int) -> float:
    """SNR by the definition of the conventions, from the clean planes."""
    return snr_db(clean, model.planes_variance(clean, (n * n // 4, n * n // 2, n * n // 4)))


def scaled_to(base: np.ndarray, planes: np.ndarray, model: NoiseModel, n: int, db: float) -> tuple[np.ndarray, float]:
    low, high = 1e-6, 1e6
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if truth_db(planes * middle, model, n) < db else (low, middle)
    return base * low, truth_db(planes * low, model, n)


def test_definition():
    signal = np.zeros((3, 4, 5))
    signal[0], signal[1], signal[2] = 1.0, 2.0, 3.0
    # mean(signal^2) = 14/3, mean variance = 2.
    assert snr_db(signal, np.array([1.0, 2.0, 3.0])) == pytest.approx(10 * math.log10(14 / 6))
    assert snr_db(signal, np.full(signal.shape, 2.0)) == pytest.approx(10 * math.log10(14 / 6))
    assert snr_db(signal * 0, np.ones(3)) == FLOOR_DB
    with pytest.raises(DataError, match='SNR needs'):
        snr_db(signal[0], np.ones(3))


@pytest.mark.parametrize(
    ('name', 'binning'),
    [
        ('sony_a7s2', 4),
        ('sony_a7s2', 8),
        ('nikon_d850', 2),
        ('canon_5d4', 8),
        ('oppo_reno_10x_iso3200', 4),
        ('pregius', 4),
    ],
)
def test_estimate_with_the_model_is_within_one_decibel(name, binning, scene, clean_planes, make_frame):
    # The offset of a frame cannot be told from light; calibrated cameras have less than a tenth of the signal here.
    model = replace(preset(name), offset_sigma=min(preset(name).offset_sigma, 0.02))
    base = scene(960, 1280)
    planes = clean_planes(base, binning)
    for seed, db in enumerate(LEVELS):
        clean, truth = scaled_to(base, planes, model, binning, db)
        assert truth == pytest.approx(db, abs=0.01)
        # The mean of the row noise of a frame cannot be told from light either: single frames scatter at the dark end.
        frames = [model.sample(clean, np.random.default_rng((seed, take))) for take in range(5 if db < -4 else 1)]
        estimates = [estimate_snr(to_planes(make_frame(frame, model), binning), model) for frame in frames]
        assert np.median([estimate.db for estimate in estimates]) == pytest.approx(truth, abs=1.0), f'{db} dB'
        assert estimates[0].samples == (binning**2 // 4, binning**2 // 2, binning**2 // 4)


@pytest.mark.parametrize('name', ['sony_a7s2', 'canon_5d4', 'oppo_reno_10x_iso3200'])
def test_estimate_without_a_model_from_the_mosaic(name, scene, clean_planes, make_frame):
    model = replace(preset(name), offset_sigma=0.0)
    base = scene(960, 1280)
    planes = clean_planes(base, 4)
    for seed, db in enumerate(LEVELS):
        clean, truth = scaled_to(base, planes, model, 4, db)
        noisy = make_frame(model.sample(clean, np.random.default_rng(seed)), model)
        estimate = estimate_snr(to_planes(noisy, 4), None, noisy)
        assert estimate.db == pytest.approx(truth, abs=1.0), f'{db} dB'


def test_estimate_from_planes_alone_is_no_optimist_on_texture(scene, clean_planes, make_frame):
    model = replace(preset('pregius'), offset_sigma=0.0, row_sigma=0.0)
    base = scene(960, 1280)
    clean, truth = scaled_to(base, clean_planes(base, 4), model, 4, 10.0)
    noisy = make_frame(model.sample(clean, np.random.default_rng(1)), model)
    assert truth - 3.0 < estimate_snr(to_planes(noisy, 4)).db < truth + 0.5


def test_no_light_gives_a_finite_floor(make_frame):
    model = preset('sony_a7s2')
    values = []
    for seed in range(6):
        frame = make_frame(model.sample(np.zeros((480, 640)), np.random.default_rng(seed)), model)
        values.append(estimate_snr(to_planes(frame, 4), model).db)
    assert all(math.isfinite(value) for value in values)
    assert np.median(values) < -17
    assert FLOOR_DB in values


def test_planes_of_one_colour_only(make_frame, clean_planes):
    model = NoiseModel(gain=2.0, read_sigma=5.0, black_level=200.0)
    clean = np.zeros((256, 256))
    clean[0::2, 0::2] = 60.0
    frame = make_frame(model.sample(clean, np.random.default_rng(2)), model)
    estimate = estimate_snr(to_planes(frame, 4), model)
    expected = [10 * math.log10(60.0**2 / ((120.0 + 25.0 + 1 / 12) / 4)), FLOOR_DB, FLOOR_DB]
    assert estimate.per_plane_db[0] == pytest.approx(expected[0], abs=0.3)
    assert max(estimate.per_plane_db[1:]) < -10
    assert estimate.db == pytest.approx(truth_db(clean_planes(clean, 4), model, 4), abs=0.3)


def test_noise_of_a_single_frame_ignores_texture_and_separates_rows():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:400, :500]
    textured = (x // 48 + 2 * (y // 48)) % 4 == 0
    picture = 300 * np.sin(x / 40) + 200.0 * (y > 200) + np.where(textured, 400 * rng.random((400, 500)) - 200, 0.0)
    noise = rng.normal(0, 12.0, (400, 500)) + rng.normal(0, 4.0, (400, 1))
    noisy = (1000 + picture + noise).astype(np.float32)
    pixel = pixel_variance(noisy)
    assert math.sqrt(pixel) == pytest.approx(12.0, rel=0.04)
    assert math.sqrt(row_variance(noisy, pixel)) == pytest.approx(4.0, rel=0.35)
    quiet = (1000 + 300 * np.sin(x / 40) + rng.normal(0, 12.0, (400, 500))).astype(np.float32)
    assert math.sqrt(row_variance(quiet, 144.0)) < 0.5
