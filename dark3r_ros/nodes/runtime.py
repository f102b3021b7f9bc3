# SPDX-License-Identifier: Apache-2.0
"""Start, spin and stop one node as a program."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from dark3r_ros.errors import Dark3rError

# For timers: with use_sim_time the ROS clock stands still until somebody publishes /clock.
STEADY = Clock(clock_type=ClockType.STEADY_TIME)


class Program(Protocol):
    """A node that knows when it is done and how to end."""

    @property
    def finished(self) -> bool:
        """Whether the program may end."""
        ...

    def close(self) -> int:
        """Stop, write what is to be written and return the exit status."""
        ...


def log_trace(logger: Any, error: BaseException) -> None:
    """Log an unexpected error with its traceback."""
    trace = ''.join(traceback.format_exception(error)).rstrip()
    logger.error(f'unexpected {type(error).__name__}: {error}\n{trace}')


def run(make: Callable[[], Any], arguments: Sequence[str] | None = None) -> int:
    """Spin the node that `make` builds until it is finished or SIGINT or SIGTERM comes; return the exit status.

    A Dark3rError while it is built or closed, and wrong ROS arguments, are one line on standard error and status 2.
    """
    stop = False

    def on_signal(number: int, _: object) -> None:
        nonlocal stop
        if stop:  # a second one means now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop = True

    # rclpy's own handler would shut the context down under us, before the map is saved.
    try:
        rclpy.init(args=None if arguments is None else list(arguments), signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:  # a parameter file that is missing or broken, a wrong --ros-args
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    executor = SingleThreadedExecutor()
    node = None
    try:
        node = make()
        executor.add_node(node)
        while not (stop or node.finished):
            executor.spin_once(timeout_sec=0.2)
        return int(node.close())
    except Dark3rError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        executor.shutdown(timeout_sec=0.5)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
