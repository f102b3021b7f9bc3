# SPDX-License-Identifier: Apache-2.0
"""What a table of the benchmark is, what it covers, and how its figures become Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dark3r_ros.evaluation.bench.cells import Cell, Measured
from dark3r_ros.evaluation.external import ExternalMethod


@dataclass(frozen=True)
class Choice:
    """What a benchmark covers.

    Attributes
    ----------
    scenes: folders of clean sequences or names of simulated scenes. levels: SNR in dB, None for clean.
    methods: of `METHODS`. peers: commands of others by name. quick: smaller scenes and shorter training.

    """

    scenes: tuple[str, ...]
    levels: tuple[float | None, ...]
    methods: tuple[str, ...]
    peers: Mapping[str, ExternalMethod] = field(default_factory=dict)
    seed: int = 0
    preset: str = 'starvis'
    quick: bool = False


@dataclass(frozen=True)
class Table:
    """A table: what is measured and what was aimed at.

    Attributes
    ----------
    cells: its measurements under a choice. markdown: its text from what was measured. goal: in words.

    """

    name: str
    title: str
    goal: str
    cells: Callable[[Choice], Iterator[Cell]]
    markdown: Callable[[Sequence[Measured]], str]


def level_name(snr_db: float | None) -> str:
    """SNR for people."""
    return 'clean' if snr_db is None else f'{snr_db:+g} dB'


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a table."""
    lines = ['| ' + ' | '.join(head) + ' |', '|' + ' --- |' * len(head)]
    return '\n'.join(lines + ['| ' + ' | '.join(row) + ' |' for row in rows])


def plain(columns: Mapping[str, tuple[str, str]]) -> Callable[[Sequence[Measured]], str]:
    """Layout with a row a cell; `columns` gives heading and format by figure."""

    def markdown(cells: Sequence[Measured]) -> str:
        rows = []
        for cell in cells:
            values = [cell.figures.get(key) for key in columns]
            texts = [
                '-' if value is None else pattern.format(value)
                for value, (_, pattern) in zip(values, columns.values(), strict=True)
            ]
            rows.append([cell.label, *texts] if not cell.failure else [cell.label, f'failed: {cell.failure}'])
        return markdown_table(['', *(heading for heading, _ in columns.values())], rows)

    return markdown
