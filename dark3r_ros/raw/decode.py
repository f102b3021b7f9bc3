# SPDX-License-Identifier: Apache-2.0
"""From an image message to a raw frame, without touching the values.

Works on anything that has the fields of sensor_msgs/Image (`encoding`, `width`, `height`, `step`, `is_bigendian`,
`data`), from rclpy or from a bag, and needs neither ROS nor cv_bridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError, DataError, EncodingError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.alignment import BitAlignment, check_bits
from dark3r_ros.raw.camera_info import check_camera
from dark3r_ros.raw.cfa import MONO, shift_pattern
from dark3r_ros.raw.encodings import Encoding, parse_encoding
from dark3r_ros.raw.picture import PICTURE_BLACK, PICTURE_CFA, PICTURE_WHITE, unprocess_picture
from dark3r_ros.types import Frame


@dataclass(frozen=True)
class DecodeOptions(Config):
    """What an image message does not say about its raw values."""

    encoding_override: str = setting('', 'encoding or phase (bayer_rggb16, rggb) to use in place of the message field')
    significant_bits: int = setting(0, 'bits of the sensor within 16; 0 = find out', minimum=0, maximum=16)
    alignment: str = setting('auto', 'where those bits lie in 16', choices=('auto', 'lsb', 'msb'))
    black_level: float = setting(-1.0, 'counts of a black pixel, right-aligned; -1 = unknown', unit='DN', minimum=-1.0)
    white_level: float = setting(-1.0, 'counts at saturation, right-aligned; -1 = unknown', unit='DN', minimum=-1.0)
    sensor_binning: str = setting(
        'unset',
        'what binning in the sensor does: sites of one colour (mosaic kept) or neighbours (colour merged)',
        choices=('unset', 'mosaic', 'merged'),
    )
    encoding_origin: str = setting(
        'sensor',
        'whether the encoding names the phase of the full sensor (an odd region offset then flips it) or of the image',
        choices=('sensor', 'image'),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits(self.significant_bits)
        if 0 <= self.white_level <= self.black_level:
            raise ConfigError(f'white_level {self.white_level} is not above black_level {self.black_level}')


class FrameDecoder:
    """Decodes the images of one camera and remembers what it learnt: bit alignment, warnings once each."""

    def __init__(self, options: DecodeOptions | None = None) -> None:
        self.options = options or DecodeOptions()
        self._alignment = BitAlignment(self.options.significant_bits, self.options.alignment)
        self._warnings: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was assumed or looks wrong so far, one sentence each, in the order of appearance."""
        return tuple(self._warnings)

    def decode(
        self,
        message: Any,
        stamp_ns: int,
        camera: Camera | None = None,
        *,
        roi_offset: tuple[int, int] = (0, 0),
        frame_id: str = '',
    ) -> Frame:
        """Turn one message into a frame.

        Parameters
        ----------
        message: image with the fields of sensor_msgs/Image; its data is not copied where nothing needs converting,
            so it must not be changed while the frame lives.
        stamp_ns: header stamp in integer nanoseconds.
        camera: intrinsics at the size of the image (see `camera_from_info`), or None.
        roi_offset: (x, y) of the top-left pixel within the full sensor, in pixels of the image.
        frame_id: frame of the optical axes; the one of the message header when empty.

        Raises EncodingError for packed, compressed or unknown data, DataError for truncated or empty data,
        CalibrationError when the camera has another size.

        """
        if not hasattr(message, 'encoding'):
            raise EncodingError(
                f'the message is a {type(message).__name__}, not a raw sensor_msgs/Image: compressed images have lost '
                'the dark; use the raw image topic'
            )
        encoding = parse_encoding(str(message.encoding), self.options.encoding_override)
        values = view_pixels(message, encoding)
        if encoding.cfa:
            mosaic, cfa = self._mosaic(values, encoding, roi_offset)
            black, white = self._levels(encoding)
        else:
            self._warn(
                f'{encoding.name} is a processed picture: its raw values are only approximated and the noise model '
                'does not hold; set the camera to a Bayer format with 16 bit'
            )
            mosaic = unprocess_picture(values, encoding.red_first)
            cfa, black, white = PICTURE_CFA, PICTURE_BLACK, PICTURE_WHITE
        header = getattr(message, 'header', None)
        frame = Frame(
            stamp_ns=int(stamp_ns),
            mosaic=mosaic,
            cfa=cfa,
            black_level=(black, black, black),
            white_level=white,
            camera=camera,
            frame_id=frame_id or str(getattr(header, 'frame_id', '')),
            processed=not encoding.cfa,
        )
        if camera is not None:
            check_camera(frame, camera)
        return frame

    def _mosaic(
        self, values: NDArray[Any], encoding: Encoding, roi_offset: tuple[int, int]
    ) -> tuple[NDArray[np.uint16], str]:
        if encoding.bits == 8:
            self._warn(
                f'{encoding.name} has 8 bits: the noise of a dark scene may fall below one count; 16 bit raw is better'
            )
            mosaic = values.astype(np.uint16)
        else:
            mosaic = self._align(values.astype(np.uint16, copy=False))
        if self.options.sensor_binning == 'merged':
            return mosaic, MONO
        cfa = encoding.cfa
        if self.options.encoding_origin == 'sensor':
            cfa = shift_pattern(cfa, *roi_offset)
            if cfa != encoding.cfa:
                self._warn(
                    f'the region of interest starts at odd offset {roi_offset}: {encoding.cfa} of the sensor is read '
                    f'as {cfa}; if the driver already accounts for it, set encoding_origin to image'
                )
        return mosaic, cfa

    def _align(self, mosaic: NDArray[np.uint16]) -> NDArray[np.uint16]:
        alignment = self._alignment
        alignment.learn(mosaic)
        if not alignment.shift:
            return mosaic
        if self.options.alignment == 'auto' and not self.options.significant_bits:
            self._warn(
                f'the low {alignment.shift} bits never change: taken as {alignment.significant_bits} bit data at the '
                'high end of 16 and shifted down; set significant_bits and alignment to be sure'
            )
        if alignment.contradicted_by(mosaic):
            self._warn(
                f'the low {alignment.shift} bits are lost by the shift but not zero: state significant_bits and '
                'alignment'
            )
        return np.right_shift(mosaic, alignment.shift)

    def _levels(self, encoding: Encoding) -> tuple[float, float]:
        options = self.options
        black, white = options.black_level, options.white_level
        if black < 0:
            self._warn('the black level is unknown, 0 is assumed: set black_level, or measure it by calibrate-noise')
            black = 0.0
        if white < 0:
            bits = 8 if encoding.bits == 8 else self._alignment.significant_bits
            if not bits:
                self._warn('the white level is unknown, 65535 is assumed: set white_level or significant_bits')
                bits = 16
            white = float(2**bits - 1)
        if white <= black:
            raise ConfigError(f'black_level {black} is not below the white level {white} of {encoding.name}')
        return float(black), float(white)

    def _warn(self, text: str) -> None:
        self._warnings[text] = None


