# SPDX-License-Identifier: Apache-2.0
"""Sequence folders: `cameras.json` beside the images, with intrinsics, poses, times and raw levels.

Keys of the file: `width height fx fy cx cy` (pixel centres at integers), optional `distortion_model` and `distortion`
(a list), `scale` (`metres` or `arbitrary`), `depth_unit`, `cfa`, `black_level` (a number or R, G, B), `white_level`;
`images[]` in capture order with `file`, `c2w` (4x4 camera to world, optical axes, or null), optional `stamp_ns`
(integer nanoseconds) or `timestamp` (seconds), optional `depth`. Images without any time get one every 0.1 s from
`EPOCH_NS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.trajectory import parse_stamp
from dark3r_ros.types import CFA_PATTERNS, Float64Array, Trajectory

CAMERAS_FILE = 'cameras.json'

# Times of images that carry none: 10 per second from 2001-09-09 01:46:40 UTC. Zero would mean "now" to tf.
EPOCH_NS = 10**18
DEFAULT_STEP_NS = 10**8


@dataclass(frozen=True, eq=False)
class SequenceImage:
    """One image of a sequence; `file` and `depth` are relative to the folder, the pose is (4, 4) or None."""

    file: str
    stamp_ns: int
    world_from_camera: Float64Array | None = None
    depth: str = ''


@dataclass(frozen=True, eq=False)
class SequenceInfo:
    """What a `cameras.json` says; see the module's text for the keys."""

    folder: Path
    camera: Camera
    images: tuple[SequenceImage, ...]
    metric: bool = False
    name: str = ''
    cfa: str = ''
    black_level: tuple[float, float, float] | None = None
    white_level: float | None = None
    depth_unit: float = 5000.0

    def trajectory(self) -> Trajectory:
        """Poses of the images that have one, in order of time."""
        posed = sorted(
            ((image.stamp_ns, image.world_from_camera) for image in self.images if image.world_from_camera is not None),
            key=lambda item: item[0],
        )
        stamps = np.array([stamp for stamp, _ in posed], dtype=np.int64)
        return Trajectory(stamps, np.stack([pose for _, pose in posed]) if posed else np.zeros((0, 4, 4)))


def default_stamp_ns(index: int) -> int:
    """Time of the index-th image of a sequence without times."""
    return EPOCH_NS + index * DEFAULT_STEP_NS


def _camera(data: dict[str, Any], path: Path) -> Camera:
    try:
        width, height = int(data['width']), int(data['height'])
        fx, fy, cx, cy = (float(data[key]) for key in ('fx', 'fy', 'cx', 'cy'))
    except KeyError as error:
        raise DataError(f'{path} lacks the key {error}') from None
    except (TypeError, ValueError) as error:
        raise DataError(f'{path}: width, height, fx, fy, cx and cy must be numbers ({error})') from None
    distortion = data.get('distortion') or ()
    if isinstance(distortion, str):  # "none (pinhole)"
        if not distortion.startswith('none'):
            raise DataError(f'{path}: distortion must be a list of coefficients, not {distortion!r}')
        distortion = ()
    model = str(data.get('distortion_model') or ('plumb_bob' if distortion else 'none'))
    return Camera(width, height, fx, fy, cx, cy, model, tuple(float(value) for value in distortion))


def _pose(value: Any, where: str) -> Float64Array | None:
    if value is None:
        return None
    try:
        pose = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        pose = np.zeros(0)
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise DataError(f'{where}: c2w is not a finite 4x4 matrix')
    if np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-2 or np.linalg.det(pose[:3, :3]) < 0:
        raise DataError(f'{where}: the rotation of c2w is not orthonormal and right-handed')
    return pose


def _stamp(entry: dict[str, Any], index: int, where: str) -> int:
    if entry.get('stamp_ns') is not None:
        return int(entry['stamp_ns'])
    if entry.get('timestamp') is not None:
        try:
            # The shortest text of the float is what its writer wrote; going through it keeps every digit.
            return parse_stamp(str(entry['timestamp']))
        except ValueError as error:
            raise DataError(f'{where}: timestamp {error}') from None
    return default_stamp_ns(index)


def _images(data: dict[str, Any], path: Path) -> tuple[SequenceImage, ...]:
    entries = data.get('images')
    if not isinstance(entries, list) or not entries:
        raise DataError(f'{path} lists no images')
    timed = [entry.get('stamp_ns') is not None or entry.get('timestamp') is not None for entry in entries]
    if any(timed) and not all(timed):
        raise DataError(f'{path}: {timed.count(False)} of {len(timed)} images have no timestamp: give all or none')
    images = []
    for index, entry in enumerate(entries):
        where = f'{path}, image {index}'
        if not isinstance(entry.get('file'), str):
            raise DataError(f'{where}: no file is named')
        stamp = _stamp(entry, index, where)
        images.append(
            SequenceImage(entry['file'], stamp, _pose(entry.get('c2w'), where), str(entry.get('depth') or ''))
        )
    return tuple(images)


