# SPDX-License-Identifier: Apache-2.0
"""How the C library hands out memory to a training on a CPU."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

# mallopt(3) of glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**30


@cache
def keep_freed_memory() -> bool:
    """Let freed buffers be used again instead of going back to the system; whether the C library can be told so.

    Every step asks for the same buffers of some megabytes. By default each of them is mapped anew and every page of it
    faulted in: an eighth of the time of a step.
    """
    if not sys.platform.startswith('linux'):
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
    return False
