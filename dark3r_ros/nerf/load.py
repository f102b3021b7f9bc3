# SPDX-License-Identifier: Apache-2.0
"""Read what a field is made from: poses and depths of a reconstruction, raws of the recording behind it.

Poses come from a result folder (`dark3r map`, `dark3r sfm`) or any folder with a `cameras.json` that has poses, such
as a simulated recording. Depths come from `depth/<stamp or frame name>.npz` with `depth` (h, w) along the optical
axis, 0 where there is none, and `confidence` (h, w) in 0..1; from the depth files that a `cameras.json` names; or else
from the sparse points of the reconstruction, each in the views that saw it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import CalibrationError, ConfigError, DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.views import (
    Views,
    choose_held_out,
    clipped_at_black,
    colour_sites,
    frame_values,
    noise_line,
    signal_unit,
)
from dark3r_ros.raw.cfa import MONO
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.planes import choose_binning
from dark3r_ros.storage.colmap import frame_name, read_observations
from dark3r_ros.storage.result import REPORT_FILE, read_result
from dark3r_ros.storage.selection import spread
from dark3r_ros.storage.sequence import CAMERAS_FILE, read_cameras_json, read_depth
from dark3r_ros.storage.source import open_source
from dark3r_ros.types import Frame, FrameSource

_STAMP_TOLERANCE_NS = 1_000_000
_FEWEST = 2
_NEAREST_DEPTH = 1e-6

Depth = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class PosedFrames:
    """Poses of frames whose pixels lie elsewhere.

    Attributes
    ----------
    camera: intrinsics at mosaic size. stamps_ns: (N,). names: file names or empty. world_from_camera: (N, 4, 4).
    points: (M, 3) sparse points. metric: whether in metres.
    depth: depth and confidence (h, w) of the i-th frame at the given size (w, h), or None.
    recording: where the raws are, as far as the folder tells.

    """

    camera: Camera
    stamps_ns: NDArray[np.int64]
    names: tuple[str, ...]
    world_from_camera: NDArray[np.float64]
    points: NDArray[np.float64]
    metric: bool
    depth: Callable[[int, Camera], Depth | None]
    recording: Path | None


def read_poses(folder: Path | str) -> PosedFrames:
    """Poses, depths and sparse points of a result folder or a folder with `cameras.json`; DataError otherwise."""
    folder = Path(folder)
    if (folder / REPORT_FILE).is_file():
        return _from_result(folder)
    if (folder / CAMERAS_FILE).is_file():
        return _from_sequence(folder)
    raise DataError(f'{folder} holds neither {REPORT_FILE} nor {CAMERAS_FILE}: give a folder of `dark3r sfm` or `map`')


def _from_result(folder: Path) -> PosedFrames:
    saved = read_result(folder)
    records = [record for record in saved.reconstruction.frames if record.world_from_camera is not None]
    stamps = np.array([record.stamp_ns for record in records], dtype=np.int64)
    poses = [record.world_from_camera for record in records if record.world_from_camera is not None]
    observations = read_observations(folder / 'colmap')
    full = saved.reconstruction.camera

    def depth(index: int, camera: Camera) -> Depth | None:
        record = records[index]
        dense = _dense_depth(folder / 'depth', record.stamp_ns, frame_name(record))
        if dense is not None:
            return dense
        seen = observations.get(frame_name(record))
        if seen is None or record.world_from_camera is None:
            return None
        return sparse_depth(seen[0], seen[1], record.world_from_camera, full, camera)

    points = saved.reconstruction.cloud.points.astype(np.float64)
    recording = _recording(saved.report, folder)
    names = tuple(record.name for record in records)
    stack = np.stack(poses) if poses else np.zeros((0, 4, 4))
    return PosedFrames(full, stamps, names, stack, points, saved.reconstruction.metric_scale, depth, recording)


def _from_sequence(folder: Path) -> PosedFrames:
    info = read_cameras_json(folder)
    images = [image for image in info.images if image.world_from_camera is not None]
    poses = [image.world_from_camera for image in images if image.world_from_camera is not None]

    def depth(index: int, camera: Camera) -> Depth | None:
        found = read_depth(info, images[index])
        return None if found is None else (found, (found > 0).astype(np.float32))

    stamps = np.array([image.stamp_ns for image in images], dtype=np.int64)
    stack = np.stack(poses) if poses else np.zeros((0, 4, 4))
    names = tuple(image.file for image in images)
    return PosedFrames(info.camera, stamps, names, stack, np.zeros((0, 3)), info.metric, depth, folder)


def _recording(report: dict[str, object], folder: Path) -> Path | None:
    """The recording that a report names, if it is still there."""
    name = report.get('input_path') or report.get('input')
    if not isinstance(name, str) or not name:
        return None
    for place in (Path(name), folder.absolute().parent / name):
        if place.exists():
            return place
    return None


def _dense_depth(folder: Path, stamp_ns: int, name: str) -> Depth | None:
    for stem in (str(stamp_ns), name, Path(name).stem):
        path = folder / f'{stem}.npz'
        if not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as data:
                depth = np.asarray(data['depth'], dtype=np.float32)
                confidence = np.asarray(data['confidence'], dtype=np.float32)
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f'cannot read the depth {path} ({error}): delete it or make it anew') from error
        if depth.ndim != 2 or depth.shape != confidence.shape:
            raise DataError(f'{path}: depth and confidence must be two images of one size')
        good = np.isfinite(depth) & (depth > 0) & np.isfinite(confidence)
        return np.where(good, depth, 0), np.where(good, np.clip(confidence, 0, 1), 0)
    return None


def sparse_depth(
    pixels: NDArray[np.float64], points: NDArray[np.float64], pose: NDArray[np.float64], full: Camera, camera: Camera
) -> Depth:
    """Depth and confidence (h, w) from the points (N, 3) that a view saw at pixels (N, 2) of the full camera."""
    depth = np.zeros((camera.height, camera.width), dtype=np.float32)
    z = se3.transform_points(se3.inverse(pose), points)[:, 2]
    column = np.floor((pixels[:, 0] + 0.5) * camera.width / full.width).astype(int)
    row = np.floor((pixels[:, 1] + 0.5) * camera.height / full.height).astype(int)
    keep = (z > _NEAREST_DEPTH) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    depth[row[keep], column[keep]] = z[keep]
    return depth, (depth > 0).astype(np.float32)


def load_views(
    result: Path | str,
    recording: Path | str | None,
    config: NerfConfig,
    *,
    noise: NoiseModel | None = None,
    image_topic: str = '',
    progress: Callable[[Iterable[Frame], int], Iterable[Frame]] | None = None,
) -> Views:
    """Read the views for a field.

    Parameters
    ----------
    result: folder with poses. recording: bag or folder with the raws; None takes the one that `result` names.
    noise: calibrated model; without it the noise is measured in the frames.
    progress: wraps the iteration over frames, to show how far it is.

    Raises DataError where poses and raws do not belong together or are too few.

    """
    posed = read_poses(result)
    if len(posed.stamps_ns) < _FEWEST:
        raise DataError(f'{result} has {len(posed.stamps_ns)} posed frames: a field needs at least {_FEWEST}')
    place = Path(recording) if recording else posed.recording
    if place is None:
        raise ConfigError(f'{result} does not say where its recording is: name the bag or folder with --input')
    source = open_source(place, image_topic=image_topic, camera=posed.camera)
    return collect_views(posed, source, config, noise=noise, progress=progress, where=str(place))


def collect_views(
    posed: PosedFrames,
    source: FrameSource,
    config: NerfConfig,
    *,
    noise: NoiseModel | None = None,
    progress: Callable[[Iterable[Frame], int], Iterable[Frame]] | None = None,
    where: str = 'the recording',
) -> Views:
    """Bring posed frames and their raws together; see `load_views`."""
    order = np.argsort(posed.stamps_ns, kind='stable')
    limit = config.max_views or len(order)
    chosen = order[spread(len(order), limit)]
    binning = 1 if config.mosaic else _binning(posed.camera, config.width)
    taken: dict[int, tuple[Frame, NDArray[np.float32]]] = {}
    wrong_size = 0
    for frame in progress(source, len(source)) if progress else source:
        index = _match(frame.stamp_ns, posed.stamps_ns, chosen)
        if index is None or index in taken:
            continue
        if frame.size != (posed.camera.width, posed.camera.height):
            wrong_size += 1
            continue
        seen = clipped_at_black(frame) if config.clip_black else frame
        # The mosaic itself is needed for a few frames only; keeping all would double the memory.
        kept = seen if len(taken) < 8 else dataclasses.replace(seen, mosaic=seen.mosaic[:0], camera=None)
        taken[index] = kept, frame_values(seen, binning, config.mosaic)
    if len(taken) < _FEWEST:
        raise DataError(
            f'{len(taken)} of {len(chosen)} posed frames were found in {where}'
            + (f', {wrong_size} have another size than the calibration' if wrong_size else '')
            + ': is it the recording that the poses were made from?'
        )
    warnings = [*source.warnings]
    if wrong_size:
        warnings.append(f'{wrong_size} frames have another size than the calibration and were left out')
    if len(taken) + wrong_size < len(chosen):
        warnings.append(f'{len(chosen) - len(taken) - wrong_size} posed frames have no raw frame in {where}')
    return _assemble(posed, taken, config, binning, noise, warnings)


def _binning(camera: Camera, width: int) -> int:
    return choose_binning(camera.width, width)


def _match(stamp_ns: int, stamps: NDArray[np.int64], chosen: NDArray[np.int64]) -> int | None:
    """The chosen frame (index into `stamps`) of this time."""
    times = stamps[chosen]
    place = int(np.searchsorted(times, stamp_ns))
    near = [chosen[k] for k in (place - 1, place) if 0 <= k < len(chosen)]
    best = min(near, key=lambda index: abs(int(stamps[index]) - stamp_ns))
    return int(best) if abs(int(stamps[best]) - stamp_ns) <= _STAMP_TOLERANCE_NS else None


def _assemble(
    posed: PosedFrames,
    taken: dict[int, tuple[Frame, NDArray[np.float32]]],
    config: NerfConfig,
    binning: int,
    noise: NoiseModel | None,
    warnings: list[str],
) -> Views:
    indices = sorted(taken, key=lambda index: int(posed.stamps_ns[index]))
    frames = [taken[index][0] for index in indices]
    whole = [frame for frame in frames if frame.mosaic.size]
    first = whole[0]
    values = np.stack([taken[index][1] for index in indices])
    mosaic = values.shape[1] == 1
    read, slope = noise_line(whole, binning, config.mosaic, noise)
    unit = signal_unit(values, read)
    camera = posed.camera.binned(binning)
    if values.shape[2:] != (camera.height, camera.width):
        raise CalibrationError(f'views of {values.shape[3]}x{values.shape[2]} do not fit the camera of the poses')
    if noise is None:
        warnings.append('no noise model given: the noise was measured in the frames (see --noise, calibrate-noise)')
    depth, confidence = _depths(posed, indices, camera)
    if depth is None:
        warnings.append('no depth and no sparse points: the field is made from the views alone')
    black = first.black_level
    return Views(
        values=values / np.float32(unit),
        colour=colour_sites(first.cfa, *values.shape[2:]) if mosaic else None,
        camera=camera,
        world_from_camera=posed.world_from_camera[indices],
        stamps_ns=posed.stamps_ns[indices],
        names=tuple(posed.names[index] for index in indices),
        exposure=_exposures(frames, config.exposure),
        depth=depth,
        confidence=confidence,
        read_variance=read / unit**2,
        shot_gain=slope / unit,
        unit=unit,
        white=(first.white_level - max(black)) / unit,
        black_level=black,
        samples=(1, 1, 1) if mosaic else _samples(first.cfa, binning),
        held_out=choose_held_out(len(indices), config.holdout),
        points=posed.points,
        metric=posed.metric,
        warnings=warnings,
    )


def _samples(cfa: str, binning: int) -> tuple[int, int, int]:
    pixels = binning * binning
    return (pixels,) * 3 if cfa == MONO else (pixels // 4, pixels // 2, pixels // 4)


def _exposures(frames: list[Frame], kind: str) -> NDArray[np.float32]:
    """Brightness of each frame relative to the median one, as gain and exposure time say."""
    known = [
        (frame.gain if frame.gain else 1.0) * frame.exposure_s if frame.exposure_s else float('nan') for frame in frames
    ]
    level = np.array(known, dtype=np.float64)
    if kind == 'ignore' or not np.isfinite(level).all() or level.min() <= 0:
        return np.ones(len(frames), dtype=np.float32)
    return (level / np.median(level)).astype(np.float32)


def _depths(
    posed: PosedFrames, indices: list[int], camera: Camera
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Depth and confidence (V, h, w) of all views at one size, zero for views without any; None without any at all."""
    size = camera if camera.width <= 320 else camera.binned(-(-camera.width // 320))
    depth = np.zeros((len(indices), size.height, size.width), dtype=np.float32)
    confidence = np.zeros_like(depth)
    for number, index in enumerate(indices):
        found = posed.depth(index, size)
        if found is not None:
            depth[number], confidence[number] = (_resampled(part, size.width, size.height) for part in found)
    return (depth, confidence) if confidence.any() else (None, None)


def _resampled(image: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Nearest pixels at another size; depths must not be mixed across edges."""
    rows = ((np.arange(height) + 0.5) * image.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * image.shape[1] / width).astype(int)
    return image[rows[:, None], columns[None, :]]
