# SPDX-License-Identifier: Apache-2.0
"""A field being built in processes of its own: the stages, their commands, and what they say while they run."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dark3r_ros.nerf.session import FACTS_FILE, read_facts
from dark3r_ros.storage.result import REPORT_FILE

_PATIENCE = 20.0  # for a checkpoint to be written after the first signal
_SFM_SHARE = 0.3  # of the progress bar


@dataclass(frozen=True)
class Stage:
    """One command of a build: name, arguments after `dark3r`, and the file that says that it was done before."""

    name: str
    arguments: tuple[str, ...]
    done: Path | None = None


@dataclass(frozen=True)
class JobResult:
    """How a build ended."""

    success: bool
    message: str
    field_path: str = ''
    psnr_db: float = math.nan
    cancelled: bool = False


@dataclass
class JobState:
    """How far a build is; `previews` are files not yet shown."""

    stage: str = 'starting'
    progress: float = 0.0
    seconds_left: float = math.nan
    loss: float = math.nan
    previews: deque[Path] = field(default_factory=deque)


def plan(source: Path, output: Path, profile: str, *, predictor: str, noise: str, device: str) -> list[Stage]:
    """Stages that make a field in `output`: of a reconstruction folder the training alone, else sfm before it."""
    extra = ('--noise', noise) if noise else ()
    stages, result = [], source
    if not (source / REPORT_FILE).is_file():
        result = output / 'sfm'
        arguments = ('sfm', str(source), '-o', str(result), '--predictor', predictor, *extra)
        stages.append(Stage('sfm', arguments, result / REPORT_FILE))
    train = ('nerf', 'train', str(result), '-o', str(output / 'field'), '--profile', profile, '--device', device)
    given = () if result == source else ('--input', str(source))
    stages.append(Stage('training', (*train, *given, *extra, '--progress-json')))
    return stages


class Job:
    """Runs the stages one after the other; `poll` now and then, it never blocks."""

    def __init__(self, stages: Sequence[Stage], field_path: Path, command: Sequence[str] = ()) -> None:
        self._command = list(command) or [sys.executable, '-m', 'dark3r_ros.cli.main']
        self._waiting = deque(stage for stage in stages if stage.done is None or not stage.done.is_file())
        self._several = len(stages) > 1
        self._field = field_path
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=20)
        self._readers: list[threading.Thread] = []
        self._stage: Stage | None = None
        self._cancelled_at: float | None = None
        self._killed = False
        self.state = JobState()
        self.result: JobResult | None = None

    def poll(self) -> JobResult | None:
        """Take in what the process said, start the next stage where one ended; the result once there is one."""
        if self.result is not None:
            return self.result
        self._take_lines()
        if self._process is None:
            self._start_next()
        elif (status := self._process.poll()) is not None:
            self._ended(status)
        elif self._cancelled_at is not None and time.monotonic() - self._cancelled_at > _PATIENCE and not self._killed:
            self._killed = True
            self._signal(signal.SIGKILL)
        return self.result

    def cancel(self) -> None:
        """Ask the process to stop at the next step; a training keeps its checkpoint."""
        if self._cancelled_at is None and self.result is None:
            self._cancelled_at = time.monotonic()
            self._waiting.clear()
            self._signal(signal.SIGINT)

    def close(self) -> None:
        """Stop the process, at the latest after the patience for a checkpoint."""
        self.cancel()
        while self.poll() is None:
            time.sleep(0.05)

    def _start_next(self) -> None:
        if not self._waiting:
            self._finish()
            return
        self._stage = self._waiting.popleft()
        self.state.stage = self._stage.name
        self.state.progress = _SFM_SHARE if self._several and self._stage.name == 'training' else 0.0
        self._errors.clear()
        # A session of its own: Ctrl-C in the terminal of the node reaches the node, which then stops it in order.
        self._process = subprocess.Popen(
            [*self._command, *self._stage.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace',
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read_output, args=(self._process,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(line)

    def _read_errors(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._errors.append(line.strip())

    def _take_lines(self) -> None:
        while not self._lines.empty():
            line = self._lines.get()
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            if isinstance(facts, dict):
                self._take(facts)

    def _take(self, facts: dict[str, object]) -> None:
        if isinstance(facts.get('stage'), str):
            self.state.stage = str(facts['stage'])
        if isinstance(facts.get('preview'), str):
            self.state.previews.append(Path(str(facts['preview'])))
        step, steps = facts.get('step'), facts.get('steps')
        if isinstance(step, int) and isinstance(steps, int) and steps > 0:
            before = _SFM_SHARE if self._several else 0.0
            self.state.progress = before + (1.0 - before) * step / steps
        for name in ('seconds_left', 'loss'):
            value = facts.get(name)
            if isinstance(value, (int, float)):
                setattr(self.state, name, float(value))

    def _ended(self, status: int) -> None:
        for reader in self._readers:
            reader.join(1.0)
        self._take_lines()
        self._process = None
        if self._cancelled_at is not None:
            self._finish()
        elif status != 0:
            reason = self._errors[-1] if self._errors else f'status {status}'
            name = self._stage.name if self._stage else 'build'
            self.result = JobResult(False, f'{name} failed: {reason.removeprefix("dark3r: error: ")}')

    def _finish(self) -> None:
        if self._cancelled_at is not None:
            text = 'cancelled; the same goal goes on from the last checkpoint'
            self.result = JobResult(False, text, str(self._field), cancelled=True)
            return
        facts = read_facts(self._field) if (self._field / FACTS_FILE).is_file() else {}
        psnr = (facts.get('held_out') or {}).get('psnr_corrected_db')
        self.state.progress, self.state.seconds_left = 1.0, 0.0
        self.result = JobResult(True, 'done', str(self._field), math.nan if psnr is None else float(psnr))

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
