# SPDX-License-Identifier: Apache-2.0
"""Phases of the Bayer colour filter array.

A phase is named by the colours of the top-left 2x2 sites, row by row, as ROS encodings do: `rggb` means red at
(x, y) = (0, 0), green at (1, 0) and (0, 1), blue at (1, 1). `mono` is a sensor without colour filters.
"""

from __future__ import annotations

from dark3r_ros.errors import ConfigError

BAYER_PATTERNS = ('rggb', 'bggr', 'gbrg', 'grbg')
MONO = 'mono'


def check_pattern(cfa: str) -> str:
    """Return `cfa` in lower case; raise ConfigError when it is neither a Bayer phase nor `mono`."""
    name = cfa.lower()
    if name not in (*BAYER_PATTERNS, MONO):
        raise ConfigError(f'unknown colour filter pattern {cfa!r}; known: {", ".join((*BAYER_PATTERNS, MONO))}')
    return name


def shift_pattern(cfa: str, dx: int, dy: int) -> str:
    """Phase seen after cropping `dx` columns at the left and `dy` rows at the top.

    Only the parity counts: an odd column offset swaps red with the green of its row, an odd row offset swaps the rows.
    """
    name = check_pattern(cfa)
    if name == MONO:
        return name
    return ''.join(name[2 * ((y + dy) % 2) + (x + dx) % 2] for y in (0, 1) for x in (0, 1))


def sites(cfa: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Sites (y, x) within the 2x2 tile that carry `r`, `g` and `b`: one, two and one of them.

    Raises ConfigError for `mono`, which has no colour sites.
    """
    name = check_pattern(cfa)
    if name == MONO:
        raise ConfigError('a mono sensor has no colour sites')
    found: dict[str, list[tuple[int, int]]] = {'r': [], 'g': [], 'b': []}
    for index, colour in enumerate(name):
        found[colour].append(divmod(index, 2))
    return {colour: tuple(places) for colour, places in found.items()}
