# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from dark3r_ros.errors import CalibrationError, ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.files import is_frame_file, read_raw_file
from dark3r_ros.raw.planes import display_image, to_planes


@pytest.fixture
def raws(shared_root) -> Path:
    folder = shared_root / 'data' / 'raw'
    if not (folder / 'index.json').is_file():
        pytest.skip(f'no real raw files in {folder}')
    return folder


def test_real_camera_raws(raws):
    pytest.importorskip('rawpy')
    index = json.loads((raws / 'index.json').read_text())
    names = [name for name in index if not name.endswith('.png')]
    assert len(names) >= 6
    for name in names:
        facts = index[name]
        frame = read_raw_file(raws / name)
        assert frame.size == tuple(facts['size']), name
        black = facts['black'] if isinstance(facts['black'], list) else [facts['black']]
        assert set(frame.black_level) == {float(value) for value in black}, name
        assert frame.white_level == facts['white'], name
        # The Kodak states green at the corner: rows G R / B G.
        assert frame.cfa == (facts['pattern'].lower() if len(facts['pattern']) == 4 else 'grbg'), name
        assert not frame.processed and frame.name == name
        if 'percentiles_1_50_99' in facts:
            np.testing.assert_allclose(np.percentile(frame.mosaic, [1, 50, 99]), facts['percentiles_1_50_99'], atol=1)
        if 'exposure' in facts:
            one, over = facts['exposure'].split('/')
            assert frame.exposure_s == pytest.approx(float(one) / float(over), rel=1e-3)
        picture = display_image(to_planes(frame, 4))
        assert picture.std() > 10


def test_capture_time_and_iso(raws):
    pytest.importorskip('rawpy')
    frame = read_raw_file(raws / 'kodak_dc50.kdc')
    assert frame.stamp_ns == 861782447 * 10**9  # 1997-04-23 08:00:47
    assert frame.gain == 84.0
    assert read_raw_file(raws / 'kodak_dc50.kdc', stamp_ns=5).stamp_ns == 5


def test_real_sixteen_bit_mosaic(raws):
    frame = read_raw_file(raws / 'nikon_dsc1339_bayer16.png', cfa='RGGB', black_level=600, white_level=15520)
    assert frame.size == (768, 512) and frame.cfa == 'rggb'
    assert frame.black_level == (600.0,) * 3 and frame.white_level == 15520.0
    assert np.median(frame.mosaic) == pytest.approx(1068, abs=1)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.pgm'])
def test_mosaics_keep_their_counts(suffix, tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (20, 30)).astype(np.uint16)
    path = tmp_path / f'm{suffix}'
    assert cv2.imwrite(str(path), values)
    frame = read_raw_file(path, cfa='gbrg', black_level=(1, 2, 3), white_level=60000, stamp_ns=7)
    np.testing.assert_array_equal(frame.mosaic, values)
    assert frame.mosaic.dtype == np.uint16
    assert (frame.cfa, frame.black_level, frame.white_level) == ('gbrg', (1.0, 2.0, 3.0), 60000.0)
    assert (frame.stamp_ns, frame.name) == (7, path.name)
    with pytest.raises(DataError, match='give cfa'):
        read_raw_file(path)
    with pytest.raises(ConfigError, match='xyz'):
        read_raw_file(path, cfa='xyz')
    with pytest.raises(DataError, match='white level'):
        read_raw_file(path, cfa='rggb', black_level=70000)
    with pytest.raises(CalibrationError, match='30x20'):
        read_raw_file(path, cfa='rggb', camera=Camera(31, 20, 10, 10, 5, 5))


def test_eight_bit_files(tmp_path):
    grey = np.random.default_rng(2).integers(0, 256, (20, 30)).astype(np.uint8)
    path = tmp_path / 'grey.png'
    cv2.imwrite(str(path), grey)
    mosaic = read_raw_file(path, cfa='rggb')
    np.testing.assert_array_equal(mosaic.mosaic, grey)
    assert mosaic.white_level == 255.0 and not mosaic.processed
    picture = read_raw_file(path)
    assert picture.processed and picture.cfa == 'mono'
    assert np.all(np.diff(picture.mosaic.ravel()[np.argsort(grey.ravel())].astype(int)) >= 0)
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[..., 2] = 255
    cv2.imwrite(str(tmp_path / 'red.png'), colour)
    red = read_raw_file(tmp_path / 'red.png', black_level=5, cfa='bggr')
    planes = to_planes(red, 2)
    assert red.processed and red.cfa == 'rggb'
    np.testing.assert_allclose(planes.signal().mean(axis=(1, 2)), [red.white_level - red.black_level[0], 0, 0])


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match='no such file'):
        read_raw_file(tmp_path / 'missing.dng')
    for name in ('empty.png', 'noise.png'):
        (tmp_path / name).write_bytes(b'' if name == 'empty.png' else b'not an image')
        with pytest.raises(DataError, match=name):
            read_raw_file(tmp_path / name, cfa='rggb')
    cv2.imwrite(str(tmp_path / 'float.tiff'), np.zeros((4, 4), np.float32))
    with pytest.raises(DataError, match='float32'):
        read_raw_file(tmp_path / 'float.tiff', cfa='rggb')
    pytest.importorskip('rawpy')
    (tmp_path / 'bad.dng').write_bytes(b'II*\0 broken')
    with pytest.raises(DataError, match=r'bad\.dng: LibRaw'):
        read_raw_file(tmp_path / 'bad.dng')


def test_truncated_camera_raw(raws, tmp_path):
    pytest.importorskip('rawpy')
    data = (raws / 'gopro_hero7_crop.dng').read_bytes()
    (tmp_path / 'cut.dng').write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r'cut\.dng'):
        read_raw_file(tmp_path / 'cut.dng')


def test_names():
    assert is_frame_file('a.DNG') and is_frame_file('b.png') and not is_frame_file('c.txt')
