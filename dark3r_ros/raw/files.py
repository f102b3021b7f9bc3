# SPDX-License-Identifier: Apache-2.0
"""Raw frames from files: camera raws (LibRaw), 16-bit mosaics in PNG or TIFF, and finished pictures at a pinch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, DependencyError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.camera_info import check_camera
from dark3r_ros.raw.cfa import MONO, check_pattern
from dark3r_ros.raw.picture import PICTURE_BLACK, PICTURE_CFA, PICTURE_WHITE, unprocess_picture
from dark3r_ros.types import Frame

# fmt: off
CAMERA_RAW_SUFFIXES = frozenset((
    '.3fr', '.arw', '.cr2', '.cr3', '.crw', '.dcr', '.dng', '.erf', '.fff',
    '.gpr', '.iiq', '.kdc', '.mef', '.mos', '.mrw', '.nef', '.nrw', '.orf',
    '.pef', '.raf', '.raw', '.rw2', '.rwl', '.sr2', '.srf', '.srw', '.x3f',
))
# fmt: on
IMAGE_SUFFIXES = frozenset(('.png', '.tif', '.tiff', '.pgm', '.jpg', '.jpeg', '.bmp', '.webp'))


def is_frame_file(path: Path | str) -> bool:
    """Whether the name looks like a file that `read_raw_file` can read."""
    return Path(path).suffix.lower() in CAMERA_RAW_SUFFIXES | IMAGE_SUFFIXES


def read_raw_file(
    path: Path | str,
    *,
    cfa: str | None = None,
    black_level: float | Sequence[float] | None = None,
    white_level: float | None = None,
    camera: Camera | None = None,
    stamp_ns: int = 0,
) -> Frame:
    """Read one file as a raw frame.

    Parameters
    ----------
    path: camera raw (levels, pattern and time come from it), or 16-bit one-channel PNG/TIFF/PGM mosaic (counts are
        kept; `cfa` is required, `black_level` and `white_level` recommended), or an 8-bit picture or any picture with
        three channels, which is un-processed approximately and marked `processed`. A one-channel 8-bit file counts as a
        mosaic when `cfa` is given.
    cfa, black_level, white_level: replace what the file says; black for all colours or (R, G, B).
    camera: intrinsics at the size of the mosaic.
    stamp_ns: time of the frame; 0 takes the capture time of the file (camera clock read as UTC) when it has one.

    Raises DataError when the file is missing, unreadable or holds no Bayer mosaic; DependencyError without rawpy.

    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f'{file}: no such file')
    if file.suffix.lower() in CAMERA_RAW_SUFFIXES:
        fields = _read_camera_raw(file)
    else:
        fields = _read_image(file, cfa)
    if cfa is not None and not fields['processed']:
        fields['cfa'] = check_pattern(cfa)
    if not fields['processed']:
        if black_level is not None:
            fields['black_level'] = _three(black_level)
        if white_level is not None:
            fields['white_level'] = float(white_level)
    if fields['white_level'] <= max(fields['black_level']):
        raise DataError(f'{file}: white level {fields["white_level"]} is not above black {fields["black_level"]}')
    if stamp_ns:
        fields['stamp_ns'] = int(stamp_ns)
    frame = Frame(camera=camera, name=file.name, **fields)
    if camera is not None:
        check_camera(frame, camera)
    return frame


def _three(level: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in np.broadcast_to(np.asarray(level, dtype=np.float64), 3))
    return red, green, blue


def _read_image(file: Path, cfa: str | None) -> dict[str, Any]:
    try:
        data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f'{file}: cannot be read ({error.strerror})') from error
    image: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise DataError(f'{file}: not a readable image (empty, truncated or of an unknown format)')
    if image.dtype not in (np.uint8, np.uint16):
        raise DataError(f'{file}: values of type {image.dtype} are no sensor counts; give 8 or 16 bit integers')
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim == 2 and (image.dtype == np.uint16 or cfa is not None):
        if cfa is None:
            raise DataError(
                f'{file}: a mosaic without a stated colour filter pattern; give cfa (rggb, bggr, gbrg, grbg or mono)'
            )
        white = 255.0 if image.dtype == np.uint8 else 65535.0
        return _fields(image.astype(np.uint16, copy=False), cfa, (0.0, 0.0, 0.0), white)
    pedestal = (PICTURE_BLACK,) * 3
    pattern = MONO if image.ndim == 2 else PICTURE_CFA
    # OpenCV decodes to blue, green, red.
    return _fields(unprocess_picture(image, red_first=False), pattern, pedestal, PICTURE_WHITE, processed=True)


def _fields(
    mosaic: NDArray[np.uint16], cfa: str, black: tuple[float, float, float], white: float, **more: Any
) -> dict[str, Any]:
    return {
        'stamp_ns': 0,
        'mosaic': mosaic,
        'cfa': cfa,
        'black_level': black,
        'white_level': white,
        'processed': False,
        **more,
    }


def _read_camera_raw(file: Path) -> dict[str, Any]:
    try:
        import rawpy
    except ImportError as error:
        raise DependencyError(f'{file}: camera raws need rawpy; install the extra "raw"') from error
    try:
        with rawpy.imread(str(file)) as raw:
            pattern = _pattern(raw, file)
            mosaic = raw.raw_image_visible.astype(np.uint16)
            black = _per_colour(raw.black_level_per_channel, raw)
            white = float(min(raw.camera_white_level_per_channel or [raw.white_level]) or raw.white_level)
            return _fields(mosaic, pattern, black, white, **_capture(getattr(raw, 'other', None)))
    except rawpy.LibRawError as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors='replace') if isinstance(reason, bytes) else reason
        raise DataError(f'{file}: LibRaw cannot read it ({reason})') from error


def _pattern(raw: Any, file: Path) -> str:
    if raw.raw_image_visible is None:
        raise DataError(f'{file}: holds no sensor mosaic (a processed or three-layer raw)')
    colours = bytes(raw.color_desc).decode().lower()
    if raw.num_colors == 1:
        return MONO
    if raw.raw_pattern is None or raw.raw_pattern.shape != (2, 2) or set(colours) != set('rgb'):
        raise DataError(f'{file}: the colour filter array is not a 2x2 Bayer pattern of red, green and blue')
    visible = raw.raw_colors_visible
    return check_pattern(''.join(colours[visible[y, x]] for y in (0, 1) for x in (0, 1)))


def _per_colour(levels: Sequence[float], raw: Any) -> tuple[float, float, float]:
    colours = bytes(raw.color_desc).decode().lower()
    means = [
        float(
            np.mean([level for level, colour in zip(levels, colours, strict=False) if colour == wanted] or levels[:1])
        )
        for wanted in 'rgb'
    ]
    return means[0], means[1], means[2]


def _capture(other: Any) -> dict[str, Any]:
    """Time, exposure and ISO as far as the file has them; LibRaw writes 0 or 1970 where it has not."""
    if other is None:
        return {}
    found: dict[str, Any] = {}
    taken: datetime | None = other.timestamp
    if taken is not None and taken.year > 1970:
        found['stamp_ns'] = int(taken.replace(tzinfo=timezone.utc).timestamp()) * 1_000_000_000
    if other.shutter_speed > 0:
        found['exposure_s'] = float(other.shutter_speed)
    if other.iso_speed > 0:
        found['gain'] = float(other.iso_speed)
    return found
