# SPDX-License-Identifier: Apache-2.0
"""Dark raw recordings from clean 8-bit sequences.

The pictures are brought back to linear light, laid under a Bayer mosaic 1280 pixels wide, and photographed with the
noise of a sensor at a stated SNR. That is an approximation: the cameras' own tone curves and their noise stay in.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.noise import resolve_noise
from dark3r_ros.raw.planes import choose_binning
from dark3r_ros.simulation.frames import (
    EPOCH_NS,
    NETWORK_WIDTH,
    Exposure,
    SimulatedFrame,
    in_order,
    spread_indices,
)
from dark3r_ros.simulation.sensor import RawSensor, SignalStatistics
from dark3r_ros.simulation.texture import srgb_to_linear

MOSAIC_WIDTH = 1280
_PROBES = 64


@dataclass(frozen=True, eq=False)
class CleanImage:
    """One picture of a clean sequence: file, time, pose (4, 4) or None, depth file or None."""

    path: Path
    stamp_ns: int
    world_from_camera: NDArray[np.float64] | None
    depth: Path | None


def scaled_camera(camera: Camera, width: int, height: int) -> Camera:
    """Intrinsics after resizing a whole image: f' = f s, c' = (c + 0.5) s - 0.5, for each axis."""
    sx, sy = width / camera.width, height / camera.height
    return replace(
        camera,
        width=width,
        height=height,
        fx=camera.fx * sx,
        fy=camera.fy * sy,
        cx=(camera.cx + 0.5) * sx - 0.5,
        cy=(camera.cy + 0.5) * sy - 0.5,
    )


class Darkening:
    """A clean sequence being photographed in the dark; iterating gives the frames in order."""

    def __init__(
        self,
        folder: Path | str,
        snr_db: float,
        *,
        preset: str = 'starvis',
        cfa: str = 'rggb',
        seed: int = 0,
        rate: float = 10.0,
        width: int = MOSAIC_WIDTH,
        clean: bool = False,
        auto_exposure: bool = False,
        workers: int = 2,
    ) -> None:
        folder = Path(folder)
        data = _read_json(folder / 'cameras.json')
        self.source_camera = _camera(data, folder)
        self.images = _images(data, folder, rate)
        self.metric = str(data.get('scale')).startswith('metre')
        self.depth_unit = 5000.0
        self.binning = choose_binning(width, NETWORK_WIDTH)
        # Whole network pixels; the height may stretch by less than one of them, which fy and cy follow.
        rows = max(1, round(self.source_camera.height * width / self.source_camera.width / self.binning))
        self.camera = scaled_camera(self.source_camera, width // self.binning * self.binning, rows * self.binning)
        self.sensor = RawSensor(resolve_noise(preset), cfa)
        self.statistics = SignalStatistics()
        self._seed, self._workers = seed, workers
        probes = spread_indices(len(self.images), _PROBES)

        def planes(number: int) -> NDArray[np.float32]:
            return self.sensor.planes(self.light(probes[number]), self.binning)

        for signal in in_order(planes, len(probes), workers):
            self.statistics.add(signal)
        target = math.inf if clean else snr_db
        scale = self.statistics.exposure(self.sensor.noise, target, self.sensor.samples(self.binning))
        self.exposure = Exposure(
            self.sensor, self.camera, self.binning, 0.0 if auto_exposure else scale, snr_db, clean=clean
        )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[SimulatedFrame]:
        return in_order(self.photograph, len(self.images), self._workers)

    def light(self, index: int) -> NDArray[np.float32]:
        """Linear light (3, H/2, W/2) of a picture, one value per 2x2 quad of the mosaic."""
        path = self.images[index].path
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if picture is None:
            raise DataError(f'{path} is not a readable picture')
        if picture.shape[1::-1] != (self.source_camera.width, self.source_camera.height):
            raise DataError(
                f'{path} has {picture.shape[1]}x{picture.shape[0]} pixels, cameras.json says '
                f'{self.source_camera.width}x{self.source_camera.height}'
            )
        linear = srgb_to_linear(np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8))
        size = self.camera.width // 2, self.camera.height // 2
        if linear.shape[1::-1] != size:
            shrinks = size[0] < linear.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            linear = np.asarray(cv2.resize(linear, size, interpolation=method), dtype=np.float32)
        return np.ascontiguousarray(linear.transpose(2, 0, 1))

    def depth(self, index: int) -> NDArray[np.float32] | None:
        """True depth (h, w) at network size in metres, NaN where it was not measured, or None without any."""
        path = self.images[index].depth
        if path is None:
            return None
        counts = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if counts is None or counts.ndim != 2:
            raise DataError(f'{path} is not a readable depth image')
        metres = np.where(counts > 0, counts / np.float32(self.depth_unit), np.float32(np.nan)).astype(np.float32)
        size = self.camera.width // self.binning, self.camera.height // self.binning
        return np.asarray(cv2.resize(metres, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.float32)

    def photograph(self, index: int) -> SimulatedFrame:
        """Make one frame; frames can be made in any order."""
        image = self.images[index]
        rng = np.random.default_rng([self._seed, 4, index])
        return self.exposure.photograph(
            self.light(index),
            image.stamp_ns,
            rng,
            world_from_camera=image.world_from_camera,
            depth=self.depth(index),
            name=image.path.name,
        )


def darken_sequence(folder: Path | str, snr_db: float, **options: Any) -> Darkening:
    """Darken a sequence folder with `cameras.json`: iterate over the result for its frames.

    `options` are those of `Darkening`: preset, cfa, seed, rate (Hz, for pictures without timestamps), width of the
    mosaic, clean, auto_exposure, workers. Raises DataError for a folder that is no sequence.
    """
    return Darkening(folder, snr_db, **options)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'{path.parent} is no sequence folder: cannot read {path.name} ({error.strerror})') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path} is not valid JSON ({error})') from error
    if not isinstance(data, dict) or not isinstance(data.get('images'), list) or not data['images']:
        raise DataError(f'{path} lists no images')
    return data


def _camera(data: dict[str, Any], folder: Path) -> Camera:
    try:
        fx, fy, cx, cy = (float(data[key]) for key in ('fx', 'fy', 'cx', 'cy'))
        return Camera(int(data['width']), int(data['height']), fx, fy, cx, cy)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{folder / "cameras.json"}: missing or bad intrinsics ({error})') from error


def _images(data: dict[str, Any], folder: Path, rate: float) -> list[CleanImage]:
    images = []
    timed = all('stamp_ns' in entry or 'timestamp' in entry for entry in data['images'])
    for index, entry in enumerate(data['images']):
        if not isinstance(entry.get('file'), str):
            raise DataError(f'{folder / "cameras.json"}: image {index} names no file')
        if not timed:
            stamp = EPOCH_NS + round(index * 1e9 / rate)
        elif 'stamp_ns' in entry:
            stamp = int(entry['stamp_ns'])
        else:
            # Microseconds are what float seconds of today can hold.
            stamp = round(float(entry['timestamp']) * 1e6) * 1000
        pose = entry.get('c2w')
        matrix = None if pose is None else np.array(pose, dtype=np.float64)
        if matrix is not None and matrix.shape != (4, 4):
            raise DataError(f'{folder / "cameras.json"}: c2w of image {index} is not a 4x4 matrix')
        depth = entry.get('depth')
        images.append(CleanImage(folder / entry['file'], stamp, matrix, folder / depth if depth else None))
    if any(b.stamp_ns <= a.stamp_ns for a, b in itertools.pairwise(images)):
        raise DataError(f'{folder / "cameras.json"}: the timestamps do not increase')
    return images
