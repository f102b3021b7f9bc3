# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.raw.calibrate import calibrate, quantisation_step
from dark3r_ros.raw.calibration_plot import plot_calibration
from dark3r_ros.raw.dark_frames import analyse_darks
from dark3r_ros.raw.noise import NoiseModel, preset
from dark3r_ros.raw.photon_transfer import fit_line, pair_points, row_noise
from dark3r_ros.types import Frame

HEIGHT, WIDTH = 480, 640
EXPOSURES = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
CAMERAS = ('sony_a7s2', 'nikon_d850', 'pregius')


@pytest.fixture
def record(make_frame) -> Callable[..., list[Frame]]:
    def make(model: NoiseModel, clean: np.ndarray, count: int, seed: int) -> list[Frame]:
        rng = np.random.default_rng(seed)
        return [make_frame(model.sample(clean, rng), model) for _ in range(count)]

    return make


def vignette() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return 1 - 0.4 * (((x - WIDTH / 2) / WIDTH) ** 2 + ((y - HEIGHT / 2) / HEIGHT) ** 2)


def flats(record, model: NoiseModel, seed: int = 2) -> list[Frame]:
    """One recording that steps through the exposures, two frames each."""
    top = 0.6 * (model.white_level - model.black_level)
    steps = [record(model, vignette() * top * level, 2, seed + index) for index, level in enumerate(EXPOSURES)]
    return [frame for step in steps for frame in step]


def assert_recovered(found: NoiseModel, true: NoiseModel, row: float = 0.05) -> None:
    assert found.gain == pytest.approx(true.gain, rel=0.05)
    assert found.read_sigma == pytest.approx(true.read_sigma, rel=0.05)
    assert found.row_sigma == pytest.approx(true.row_sigma, rel=row)
    assert found.black_level == pytest.approx(true.black_level, abs=0.05 * true.read_sigma)


@pytest.mark.parametrize('name', CAMERAS)
def test_darks_and_flats_recover_the_camera(name, record):
    true = preset(name)
    result = calibrate(darks=record(true, np.zeros((HEIGHT, WIDTH)), 20, 1), flats=[flats(record, true)], name='test')
    assert_recovered(result.noise, true)
    if math.isnan(true.tukey_lambda):
        assert math.isnan(result.noise.tukey_lambda)
    else:
        assert result.noise.tukey_lambda == pytest.approx(true.tukey_lambda, abs=0.03)
        assert result.darks is not None and result.darks.ppcc > result.darks.gaussian_ppcc
    assert result.line.r_squared > 0.99
    assert 0.8 < result.line.reduced_chi2 < 1.3
    assert abs(result.noise.gain - true.gain) < 4 * result.line.gain_sigma
    assert result.pairs == len(EXPOSURES) and result.method == 'dark+flat'
    assert result.warnings == ()
    assert result.noise.white_level == true.white_level and result.noise.name == 'test'


@pytest.mark.parametrize('name', CAMERAS)
def test_a_static_scene_alone_recovers_the_camera(name, record, scene):
    true = replace(preset(name), offset_sigma=0.0)
    radiance = scene(HEIGHT, WIDTH) * 8.0 * true.gain
    result = calibrate(static=record(true, radiance, 24, 3))
    # Shot noise hides the row noise of a bright scene; dark frames are the way to measure it.
    assert_recovered(result.noise, true, row=0.25)
    assert result.method == 'static' and any('no dark frames' in text for text in result.warnings)
    assert result.report()['fit']['tiles'] == len(result.points)


def test_tiles_of_different_brightness_inside_do_not_bias_the_line(record):
    true = NoiseModel(gain=5.0, read_sigma=10.0, black_level=200.0, white_level=16383.0)
    rng = np.random.default_rng(4)
    harsh = np.where(rng.random((HEIGHT, WIDTH)) < 0.5, 0.0, 1.0) * np.linspace(50, 2000, WIDTH)
    result = calibrate(static=record(true, harsh, 10, 5))
    assert result.noise.gain == pytest.approx(5.0, rel=0.03)


def test_offset_noise_within_its_statistics(record):
    true = NoiseModel(gain=2.0, read_sigma=3.0, offset_sigma=2.0, black_level=100.0)
    darks = analyse_darks(record(true, np.zeros((96, 128)), 200, 6))
    assert darks.offset_freedom == 3 * 199
    # sigma of a standard deviation is sigma / sqrt(2 f) = 2.9 %.
    assert math.sqrt(darks.offset_variance) == pytest.approx(2.0, rel=0.09)
    still = analyse_darks(record(replace(true, offset_sigma=0.0, row_sigma=1.0), np.zeros((96, 128)), 50, 7))
    assert math.sqrt(still.offset_variance) < 0.07


def test_black_level_of_each_colour_and_share_of_zeros(make_frame):
    rng = np.random.default_rng(8)
    frames = []
    for _ in range(6):
        raw = rng.normal(20.0, 10.0, (200, 200))
        raw[1::2, 1::2] += 30.0
        frames.append(make_frame(np.clip(np.rint(raw), 0, None).astype(np.uint16)))
    darks = analyse_darks(frames)
    assert darks.black[2] - darks.black[1] == pytest.approx(30.0, abs=0.3)
    assert darks.zero_share == pytest.approx(0.75 * 0.0256, rel=0.1)
    result = calibrate(darks=frames, flats=[_bright(make_frame)])
    assert any('code zero' in text for text in result.warnings)
    assert any('sigma above zero' in text for text in result.warnings)


def _bright(make_frame, low: float = 200.0) -> list[Frame]:
    rng = np.random.default_rng(9)
    ramp = np.tile(np.linspace(low, 4000.0, 200), (200, 1))
    return [make_frame(rng.poisson(ramp).astype(np.uint16)) for _ in range(2)]


