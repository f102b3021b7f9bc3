# SPDX-License-Identifier: Apache-2.0
"""COLMAP text model: cameras.txt, images.txt, points3D.txt.

COLMAP puts the centre of the top-left pixel at (0.5, 0.5), so that half a pixel is added to every coordinate; its
images hold world to camera with quaternions (w, x, y, z). Format: https://colmap.github.io/format.html
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.files import write_lines, write_text
from dark3r_ros.types import FrameRecord, Reconstruction

_HALF = 0.5


def frame_name(record: FrameRecord) -> str:
    """Name of a frame in exports: its file, or its stamp where it came from a bag; never with blanks."""
    return '_'.join((record.name or f'{record.stamp_ns}.png').split())


def colmap_camera(camera: Camera) -> tuple[str, list[float], bool]:
    """COLMAP model, its parameters, and whether it has the distortion.

    Thin-prism and tilt terms have no model in COLMAP: such cameras become the PINHOLE of the undistorted pixels.
    """
    pinhole = [camera.fx, camera.fy, camera.cx + _HALF, camera.cy + _HALF]
    terms = list(camera.distortion)
    if not camera.distorted:
        return 'PINHOLE', pinhole, True
    if camera.distortion_model == 'equidistant':
        return 'OPENCV_FISHEYE', pinhole + terms, True
    if not any(terms[4:]):
        return 'OPENCV', pinhole + terms[:4], True
    if not any(terms[8:]):
        return 'FULL_OPENCV', pinhole + (terms + [0.0] * 3)[:8], True
    return 'PINHOLE', pinhole, False


def _numbers(values: NDArray[np.float64] | list[float]) -> str:
    return ' '.join(f'{value:.17g}' for value in values)


def _reprojection_errors(
    reconstruction: Reconstruction, rows: list[NDArray[np.int64]], pixels: NDArray[np.float64], camera: Camera
) -> np.ndarray:
    observations = reconstruction.observations
    errors = np.zeros(len(observations.point_index))
    for index, mine in enumerate(rows):
        pose = reconstruction.frames[index].world_from_camera
        if pose is None or not len(mine):
            continue
        points = se3.transform_points(se3.inverse(pose), observations.points[observations.point_index[mine]])
        errors[mine] = np.linalg.norm(camera.project(points) - pixels[mine], axis=1)
    return errors


def write_colmap(folder: Path | str, reconstruction: Reconstruction) -> None:
    """Write the posed frames, the sparse points seen by them and the camera; OutputError when that fails."""
    folder = Path(folder)
    camera, observations = reconstruction.camera, reconstruction.observations
    model, parameters, exact = colmap_camera(camera)
    pixels = observations.pixels
    if not exact:
        pixels = camera.undistorted_pixels(pixels) if len(pixels) else pixels
        camera = Camera(camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
    note = '' if exact else '# the distortion has no COLMAP model: pixels are undistorted, images are not\n'
    write_text(folder / 'cameras.txt', f'{note}1 {model} {camera.width} {camera.height} {_numbers(parameters)}\n')

    rows = _rows_of_frames(reconstruction)
    write_lines(folder / 'images.txt', _image_lines(reconstruction, rows, pixels))
    errors = _reprojection_errors(reconstruction, rows, pixels, camera)
    write_lines(folder / 'points3D.txt', _point_lines(reconstruction, rows, errors))


def _rows_of_frames(reconstruction: Reconstruction) -> list[NDArray[np.int64]]:
    """Rows of the observations of each frame, in their order."""
    frames = reconstruction.observations.frame_index
    order = np.argsort(frames, kind='stable')
    bounds = np.searchsorted(frames[order], np.arange(len(reconstruction.frames) + 1))
    return [order[begin:end] for begin, end in itertools.pairwise(bounds.tolist())]


def _image_lines(
    reconstruction: Reconstruction, rows: list[NDArray[np.int64]], pixels: NDArray[np.float64]
) -> Iterator[str]:
    """Lines of images.txt, made as they are written: there are millions of observations in long recordings."""
    yield '# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME; then X Y POINT3D_ID per observation\n'
    points = reconstruction.observations.point_index
    for index, seen in enumerate(rows):
        record = reconstruction.frames[index]
        if record.world_from_camera is None:
            continue
        camera_from_world = se3.inverse(record.world_from_camera)
        x, y, z, w = se3.quaternion(camera_from_world[:3, :3])
        pose = _numbers([w, x, y, z, *camera_from_world[:3, 3]])
        places, numbers = (pixels[seen] + _HALF).tolist(), (points[seen] + 1).tolist()
        entries = [f'{_numbers(place)} {number}' for place, number in zip(places, numbers, strict=True)]
        yield f'{index + 1} {pose} 1 {frame_name(record)}\n{" ".join(entries)}\n'


def _point_lines(
    reconstruction: Reconstruction, rows_of_frames: list[NDArray[np.int64]], errors: NDArray[np.float64]
) -> Iterator[str]:
    """Lines of points3D.txt: every point with the frames that see it, and its place among the points of each."""
    yield '# POINT3D_ID X Y Z R G B ERROR TRACK (IMAGE_ID POINT2D_IDX ...)\n'
    observations = reconstruction.observations
    position = np.zeros(len(observations.point_index), dtype=np.int64)
    for index, seen in enumerate(rows_of_frames):
        posed = reconstruction.frames[index].world_from_camera is not None
        position[seen] = np.arange(len(seen)) if posed else -1
    rows = np.flatnonzero(position >= 0)
    rows = rows[np.lexsort((position[rows], observations.frame_index[rows], observations.point_index[rows]))]
    numbers, begins = np.unique(observations.point_index[rows], return_index=True)
    bounds = itertools.pairwise([*begins.tolist(), len(rows)])
    for point, (begin, end) in zip(numbers.tolist(), bounds, strict=True):
        mine = rows[begin:end]
        colour = ' '.join(map(str, observations.colors[point].tolist()))
        xyz = _numbers(observations.points[point].tolist())
        seen_by = zip(observations.frame_index[mine].tolist(), position[mine].tolist(), strict=True)
        track = ' '.join(f'{frame + 1} {place}' for frame, place in seen_by)
        yield f'{point + 1} {xyz} {colour} {float(np.mean(errors[mine])):.6g} {track}\n'


def read_observations(folder: Path | str) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Pixels (N, 2), centre of the top-left one at (0, 0), and world points (N, 3) seen there, by frame name.

    Reads what `write_colmap` wrote (COLMAP's own text models as well); empty where there is no model.
    """
    folder = Path(folder)
    if not (folder / 'images.txt').is_file() or not (folder / 'points3D.txt').is_file():
        return {}
    try:
        points = {
            int(fields[0]): [float(value) for value in fields[1:4]]
            for fields in map(str.split, _data_lines(folder / 'points3D.txt'))
            if fields
        }
        lines = _data_lines(folder / 'images.txt')
        return {
            head.split()[9]: _seen(body.split(), points) for head, body in zip(lines[::2], lines[1::2], strict=True)
        }
    except (ValueError, IndexError, OSError) as error:
        raise DataError(f'{folder} holds no readable COLMAP model ({error})') from error


def _data_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().split('\n')[:-1] if not line.startswith('#')]


def _seen(fields: list[str], points: dict[int, list[float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = np.array(fields, dtype=np.float64).reshape(-1, 3)
    known = [row for row in table if int(row[2]) in points]
    world = np.array([points[int(row[2])] for row in known], dtype=np.float64).reshape(-1, 3)
    return np.array(known, dtype=np.float64).reshape(-1, 3)[:, :2] - _HALF, world
