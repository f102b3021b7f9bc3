# SPDX-License-Identifier: Apache-2.0
"""One training from folders to folders: load, go on or start, keep checkpoints, previews and the page, finish.

The field folder holds `nerf.json` (facts and settings), `field.safetensors`, `checkpoint.safetensors`, `cameras.json`
(poses as used), `previews/` and `report.html`.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.evaluate import against_noise
from dark3r_ros.nerf.fieldfile import FIELD_FILE, FieldInfo, info_of, write_field
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.output import common_tone_map, side_by_side, write_png
from dark3r_ros.nerf.render import render_view
from dark3r_ros.nerf.report import write_report
from dark3r_ros.nerf.resume import has_checkpoint, resumed_trainer, save_checkpoint
from dark3r_ros.nerf.trainer import Progress, Trainer
from dark3r_ros.nerf.views import Views
from dark3r_ros.storage.files import check_target, check_writable, output_error, write_text
from dark3r_ros.storage.result import jsonable, peak_memory_mb
from dark3r_ros.storage.sequence import SequenceImage, write_cameras_json

FACTS_FILE = 'nerf.json'


def choose_device(name: str) -> str:
    """`auto` takes CUDA where there is some; ConfigError for a device that is not there."""
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ConfigError('CUDA is not available here: use --device cpu')
    if name != 'cpu' and not name.startswith('cuda'):
        raise ConfigError(f'unknown device {name!r}: cpu, cuda or auto')
    return name


def prepare_folder(folder: Path, *, overwrite: bool) -> bool:
    """Make the folder ready; whether a training in it is to be continued. OutputError when it must not be used."""
    if has_checkpoint(folder) and not overwrite:
        return True
    # A training killed before its first checkpoint left nothing but its facts.
    unfinished = (folder / FACTS_FILE).is_file() and not (folder / FIELD_FILE).exists()
    check_target(folder, overwrite=overwrite or unfinished, marker=FACTS_FILE)
    check_writable(folder)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise output_error(folder, error) from error
    return False


@dataclass
class Session:
    """A training and its folder.

    Attributes
    ----------
    origin: facts for the report (input, result, command settings). listen: called with every progress.
    shown: called with each preview (H, W, 3) uint8 RGB and its file.

    """

    folder: Path
    views: Views
    config: NerfConfig
    device: str = 'cpu'
    origin: dict[str, Any] = field(default_factory=dict)
    listen: Callable[[Progress], None] | None = None
    shown: Callable[[Path], None] | None = None
    warn: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.resumed = has_checkpoint(self.folder)
        try:
            self._make_trainer()
        except torch.OutOfMemoryError:
            raise DataError(
                'the GPU has no memory for the views and the grid: lower --max-views, --width or --table-log2'
            ) from None
        self.latest: Progress | None = None
        self.model = RadianceModel(self.config, self.trainer.box, len(self.views)).to(self.device)
        self._disk_full = False

    def _make_trainer(self) -> None:
        if self.resumed:
            self.trainer = resumed_trainer(self.folder, self.views, self.config, device=self.device)
            # New poses were moved into the frame of the field.
            self.views = self.trainer.views
        else:
            self.trainer = Trainer(self.views, self.config, device=self.device)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the facts that `nerf.json` then holds."""
        began = time.perf_counter()
        self._write_facts({'state': 'training', **self._facts()})
        with _stop_signal() as stopped:
            self.trainer.run(
                report=self._report, checkpoint=self._checkpoint, preview=self._preview, stopped=stopped.is_set
            )
        if stopped.is_set():
            save_checkpoint(self.trainer, self.folder)
            self._write_field()
            self._write_facts({'state': 'stopped', **self._facts()})
            self.warn(f'stopped at step {self.trainer.step_number}: the same command goes on from there')
            raise KeyboardInterrupt
        facts = {'state': 'done', **self._facts(), 'session_s': time.perf_counter() - began}
        save_checkpoint(self.trainer, self.folder)
        info = self._write_field()
        facts['held_out'] = against_noise(self.model, info, self.views)
        self._write_facts(facts)
        write_report(self.folder, facts, self.trainer.history)
        return facts

    def _facts(self) -> dict[str, Any]:
        latest, views = self.latest, self.views
        return {
            **self.origin,
            'step': self.trainer.step_number,
            'steps': self.config.steps,
            'photometric': None if latest is None else latest.photometric,
            'rays_per_second': None if latest is None else latest.rays_per_second,
            'seconds_left': None if latest is None else latest.seconds_left,
            'wall_s': self.trainer.elapsed,
            'skipped_steps': self.trainer.skipped,
            'rays': self.trainer.rays,
            'device': self.device,
            'parameters': sum(value.numel() for value in self.trainer.parameters),
            'views': len(views),
            'held_out_views': int(views.held_out.sum()),
            'size': [views.camera.width, views.camera.height],
            'samples_per_value': list(views.samples),
            'counts_per_unit': views.unit,
            'peak_memory_mb': peak_memory_mb(),
            'peak_gpu_memory_mb': torch.cuda.max_memory_allocated() / 1e6 if self.device.startswith('cuda') else None,
            'warnings': list(views.warnings),
            'config': to_mapping(self.config),
        }

    def _write_facts(self, facts: dict[str, Any]) -> None:
        write_text(self.folder / FACTS_FILE, json.dumps(jsonable(facts), indent=1) + '\n')

    def _report(self, progress: Progress) -> None:
        self.latest = progress
        if self.listen:
            self.listen(progress)

    def _checkpoint(self) -> None:
        try:
            save_checkpoint(self.trainer, self.folder)
            self._disk_full = False
        except OutputError as error:
            # The training itself is worth more than this checkpoint; the last one that was written is still there.
            if not self._disk_full:
                self.warn(f'{error}; training goes on, the checkpoint before it is kept')
            self._disk_full = True

    def _load_average(self) -> None:
        self.model.load_state_dict(self.trainer.averaged_state())

    def refined_poses(self) -> np.ndarray:
        """Poses (V, 4, 4) float64 in the world as the averaged weights correct them."""
        poses = self.views.world_from_camera.copy()
        if self.config.refine_poses:
            with torch.no_grad():
                box = self.trainer.box
                moved = self.model.frames.poses(self.trainer.data.poses).cpu().numpy().astype(np.float64)
            moved[:, :3, 3] = box.denormalise(moved[:, :3, 3])
            # float32 rotations are orthonormal to 1e-7 only.
            u, _, vt = np.linalg.svd(moved[:, :3, :3])
            moved[:, :3, :3] = u @ vt
            poses = moved
        return poses

    def _write_field(self) -> FieldInfo:
        self._load_average()
        info = info_of(self.views, self.config, self.trainer.box, self.refined_poses())
        extra = {'step': self.trainer.step_number, 'origin': jsonable(self.origin)}
        write_field(self.folder, self.trainer.averaged_state(), info, extra)
        images = [
            SequenceImage(name or f'{stamp}.png', int(stamp), pose)
            for name, stamp, pose in zip(info.names, info.stamps_ns, info.world_from_camera, strict=True)
        ]
        note = {'gt': 'none: poses that the field was made from, size of its views'}
        write_cameras_json(self.folder / 'cameras.json', info.camera, images, metric=info.metric, extra=note)
        return info

    def _preview(self) -> None:
        """Picture of one view as it is now; a preview that cannot be written is no reason to stop."""
        try:
            info = self._write_field()
            held = np.flatnonzero(self.views.held_out)
            index = int(held[len(held) // 2]) if len(held) else len(self.views) // 2
            tone = common_tone_map(self.model, info)
            picture = render_view(self.model, info.camera, info.world_from_camera[index])
            noisy = self.views.values[index] if self.views.colour is None else None
            file = self.folder / 'previews' / f'step_{self.trainer.step_number:06d}.png'
            write_png(file, side_by_side(noisy, picture, tone))
            facts = {'state': 'training', **self._facts()}
            self._write_facts(facts)
            write_report(self.folder, facts, self.trainer.history)
        except OutputError as error:
            self.warn(f'no preview: {error}')
            return
        if self.shown:
            self.shown(file)


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Event that Ctrl-C or a plain kill sets, so that a step is never cut in two; a second signal ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in old:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def read_facts(folder: Path | str) -> dict[str, Any]:
    """Read `nerf.json` of a field folder; DataError when it is missing or broken."""
    path = Path(folder) / FACTS_FILE
    try:
        facts = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'{folder} is no field: cannot read {FACTS_FILE} ({error.strerror})') from error
    except ValueError as error:
        raise DataError(f'{path} is not valid JSON ({error})') from error
    if not isinstance(facts, dict):
        raise DataError(f'{path} is not the description of a field')
    return facts
