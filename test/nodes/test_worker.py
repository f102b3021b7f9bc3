# SPDX-License-Identifier: Apache-2.0
import threading
import time

import numpy as np
import pytest

from dark3r_ros.errors import DataError
from dark3r_ros.nodes.backlog import least_needed
from dark3r_ros.nodes.worker import Job, PipelineWorker
from dark3r_ros.types import Frame


def prepare(job: Job):
    if job.message == 'bad':
        raise DataError('the data is truncated')
    return Frame(job.stamp_ns, np.zeros((2, 2), np.uint16), 'rggb', (0.0,) * 3, 1.0, frame_id=job.frame_id), ['note']


def job(stamp: int, message: object = None) -> Job:
    return Job(message, stamp, 'cam', time.monotonic())


@pytest.fixture
def make(pipeline):
    workers = []

    def build(capacity: int = 3):
        results = []
        worker = PipelineWorker(pipeline, prepare, capacity, results.append, lambda: None)
        worker.start()
        workers.append(worker)
        return worker, results

    yield build
    if pipeline.gate is not None:
        pipeline.gate.set()
    for worker in workers:
        worker.stop(2.0)


def settle(worker: PipelineWorker) -> None:
    end = time.monotonic() + 20.0
    while worker.pending:
        assert time.monotonic() < end
        time.sleep(0.002)
    worker.drain()


def test_frames_keep_their_order_and_stamps(make):
    worker, results = make(capacity=100)
    assert all(worker.submit(job(stamp)) for stamp in range(50))
    settle(worker)
    assert [result.stamp_ns for result in results] == list(range(50))
    assert all(result.events and result.finished >= result.received and result.notes == ('note',) for result in results)
    assert worker.dropped == 0


def test_a_full_queue_thins_what_waits_and_counts(make, pipeline):
    pipeline.gate = threading.Event()
    worker, results = make(capacity=3)
    worker.submit(job(0))
    while not pipeline.frames:  # frame 0 is in work now
        time.sleep(0.002)
    assert [worker.submit(job(stamp)) for stamp in range(1, 10)] == [True] * 3 + [False] * 6
    pipeline.gate.set()
    settle(worker)
    taken = [result.stamp_ns for result in results]
    assert len(taken) == 4 and taken[0] == 0 and taken[-1] == 9
    assert max(np.diff(taken)) <= 5  # the oldest of all alone would leave a gap of 7
    assert worker.dropped == 6


def test_frames_of_a_standing_camera_are_dropped_before_those_of_a_moving_one():
    place = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]

    def moved(first: int, second: int) -> float:
        return abs(place[second] - place[first])

    waiting = [1, 2, 3, 4, 5, 6]
    gone = []
    while len(waiting) > 3:
        gone.append(waiting.pop(least_needed(waiting, 0, moved)))
    assert gone == [1, 2, 3] and waiting == [4, 5, 6]
    assert least_needed([7], 0) == 0


def test_a_refused_image_is_one_sentence_and_the_next_one_goes_on(make):
    worker, results = make()
    worker.submit(job(1, 'bad'))
    worker.submit(job(2))
    settle(worker)
    assert (results[0].problem, results[0].trace, results[0].events) == ('the data is truncated', '', ())
    assert results[1].stamp_ns == 2 and results[1].events


def test_a_crash_of_the_pipeline_is_told_with_its_trace_and_survived(make, pipeline):
    pipeline.script[1] = ZeroDivisionError('inside the pipeline')
    worker, results = make(capacity=5)
    for stamp in (1, 2, 3):
        worker.submit(job(stamp))
    settle(worker)
    assert [bool(result.events) for result in results] == [True, False, True]
    assert 'ZeroDivisionError: inside the pipeline' in results[1].problem
    assert 'in push' in results[1].trace
    assert worker.running


def test_failures_in_a_row_are_counted_until_a_frame_succeeds(make, pipeline):
    pipeline.script = {number: RuntimeError('again') for number in (1, 2, 3)}
    worker, results = make(capacity=10)
    for stamp in range(6):
        worker.submit(job(stamp))
    worker.submit(job(9, 'bad'))  # a refused image is no failure of the program
    settle(worker)
    assert [result.failures for result in results] == [0, 1, 2, 3, 0, 0, 0]
    assert worker.failed == 3


def test_a_status_that_fails_costs_the_frame_only(make, pipeline, monkeypatch):
    worker, results = make()
    healthy = pipeline.status
    monkeypatch.setattr(pipeline, 'status', lambda: 1 / 0)
    worker.submit(job(1))
    settle(worker)
    monkeypatch.setattr(pipeline, 'status', healthy)
    worker.submit(job(2))
    settle(worker)
    assert 'ZeroDivisionError' in results[0].problem and results[1].events


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_thread_that_ends_by_itself_is_started_again_with_its_map(make, pipeline):
    pipeline.script[1] = SystemExit('from below')
    worker, results = make()
    for stamp in (1, 2):
        worker.submit(job(stamp))
    end = time.monotonic() + 20.0
    while worker.running:
        assert time.monotonic() < end
        time.sleep(0.002)
    assert worker.revive() and worker.running and not worker.revive()
    worker.submit(job(3))
    settle(worker)
    assert [result.stamp_ns for result in results] == [1, 3]
    assert pipeline.posed == 2 and worker.failed == 1