def decode_ros_image(
    message: Any,
    stamp_ns: int,
    options: DecodeOptions | None = None,
    *,
    camera: Camera | None = None,
    roi_offset: tuple[int, int] = (0, 0),
    frame_id: str = '',
) -> Frame:
    """Decode a single message; see `FrameDecoder.decode`. Streams use a `FrameDecoder`, which learns over frames."""
    return FrameDecoder(options).decode(message, stamp_ns, camera, roi_offset=roi_offset, frame_id=frame_id)


def view_pixels(message: Any, encoding: Encoding) -> NDArray[Any]:
    """View the data as (H, W) or (H, W, C) uint8 or uint16 (in the byte order of the message), honouring `step`.

    Raises DataError when the size is zero, the step shorter than a row, or data missing. The last row may lack its
    padding.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    what = f'{encoding.name} image of {width}x{height}'
    if width <= 0 or height <= 0:
        raise DataError(f'{what}: the size is zero; the driver sent an empty image')
    row = width * encoding.pixel_bytes
    if step < row:
        raise DataError(f'{what}: step {step} is shorter than a row of {row} bytes; wrong step, or wrong encoding')
    buffer = _bytes_of(message.data)
    needed = step * (height - 1) + row
    if len(buffer) < needed:
        raise DataError(f'{what}: {needed} bytes needed, {len(buffer)} arrived; the data is truncated')
    kind = 'u1' if encoding.bits == 8 else ('>u2' if message.is_bigendian else '<u2')
    size = np.dtype(kind).itemsize
    shape: tuple[int, ...] = (height, width)
    strides: tuple[int, ...] = (step, encoding.pixel_bytes)
    if encoding.channels > 1:
        shape, strides = (*shape, encoding.channels), (*strides, size)
    view: NDArray[Any] = np.ndarray(shape, dtype=kind, buffer=buffer, strides=strides)
    view.flags.writeable = False
    if kind == '>u2':
        return view.astype(np.uint16)
    return view


def _bytes_of(data: Any) -> memoryview:
    try:
        # rclpy gives array.array, rosbags a numpy array, tests and files bytes.
        return memoryview(data).cast('B')
    except (TypeError, ValueError):
        return np.ascontiguousarray(data, dtype=np.uint8).reshape(-1).data
