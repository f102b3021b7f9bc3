# SPDX-License-Identifier: Apache-2.0
"""One thread that owns the mapping pipeline, a bounded queue in and a queue of results out.

A second thread decodes and encodes the next image while the first one still maps (`Staged`); images keep their order,
and the map is the same as that of one thread.

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
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class Staged(Protocol):
    """A pipeline whose `push` comes in parts: `prepare` may run in another thread, one frame ahead of the others."""

    def prepare(self, frame: Frame) -> Any:
        """What needs the frame alone."""
        ...

    def pose(self, prepared: Any) -> Sequence[Event]:
        """Pose of a prepared frame."""
        ...

    def work(self) -> Sequence[Event]:
        """What can wait until the pose is published."""
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
    whole: the map as a whole was refined.

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
    whole: bool = False


@dataclass(frozen=True, eq=False)
class _Ready:
    """A job whose image is decoded and, for a staged pipeline, prepared; or why not."""

    job: Job
    prepared: Any
    notes: Sequence[str] = ()
    error: Exception | None = None


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
        self._staged = pipeline if isinstance(pipeline, Staged) else None
        self._ready: deque[_Ready] = deque()  # one at most
        self._busy = self._preparing = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._ahead: threading.Thread | None = None
        self._in_work_ns: int | None = None
        self.dropped = 0
        self.failed = 0
        self._failures = 0

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        threads = [self._thread] if self._staged is None else [self._thread, self._ahead]
        return all(thread is not None and thread.is_alive() for thread in threads)

    @property
    def pending(self) -> int:
        """Jobs and calls that wait or are in work."""
        with self._condition:
            return len(self._jobs) + len(self._ready) + len(self._calls) + int(self._busy) + int(self._preparing)

    def start(self) -> None:
        """Start the threads, or those of them that have ended."""
        if self.running:
            raise RuntimeError('the worker already runs')
        self._stopping = False
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name='dark3r_pipeline', daemon=True)
            self._thread.start()
        if self._staged is not None and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(target=self._run_ahead, name='dark3r_ahead', daemon=True)
            self._ahead.start()

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
            self.dropped += len(self._jobs) + len(self._ready)
            self._jobs.clear()
            self._ready.clear()
            self._condition.notify_all()
        if self._thread is None:
            return True
        end = time.monotonic() + timeout
        self._thread.join(timeout)
        if self._ahead is not None:
            self._ahead.join(max(end - time.monotonic(), 0.0))
        stopped = not (self._thread.is_alive() or (self._ahead is not None and self._ahead.is_alive()))
        if stopped:
            self.dropped += len(self._ready)
            self._ready.clear()
            self._thread = self._ahead = None
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
            self._condition.notify_all()
        return not full

    def clear(self) -> int:
        """Forget waiting jobs without counting them as dropped; return how many there were."""
        with self._condition:
            count = len(self._jobs) + len(self._ready)
            self._jobs.clear()
            self._ready.clear()
            self._condition.notify_all()
        return count

    def call(self, function: Callable[[Pipeline], Any], deliver: Callable[[Any, BaseException | None], None]) -> None:
        """Run `function(pipeline)` in the worker thread; `drain` hands its value or error to `deliver`."""
        with self._condition:
            self._calls.append(_Call(function, deliver))
            self._condition.notify_all()

    def flush(self) -> None:
        """Let the pipeline pose what it still can; the events come as a `Result` with `received` None."""

        def work(pipeline: Pipeline) -> Result:
            events = tuple(pipeline.flush())
            return Result(0, '', events, pipeline.status(), finished=time.monotonic(), whole=True)

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
        waiting: deque[Any] = self._jobs if self._staged is None else self._ready
        while True:
            with self._condition:
                while not (self._stopping or waiting or self._calls):
                    self._condition.wait()
                if self._stopping:
                    return
                task: Any = self._calls.popleft() if self._calls else waiting.popleft()
                self._busy = True
                self._condition.notify_all()
            try:
                if isinstance(task, _Call):
                    self._results.append(self._answer(task))
                else:
                    self._results.append(self._process(task if self._staged is not None else self._read(task)))
                    self._notify()
                    self._work(task)
            finally:
                with self._condition:
                    self._busy = False
            if self._results:
                self._notify()

    def _run_ahead(self) -> None:
        """Prepare the next image while the other thread maps; only one waits for it."""
        while True:
            with self._condition:
                while not (self._stopping or (self._jobs and not self._ready)):
                    self._condition.wait()
                if self._stopping:
                    return
                job = self._jobs.popleft()
                self._preparing = True
            ready = None
            try:
                ready = self._read(job)
            finally:
                with self._condition:
                    self._preparing = False
                    if ready is not None:
                        self._ready.append(ready)
                    self._condition.notify_all()

    def _read(self, job: Job) -> _Ready:
        """Decode an image, and prepare it where the pipeline can do that apart."""
        self._in_work_ns = job.stamp_ns
        try:
            frame, notes = self._prepare(job)
            return _Ready(job, frame if self._staged is None else self._staged.prepare(frame), notes)
        except Exception as error:
            return _Ready(job, None, error=error)

    def _work(self, task: Job | _Ready) -> None:
        """Let the pipeline go on with what could wait for the pose; what came of it is a result of its own."""
        if self._staged is None:
            return
        assert isinstance(task, _Ready)
        job = task.job
        try:
            events = tuple(self._staged.work())
            if events:
                self._status = self._pipeline.status()
                self._results.append(
                    Result(job.stamp_ns, job.frame_id, events, self._status, finished=time.monotonic())
                )
        except Exception as error:
            self._results.append(self._failure(job.stamp_ns, job.frame_id, None, error))

    def _answer(self, call: _Call) -> _Answer:
        try:
            return _Answer(call, call.function(self._pipeline), None)
        except Exception as error:
            return _Answer(call, None, error)

    def _process(self, ready: _Ready) -> Result:
        job = ready.job
        try:
            if ready.error is not None:
                raise ready.error
            push = self._pipeline.push if self._staged is None else self._staged.pose
            events = tuple(push(ready.prepared))
            self._status = self._pipeline.status()
        except Exception as error:
            return self._failure(job.stamp_ns, job.frame_id, job.received, error)
        self._failures = 0
        return Result(
            job.stamp_ns,
            job.frame_id,
            events,
            self._status,
            notes=tuple(ready.notes),
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
