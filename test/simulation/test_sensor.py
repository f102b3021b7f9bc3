# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.cfa import BAYER_PATTERNS
from dark3r_ros.raw.noise import PRESETS, preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.simulation.sensor import RawSensor, SignalStatistics
from dark3r_ros.types import Frame


def picture(height: int = 240, width: int = 320) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = np.linspace(0.2, 1.0, width, dtype=np.float32)
    return (
        np.array([1.0, 0.8, 0.6], np.float32)[:, None, None] * x * rng.uniform(0.5, 1.5, (3, height, width))
    ).astype(np.float32)


def frame_of(sensor: RawSensor, mosaic: np.ndarray) -> Frame:
    return Frame(0, mosaic, sensor.cfa, (sensor.noise.black_level,) * 3, sensor.noise.white_level)


@pytest.mark.parametrize('cfa', [*BAYER_PATTERNS, 'mono'])
@pytest.mark.parametrize('full', [False, True])
def test_mosaic_binned_by_the_raw_room_gives_the_planes(cfa: str, full: bool) -> None:
    sensor = RawSensor(preset('starvis'), cfa)
    light = picture()
    exposure = 300.0
    mosaic = sensor.expose_clean(sensor.mosaic(light, exposure, full=full))
    assert mosaic.shape == ((240, 320) if full else (480, 640))
    planes = to_planes(frame_of(sensor, mosaic), 4)
    if not full:
        np.testing.assert_allclose(planes.signal(), sensor.planes(light, 4) * exposure, atol=0.5)
    assert planes.samples == sensor.samples(4)


def test_full_rendering_puts_each_site_in_its_place() -> None:
    sensor = RawSensor(preset('starvis'), 'gbrg', response=(1.0, 2.0, 3.0))
    light = np.ones((3, 4, 6), np.float32) * np.arange(24, dtype=np.float32).reshape(4, 6)
    clean = sensor.mosaic(light, 10.0, full=True)
    gains = np.tile(np.array([[2.0, 3.0], [1.0, 2.0]]), (2, 3))
    np.testing.assert_allclose(clean, 10.0 * gains * light[0])


@pytest.mark.parametrize('snr_db', [-10.0, -4.0, 10.0, 20.0])
@pytest.mark.parametrize('name', ['starvis', 'pregius', 'sony_a7s2'])
def test_measured_snr_is_the_asked_one(snr_db: float, name: str) -> None:
    if name not in PRESETS:
        pytest.skip(f'no preset {name}')
    sensor, light = RawSensor(preset(name)), picture()
    statistics = SignalStatistics()
    clean = sensor.planes(light, 4)
    statistics.add(clean)
    exposure = statistics.exposure(sensor.noise, snr_db, sensor.samples(4))
    power, variance = statistics.powers(sensor.noise, exposure, sensor.samples(4))
    assert 10 * math.log10(power / variance) == pytest.approx(snr_db, abs=1e-6)
    mosaic = sensor.mosaic(light, exposure)
    noise = []
    for seed in range(6):
        noisy = to_planes(frame_of(sensor, sensor.expose(mosaic, np.random.default_rng(seed))), 4)
        residual = noisy.signal() - clean * exposure
        noise.append((residual - residual.mean((1, 2), keepdims=True)) ** 2)
    measured = 10 * math.log10(float(np.mean((clean * exposure) ** 2)) / float(np.mean(noise)))
    assert measured == pytest.approx(snr_db, abs=0.3)


def test_the_mean_survives_from_radiance_to_planes() -> None:
    sensor, light = RawSensor(preset('starvis')), picture()
    exposure = 4.0  # counts of signal far below the noise of a pixel
    mosaic = sensor.mosaic(light, exposure)
    total = np.zeros(3)
    for seed in range(40):
        planes = to_planes(frame_of(sensor, sensor.expose(mosaic, np.random.default_rng(seed))), 4)
        assert planes.signal().min() < 0.0
        total += planes.signal().mean((1, 2))
    # 40 frames: 19200 values a plane and 0.3 counts of offset a frame leave 0.05 counts.
    np.testing.assert_allclose(total / 40, sensor.planes(light, 4).mean((1, 2)) * exposure, atol=0.2)


def test_black_scenes_and_bad_sensors_are_refused() -> None:
    statistics = SignalStatistics()
    statistics.add(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(DataError, match='black'):
        statistics.exposure(preset('starvis'), 0.0, (4, 8, 4))
    with pytest.raises(ConfigError, match='rgbw'):
        RawSensor(preset('starvis'), 'rgbw')
    with pytest.raises(ConfigError, match='positive'):
        RawSensor(preset('starvis'), response=(0.0, 1.0, 1.0))
