# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from dark3r_ros.errors import CalibrationError, DataError, EncodingError
from dark3r_ros.nodes.calibration import CameraCache, FrameReader
from dark3r_ros.nodes.worker import Job
from dark3r_ros.raw.decode import DecodeOptions

OPTIONS = DecodeOptions(black_level=512.0, white_level=4095.0, significant_bits=12, alignment='lsb')


def job(message) -> Job:
    return Job(message, 5, message.header.frame_id, 0.0)


def test_nothing_known_says_so(camera):
    with pytest.raises(CalibrationError, match='no camera_info arrived'):
        CameraCache().find('cam', 64, 48)


def test_zero_k_is_told_at_once_and_to_every_image(camera):
    cache = CameraCache()
    assert 'all-zero K' in cache.update(camera.info(k=np.zeros(9)))
    assert cache.update(camera.info(k=np.zeros(9))) == ''  # the same message is not news
    with pytest.raises(CalibrationError, match='all-zero K'):
        cache.find('camera_optical', 64, 48)
    cache.update(camera.info())
    assert cache.find('camera_optical', 64, 48).camera.fx == 50.0


def test_another_size_names_both(camera):
    cache = CameraCache()
    cache.update(camera.info(width=128, height=96))
    with pytest.raises(CalibrationError, match=r'image of 64x48.*camera_info gives 128x96'):
        cache.find('camera_optical', 64, 48)


def test_both_sizes_of_a_camera_that_changes_are_kept(camera):
    cache = CameraCache()
    cache.update(camera.info(width=128, height=96))
    cache.update(camera.info())
    assert cache.find('camera_optical', 128, 96).camera.width == 128
    assert cache.find('camera_optical', 64, 48).camera.width == 64


def test_a_change_of_the_calibration_is_told_and_used(camera):
    cache = CameraCache()
    assert cache.update(camera.info()) == ''
    k = np.array([60.0, 0, 32, 0, 60, 24, 0, 0, 1])
    assert 'changed (fx 50 -> 60' in cache.update(camera.info(k=k))
    assert cache.find('camera_optical', 64, 48).camera.fx == 60.0


def test_a_missing_frame_id_is_forgiven_when_only_one_camera_fits(camera):
    cache = CameraCache()
    cache.update(camera.info(frame_id=''))
    assert cache.find('camera_optical', 64, 48).camera.fx == 50.0
    cache.update(camera.info(frame_id='other'))
    with pytest.raises(CalibrationError):
        cache.find('camera_optical', 64, 48)


def test_region_of_interest_shifts_the_phase(camera):
    info = camera.info(width=128, height=96)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 3, 2, 64, 48
    cache = CameraCache()
    cache.update(info)
    frame, notes = FrameReader(OPTIONS, None, cache).read(job(camera.image(5)))
    assert frame.cfa == 'grbg'
    assert frame.camera is not None and frame.camera.cx == 64 - 3
    assert any('odd offset' in note for note in notes)


def test_frames_carry_stamp_levels_and_camera(camera):
    cache = CameraCache()
    cache.update(camera.info())
    message = camera.image(5)
    frame, _ = FrameReader(OPTIONS, None, cache).read(job(message))
    assert (frame.stamp_ns, frame.black_level[0], frame.white_level) == (5, 512.0, 4095.0)
    np.testing.assert_array_equal(frame.mosaic, np.frombuffer(message.data, '<u2').reshape(48, 64))


def test_bad_images_are_refused_with_their_reason(camera):
    cache = CameraCache()
    cache.update(camera.info())
    reader = FrameReader(OPTIONS, None, cache)
    cut = camera.image(5)
    cut.data = cut.data[:1000]
    with pytest.raises(DataError, match='truncated'):
        reader.read(job(cut))
    for encoding in ('bayer_rggb10p', 'yuv422', '', 'nonsense'):
        with pytest.raises(EncodingError):
            reader.read(job(camera.image(5, encoding=encoding)))
    with pytest.raises(DataError, match='step'):
        reader.read(job(camera.image(5, step=60)))


def test_start_up_advice_comes_with_the_first_frame_only(camera):
    cache = CameraCache()
    cache.update(camera.info())
    reader = FrameReader(DecodeOptions(), None, cache)
    dark = np.zeros((48, 64))
    _, first = reader.read(job(camera.image(5, values=dark)))
    _, second = reader.read(job(camera.image(6, values=dark)))
    assert len(first) > len(second)
    assert any('black level' in note for note in first)
