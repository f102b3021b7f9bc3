# SPDX-License-Identifier: Apache-2.0
"""Adapter for methods that this package does not bring: a command that turns a folder of frames into a TUM file.

The command gets a folder with

* `pictures/000000.png`, ...: developed 8-bit pictures without distortion (`peer_pictures`), in order;
* `raw/000000.png`, ...: the 16-bit mosaics of the same frames;
* `cameras.json`: intrinsics of the pictures, and the stamp of each;
* `times.txt`: `NUMBER SECONDS` a line, seconds with nine decimals;

and writes `SECONDS x y z qx qy qz qw` lines, camera to world, optical axes, of the frames that it could pose.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dark3r_ros.errors import ConfigError, ReconstructionError
from dark3r_ros.evaluation.peer_pictures import Pictures, develop_all, write_pictures
from dark3r_ros.evaluation.trajectory_metrics import associate
from dark3r_ros.storage.sequence import SequenceImage, write_cameras_json
from dark3r_ros.storage.trajectory import format_stamp, read_tum
from dark3r_ros.types import Frame, Reconstruction

_TOLERANCE_NS = 1_000_000  # what a float of seconds since 1970 may lose


@dataclass(frozen=True)
class ExternalMethod:
    """A command line with `{frames}` and `{output}` in it, and the seconds that it may take."""

    command: str
    timeout_s: float = 3600.0
    pictures: str = 'stretched'

    def __post_init__(self) -> None:
        if '{frames}' not in self.command or '{output}' not in self.command:
            raise ConfigError(f'the command {self.command!r} must name {{frames}} and {{output}}')

    def __call__(self, frames: Iterable[Frame]) -> Reconstruction:
        """Poses of raw frames by the command; ReconstructionError says how it failed."""
        with tempfile.TemporaryDirectory(prefix='dark3r_external_') as name:
            folder, output = Path(name) / 'frames', Path(name) / 'trajectory.tum'
            raw = folder / 'raw'
            raw.mkdir(parents=True)
            pictures = develop_all(_with_mosaics(frames, raw), self.pictures)
            _describe(pictures, folder)
            self._run(folder, output)
            trajectory = read_tum(output)
        stamps = np.array([record.stamp_ns for record in pictures.frames], dtype=np.int64)
        mine, theirs = associate(stamps, trajectory.stamps_ns, _TOLERANCE_NS)
        poses = {int(number): trajectory.world_from_camera[row] for number, row in zip(mine, theirs, strict=True)}
        return pictures.reconstruction(poses, 'the command gave it no pose')

    def _run(self, folder: Path, output: Path) -> None:
        words = [word.format(frames=folder, output=output) for word in shlex.split(self.command)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise ReconstructionError(f'{words[0]} took longer than {self.timeout_s:g} s') from None
        except OSError as error:
            raise ReconstructionError(f'{words[0]} cannot be run: {error.strerror}') from error
        said = (done.stderr or done.stdout).strip().splitlines()
        if done.returncode:
            raise ReconstructionError(f'{words[0]} ended with {done.returncode}: {said[-1] if said else "no output"}')
        if not output.is_file():
            raise ReconstructionError(f'{words[0]} left no trajectory at {{output}}')


def _with_mosaics(frames: Iterable[Frame], folder: Path) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f'{number:06d}.png'), frame.mosaic)
        yield frame


def _describe(pictures: Pictures, folder: Path) -> None:
    write_pictures(pictures, folder / 'pictures')
    names = [f'pictures/{number:06d}.png' for number in range(len(pictures.images))]
    stamps = [record.stamp_ns for record in pictures.frames]
    images = [SequenceImage(name, stamp) for name, stamp in zip(names, stamps, strict=True)]
    write_cameras_json(folder / 'cameras.json', pictures.camera, images)
    times = ''.join(f'{number} {format_stamp(stamp)}\n' for number, stamp in enumerate(stamps))
    (folder / 'times.txt').write_text(times, encoding='utf-8')
