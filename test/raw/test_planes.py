# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.cfa import BAYER_PATTERNS, shift_pattern, sites
from dark3r_ros.raw.planes import choose_binning, decode_srgb, display_image, encode_srgb, to_planes
from dark3r_ros.types import Planes


@pytest.mark.parametrize('cfa', BAYER_PATTERNS)
@pytest.mark.parametrize('binning', [2, 4, 6, 10])
def test_planes_equal_the_plain_reference(cfa, binning, reference, make_frame):
    mosaic = np.random.default_rng(3).integers(0, 65536, (47, 61)).astype(np.uint16)
    planes = to_planes(make_frame(mosaic, cfa=cfa), binning)
    expected = reference(mosaic, cfa, binning)
    assert planes.values.dtype == np.float32
    assert planes.values.shape == expected.shape
    np.testing.assert_allclose(planes.values, expected, rtol=1e-7)
    assert planes.samples == (binning**2 // 4, binning**2 // 2, binning**2 // 4)


@pytest.mark.parametrize('binning', [1, 3, 4])
def test_mono_is_repeated(binning, reference, make_frame):
    mosaic = np.random.default_rng(4).integers(0, 4096, (20, 31)).astype(np.uint16)
    planes = to_planes(make_frame(mosaic, cfa='mono'), binning)
    np.testing.assert_allclose(planes.values, reference(mosaic, 'mono', binning), rtol=1e-7)
    assert planes.samples == (binning**2,) * 3


def test_sums_do_not_overflow(make_frame):
    mosaic = np.full((256, 256), 65535, dtype=np.uint16)
    assert (to_planes(make_frame(mosaic), 256).values == 65535).all()
    assert (to_planes(make_frame(mosaic, cfa='mono'), 256).values == 65535).all()


def test_views_with_gaps_are_read_like_copies(make_frame):
    wide = np.random.default_rng(5).integers(0, 4096, (64, 100)).astype(np.uint16)
    view = wide[:, 3:67]
    np.testing.assert_array_equal(to_planes(make_frame(view), 4).values, to_planes(make_frame(view.copy()), 4).values)


def test_black_stays_in_and_noise_below_it_survives(make_frame):
    rng = np.random.default_rng(6)
    mosaic = np.rint(rng.normal(100.0, 20.0, (400, 400))).astype(np.uint16)
    planes = to_planes(make_frame(mosaic, black_level=(100.0,) * 3), 2)
    signal = planes.signal()
    assert (signal < 0).mean() > 0.4
    assert abs(signal.mean()) < 0.3
    assert planes.black_level == (100.0,) * 3


def test_intrinsics_follow_the_binning(make_frame):
    camera = Camera(64, 48, 50.0, 52.0, 31.5, 23.5)
    planes = to_planes(make_frame(np.zeros((48, 64), np.uint16), camera=camera), 4)
    assert planes.camera is not None
    # The centre of the image stays its centre: (w - 1) / 2.
    assert (planes.camera.cx, planes.camera.cy) == (7.5, 5.5)
    assert (planes.camera.fx, planes.camera.fy) == (12.5, 13.0)
    assert planes.camera.width, planes.camera.height == planes.size


def test_unusable_binning_is_refused(make_frame):
    frame = make_frame(np.zeros((8, 8), np.uint16))
    with pytest.raises(ConfigError, match='even'):
        to_planes(frame, 3)
    with pytest.raises(ConfigError, match='binning 0'):
        to_planes(frame, 0)
    with pytest.raises(DataError, match='smaller than one 10x10 block'):
        to_planes(frame, 10)


def test_binning_for_usual_cameras():
    assert [choose_binning(width) for width in (640, 1280, 1920, 2448, 8640, 320, 100)] == [2, 4, 6, 8, 28, 2, 2]
    assert choose_binning(1280, 640) == 2


def test_phase_after_cropping():
    assert shift_pattern('rggb', 1, 0) == 'grbg'
    assert shift_pattern('rggb', 0, 1) == 'gbrg'
    assert shift_pattern('rggb', 1, 1) == 'bggr'
    assert shift_pattern('grbg', 2, 4) == 'grbg'
    assert shift_pattern('mono', 1, 1) == 'mono'
    assert sites('gbrg') == {'r': ((1, 0),), 'g': ((0, 0), (1, 1)), 'b': ((0, 1),)}
    with pytest.raises(ConfigError, match='xtrans'):
        shift_pattern('xtrans', 0, 0)


def test_srgb_curve_is_the_standard_and_its_inverse():
    # IEC 61966-2-1: mid grey 0.5 encodes linear 0.21404.
    assert decode_srgb(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)
    values = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(encode_srgb(decode_srgb(values)), values, atol=1e-6)


def test_display_works_on_noise_and_balances_colours():
    rng = np.random.default_rng(7)
    noise = rng.normal(500.0, 10.0, (3, 60, 80)).astype(np.float32)
    planes = Planes(noise, (500.0,) * 3, 4095.0, (4, 8, 4), 4, 0)
    picture = display_image(planes)
    assert picture.shape == (60, 80, 3) and picture.dtype == np.uint8
    assert picture.max() == 255 and (picture == 0).any()
    bright = np.ones((3, 60, 80), np.float32) * np.array([100, 400, 200], np.float32)[:, None, None]
    bright *= np.linspace(0.2, 1.0, 80, dtype=np.float32)
    balanced = display_image(Planes(bright, (0.0,) * 3, 4095.0, (4, 8, 4), 4, 0))
    assert np.ptp(balanced.astype(int), axis=2).max() <= 1
    plain = display_image(Planes(bright, (0.0,) * 3, 4095.0, (4, 8, 4), 4, 0), 'none')
    assert plain[0, -2, 1] > plain[0, -2, 2] > plain[0, -2, 0]
    lamp = np.tile(np.array([400, 900, 450], np.float32)[:, None, None], (1, 60, 80))
    lamp[:, :30] = 1000.0
    clipped = display_image(Planes(lamp, (0.0,) * 3, 1000.0, (4, 8, 4), 4, 0))
    assert np.ptp(clipped[:30].astype(int), axis=2).max() == 0
    black = display_image(Planes(np.zeros_like(noise), (0.0,) * 3, 4095.0, (4, 8, 4), 4, 0))
    assert not black.any()


def test_a_large_frame_takes_milliseconds(make_frame):
    frame = make_frame(np.random.default_rng(8).integers(0, 4096, (960, 1280)).astype(np.uint16))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        to_planes(frame, 4)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02
