# SPDX-License-Identifier: Apache-2.0
"""COLMAP text model: cameras.txt, images.txt, points3D.txt.

COLMAP puts the centre of the top-left pixel at (0.5, 0.5), so that half a pixel is added to every coordinate; its
images hold world to camera with quaternions (w, x, y, z). Format: https://colmap.github.io/format.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.files import write_text
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


def _reprojection_errors(reconstruction: Reconstruction, pixels: NDArray[np.float64], camera: Camera) -> np.ndarray:
    observations = reconstruction.observations
    errors = np.zeros(len(observations.point_index))
    for index in np.unique(observations.frame_index):
        pose = reconstruction.frames[index].world_from_camera
        if pose is None:
            continue
        mine = observations.frame_index == index
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

    errors = _reprojection_errors(reconstruction, pixels, camera)
    tracks: dict[int, list[str]] = {}
    point_errors: dict[int, list[float]] = {}
    images = ['# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME; then X Y POINT3D_ID per observation\n']
    for index, record in enumerate(reconstruction.frames):
        if record.world_from_camera is None:
            continue
        camera_from_world = se3.inverse(record.world_from_camera)
        x, y, z, w = se3.quaternion(camera_from_world[:3, :3])
        pose = _numbers([w, x, y, z, *camera_from_world[:3, 3]])
        seen = np.flatnonzero(observations.frame_index == index)
        entries = []
        for position, k in enumerate(seen):
            point = int(observations.point_index[k])
            tracks.setdefault(point, []).append(f'{index + 1} {position}')
            point_errors.setdefault(point, []).append(float(errors[k]))
            entries.append(f'{_numbers(pixels[k] + _HALF)} {point + 1}')
        images.append(f'{index + 1} {pose} 1 {frame_name(record)}\n{" ".join(entries)}\n')
    write_text(folder / 'images.txt', ''.join(images))

    points = ['# POINT3D_ID X Y Z R G B ERROR TRACK (IMAGE_ID POINT2D_IDX ...)\n']
    for point in sorted(tracks):
        colour = ' '.join(str(int(value)) for value in observations.colors[point])
        mean_error = float(np.mean(point_errors[point]))
        xyz = _numbers(observations.points[point])
        points.append(f'{point + 1} {xyz} {colour} {mean_error:.6g} {" ".join(tracks[point])}\n')
    write_text(folder / 'points3D.txt', ''.join(points))


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
