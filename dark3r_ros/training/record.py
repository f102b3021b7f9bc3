# SPDX-License-Identifier: Apache-2.0
"""What a training leaves behind for people: lines of JSON, files for TensorBoard, pictures of matches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import OutputError
from dark3r_ros.training.events import EventWriter

LOG = 'log.jsonl'
PICTURES = 'matches'


class Record:
    """Log of a training in a folder; lines after `step`, of a run that was killed, are taken out."""

    def __init__(self, folder: Path, step: int) -> None:
        self._folder, self._path = folder, folder / LOG
        self._forget(step)
        self._events: EventWriter | None = None

    def _forget(self, step: int) -> None:
        try:
            lines = self._path.read_text(encoding='utf-8').splitlines()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f'cannot continue the log {self._path}: {error}') from error
        kept = [line for line in lines if 0 <= _step(line) <= step]
        if kept != lines:
            temporary = self._path.with_suffix('.new')
            temporary.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')
            temporary.replace(self._path)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one line."""
        try:
            with self._path.open('a', encoding='utf-8') as file:
                file.write(json.dumps({'step': step, **figures}) + '\n')
        except OSError as error:
            raise OutputError(f'cannot write the log {self._path}: {error.strerror}') from error
        self._tensorboard().scalars(step, figures)

    def picture(self, step: int, image: NDArray[np.uint8]) -> None:
        """Keep a picture (H, W, 3) of a step."""
        _, encoded = cv2.imencode('.png', np.ascontiguousarray(image[:, :, ::-1]))
        path = self._folder / PICTURES / f'{step:07d}.png'
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded.tobytes())
        except OSError as error:
            raise OutputError(f'cannot write the picture {path}: {error.strerror}') from error
        self._tensorboard().picture(step, PICTURES, encoded.tobytes(), image.shape[1], image.shape[0])

    def _tensorboard(self) -> EventWriter:
        if self._events is None:
            self._events = EventWriter(self._folder)
        return self._events


def _step(line: str) -> int:
    """Step of a line of the log; -1 for half a line."""
    try:
        return int(json.loads(line)['step'])
    except (ValueError, KeyError, TypeError):
        return -1
