# SPDX-License-Identifier: Apache-2.0
"""A saved map: the reconstruction folder, in it `state/` to go on from, and `map_frame.json` with place and unit."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dark3r_ros.errors import Dark3rError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.metric import ScaleEstimate
from dark3r_ros.mapping.state_file import STATE_FILE, STATE_FOLDER
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.nodes.worker import Pipeline
from dark3r_ros.sfm.scale import scaled
from dark3r_ros.storage.files import check_target, output_error, write_text
from dark3r_ros.storage.result import REPORT_FILE, write_result
from dark3r_ros.types import Float64Array, Reconstruction

FRAME_FILE = 'map_frame.json'

# The same camera calibrated again differs by less.
_SAME_FOCAL = 0.02


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What the pipeline gave between two frames: the reconstruction, and its state in a temporary folder if it could.

    `reason` says why there is no state, else it is empty.
    """

    reconstruction: Reconstruction
    state: Path | None
    reason: str

    def discard(self) -> None:
        """Delete the temporary folder."""
        if self.state is not None:
            shutil.rmtree(self.state.parent, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class SavedFrame:
    """Place, unit and camera of a saved map."""

    map_from_world: Float64Array
    scale: ScaleEstimate
    camera: Camera


def absolute(path: str) -> Path:
    """Path as the service means it."""
    return Path(path).expanduser().absolute()


def take_snapshot(pipeline: Pipeline, folder: Path, overwrite: bool) -> Snapshot:
    """Ask the pipeline for everything that a saved map in `folder` needs; OutputError when it cannot be put there."""
    check_target(folder, overwrite=overwrite, marker=REPORT_FILE)
    reconstruction = pipeline.reconstruction()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, so that it only has to be renamed.
        temporary = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        pipeline.save_state(temporary / STATE_FOLDER)
    except Dark3rError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        return Snapshot(reconstruction, None, str(error))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Snapshot(reconstruction, temporary / STATE_FOLDER, '')


def write_map(
    snapshot: Snapshot, folder: Path, frame: MapFrame, scale: ScaleEstimate, report: dict[str, Any], overwrite: bool
) -> str:
    """Write a saved map, poses and points in metres where the scale is known; return a sentence for people.

    Raises OutputError.
    """
    try:
        result = snapshot.reconstruction
        if scale.known:
            result = scaled(result, scale.scale)
        write_result(folder, result, {**report, 'scale': asdict(scale)}, overwrite=overwrite)
        if frame.map_from_world is not None:
            _write_frame(folder / FRAME_FILE, frame.map_from_world, scale, result.camera)
        if snapshot.state is None:
            return f'the map was written to {folder}, but not what is needed to go on in it: {snapshot.reason}'
        try:
            snapshot.state.rename(folder / STATE_FOLDER)
        except OSError as error:
            raise output_error(folder / STATE_FOLDER, error) from error
        return f'the map was written to {folder}'
    finally:
        snapshot.discard()


def read_map(folder: Path, cameras: Sequence[Camera]) -> tuple[Path, SavedFrame | None]:
    """Folder of the state and the frame of a saved map.

    `cameras` are the present calibrations; DataError when none of them is the camera of the map, or it is no map.
    """
    if not folder.is_dir():
        raise DataError(f'there is no saved map {folder}')
    state = folder / STATE_FOLDER
    if not state.is_dir():
        if not (folder / STATE_FILE).exists():
            raise DataError(
                f'{folder} holds no {STATE_FOLDER}/ to go on from: name a folder that ~/save_map or '
                '`dark3r map --save-map` of this version wrote'
            )
        state = folder
    frame = _read_frame(folder / FRAME_FILE) if (folder / FRAME_FILE).exists() else None
    if frame is not None and cameras and not any(_same(frame.camera, camera) for camera in cameras):
        was, now = frame.camera, cameras[-1]
        raise DataError(
            f'the map was made with another camera: {was.width}x{was.height}, fx {was.fx:.1f}; now it is '
            f'{now.width}x{now.height}, fx {now.fx:.1f}'
        )
    return state, frame


def load_map(pipeline: Pipeline, folder: Path, cameras: Sequence[Camera]) -> tuple[Sequence[str], SavedFrame | None]:
    """Put a saved map into the pipeline; sentences for the log and the frame. DataError keeps the present map."""
    state, frame = read_map(folder, cameras)
    return tuple(pipeline.load_state(state)), frame


def _same(a: Camera, b: Camera) -> bool:
    return (a.width, a.height) == (b.width, b.height) and abs(a.fx / b.fx - 1.0) < _SAME_FOCAL


def _write_frame(path: Path, map_from_world: Float64Array, scale: ScaleEstimate, camera: Camera) -> None:
    values = {
        'map_from_world': map_from_world.tolist(),
        'metres_per_unit': scale.scale if scale.known else None,
        'deviation': scale.deviation if scale.known else None,
        'camera': [camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy],
    }
    write_text(path, json.dumps(values, indent=1) + '\n')


def _read_frame(path: Path) -> SavedFrame:
    try:
        values = json.loads(path.read_text())
        pose = np.array(values['map_from_world'], dtype=np.float64)
        width, height, fx, fy, cx, cy = values['camera']
        camera = Camera(int(width), int(height), float(fx), float(fy), float(cx), float(cy))
        unit, deviation = values['metres_per_unit'], values['deviation']
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError('map_from_world is no transform')
        if unit is None:
            return SavedFrame(pose, ScaleEstimate(reason='the saved map has none'), camera)
        return SavedFrame(pose, ScaleEstimate(float(unit), float(deviation), known=True, reason=''), camera)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f'{path} is damaged: {error}') from error
