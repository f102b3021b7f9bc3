# SPDX-License-Identifier: Apache-2.0
import array
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dark3r_ros.errors import CalibrationError, ConfigError, DataError, EncodingError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.cfa import BAYER_PATTERNS
from dark3r_ros.raw.decode import DecodeOptions, FrameDecoder, decode_ros_image
from dark3r_ros.raw.planes import to_planes


def counts(high: int, shape: tuple[int, int] = (10, 14)) -> np.ndarray:
    kind = np.uint8 if high <= 256 else np.uint16
    return np.random.default_rng(1).integers(0, high, shape).astype(kind)


@pytest.mark.parametrize('cfa', BAYER_PATTERNS)
@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('pad', [0, 6, 7])
def test_bayer_values_arrive_unchanged(cfa, bits, big, pad, image_message):
    values = counts(2**bits)
    frame = decode_ros_image(image_message(values, f'bayer_{cfa}{bits}', pad, big), 123456789012345678)
    assert frame.mosaic.dtype == np.uint16
    np.testing.assert_array_equal(frame.mosaic, values)
    assert frame.cfa == cfa
    assert frame.stamp_ns == 123456789012345678
    assert frame.frame_id == 'camera_optical'
    assert frame.white_level == (255.0 if bits == 8 else 65535.0)
    assert not frame.processed
    assert to_planes(frame, 2).values.shape == (3, 5, 7)


@pytest.mark.parametrize(
    'kind', [bytes, lambda data: array.array('B', data), lambda data: np.frombuffer(data, np.uint8)]
)
def test_buffers_of_rclpy_and_of_bags(kind, image_message):
    values = counts(65536)
    message = image_message(values, 'bayer_rggb16', kind=kind)
    frame = decode_ros_image(message, 1)
    np.testing.assert_array_equal(frame.mosaic, values)
    assert not frame.mosaic.flags.owndata and not frame.mosaic.flags.writeable


def test_the_last_row_may_lack_its_padding(image_message):
    values = counts(65536)
    message = image_message(values, 'bayer_rggb16', 10)
    message.data = message.data[:-10]
    np.testing.assert_array_equal(decode_ros_image(message, 1).mosaic, values)


def test_mono_with_and_without_override(image_message):
    values = counts(65536)
    assert decode_ros_image(image_message(values, 'mono16'), 1).cfa == 'mono'
    assert decode_ros_image(image_message(counts(256), 'mono8'), 1).cfa == 'mono'
    for override in ('bayer_gbrg16', 'gbrg'):
        frame = decode_ros_image(image_message(values, 'mono16'), 1, DecodeOptions(encoding_override=override))
        assert frame.cfa == 'gbrg'
        np.testing.assert_array_equal(frame.mosaic, values)
    eight = decode_ros_image(image_message(counts(256), 'mono8'), 1, DecodeOptions(encoding_override='rggb'))
    assert eight.cfa == 'rggb' and eight.white_level == 255.0
    unknown = decode_ros_image(image_message(values, 'custom'), 1, DecodeOptions(encoding_override='bayer_rggb16'))
    assert unknown.cfa == 'rggb'
    with pytest.raises(EncodingError, match='1 byte'):
        decode_ros_image(image_message(values, 'mono16'), 1, DecodeOptions(encoding_override='bayer_rggb8'))
    with pytest.raises(EncodingError, match='nonsense'):
        decode_ros_image(image_message(values, 'mono16'), 1, DecodeOptions(encoding_override='nonsense'))


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'rgb16', 'bgr16'])
def test_pictures_are_unprocessed_with_a_warning(encoding, image_message):
    bits, channels = (16 if '16' in encoding else 8), (4 if 'a' in encoding else 3)
    picture = np.zeros((6, 8, channels), np.uint8 if bits == 8 else np.uint16)
    top = 2**bits - 1
    picture[..., :3] = (
        np.array([top, round(0.5 * top), 0]) if encoding.startswith('rgb') else [0, round(0.5 * top), top]
    )
    decoder = FrameDecoder()
    frame = decoder.decode(image_message(picture, encoding, pad=5), 1)
    assert frame.processed and frame.cfa == 'rggb'
    assert any(encoding in warning and 'processed' in warning for warning in decoder.warnings)
    # Red is full, green is the sRGB value 0.5 = 0.214 in linear light, blue is black.
    span = frame.white_level - frame.black_level[0]
    linear = (frame.mosaic.astype(float) - frame.black_level[0]) / span
    assert linear[0, 0] == pytest.approx(1.0, abs=1e-4)
    assert linear[0, 1] == linear[1, 0] == pytest.approx(0.2140, abs=0.002)
    assert linear[1, 1] == 0.0
    assert frame.black_level[0] > 0


