# SPDX-License-Identifier: Apache-2.0
"""Child processes of a command: logs in files, no child outlives the command, a dead child is explained."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dark3r_ros.errors import Dark3rError

_POLITE_SECONDS = 5.0
SHARED_MEMORY = Path('/dev/shm')


def unused_domain(shared_memory: Path = SHARED_MEMORY) -> int:
    """Choose a ROS domain at random among those without files of Fast DDS in shared memory.

    Such files belong to neighbours, or to processes that were killed: then they stay, and new processes of that
    domain may never find each other. Above 101 the ports of a domain may meet those that the system hands out.
    """
    names = (re.match(r'fastdds_port(\d+)', file.name) for file in shared_memory.glob('fastdds_port*'))
    taken = {(int(name[1]) - 7400) // 250 for name in names if name}
    free = [domain for domain in range(1, 102) if domain not in taken]
    return random.SystemRandom().choice(free or range(1, 102))


class ChildError(Dark3rError):
    """A child process failed; the message ends with the last lines of its log."""


class Child:
    """One running process and its log file."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open('wb') as stream:
            # A session of its own: Ctrl-C in the terminal reaches the command, which then stops its children in order.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def tail(self, lines: int = 12) -> str:
        """Last lines of the log."""
        with self.log.open(encoding='utf-8', errors='replace') as stream:
            return ''.join(deque(stream, maxlen=lines)).rstrip()

    def signal(self, number: int) -> None:
        """Send a signal to the process and whatever it started."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Exit status, or None when it still runs after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> int | None:
        """Ask it to end, then make it."""
        for number, patience in ((signal.SIGINT, _POLITE_SECONDS), (signal.SIGKILL, _POLITE_SECONDS)):
            self.signal(number)
            if self.wait(patience) is not None:
                break
        return self.status


class Children:
    """A group of processes as a context manager: all have ended when it is left, however that happens."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = environment
        self._children: list[Child] = []
        self._old_handler: object = None

    def __enter__(self) -> Children:
        self._logs.mkdir(parents=True, exist_ok=True)
        # A plain `kill` must not leave the children behind.
        self._old_handler = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            child.signal(signal.SIGINT)
        for child in self._children:
            child.stop()
        signal.signal(signal.SIGTERM, self._old_handler)  # type: ignore[arg-type]

    def start(self, name: str, command: Sequence[str]) -> Child:
        """Start a process whose output goes to `<logs>/<name>.log`."""
        child = Child(name, command, self._logs / f'{name}.log', self._environment)
        self._children.append(child)
        return child

    def check(self, *, may_end: Sequence[Child] = ()) -> None:
        """Raise ChildError when a process failed, or ended although it is not among `may_end`."""
        for child in self._children:
            status = child.status
            if status is None or (status == 0 and child in may_end):
                continue
            how = f'was killed by signal {-status}' if status < 0 else f'ended with status {status}'
            raise ChildError(f'{child.name} {how}; the end of {child.log}: {child.tail()}')

    def wait_for_line(self, child: Child, text: str, timeout: float) -> None:
        """Wait until the log of a process says something; ChildError when one dies or `timeout` seconds pass."""
        end = time.monotonic() + timeout
        while text not in child.tail(1000):
            self.check()
            if time.monotonic() > end:
                raise ChildError(f'{child.name} was not ready within {timeout:.0f} s; {child.log}: {child.tail()}')
            time.sleep(0.1)

    def wait_for(self, child: Child, timeout: float, *, may_end: Sequence[Child] = (), each: object = None) -> None:
        """Wait until a process ended well, while the others are watched; ChildError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while child.wait(0.2) is None:
            self.check(may_end=[child, *may_end])
            if callable(each):
                each()
            if time.monotonic() > end:
                raise ChildError(f'{child.name} did not end within {timeout:.0f} s; {child.log}: {child.tail()}')
        self.check(may_end=[child, *may_end])


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
