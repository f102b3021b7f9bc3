# SPDX-License-Identifier: Apache-2.0
"""`open_source`: frames from whatever holds them, a bag, a sequence folder or a folder of raw files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.raw.files import CAMERA_RAW_SUFFIXES, IMAGE_SUFFIXES, read_raw_file
from dark3r_ros.storage.bag_reader import is_bag, natural_key
from dark3r_ros.storage.bag_source import BagSource
from dark3r_ros.storage.selection import Selection, spread
from dark3r_ros.storage.sequence import CAMERAS_FILE, SequenceInfo, default_stamp_ns, read_cameras_json
from dark3r_ros.types import Frame


class FolderSource:
    """Frames of image files, read one at a time."""

    def __init__(
        self, files: list[tuple[int, Callable[[], Frame]]], selection: Selection, warnings: list[str] | None = None
    ) -> None:
        self._files = selection.apply_to(files)
        self.warnings: list[str] = list(warnings or ())
        if not self._files:
            raise DataError('no frame is left after start, duration and stride')

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        previous: int | None = None
        for stamp, read in self._files:
            if previous is not None and stamp <= previous:
                self._warn(f'stamps repeat or go back (first at {stamp} ns)')
            previous = stamp
            frame = read()
            if frame.processed:
                self._warn('8-bit pictures are un-processed approximately; noise and SNR figures are rough')
            yield frame

    def sample(self, count: int) -> Iterator[Frame]:
        """At most `count` frames, evenly spread."""
        for index in spread(len(self._files), count):
            yield self._files[index][1]()

    @property
    def stamps_ns(self) -> NDArray[np.int64]:
        """Times of all frames."""
        return np.array([stamp for stamp, _ in self._files], dtype=np.int64)

    def _warn(self, text: str) -> None:
        kind = text.split('(')[0]
        if not any(warning.startswith(kind) for warning in self.warnings):
            self.warnings.append(text)


def _sequence_source(
    info: SequenceInfo, camera: Camera | None, decode: DecodeOptions, selection: Selection
) -> FolderSource:
    levels = _levels(decode, info.black_level, info.white_level)
    cfa = decode.encoding_override.removeprefix('bayer_').rstrip('0123456789') or info.cfa or None

    def reader(name: str, stamp_ns: int) -> Callable[[], Frame]:
        def read() -> Frame:
            path = info.folder / name
            frame = read_raw_file(
                path,
                cfa=cfa,
                black_level=levels[0],
                white_level=levels[1],
                camera=camera or info.camera,
                stamp_ns=stamp_ns,
            )
            return replace(frame, name=name)

        return read

    missing = [image.file for image in info.images if not (info.folder / image.file).is_file()]
    if missing:
        raise DataError(f'{info.folder}: {len(missing)} images of {CAMERAS_FILE} are missing, first {missing[0]}')
    return FolderSource([(image.stamp_ns, reader(image.file, image.stamp_ns)) for image in info.images], selection)


def _levels(
    decode: DecodeOptions, black: tuple[float, float, float] | None, white: float | None
) -> tuple[tuple[float, float, float] | None, float | None]:
    """Levels from the options where they are given, else from the folder."""
    if decode.black_level >= 0:
        black = (decode.black_level,) * 3
    return black, decode.white_level if decode.white_level > 0 else white


def image_files(folder: Path) -> list[Path]:
    """Raw files of a folder in natural order of their names, else its pictures."""
    files = sorted((item for item in folder.iterdir() if item.is_file()), key=lambda item: natural_key(item.name))
    raws = [item for item in files if item.suffix.lower() in CAMERA_RAW_SUFFIXES]
    return raws or [item for item in files if item.suffix.lower() in IMAGE_SUFFIXES]


def _raw_folder_source(path: Path, camera: Camera | None, decode: DecodeOptions, selection: Selection) -> FolderSource:
    files = [path] if path.is_file() else image_files(path)
    if not files:
        raise DataError(f'{path} holds neither a bag (.mcap, .db3), nor {CAMERAS_FILE}, nor camera raws or images')
    black, white = _levels(decode, None, None)
    cfa = decode.encoding_override.removeprefix('bayer_').rstrip('0123456789') or None

    def reader(file: Path, stamp_ns: int) -> Callable[[], Frame]:
        def read() -> Frame:
            frame = read_raw_file(file, cfa=cfa, black_level=black, white_level=white, camera=camera, stamp_ns=stamp_ns)
            return replace(frame, name=file.name)

        return read

    warnings = ['the files carry no times: 10 frames a second are assumed, in the order of their names']
    if camera is None:
        warnings.append('no calibration: give the intrinsics as a cameras.json')
    stamped = [(default_stamp_ns(index), file) for index, file in enumerate(files)]
    return FolderSource([(stamp, reader(file, stamp)) for stamp, file in stamped], selection, warnings)


def open_source(
    path: Path | str,
    *,
    image_topic: str = '',
    info_topic: str = '',
    decode: DecodeOptions | None = None,
    start: float = 0.0,
    duration: float = 0.0,
    stride: int = 1,
    camera: Camera | None = None,
) -> BagSource | FolderSource:
    """Open a bag (folder, .mcap, .db3), a sequence folder with `cameras.json`, a folder of raw files or one file.

    Parameters
    ----------
    image_topic, info_topic: topics of a bag; empty means the only image topic, and the CameraInfo beside it.
    decode: how the raw values are to be read.
    start, duration: seconds after the first frame to begin at, and to go on for (0: to the end).
    stride: take every n-th frame.
    camera: intrinsics to use instead of those of the source.

    Raises DataError, EncodingError or CalibrationError saying what is wrong in which place.

    """
    path = Path(path)
    decode = DecodeOptions() if decode is None else decode
    selection = Selection(start, duration, stride)
    if not path.exists():
        raise DataError(f'{path} does not exist')
    if is_bag(path):
        return BagSource(path, image_topic, info_topic, decode, selection, camera)
    if image_topic or info_topic:
        raise ConfigError(f'{path} is no bag, so it has no topics: leave --image-topic and --info-topic out')
    if path.is_dir() and (path / CAMERAS_FILE).is_file():
        return _sequence_source(read_cameras_json(path), camera, decode, selection)
    if path.name == CAMERAS_FILE:
        return _sequence_source(read_cameras_json(path), camera, decode, selection)
    return _raw_folder_source(path, camera, decode, selection)