@pytest.mark.parametrize(
    ('offset', 'expected'), [((1, 0), 'grbg'), ((0, 1), 'gbrg'), ((3, 5), 'bggr'), ((2, 4), 'rggb')]
)
def test_odd_region_offsets_flip_the_phase(offset, expected, image_message):
    decoder = FrameDecoder()
    frame = decoder.decode(image_message(counts(65536), 'bayer_rggb16'), 1, roi_offset=offset)
    assert frame.cfa == expected
    assert any('region of interest' in text for text in decoder.warnings) == (expected != 'rggb')
    kept = decode_ros_image(
        image_message(counts(65536), 'bayer_rggb16'), 1, DecodeOptions(encoding_origin='image'), roi_offset=offset
    )
    assert kept.cfa == 'rggb'


@pytest.mark.parametrize('bits', [10, 12, 14])
def test_msb_alignment_is_found_and_kept(bits, image_message):
    decoder = FrameDecoder()
    rng = np.random.default_rng(2)
    for _ in range(6):
        values = rng.integers(0, 2**bits, (30, 40)).astype(np.uint16)
        frame = decoder.decode(image_message(values << (16 - bits), 'bayer_rggb16'), 1)
        np.testing.assert_array_equal(frame.mosaic, values)
        assert frame.white_level == 2**bits - 1
    assert sum('low' in text for text in decoder.warnings) == 1
    # Later frames with other low bits do not change the scale, but are reported.
    odd = decoder.decode(image_message(np.full((30, 40), 65535, np.uint16), 'bayer_rggb16'), 1)
    assert (odd.mosaic == 2**bits - 1).all()
    assert any('lost' in text for text in decoder.warnings)


def test_lsb_alignment_is_recognised_even_when_the_first_frames_are_empty(image_message):
    decoder = FrameDecoder()
    black = np.full((20, 20), 64, np.uint16)
    assert (decoder.decode(image_message(black, 'bayer_rggb16'), 1).mosaic == 64).all()
    values = np.random.default_rng(3).integers(0, 4096, (20, 20)).astype(np.uint16)
    np.testing.assert_array_equal(decoder.decode(image_message(values, 'bayer_rggb16'), 1).mosaic, values)
    # A dark frame whose values happen to be multiples of 16 keeps its values: the decision is final.
    np.testing.assert_array_equal(decoder.decode(image_message(values & 0xFFF0, 'mono16'), 1).mosaic, values & 0xFFF0)


def test_explicit_alignment_wins(image_message):
    values = np.random.default_rng(4).integers(0, 4096, (20, 20)).astype(np.uint16)
    shifted = image_message(values << 4, 'bayer_rggb16')
    lsb = decode_ros_image(shifted, 1, DecodeOptions(alignment='lsb'))
    np.testing.assert_array_equal(lsb.mosaic, values << 4)
    msb = decode_ros_image(shifted, 1, DecodeOptions(alignment='msb', significant_bits=12))
    np.testing.assert_array_equal(msb.mosaic, values)
    assert msb.white_level == 4095.0
    stated = decode_ros_image(image_message(values, 'bayer_rggb16'), 1, DecodeOptions(significant_bits=12))
    np.testing.assert_array_equal(stated.mosaic, values)
    assert stated.white_level == 4095.0
    even = decode_ros_image(image_message(values & 0xFFFC, 'bayer_rggb16'), 1, DecodeOptions(significant_bits=12))
    np.testing.assert_array_equal(even.mosaic, values & 0xFFFC)


