# SPDX-License-Identifier: Apache-2.0
"""Which of the waiting images is needed least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# How far the camera moved between two stamps, in any unit.
Distance = Callable[[int, int], float]


def elapsed(first_ns: int, second_ns: int) -> float:
    """Time between two stamps, which stands for the way where no odometry tells it."""
    return float(abs(second_ns - first_ns))


def least_needed(stamps_ns: Sequence[int], before_ns: int | None, distance: Distance = elapsed) -> int:
    """Index of the image whose neighbours are nearest to each other, so that leaving it out opens the smallest gap.

    An image of a standing camera goes first, one that a new keyframe would be made of last, the newest never.
    `before_ns` is the stamp of the image in work.
    """
    if len(stamps_ns) < 2:
        return 0
    known = [stamps_ns[0] if before_ns is None else before_ns, *stamps_ns]
    gaps = [distance(known[index], known[index + 2]) for index in range(len(stamps_ns) - 1)]
    return gaps.index(min(gaps))
