# SPDX-License-Identifier: Apache-2.0
"""Which part of a source is read: start, duration and stride, in header time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dark3r_ros.errors import ConfigError

# How far behind the wanted end a late message may stand in a bag before reading stops.
_LATE_NS = 10**9


@dataclass
class Selection:
    """Part of a source: seconds after the first frame, seconds to go on for (0: to the end), every n-th frame."""

    start: float = 0.0
    duration: float = 0.0
    stride: int = 1

    def __post_init__(self) -> None:
        if not self.start >= 0 or not self.duration >= 0:
            raise ConfigError(f'start {self.start} and duration {self.duration} must not be negative')
        if self.stride < 1:
            raise ConfigError(f'stride {self.stride} must be at least 1')

    def bounds(self, first_ns: int) -> tuple[int, int | None]:
        """First stamp to take and the one to stop before, given the stamp of the first frame."""
        begin = first_ns + round(self.start * 1e9)
        return begin, begin + round(self.duration * 1e9) if self.duration else None

    def cursor(self) -> Cursor:
        """Begin deciding, frame by frame."""
        return Cursor(self)

    def apply_to(self, items: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Choose among (stamp, anything) pairs."""
        cursor = self.cursor()
        return [item for item in items if cursor.takes(item[0])]


class Cursor:
    """Decides frame by frame, in the order in which they come."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._first_ns: int | None = None
        self._seen = 0
        self.finished = False

    def takes(self, stamp_ns: int) -> bool:
        """Whether the frame is wanted; sets `finished` once no later frame can be."""
        if self._first_ns is None:
            self._first_ns = stamp_ns
        begin, end = self._selection.bounds(self._first_ns)
        if end is not None and stamp_ns >= end:
            self.finished = self.finished or stamp_ns >= end + _LATE_NS
            return False
        # A frame that goes back behind the very first one is handed on with the others when nothing is skipped.
        if self._selection.start and stamp_ns < begin:
            return False
        self._seen += 1
        return (self._seen - 1) % self._selection.stride == 0


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices below `total`, evenly spread, first and last among them."""
    if total <= 0 or count <= 0:
        return []
    if count == 1 or total == 1:
        return [0]
    chosen = min(count, total)
    return [index * (total - 1) // (chosen - 1) for index in range(chosen)]
