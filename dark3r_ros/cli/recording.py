# SPDX-License-Identifier: Apache-2.0
"""Writing simulated frames as a bag or a sequence folder, with their truth beside them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.cli.common import progress
from dark3r_ros.errors import OutputError
from dark3r_ros.geometry import se3
from dark3r_ros.simulation.frames import SimulatedFrame, power_ratio_db
from dark3r_ros.storage.bag import BagWriter
from dark3r_ros.storage.files import check_target, output_error, replacing_folder, write_text
from dark3r_ros.storage.sequence import SequenceImage, write_cameras_json
from dark3r_ros.storage.trajectory import write_tum
from dark3r_ros.types import Frame, Trajectory

FORMATS = ('bag', 'folder')
STORAGES = ('mcap', 'sqlite3')
DEPTH_PER_METRE = 1000
SUMMARY_FILE = 'simulation.json'


@dataclass
class _Truth:
    """What is known about the frames, collected while they are written."""

    folder: Path
    depth_folder: str = 'truth_depth'
    images: list[SequenceImage] = field(default_factory=list)
    powers: list[tuple[float, float]] = field(default_factory=list)
    saturated: list[float] = field(default_factory=list)

    def add(self, made: SimulatedFrame, file: str) -> None:
        depth = ''
        if made.depth is not None:
            depth = f'{self.depth_folder}/{len(self.images):06d}.png'
            write_png(self.folder / depth, depth_counts(made.depth))
        self.images.append(SequenceImage(file, made.frame.stamp_ns, made.world_from_camera, depth))
        self.powers.append((made.signal_power, made.noise_variance))
        self.saturated.append(made.saturated)

    def summary(self) -> dict[str, Any]:
        """Achieved SNR over the recording and per frame, where there is light, and saturation."""
        lit = [pair for pair in self.powers if pair[0] > 0.0] or self.powers
        each = [power_ratio_db(*pair) for pair in lit]
        total = np.sum(lit, axis=0)
        finite = [value if math.isfinite(value) else None for value in (min(each), float(np.median(each)), max(each))]
        whole = power_ratio_db(*total)
        return {
            'frames': len(self.powers),
            'snr_db': whole if math.isfinite(whole) else None,
            'snr_db_frames': dict(zip(('min', 'median', 'max'), finite, strict=True)),
            'saturated_share': float(np.mean(self.saturated)),
        }


def depth_counts(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Millimetres (h, w) uint16 of depth in metres; 0 where it is unknown, infinite or beyond 65.535 m."""
    counts = np.rint(np.where(np.isfinite(depth), depth, 0.0) * DEPTH_PER_METRE)
    return np.where(counts > 65535, 0, counts).astype(np.uint16)


def write_png(path: Path, image: NDArray[np.uint16]) -> None:
    """Write a 16-bit single-channel PNG; OutputError when that fails."""
    done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OutputError(f'cannot encode {path.name} as PNG')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise output_error(path, error) from error


class _Sink(Protocol):
    folder: Path

    def write(self, made: SimulatedFrame, index: int) -> str: ...


@dataclass
class _FolderSink:
    folder: Path

    def write(self, made: SimulatedFrame, index: int) -> str:
        file = f'images/{index:06d}.png'
        write_png(self.folder / file, made.frame.mosaic)
        return file


@dataclass
class _BagSink:
    folder: Path
    bag: BagWriter

    def write(self, made: SimulatedFrame, index: int) -> str:
        frame = made.frame
        assert frame.camera is not None
        self.bag.write_camera_info(frame.camera, frame.stamp_ns, frame.frame_id)
        self.bag.write_frame(frame)
        reading = made.odometry
        if reading is not None:
            if index == 0:
                mounted = se3.BODY_FROM_OPTICAL
                self.bag.write_static_transforms(frame.stamp_ns, [('base_link', frame.frame_id, mounted)])
            self.bag.write_odometry(
                reading.stamp_ns,
                reading.odom_from_body,
                linear=reading.linear,
                angular=reading.angular,
                pose_covariance=reading.pose_covariance,
                twist_covariance=reading.twist_covariance,
            )
        return f'{index:06d}'