def test_row_noise_against_its_own_truth(record):
    true = NoiseModel(gain=1.0, read_sigma=5.0, row_sigma=1.5, black_level=100.0)
    pairs = [record(true, np.zeros((600, 300)), 2, seed) for seed in range(12)]
    measured = [row_noise(*pair) for pair in pairs]
    assert np.mean([row for row, _ in measured]) == pytest.approx(1.5**2, rel=0.05)
    assert np.mean([total for _, total in measured]) == pytest.approx(25.0 + 1.5**2 + 1 / 12, rel=0.02)


def test_line_ignores_tiles_with_defects(record):
    true = NoiseModel(gain=3.0, read_sigma=8.0, black_level=200.0, white_level=16383.0)
    ramp = np.tile(np.linspace(20, 3000, WIDTH), (HEIGHT, 1))
    first, second = record(true, ramp, 2, 10)
    spoilt = second.mosaic.copy()
    spoilt[100:150, 100:200] += np.random.default_rng(11).integers(0, 900, (50, 100)).astype(np.uint16)
    points = pair_points(first, replace(second, mosaic=spoilt), (200.0,) * 3)
    assert fit_line(points).gain == pytest.approx(3.0, rel=0.05)


def test_flicker_of_the_lamp_is_not_motion(record):
    true = preset('pregius')
    base = vignette() * 1500.0
    frames = [record(true, base * level, 1, seed)[0] for seed, level in enumerate((1.0, 1.02, 0.99, 1.01))]
    darks = record(true, np.zeros((HEIGHT, WIDTH)), 4, 12)
    dimmer = record(true, base * 0.1, 2, 13)
    result = calibrate(darks=darks, flats=[frames, dimmer])
    assert result.noise.gain == pytest.approx(true.gain, rel=0.05)
    assert any('4 dark frames' in text for text in result.warnings)


def test_a_response_that_is_not_linear_is_noticed(record, make_frame):
    true = NoiseModel(gain=4.0, read_sigma=10.0, black_level=300.0, white_level=16383.0)
    bent = []
    for frame in flats(record, true):
        linear = (frame.mosaic.astype(float) - 300.0) / 16083.0
        bent.append(replace(frame, mosaic=np.rint(300 + 16083 * np.clip(linear, 0, 1) ** 0.6).astype(np.uint16)))
    result = calibrate(darks=record(true, np.zeros((HEIGHT, WIDTH)), 20, 14), flats=[bent])
    assert any('not linear' in text for text in result.warnings)


def test_step_of_the_codes(make_frame):
    values = np.random.default_rng(15).integers(20, 90, (50, 50)).astype(np.uint16)
    assert quantisation_step(make_frame(values)) == 1.0
    assert quantisation_step(make_frame(values * 4 + 3)) == 4.0
    assert quantisation_step(make_frame(np.full((9, 9), 7, np.uint16))) == 1.0


def test_unusable_recordings_say_what_to_record(record, scene, make_frame):
    true = preset('pregius')
    zero = np.zeros((HEIGHT, WIDTH))
    darks, good = record(true, zero, 3, 16), flats(record, true)
    bright = record(true, vignette() * 50_000.0, 2, 17)
    moving = [record(true, np.roll(scene(HEIGHT, WIDTH), 7 * index, 1) * 900.0, 1, index)[0] for index in range(4)]
    cases = [
        ({'darks': darks[:1], 'flats': [good]}, 'one dark frame only'),
        ({'darks': [], 'flats': [good]}, 'no frames'),
        ({'darks': darks}, 'the gain needs light'),
        ({'darks': darks, 'flats': [good[:1]]}, 'no two consecutive frames'),
        ({'darks': darks, 'flats': [good[1:3]]}, 'no two consecutive frames'),
        ({'static': good[:1]}, 'fewer than two frames'),
        ({'darks': darks, 'flats': [bright]}, '100% of the tiles are saturated'),
        ({'static': moving}, 'changed between frames'),
        ({'darks': darks, 'flats': [darks]}, 'does not grow with brightness'),
        ({'darks': darks, 'flats': [[replace(f, mosaic=f.mosaic[:100]) for f in good]]}, 'different sizes|too small'),
        ({'darks': [darks[0], replace(darks[1], mosaic=darks[1].mosaic[:100])], 'flats': [good]}, 'different sizes'),
        ({'darks': [darks[0], replace(darks[1], cfa='bggr')], 'flats': [good]}, 'phases'),
        ({'static': [replace(f, gain=100.0 * (i + 1)) for i, f in enumerate(good[:2])]}, 'different gains'),
        ({'static': [replace(f, processed=True) for f in good]}, 'processed'),
        ({'static': [replace(f, black_level=(0.0,) * 3) for f in good[6:8] * 8]}, 'black level 0 is wrong'),
    ]
    for arguments, text in cases:
        with pytest.raises(DataError, match=text) as caught:
            calibrate(**arguments)
        assert '\n' not in str(caught.value)


def test_plot(record, tmp_path):
    import cv2

    true = preset('nikon_d850')
    result = calibrate(darks=record(true, np.zeros((HEIGHT, WIDTH)), 10, 18), flats=[flats(record, true)], name='d850')
    plot_calibration(result, tmp_path / 'plot.png')
    picture = cv2.imread(str(tmp_path / 'plot.png'))
    assert picture.shape[0] > 700 and picture.std() > 20
    without = calibrate(static=record(true, vignette() * np.linspace(10, 900, WIDTH), 6, 19))
    plot_calibration(without, tmp_path / 'static.png')
    assert (tmp_path / 'static.png').stat().st_size > 10_000
    with pytest.raises(OutputError, match='plot'):
        plot_calibration(result, tmp_path / 'missing' / 'plot.png')