def test_levels(image_message):
    options = DecodeOptions(black_level=240.0, white_level=4000.0)
    decoder = FrameDecoder(options)
    frame = decoder.decode(image_message(counts(4096), 'bayer_rggb16'), 1)
    assert frame.black_level == (240.0,) * 3 and frame.white_level == 4000.0
    assert not decoder.warnings
    silent = FrameDecoder()
    for _ in range(3):
        silent.decode(image_message(counts(65536), 'bayer_rggb16'), 1)
    assert sum('black level is unknown' in text for text in silent.warnings) == 1
    with pytest.raises(ConfigError, match='white_level'):
        DecodeOptions(black_level=300.0, white_level=200.0)
    with pytest.raises(ConfigError, match='significant_bits'):
        DecodeOptions(significant_bits=3)
    with pytest.raises(ConfigError, match='not below'):
        decode_ros_image(image_message(counts(256), 'bayer_rggb8'), 1, DecodeOptions(black_level=300.0))


def test_merged_sensor_binning_loses_the_mosaic(image_message):
    frame = decode_ros_image(image_message(counts(65536), 'bayer_rggb16'), 1, DecodeOptions(sensor_binning='merged'))
    assert frame.cfa == 'mono'
    kept = decode_ros_image(image_message(counts(65536), 'bayer_rggb16'), 1, DecodeOptions(sensor_binning='mosaic'))
    assert kept.cfa == 'rggb'


@pytest.mark.parametrize(
    ('encoding', 'advice'),
    [
        ('bayer_rggb10p', 'packs its bits'),
        ('bayer_rggb12p', 'packs its bits'),
        ('BayerRG12Packed', 'packs its bits'),
        ('mono12p', 'packs its bits'),
        ('SRGGB10_CSI2P', 'packs its bits'),
        ('jpeg', 'compressed'),
        ('bgr8; jpeg compressed bgr8', 'compressed'),
        ('yuv422', 'processed colour'),
        ('uyvy', 'processed colour'),
        ('nv21', 'processed colour'),
        ('16UC3', 'not a raw mosaic'),
        ('32FC1', 'not a raw mosaic'),
        ('', 'empty'),
        ('foo', 'unknown'),
    ],
)
def test_unusable_encodings_say_what_to_do(encoding, advice, image_message):
    with pytest.raises(EncodingError, match=advice) as caught:
        decode_ros_image(image_message(counts(65536), encoding), 1)
    assert '\n' not in str(caught.value) and repr(encoding) in str(caught.value)


def test_compressed_messages_are_refused():
    with pytest.raises(EncodingError, match='compressed'):
        decode_ros_image(SimpleNamespace(format='jpeg', data=b'123'), 1)


def test_broken_messages(image_message):
    for field, value, text in (
        ('width', 0, 'size is zero'),
        ('height', 0, 'size is zero'),
        ('step', 27, 'step 27 is shorter'),
        ('step', 0, 'step 0 is shorter'),
        ('data', b'', '0 arrived'),
        ('data', bytes(279), '280 bytes needed, 279 arrived'),
        ('height', 11, 'truncated'),
    ):
        message = image_message(counts(65536), 'bayer_rggb16')
        setattr(message, field, value)
        with pytest.raises(DataError, match=text):
            decode_ros_image(message, 1)


def test_camera_of_another_size_is_refused(image_message):
    message = image_message(counts(65536), 'bayer_rggb16')
    with pytest.raises(CalibrationError, match=r'640x480.*14x10'):
        decode_ros_image(message, 1, camera=Camera(640, 480, 500, 500, 320, 240))
    camera = Camera(14, 10, 12, 12, 6.5, 4.5)
    assert decode_ros_image(message, 1, camera=camera).camera is camera


def test_nothing_to_convert_takes_no_time(image_message):
    values = np.random.default_rng(5).integers(0, 4096, (960, 1280)).astype(np.uint16)
    message = image_message(values, 'bayer_rggb16', kind=lambda data: array.array('B', data))
    decoder = FrameDecoder()
    for _ in range(2):
        decoder.decode(message, 1)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        decoder.decode(message, 1)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-3


def test_equal_to_cv_bridge_where_it_is_installed(image_message):
    cv_bridge = pytest.importorskip('cv_bridge')
    sensor_msgs = pytest.importorskip('sensor_msgs.msg')
    values = counts(65536)
    plain = image_message(values, 'bayer_rggb16')
    message = sensor_msgs.Image(
        height=plain.height, width=plain.width, step=plain.step, encoding=plain.encoding, data=plain.data
    )
    bridged = cv_bridge.CvBridge().imgmsg_to_cv2(message, 'passthrough')
    np.testing.assert_array_equal(decode_ros_image(message, 1).mosaic, bridged)
