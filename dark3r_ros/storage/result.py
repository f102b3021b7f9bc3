# SPDX-License-Identifier: Apache-2.0
"""The folder of a reconstruction: written as a whole or not at all, and read back."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.storage.cloud import read_ply, write_ply
from dark3r_ros.storage.colmap import frame_name, write_colmap
from dark3r_ros.storage.depth import depth_unit, write_depths
from dark3r_ros.storage.files import replacing_folder, write_text
from dark3r_ros.storage.nerfstudio import write_transforms
from dark3r_ros.storage.sequence import SequenceImage, read_cameras_json, write_cameras_json
from dark3r_ros.storage.trajectory import write_tum
from dark3r_ros.types import DepthMap, FrameRecord, Observations, PointCloud, Reconstruction

REPORT_FILE = 'report.json'
FORMAT = 1


@dataclass(frozen=True, eq=False)
class SavedResult:
    """A result folder read back; the sparse observations stay on disk (`colmap/`), so they are empty here."""

    folder: Path
    reconstruction: Reconstruction
    report: dict[str, Any]


def jsonable(value: Any) -> Any:
    """Plain values for JSON: numpy unpacked, paths as text, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    try:
        # The peak that getrusage tells a process has in it what its parent had when it was started; this one has not.
        status = Path('/proc/self/status').read_text(encoding='ascii')
        return 1.024e-3 * float(status.split('VmHWM:')[1].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == 'darwin' else 1e3)


def _spread(values: list[float]) -> dict[str, float | None]:
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return {'min': None, 'median': None, 'max': None}
    return {'min': float(finite.min()), 'median': float(np.median(finite)), 'max': float(finite.max())}


def _frame_row(record: FrameRecord) -> dict[str, Any]:
    return {
        'stamp_ns': int(record.stamp_ns),
        'name': record.name,
        'posed': record.world_from_camera is not None,
        'keyframe': record.keyframe,
        'snr_db': record.snr_db,
        'inliers': int(record.inliers),
        'matches': int(record.matches),
        'reason': record.reason,
    }


def build_report(reconstruction: Reconstruction, report: dict[str, Any]) -> dict[str, Any]:
    """Content of report.json: what follows from the reconstruction, then what the caller measured.

    The caller gives at least `wall_s`, `stages_s` (seconds by stage), `weights_sha256` (null without a network) and
    `config`; keys that are missing are written as null, so that a reader finds the same keys in every report.
    """
    frames = reconstruction.frames
    posed = [frame for frame in frames if frame.world_from_camera is not None]
    own = {
        'format': FORMAT,
        'frames': len(frames),
        'posed': len(posed),
        'posed_share': len(posed) / len(frames) if frames else 0.0,
        'keyframes': sum(frame.keyframe for frame in posed),
        'landmarks': len(reconstruction.observations.points),
        'cloud_points': len(reconstruction.cloud),
        'metric_scale': reconstruction.metric_scale,
        'snr_db': _spread([frame.snr_db for frame in frames]),
        'wall_s': None,
        'stages_s': {},
        'peak_memory_mb': peak_memory_mb(),
        'weights_sha256': None,
        'config': {},
        'warnings': [],
    }
    return {**own, **report, 'per_frame': [_frame_row(frame) for frame in frames]}


def write_report_json(folder: Path | str, report: dict[str, Any]) -> None:
    """Write report.json with one line per frame."""
    head = {key: value for key, value in report.items() if key != 'per_frame'}
    rows = ',\n  '.join(json.dumps(row) for row in jsonable(report.get('per_frame', [])))
    body = json.dumps(jsonable(head), indent=1)[:-2]
    write_text(Path(folder) / REPORT_FILE, f'{body},\n "per_frame": [\n  {rows}\n ]\n}}\n')


def write_result(
    folder: Path | str,
    reconstruction: Reconstruction,
    report: dict[str, Any],
    *,
    overwrite: bool = False,
    depths: Mapping[int, DepthMap] | None = None,
) -> None:
    """Write trajectory, keyframes, cloud, cameras, exports, depth maps by frame and report.json into a result folder.

    All or nothing: everything is written beside the folder and renamed at the end. An existing result is replaced
    only with `overwrite`, any other folder with content never. Raises OutputError (unwritable, full disk, exists).
    """
    with replacing_folder(folder, overwrite=overwrite, marker=REPORT_FILE) as target:
        write_tum(target / 'trajectory.tum', reconstruction.trajectory())
        write_tum(target / 'keyframes.tum', reconstruction.trajectory(keyframes_only=True))
        write_ply(target / 'cloud.ply', reconstruction.cloud)
        files = write_depths(target, reconstruction, depths or {})
        images = [
            SequenceImage(frame_name(frame), frame.stamp_ns, frame.world_from_camera, files.get(number, ''))
            for number, frame in enumerate(reconstruction.frames)
        ]
        extra: dict[str, Any] = {'gt': 'none: poses and intrinsics are estimates', 'name': Path(folder).name}
        if files:
            extra['depth_unit'] = depth_unit(depths or {})
        write_cameras_json(
            target / 'cameras.json',
            reconstruction.camera,
            images,
            metric=reconstruction.metric_scale,
            extra=extra,
        )
        write_colmap(target / 'colmap', reconstruction)
        write_transforms(target / 'transforms.json', reconstruction)
        write_report_json(target, build_report(reconstruction, report))


def read_report_json(folder: Path | str) -> dict[str, Any]:
    """Read report.json of a result folder; DataError when it is missing or broken."""
    path = Path(folder) / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'{folder} is no result folder: cannot read {REPORT_FILE} ({error.strerror})') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path} is not valid JSON ({error})') from error
    if not isinstance(report, dict) or not isinstance(report.get('per_frame'), list):
        raise DataError(f'{path} is not the report of a result folder: it has no per_frame list')
    return report


def read_result(folder: Path | str) -> SavedResult:
    """Read a result folder back; DataError says which file is missing or broken."""
    folder = Path(folder)
    report = read_report_json(folder)
    info = read_cameras_json(folder / 'cameras.json')
    if len(info.images) != len(report['per_frame']):
        raise DataError(f'{folder}: cameras.json and {REPORT_FILE} list different numbers of frames')
    frames = tuple(
        FrameRecord(
            image.stamp_ns,
            image.world_from_camera,
            bool(row.get('keyframe')),
            math.nan if row.get('snr_db') is None else float(row['snr_db']),
            int(row.get('inliers', 0)),
            int(row.get('matches', 0)),
            str(row.get('reason', '')),
            str(row.get('name', '')),
        )
        for image, row in zip(info.images, report['per_frame'], strict=True)
    )
    cloud = read_ply(folder / 'cloud.ply')
    return SavedResult(folder, Reconstruction(info.camera, frames, cloud, no_observations(), info.metric), report)


def no_observations() -> Observations:
    """Empty sparse structure."""
    empty = np.zeros(0, np.int64)
    return Observations(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), empty, empty, np.zeros((0, 2)))


def empty_cloud() -> PointCloud:
    """Cloud without points."""
    return PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