def _black_level(value: Any, path: Path) -> tuple[float, float, float] | None:
    if value is None:
        return None
    levels = [float(item) for item in value] if isinstance(value, list) else [float(value)] * 3
    if len(levels) != 3:
        raise DataError(f'{path}: black_level takes one number or three (R, G, B), got {len(levels)}')
    return levels[0], levels[1], levels[2]


def _depth_unit(value: Any) -> float:
    """Counts per metre, from a number or a text like `uint16, 5000 per metre`."""
    if isinstance(value, (int, float)):
        return float(value)
    found = re.search(r'([\d.]+) per metre', str(value or ''))
    return float(found.group(1)) if found else 5000.0


def read_cameras_json(path: Path | str) -> SequenceInfo:
    """Read `cameras.json`, given itself or its folder; DataError or CalibrationError says what is wrong in it."""
    path = Path(path)
    if path.is_dir():
        path = path / CAMERAS_FILE
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path} is not valid JSON ({error})') from error
    if not isinstance(data, dict):
        raise DataError(f'{path} is not a cameras.json: its top level is no object')
    cfa = str(data.get('cfa') or '').lower()
    if cfa and cfa not in CFA_PATTERNS:
        raise DataError(f'{path}: cfa {cfa!r} is not one of {", ".join(CFA_PATTERNS)}')
    white = data.get('white_level')
    return SequenceInfo(
        folder=path.parent,
        camera=_camera(data, path),
        images=_images(data, path),
        metric=data.get('scale') == 'metres',
        name=str(data.get('name') or path.parent.name),
        cfa=cfa,
        black_level=_black_level(data.get('black_level'), path),
        white_level=None if white is None else float(white),
        depth_unit=_depth_unit(data.get('depth_unit')),
    )


def camera_json(camera: Camera) -> dict[str, Any]:
    """Keys of `cameras.json` that describe a camera."""
    result: dict[str, Any] = {key: getattr(camera, key) for key in ('width', 'height', 'fx', 'fy', 'cx', 'cy')}
    if camera.distortion_model != 'none':
        result |= {'distortion_model': camera.distortion_model, 'distortion': list(camera.distortion)}
    return result


def write_cameras_json(
    path: Path | str,
    camera: Camera,
    images: Iterable[SequenceImage],
    *,
    metric: bool = False,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write `cameras.json`; `extra` adds keys such as `name`, `cfa`, `black_level`, `white_level`."""
    entries = []
    for image in images:
        pose = None if image.world_from_camera is None else image.world_from_camera.tolist()
        entry = {'file': image.file, 'stamp_ns': int(image.stamp_ns), 'c2w': pose}
        entries.append({**entry, 'depth': image.depth} if image.depth else entry)
    head = {
        **camera_json(camera),
        'pixel_centres': 'integer: the centre of the top-left pixel is (0,0) (OpenCV)',
        'pose': '4x4 camera-to-world, OpenCV axes (x right, y down, z forward)',
        'scale': 'metres' if metric else 'arbitrary',
        **(extra or {}),
    }
    lines = ',\n  '.join(json.dumps(entry) for entry in entries)
    body = json.dumps(head, indent=1)[:-2]
    write_text(path, f'{body},\n "images": [\n  {lines}\n ]\n}}\n')


def read_depth(info: SequenceInfo, image: SequenceImage) -> NDArray[np.float32] | None:
    """Depth (h, w) along the optical axis in the unit of the poses, 0 where unknown; None where there is no file.

    PNG holds uint16 counts of 1 / `depth_unit`, NPY and NPZ (its first array) floats. DataError when the file is named
    but unreadable.
    """
    if not image.depth:
        return None
    path = info.folder / image.depth
    try:
        if path.suffix in ('.npy', '.npz'):
            loaded = np.load(path, allow_pickle=False)
            depth = (loaded if path.suffix == '.npy' else loaded[loaded.files[0]]).astype(np.float32)
        else:
            counts: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
            if counts is None:
                raise ValueError('it is no picture')
            depth = np.asarray(counts, dtype=np.float32) / np.float32(info.depth_unit)
    except (OSError, ValueError, TypeError, IndexError, BadZipFile, cv2.error) as error:
        raise DataError(f'cannot read the depth {path} ({error})') from error
    if depth.ndim != 2:
        raise DataError(f'the depth {path} has {depth.ndim} dimensions, 2 are needed')
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
