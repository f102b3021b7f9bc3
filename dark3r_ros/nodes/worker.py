# SPDX-License-Identifier: Apache-2.0
"""One thread that owns the mapping pipeline, a bounded queue in and a queue of results out.

Drop policy: when the queue is full, the waiting frame that is needed least (`backlog`) is dropped and counted. Calls
(reset, snapshot, flush) go before waiting frames. Results are delivered in the thread that calls `drain`; `notify`
wakes that thread. Nothing here knows ROS.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dark3r_ros.errors import Dark3rError
from dark3r_ros.mapping.events import Event, PipelineStatus
from dark3r_ros.nodes.backlog import Distance, elapsed, least_needed
from dark3r_ros.types import Frame, Reconstruction


class Pipeline(Protocol):
    """What the worker needs of `mapping.pipeline.MappingPipeline`."""

    def push(self, frame: Frame) -> Sequence[Event]:
        """Process one frame."""
        ...

    def flush(self) -> Sequence[Event]:
        """Pose and refine what is left at the end."""
        ...

    def reconstruction(self) -> Reconstruction:
        """Everything known now."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def save_state(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write what `load_state` reads."""
        ...

    def load_state(self, folder: Path | str) -> Sequence[str]:
        """Go on in a saved map; returns sentences for the log."""
        ...

    def status(self) -> PipelineStatus:
        """Snapshot for status messages."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """One image on its way to the pipeline; `message` is not looked at before its turn."""

    message: Any
    stamp_ns: int
    frame_id: str
    received: float


@dataclass(frozen=True, eq=False)
class Result:
    """What one image (or a flush, with `received` None) led to.

    Attributes
    ----------
    events: of the pipeline, in order.
    status: of the pipeline afterwards.
    problem: one sentence when the image was refused or the pipeline failed, else empty.
    trace: traceback of a failure that no Dark3rError explains, else empty.
    failures: frames in a row, this one included, that ended in such a failure.
    notes: sentences worth one log line each, such as decoder warnings.
    received, finished: `time.monotonic()` seconds.

    """

    stamp_ns: int
    frame_id: str
    events: tuple[Event, ...]
    status: PipelineStatus
    problem: str = ''
    trace: str = ''
    notes: tuple[str, ...] = ()
    received: float | None = None
    finished: float = 0.0
    failures: int = 0


@dataclass(frozen=True, eq=False)
class _Call:
    function: Callable[[Pipeline], Any]
    deliver: Callable[[Any, BaseException | None], None]


@dataclass(frozen=True, eq=False)
class _Answer:
    call: _Call
    value: Any
    error: BaseException | None


class PipelineWorker:
    """Run `prepare` and `pipeline.push` for every submitted job, one at a time, in a thread of its own.

    Parameters
    ----------
    pipeline: used by the worker thread only while it runs.
    prepare: turns a job into a frame and log-worthy notes; a Dark3rError from it refuses the image.
    capacity: waiting jobs at most.
    on_result: called by `drain` for every result.
    notify: called from the worker thread whenever something waits for `drain`.
    distance: how far the camera moved between two stamps, for the drop policy.

    """

    def __init__(
        self,
        pipeline: Pipeline,
        prepare: Callable[[Job], tuple[Frame, Sequence[str]]],
        capacity: int,
        on_result: Callable[[Result], None],
        notify: Callable[[], None],
        distance: Distance = elapsed,
    ) -> None:
        self._pipeline = pipeline
        self._status = pipeline.status()
        self._prepare = prepare
        self._capacity = capacity
        self._on_result = on_result
        self._notify = notify
        self._distance = distance
        self._condition = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._calls: deque[_Call] = deque()
        self._results: deque[Result | _Answer] = deque()
        self._busy = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._in_work_ns: int | None = None
        self.dropped = 0
        self.failed = 0
        self._failures = 0

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def pending(self) -> int:
        """Jobs and calls that wait or are in work."""
        with self._condition:
            return len(self._jobs) + len(self._calls) + int(self._busy)

    def start(self) -> None:
        """Start the thread."""
        if self.running:
            raise RuntimeError('the worker already runs')
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='dark3r_pipeline', daemon=True)
        self._thread.start()

    def revive(self) -> bool:
        """Start the thread again if it ended by itself; the pipeline and what waits are kept."""
        if self._thread is None or self.running or self._stopping:
            return False
        self.failed += 1
        self.start()
        return True

    def stop(self, timeout: float) -> bool:
        """Drop what waits, finish what is in work and join; False when that took longer than `timeout` seconds."""
        with self._condition:
            self._stopping = True
            self.dropped += len(self._jobs)
            self._jobs.clear()
            self._condition.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        stopped = not self._thread.is_alive()
        if stopped:
            self._thread = None
            # Whoever waits for an answer must hear that none will come.
            while self._calls:
                call = self._calls.popleft()
                self._results.append(_Answer(call, None, Dark3rError('the node was deactivated meanwhile')))
            self.drain()
        return stopped

    def submit(self, job: Job) -> bool:
        """Queue a job; False when another one had to be dropped for it."""
        with self._condition:
            self._jobs.append(job)
            full = len(self._jobs) > self._capacity
            if full:
                del self._jobs[least_needed([item.stamp_ns for item in self._jobs], self._in_work_ns, self._distance)]
                self.dropped += 1
            self._condition.notify()
        return not full

    def clear(self) -> int:
        """Forget waiting jobs without counting them as dropped; return how many there were."""
        with self._condition:
            count = len(self._jobs)
            self._jobs.clear()
        return count

    def call(self, function: Callable[[Pipeline], Any], deliver: Callable[[Any, BaseException | None], None]) -> None:
        """Run `function(pipeline)` in the worker thread; `drain` hands its value or error to `deliver`."""
        with self._condition:
            self._calls.append(_Call(function, deliver))
            self._condition.notify()

    def flush(self) -> None:
        """Let the pipeline pose what it still can; the events come as a `Result` with `received` None."""

        def work(pipeline: Pipeline) -> Result:
            events = tuple(pipeline.flush())
            return Result(0, '', events, pipeline.status(), finished=time.monotonic())

        def deliver(value: Result | None, error: BaseException | None) -> None:
            if value is None:
                value = self._failure(0, '', None, error)
            self._on_result(value)

        self.call(work, deliver)

    def drain(self) -> None:
        """Deliver all results that are ready; call it from the thread that owns the outputs."""
        while self._results:
            item = self._results.popleft()
            if isinstance(item, Result):
                self._on_result(item)
            else:
                item.call.deliver(item.value, item.error)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._stopping or self._jobs or self._calls):
                    self._condition.wait()
                if self._stopping:
                    return
                task: Job | _Call = self._calls.popleft() if self._calls else self._jobs.popleft()
                self._busy = True
            try:
                self._results.append(self._answer(task) if isinstance(task, _Call) else self._process(task))
            finally:
                with self._condition:
                    self._busy = False
            self._notify()

    def _answer(self, call: _Call) -> _Answer:
        try:
            return _Answer(call, call.function(self._pipeline), None)
        except Exception as error:
            return _Answer(call, None, error)

    def _process(self, job: Job) -> Result:
        self._in_work_ns = job.stamp_ns
        notes: Sequence[str] = ()
        try:
            frame, notes = self._prepare(job)
            events = tuple(self._pipeline.push(frame))
            self._status = self._pipeline.status()
        except Exception as error:
            return self._failure(job.stamp_ns, job.frame_id, job.received, error)
        self._failures = 0
        return Result(
            job.stamp_ns,
            job.frame_id,
            events,
            self._status,
            notes=tuple(notes),
            received=job.received,
            finished=time.monotonic(),
        )

    def _failure(self, stamp_ns: int, frame_id: str, received: float | None, error: BaseException | None) -> Result:
        trace = ''
        if isinstance(error, Dark3rError):
            problem = str(error)
            with suppress(Exception):  # a refused frame may have changed the state; only a failure may fail here too
                self._status = self._pipeline.status()
        else:
            self.failed += 1
            self._failures += 1
            problem = f'the mapping failed on this frame and goes on with the next: {type(error).__name__}: {error}'
            trace = ''.join(traceback.format_exception(error))
        return Result(
            stamp_ns,
            frame_id,
            (),
            self._status,
            problem=problem,
            trace=trace,
            received=received,
            finished=time.monotonic(),
            failures=self._failures,
        )
