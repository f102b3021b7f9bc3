# SPDX-License-Identifier: Apache-2.0
"""Whether the mapping keeps up with the camera, and what helps where it does not."""

from __future__ import annotations

from collections import deque

_SECONDS = 10.0  # that are looked back at
_LEAST_IMAGES, _LEAST_SHARE = 20, 0.2  # received, and dropped of them, that are worth a word


class FallingBehind:
    """Counts of images over the last seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int, int]] = deque()

    def advice(self, now: float, received: int, dropped: int) -> str:
        """One sentence where a good part of the newest images was dropped, else empty; counts are since the start."""
        if self._counts and received < self._counts[-1][1]:
            self._counts.clear()  # counted anew
        self._counts.append((now, received, dropped))
        while now - self._counts[0][0] > _SECONDS:
            self._counts.popleft()
        began, received_before, dropped_before = self._counts[0]
        came, lost = received - received_before, dropped - dropped_before
        if came < _LEAST_IMAGES or lost < _LEAST_SHARE * came:
            return ''
        rate = (came - lost) / (now - began)
        return (
            f'{lost} of the last {came} images were dropped, this machine takes {rate:.1f} a second: halve '
            'mapping.network_width, or let the camera take fewer; queue_length 1 makes poses come sooner'
        )
