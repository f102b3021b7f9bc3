# SPDX-License-Identifier: Apache-2.0
"""Bars over loops and over work that only calls back, and loops spread over threads that keep their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar('T')
R = TypeVar('R')
# Passes items through, given their number and a label, and shows how far it is.
Progress = Callable[[Iterable[Any], int, str], Iterator[Any]]


def quiet(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Progress of a caller who wants none."""
    yield from items


class Ticker:
    """A bar that moves by calls: for work that is no loop of ours."""

    def __init__(self, progress: Progress, total: int, label: str) -> None:
        self._bar = progress(range(total), total, label)
        next(self._bar, None)

    def __call__(self, steps: int = 1) -> None:
        """Move on; steps beyond the end do nothing."""
        for _ in range(steps):
            next(self._bar, None)

    def close(self) -> None:
        """Leave the bar where it stands."""
        close = getattr(self._bar, 'close', None)
        if close is not None:
            close()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def cpu_workers() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it."""
    cores = usable_cores()
    asked = os.environ.get('OMP_NUM_THREADS', '')
    return max(1, min(cores, int(asked)) if asked.isdigit() and int(asked) else cores)


def ordered_map(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Results of `work` in the order of the items; threads run a few items ahead, each with one thread of torch.

    Pays where the work spends its time outside the interpreter. One worker is a plain loop.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, initializer=_one_torch_thread) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Results of `work` in the order of the items, a few of them, as many at a time as there are cores.

    The calling thread does its share, so that work may ask for this in turn.
    """
    if min(len(items), usable_cores()) <= 1:
        return [work(item) for item in items]
    futures = [_helpers(os.getpid()).submit(work, item) for item in items[1:]]
    try:
        with on_one_core():
            found = [work(items[0])]
            for future, item in zip(futures, items[1:], strict=True):
                # What no helper has begun by now is done here.
                found.append(work(item) if future.cancel() else future.result())
        return found
    finally:
        wait([future for future in futures if not future.cancel()])


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let torch in the calling thread, and in it alone, work on one core.

    Small operations gain nothing by several, and where other programs are at work these wait for each other: an
    adjustment of a window took thirty times as long.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _helpers(process: int) -> ThreadPoolExecutor:
    """Threads that stay: making some for every frame costs more than what they do. A forked process has its own."""
    return ThreadPoolExecutor(max(usable_cores() - 1, 1), 'dark3r_helper', initializer=_one_torch_thread)


def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)  # of the calling thread alone