@contextmanager
def _bag_sink(path: Path, storage: str, overwrite: bool) -> Iterator[_BagSink]:
    """Bag writer whose truth waits in a temporary folder until the bag is complete."""
    with BagWriter(path, storage, overwrite=overwrite) as bag:
        folder = _temporary(path)
        try:
            yield _BagSink(folder, bag)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                bag.discard()  # the same command makes it again, and without truth it is of no use
            raise
    try:
        for item in sorted(folder.iterdir()):
            shutil.move(str(item), path / item.name)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(path: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f'.{path.name}.truth.', dir=path.absolute().parent))
    except OSError as error:
        raise output_error(path, error) from error


@contextmanager
def _folder_sink(path: Path, overwrite: bool) -> Iterator[_FolderSink]:
    with replacing_folder(path, overwrite=overwrite, marker='cameras.json') as folder:
        yield _FolderSink(folder)


def check_output(path: Path, form: str, overwrite: bool) -> None:
    """Raise OutputError before any work is done when the output exists and may not be replaced."""
    check_target(path, overwrite=overwrite, marker='metadata.yaml' if form == 'bag' else 'cameras.json')


def record(
    frames: Iterable[SimulatedFrame],
    count: int,
    path: Path,
    *,
    form: str,
    storage: str,
    overwrite: bool,
    metric: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write all frames with their truth and return the summary that also lies beside them as JSON.

    Truth is `truth.tum`, `truth_cameras.json` (a folder's own `cameras.json` has the poses already), `truth_depth/`
    (16-bit PNG, millimetres, network size) and the resolved settings with the achieved SNR.
    """
    sink_context: AbstractContextManager[_Sink]
    if form == 'bag':
        sink_context = _bag_sink(path, storage, overwrite)
    else:
        sink_context = _folder_sink(path, overwrite)
    with sink_context as sink:
        truth, first = _Truth(sink.folder), None
        for index, made in enumerate(progress(frames, count, 'frames')):
            first = first or made.frame
            truth.add(made, sink.write(made, index))
        if first is None:
            raise OutputError(f'{path}: there are no frames to write')
        summary = {'output': str(path), **truth.summary(), 'settings': settings}
        _write_truth(sink.folder, truth, first, 'truth_cameras.json' if form == 'bag' else 'cameras.json', metric)
        write_text(sink.folder / SUMMARY_FILE, json.dumps(summary, indent=2) + '\n')
    return summary


def _write_truth(folder: Path, truth: _Truth, first: Frame, name: str, metric: bool) -> None:
    posed = [image for image in truth.images if image.world_from_camera is not None]
    if posed:
        stamps = np.array([image.stamp_ns for image in posed], dtype=np.int64)
        poses = np.stack([image.world_from_camera for image in posed if image.world_from_camera is not None])
        write_tum(folder / 'truth.tum', Trajectory(stamps, poses))
    assert first.camera is not None
    extra = {
        'cfa': first.cfa,
        'black_level': list(first.black_level),
        'white_level': first.white_level,
        'depth_unit': f'uint16, {DEPTH_PER_METRE} per metre',
    }
    write_cameras_json(folder / name, first.camera, truth.images, metric=metric, extra=extra)


def report(summary: dict[str, Any]) -> str:
    """One line for people about what was written."""
    snr = summary['snr_db']
    text = 'without noise' if snr is None else f'at {snr:.2f} dB'
    each = summary['snr_db_frames']
    spread = '' if snr is None else f' (frames {each["min"]:.1f} to {each["max"]:.1f} dB)'
    saturated = summary['saturated_share']
    warning = f'; warning: {saturated:.1%} of the pixels are saturated' if saturated > 0.005 else ''
    return f'{summary["output"]}: {summary["frames"]} frames {text}{spread}{warning}'
