# SPDX-License-Identifier: Apache-2.0
"""Counts and times of the mapping node: latencies, gaps between stamps, memory, repeated complaints."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dark3r_ros.nodes.convert import NANOSECONDS


class LatencyWindow:
    """Newest latency and 95th percentile of the last `size` ones, in seconds; NaN while there is none."""

    def __init__(self, size: int = 100) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, seconds: float) -> None:
        """Add one."""
        self._values.append(seconds)

    @property
    def newest(self) -> float:
        """Newest."""
        return self._values[-1] if self._values else float('nan')

    @property
    def p95(self) -> float:
        """Smallest latency that at least 95 % of the window do not exceed."""
        ordered = sorted(self._values)
        return ordered[-(-95 * len(ordered) // 100) - 1] if ordered else float('nan')


class StampMonitor:
    """Watch header stamps in order of arrival: frames that never arrived, and stamps that make no sense."""

    def __init__(self) -> None:
        self._last_ns: int | None = None
        self._intervals: deque[int] = deque(maxlen=21)
        self.missing = 0

    def reset(self) -> None:
        """Accept any stamp next; the count of missing frames stays."""
        self._last_ns = None
        self._intervals.clear()

    def add(self, stamp_ns: int) -> str:
        """Take the next stamp; return one sentence when it is wrong, else an empty string."""
        last = self._last_ns
        if stamp_ns == 0 and last in (0, None):
            self._last_ns = 0
            return 'the images carry no stamp (header.stamp is zero): make the camera driver fill it in'
        if last is not None and stamp_ns == last:
            return f'the stamp {stamp_ns} ns repeats: the image is ignored'
        if last is not None and stamp_ns < last:
            back = (last - stamp_ns) / NANOSECONDS
            return f'the image stamps went back by {back:.3f} s: call ~/reset if a bag or a clock was started again'
        self._last_ns = stamp_ns
        if last:
            self._count(stamp_ns - last)
        return ''

    def _count(self, interval: int) -> None:
        if len(self._intervals) >= 5:
            usual = statistics.median(self._intervals)
            # Half a period of jitter is no loss; a pause of seconds is a pause of the source, not a loss.
            if 1.5 * usual < interval < max(50 * usual, 2 * NANOSECONDS):
                self.missing += round(interval / usual) - 1
                return
        self._intervals.append(interval)


class Complaints:
    """Say the same thing once, and again only after `again_after` seconds, with the number of times in between."""

    def __init__(
        self, say: Callable[[str], None], again_after: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._again_after = again_after
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def add(self, sentence: str) -> None:
        """Say the sentence unless it was said lately; numbers in it do not make it another one."""
        key = re.sub(r'[-+]?[\d.]+', '#', sentence)
        now = self._clock()
        said_at, suppressed = self._said.get(key, (float('-inf'), 0))
        if now - said_at < self._again_after:
            self._said[key] = (said_at, suppressed + 1)
            return
        self._say(f'{sentence} ({suppressed} more times since)' if suppressed else sentence)
        self._said[key] = (now, 0)
        if len(self._said) > 1000:
            self._said.pop(next(iter(self._said)))


class Once:
    """Say each sentence a single time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()

    def add(self, sentence: str) -> None:
        """Say the sentence unless it was said before."""
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


def resident_mib() -> float:
    """Resident memory of this process in MiB; NaN where the system does not tell."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return float('nan')
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20
