# SPDX-License-Identifier: Apache-2.0
"""Work that a new keyframe asks for, done in pieces between frames, so that the camera is followed meanwhile.

How much is done after a frame follows from the stamps alone: the same frames give the same map, however long the work
takes on the machine at hand.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from dark3r_ros.errors import Dark3rError
from dark3r_ros.mapping.events import Event

T = TypeVar('T')

_MOST_CREDIT = 50.0  # pieces that a long gap between frames pays for


def finished(steps: Generator[object, None, T]) -> T:
    """What comes of work in pieces, once all of them are done."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


class Chores:
    """At most one piece of work in hand: an iterator that does one piece whenever it is asked for the next events.

    `seconds` between frames pay for one piece; 0 does everything at once.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps: Iterator[list[Event]] | None = None
        self._credit = 0.0
        self._newest_ns: int | None = None

    @property
    def busy(self) -> bool:
        """Whether work is left."""
        return self._steps is not None

    def begin(self, steps: Iterator[list[Event]]) -> None:
        """Take new work; what is in hand must be finished."""
        assert self._steps is None
        self._steps = steps

    def advance(self, stamp_ns: int) -> list[Event]:
        """Do what the time since the frame before allows, now that this one has its pose."""
        if self._newest_ns is not None and self._seconds > 0:
            elapsed = (stamp_ns - self._newest_ns) / 1e9
            self._credit = min(max(self._credit + elapsed / self._seconds, 0.0), _MOST_CREDIT)
        self._newest_ns = stamp_ns
        if self._seconds == 0:
            return self.finish()
        events: list[Event] = []
        while self._steps is not None and self._credit >= 1.0 - 1e-6:
            self._credit -= 1.0
            events += self._step()
        if self._steps is None:
            self._credit = min(self._credit, 1.0)
        return events

    def finish(self) -> list[Event]:
        """Do all that is left."""
        events: list[Event] = []
        while self._steps is not None:
            events += self._step()
        return events

    def drop(self) -> None:
        """Forget what is left: its map is gone."""
        self._steps = None

    def _step(self) -> list[Event]:
        assert self._steps is not None
        try:
            return next(self._steps)
        except (StopIteration, Dark3rError):  # a predictor that cannot match costs the rest of the work
            self._steps = None
            return []
        except BaseException:
            self._steps = None  # an iterator that failed has ended
            raise
