# SPDX-License-Identifier: Apache-2.0
"""Work in a process of its own, so that its peak memory is its own and not that of all that was measured before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from dark3r_ros.errors import ReconstructionError


def alone(work: Callable[..., Any], *given: Any) -> Any:
    """Result of `work(*given)` in a fresh process with as many threads as this one; both must be picklable.

    What it raises is raised here; ReconstructionError where the process was killed (out of memory, say).
    """
    context = multiprocessing.get_context('spawn')
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, torch.get_num_threads(), work, given), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = mine.recv()
    except EOFError:
        process.join()
        raise ReconstructionError(f'the process that measured ended with {process.exitcode}') from None
    finally:
        mine.close()
    process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(pipe: Connection, threads: int, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    try:
        answer = work(*given)
    except Exception as error:
        answer = error
    pipe.send(answer)