def test_calls_go_before_waiting_frames_and_answer_in_the_draining_thread(make, pipeline):
    pipeline.gate = threading.Event()
    worker, results = make()
    worker.submit(job(0))
    while not pipeline.frames:
        time.sleep(0.002)
    worker.submit(job(1))
    answers = []
    worker.call(
        lambda p: (len(p.frames), threading.get_ident()), lambda v, e: answers.append((v, e, threading.get_ident()))
    )
    worker.call(lambda p: 1 / 0, lambda v, e: answers.append((v, e, threading.get_ident())))
    pipeline.gate.set()
    settle(worker)
    (frames, inside), error, outside = answers[0]
    assert (frames, error) == (1, None)
    assert inside != threading.get_ident() == outside
    assert isinstance(answers[1][1], ZeroDivisionError)
    assert [result.stamp_ns for result in results] == [0, 1]


def test_flush_is_a_result_without_reception(make, pipeline):
    worker, results = make()
    worker.flush()
    settle(worker)
    assert pipeline.flushed == 1
    assert [result.received for result in results] == [None]


def test_stop_is_quick_drops_what_waits_and_answers_open_calls(make, pipeline):
    pipeline.delay = 0.2
    worker, _ = make(capacity=10)
    for stamp in range(8):
        worker.submit(job(stamp))
    answers = []
    while not pipeline.frames:
        time.sleep(0.002)
    worker.call(lambda p: p, lambda v, e: answers.append(e))
    assert worker.stop(20.0)
    assert len(pipeline.frames) == 1
    assert worker.dropped == 7 and not worker.running
    assert len(answers) == 1 and 'deactivated' in str(answers[0])


def test_stop_says_when_a_frame_does_not_end(make, pipeline):
    pipeline.gate = threading.Event()
    worker, _ = make()
    worker.submit(job(0))
    while not pipeline.frames:
        time.sleep(0.002)
    assert not worker.stop(0.1)
    assert worker.running


class InParts:
    """The fake pipeline with its `push` in parts."""

    def __init__(self, inner):
        self._inner = inner
        self.prepared, self.worked = [], []
        self.status, self.flush, self.reset = inner.status, inner.flush, inner.reset
        self.reconstruction, self.save_state, self.load_state = inner.reconstruction, inner.save_state, inner.load_state

    def push(self, frame):
        return [*self.pose(self.prepare(frame)), *self.work()]

    def prepare(self, frame):
        self.prepared.append(frame.stamp_ns)
        if frame.stamp_ns == 13:
            raise RuntimeError('the encoder failed')
        return frame

    def pose(self, frame):
        return self._inner.push(frame)

    def work(self):
        self.worked.append(self._inner.frames[-1].stamp_ns)
        return []


@pytest.fixture
def make_staged(pipeline):
    staged, results, workers = InParts(pipeline), [], []

    def build(capacity=3):
        worker = PipelineWorker(staged, prepare, capacity, results.append, lambda: None)
        worker.start()
        workers.append(worker)
        return worker, staged, results

    yield build
    if pipeline.gate is not None:
        pipeline.gate.set()
    for worker in workers:
        worker.stop(5.0)


def test_the_next_image_is_prepared_while_one_is_mapped_and_all_keep_their_order(make_staged, pipeline):
    pipeline.gate = threading.Event()
    worker, staged, results = make_staged(capacity=100)
    for stamp in range(10, 40):
        worker.submit(job(stamp))
    end = time.monotonic() + 20.0
    while staged.prepared != [10, 11]:  # 10 is being mapped, 11 waits for that
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(0.05)
    assert staged.prepared == [10, 11]
    pipeline.gate.set()
    settle(worker)
    assert [result.stamp_ns for result in results] == list(range(10, 40))
    assert [result.stamp_ns for result in results if not result.events] == [13]
    assert 'the encoder failed' in results[3].problem
    assert staged.worked[:3] == [10, 11, 12] and worker.dropped == 0


def test_what_waits_between_the_threads_is_dropped_and_counted_when_it_stops(make_staged, pipeline):
    pipeline.delay = 0.2
    worker, _, _ = make_staged(capacity=10)
    for stamp in range(20, 28):
        worker.submit(job(stamp))
    while not pipeline.frames:
        time.sleep(0.002)
    assert worker.stop(20.0)
    assert len(pipeline.frames) + worker.dropped == 8 and not worker.running
    assert worker.pending == 0
