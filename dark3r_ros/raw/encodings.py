# SPDX-License-Identifier: Apache-2.0
"""What the encoding string of a ROS image says about its bytes, and advice where it carries no usable raw."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dark3r_ros.errors import EncodingError
from dark3r_ros.raw.cfa import BAYER_PATTERNS, MONO


@dataclass(frozen=True)
class Encoding:
    """Layout of one pixel.

    Attributes
    ----------
    name: the encoding string.
    cfa: phase of the mosaic, or empty for a colour picture.
    bits: 8 or 16, size of one value in memory.
    channels: values per pixel.
    red_first: order of a colour picture, rgb rather than bgr.

    """

    name: str
    cfa: str
    bits: int
    channels: int = 1
    red_first: bool = True

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel."""
        return self.channels * self.bits // 8


def _known() -> dict[str, Encoding]:
    table = {}
    for bits in (8, 16):
        for cfa in BAYER_PATTERNS:
            table[f'bayer_{cfa}{bits}'] = Encoding(f'bayer_{cfa}{bits}', cfa, bits)
        for name in (f'mono{bits}', f'{bits}UC1'):
            table[name] = Encoding(name, MONO, bits)
        for name, channels in (('rgb', 3), ('bgr', 3), ('rgba', 4), ('bgra', 4)):
            table[f'{name}{bits}'] = Encoding(f'{name}{bits}', '', bits, channels, name.startswith('rgb'))
    return table


ENCODINGS: dict[str, Encoding] = _known()


def parse_encoding(name: str, override: str = '') -> Encoding:
    """Return the layout of an encoding, or of the override that replaces it.

    The override is a full encoding (`bayer_rggb16`) or only a phase (`rggb`, `mono`), which keeps the number of bits
    of the message. Raises EncodingError with one line of advice when the data is packed, compressed or unknown, or
    when the override does not fit the size of the pixels.
    """
    if not override:
        return _lookup(name)
    if override in (*BAYER_PATTERNS, MONO):
        bits = _lookup(name).bits
        prefix = '' if override == MONO else 'bayer_'
        return ENCODINGS[f'{prefix}{override}{bits}']
    chosen = _lookup(override)
    sent = ENCODINGS.get(name)
    if sent is not None and sent.pixel_bytes != chosen.pixel_bytes:
        raise EncodingError(
            f'the encoding override {override} has {chosen.pixel_bytes} byte(s) a pixel but the images are {name} with '
            f'{sent.pixel_bytes}: correct the override'
        )
    return chosen


def _lookup(name: str) -> Encoding:
    encoding = ENCODINGS.get(name) or ENCODINGS.get(name.lower())
    if encoding is None:
        raise EncodingError(f'encoding {name!r} {_advice(name.lower())}')
    return encoding


def _advice(name: str) -> str:
    if not name:
        return 'is empty: the driver must fill it, or set encoding_override to what it sends, such as bayer_rggb16'
    packed = re.search(r'(10|12|14)(p|_packed|packed|_csi2p|)$', name)
    if ('bayer' in name or 'raw' in name or 'mono' in name or 'srggb' in name) and packed:
        return (
            'packs its bits: no byte layout for it is defined in ROS; set the pixel format of the camera to 16 bit '
            'unpacked (BayerRG16 or Mono16 on GenICam drivers) or 8 bit'
        )
    if any(word in name for word in ('jpeg', 'jpg', 'png', 'compressed', 'h264', 'h265', 'hevc', 'zstd')):
        return 'is compressed and has lost the dark: subscribe to the raw image topic (bayer_*16 or bayer_*8)'
    if 'yuv' in name or 'uyvy' in name or 'yuyv' in name or 'nv12' in name or 'nv21' in name:
        return (
            'is a processed colour picture: set the camera to a Bayer format (bayer_*16), or to rgb8 as a last resort'
        )
    if re.match(r'(8|16|32|64)(u|s|f)c\d', name):
        return 'is an array type, not a raw mosaic: the driver must send bayer_*8, bayer_*16, mono8 or mono16'
    return (
        'is unknown: send bayer_{rggb,bggr,gbrg,grbg}{8,16} or mono{8,16}, or set encoding_override if the driver '
        'names its data wrongly'
    )
