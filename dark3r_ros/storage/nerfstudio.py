# SPDX-License-Identifier: Apache-2.0
"""`transforms.json` of nerfstudio: camera to world with OpenGL camera axes (x right, y up, z backward).

Format: https://docs.nerf.studio/quickstart/data_conventions.html; pixel centres at half integers, as in COLMAP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.colmap import frame_name
from dark3r_ros.storage.files import write_text
from dark3r_ros.types import Reconstruction

OPTICAL_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def opencv_terms(camera: Camera) -> dict[str, float]:
    """Distortion as nerfstudio's OPENCV model k1 k2 k3 k4 p1 p2 (radial polynomial), or k1..k4 of the fisheye model.

    The rational model has no counterpart; its polynomial of least squares over the image takes its place, and the
    largest deviation is stated as `distortion_fit_error_px`.
    """
    if not camera.distorted:
        return {}
    if camera.distortion_model == 'equidistant':
        return dict(zip(('k1', 'k2', 'k3', 'k4'), camera.distortion, strict=True))
    if camera.distortion_model == 'plumb_bob':
        k1, k2, p1, p2, *rest = camera.distortion
        return {'k1': k1, 'k2': k2, 'k3': rest[0] if rest else 0.0, 'k4': 0.0, 'p1': p1, 'p2': p2}
    return _polynomial_fit(camera)


def _polynomial_fit(camera: Camera) -> dict[str, float]:
    columns, rows = np.meshgrid(np.linspace(0, camera.width - 1, 41), np.linspace(0, camera.height - 1, 31))
    pixels = np.column_stack([columns.ravel(), rows.ravel()])
    ideal = camera.unproject(pixels)
    x, y = ideal.T
    r2 = x**2 + y**2
    radial = [r2, r2**2, r2**3, r2**4]
    in_x = np.column_stack([*(x * power for power in radial), 2 * x * y, r2 + 2 * x**2])
    in_y = np.column_stack([*(y * power for power in radial), r2 + 2 * y**2, 2 * x * y])
    design: NDArray[np.float64] = np.vstack([in_x * camera.fx, in_y * camera.fy])
    pinhole = ideal * (camera.fx, camera.fy) + (camera.cx, camera.cy)
    target = (pixels - pinhole).T.ravel()
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    terms = dict(zip(('k1', 'k2', 'k3', 'k4', 'p1', 'p2'), solution.tolist(), strict=True))
    return {**terms, 'distortion_fit_error_px': float(np.abs(design @ solution - target).max())}


def transforms(reconstruction: Reconstruction) -> dict[str, Any]:
    """Content of `transforms.json` for the posed frames."""
    camera = reconstruction.camera
    frames = []
    for record in reconstruction.frames:
        if record.world_from_camera is not None:
            matrix = record.world_from_camera @ OPTICAL_FROM_OPENGL
            entry = {'file_path': frame_name(record), 'transform_matrix': matrix.tolist()}
            frames.append({**entry, 'stamp_ns': int(record.stamp_ns)})
    return {
        'camera_model': 'OPENCV_FISHEYE' if camera.distortion_model == 'equidistant' else 'OPENCV',
        'w': camera.width,
        'h': camera.height,
        'fl_x': camera.fx,
        'fl_y': camera.fy,
        'cx': camera.cx + 0.5,
        'cy': camera.cy + 0.5,
        **opencv_terms(camera),
        'ply_file_path': 'cloud.ply',
        'frames': frames,
    }


def write_transforms(path: Path | str, reconstruction: Reconstruction) -> None:
    """Write `transforms.json`; OutputError when that fails."""
    write_text(path, json.dumps(transforms(reconstruction), indent=1) + '\n')
