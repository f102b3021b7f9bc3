# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.raw.cfa import BAYER_PATTERNS, shift_pattern
from dark3r_ros.raw.checks import check_frame, frame_health
from dark3r_ros.raw.files import read_raw_file
from dark3r_ros.raw.noise import NoiseModel, preset

GOOD = replace(preset('starvis'), offset_sigma=0.0)


def photograph(model: NoiseModel, radiance: np.ndarray, seed: int = 0) -> np.ndarray:
    return model.sample(radiance, np.random.default_rng(seed))


def test_a_good_camera_gets_no_advice(scene, make_frame):
    for level in (3.0, 30.0, 1000.0):
        frame = make_frame(photograph(GOOD, scene(480, 640) * level), GOOD)
        assert check_frame(frame, GOOD) == []
        assert check_frame(frame) == []


def test_pixels_at_the_rail(scene, make_frame):
    low = replace(GOOD, black_level=15.0)
    frame = make_frame(photograph(low, scene(480, 640) * 2.0), low)
    advice = check_frame(frame, low)
    assert any('lowest code 0' in text and 'raise the black level' in text for text in advice)
    assert any('15 counts is only 1.9 times' in text for text in advice)
    # The same frame on a camera that subtracts its pedestal and clamps at 16.
    clamped = np.maximum(frame.mosaic, 16)
    assert any('lowest code 16' in text for text in check_frame(make_frame(clamped, low), low))


def test_coarse_codes_are_no_rail(make_frame):
    rng = np.random.default_rng(1)
    coarse = np.rint(rng.normal(100.0, 0.4, (300, 400))).astype(np.uint16)
    frame = make_frame(coarse * 4, black_level=(390.0,) * 3)
    assert not any('lowest code' in text for text in check_frame(frame))


def test_pedestal_without_a_model(scene, make_frame):
    low = replace(GOOD, black_level=25.0)
    frame = make_frame(photograph(low, scene(480, 640) * 2.0), low)
    assert any('times the noise' in text for text in check_frame(frame))
    zero = make_frame(frame.mosaic, black_level=(0.0,) * 3)
    assert any('zero or unknown' in text for text in check_frame(zero))


def test_eight_bits(scene, make_frame):
    eight = NoiseModel(gain=0.5, read_sigma=1.5, black_level=16.0, white_level=255.0)
    frame = make_frame(photograph(eight, scene(480, 640) * 60.0), eight)
    assert any('8 bits' in text for text in check_frame(frame, eight))


@pytest.mark.parametrize('shift', [(1, 0), (0, 1), (1, 1), (0, 0)])
@pytest.mark.parametrize('level', [50.0, 300.0])
def test_wrong_phase(shift, level, scene, make_frame):
    frame = make_frame(photograph(GOOD, scene(480, 640) * level), GOOD, cfa=shift_pattern('rggb', *shift))
    told = [text for text in check_frame(frame, GOOD) if 'phase is wrong' in text]
    # Exchanging red and blue leaves the greens where they are: that cannot be seen.
    assert bool(told) == (sum(shift) == 1)
    if told:
        assert 'rggb or bggr agree' in told[0]


def test_phase_of_real_cameras(shared_root):
    files = sorted((shared_root / 'data' / 'raw').glob('*.dng'))
    if not files:
        pytest.skip('no real raw files')
    pytest.importorskip('rawpy')
    for path in files:
        frame = read_raw_file(path)
        assert not any('phase' in text for text in check_frame(frame)), path.name
        assert any('phase is wrong' in text for text in check_frame(replace(frame, mosaic=frame.mosaic[:, 1:]))), (
            path.name
        )
        assert any('labelled mono' in text for text in check_frame(replace(frame, cfa='mono'))), path.name


def test_bayer_labelled_as_mono(scene, make_frame):
    radiance = scene(480, 640) * 300.0
    assert any(
        'encoding_override to rggb or bggr' in text
        for text in check_frame(make_frame(photograph(GOOD, radiance), GOOD, 'mono'))
    )
    shifted = photograph(GOOD, radiance[:, 1:])
    assert any('gbrg or grbg' in text for text in check_frame(make_frame(shifted, GOOD, 'mono')))
    grey = np.repeat(np.repeat(scene(240, 320)[0::2, 0::2], 4, 0), 4, 1) * 300.0
    assert check_frame(make_frame(photograph(GOOD, grey), GOOD, 'mono'), GOOD) == []


@pytest.mark.parametrize('cfa', [*BAYER_PATTERNS, 'mono'])
def test_health(cfa, scene, make_frame):
    dark = frame_health(make_frame(photograph(GOOD, np.zeros((480, 640))), GOOD, cfa), GOOD)
    assert dark.all_black and not dark.all_saturated and dark.black_fraction < 1e-3
    assert frame_health(make_frame(np.zeros((48, 64), np.uint16), GOOD, cfa)).all_black
    blind = frame_health(make_frame(np.full((48, 64), 4095, np.uint16), GOOD, cfa))
    assert blind.all_saturated and not blind.all_black and blind.saturated_fraction == 1.0
    # A tenth of an electron: -10 dB after binning by 4 is brighter than that.
    dim = frame_health(make_frame(photograph(GOOD, np.full((480, 640), 0.1 * GOOD.gain)), GOOD, cfa), GOOD)
    assert not dim.all_black


def test_advice_in_the_extremes(make_frame):
    cap = check_frame(make_frame(photograph(GOOD, np.zeros((480, 640))), GOOD), GOOD)
    assert len(cap) == 1 and 'lens cap' in cap[0]
    blind = check_frame(make_frame(np.full((48, 64), 4095, np.uint16), GOOD))
    assert len(blind) == 1 and 'saturated' in blind[0]
    picture = check_frame(replace(make_frame(np.full((48, 64), 9, np.uint16)), processed=True))
    assert len(picture) == 1 and 'Bayer format' in picture[0]
    half = np.full((480, 640), 300.0)
    half[:100] = 5000.0
    assert any(
        '% of the pixels are saturated' in text for text in check_frame(make_frame(photograph(GOOD, half), GOOD), GOOD)
    )
