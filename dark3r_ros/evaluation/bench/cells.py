# SPDX-License-Identifier: Apache-2.0
"""Cells of the benchmark: one measurement each, kept in a folder named after the hash of its settings.

A cell that is there is not measured again, so that a benchmark that was stopped goes on, and a longer list of scenes
adds to a shorter one. What failed is tried again next time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.result import jsonable

FILE = 'cell.json'


@dataclass(frozen=True, eq=False)
class Cell:
    """One measurement to make.

    Attributes
    ----------
    table: name of the table. label: row of the table, for people. settings: all that the figures depend on, as JSON.
    work: measures in the folder that it is given and returns the figures.

    """

    table: str
    label: str
    settings: Mapping[str, Any]
    work: Callable[[Path], Mapping[str, Any]] = field(repr=False)

    @property
    def key(self) -> str:
        """Hash of table and settings."""
        text = json.dumps(jsonable([self.table, dict(self.settings)]), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Measured:
    """What a cell gave: figures, or why there are none; and where, when and from what code.

    `seconds` is by the clock; `processor_s` by the processor, child processes included, so that it says what a cell
    costs where other work keeps the machine busy.
    """

    table: str
    label: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    provenance: dict[str, Any]
    seconds: float
    measured: str
    failure: str = ''
    processor_s: float = 0.0


def _processor_seconds() -> float:
    """Seconds of the processor so far: of this process and of children that have ended."""
    return float(sum(os.times()[:4]))


class CellStore:
    """Measured cells under a folder.

    Parameters
    ----------
    folder: of all cells. provenance: kept with every cell measured now; its `code` tells what source made it.
    renew: measure cells again that other code has made.

    """

    def __init__(self, folder: Path, provenance: Mapping[str, Any], *, renew: bool = False) -> None:
        self.folder, self.provenance, self._renew = folder, dict(provenance), renew

    def place(self, cell: Cell) -> Path:
        """Folder of a cell."""
        return self.folder / cell.table / cell.key

    def known(self, cell: Cell) -> Measured | None:
        """The cell as it was measured earlier; None when it has to be measured."""
        try:
            kept = Measured(**json.loads((self.place(cell) / FILE).read_text(encoding='utf-8')))
        except (OSError, json.JSONDecodeError, TypeError):
            return None
        if kept.failure or (self._renew and kept.provenance.get('code') != self.provenance.get('code')):
            return None
        return kept

    def measure(self, cell: Cell) -> Measured:
        """The cell, measured now unless it is known. A failure is kept with its reason, and the benchmark goes on."""
        kept = self.known(cell)
        if kept is not None:
            return kept
        folder = self.place(cell)
        folder.mkdir(parents=True, exist_ok=True)
        began, spent, failure, figures = time.perf_counter(), _processor_seconds(), '', {}
        try:
            figures = dict(cell.work(folder))
        except Exception as error:  # whatever it is: one method must not take the others with it
            failure = f'{type(error).__name__}: {error}'.splitlines()[0]
        result = Measured(
            cell.table,
            cell.label,
            jsonable(dict(cell.settings)),
            jsonable(figures),
            {**self.provenance, 'load': round(os.getloadavg()[0], 2)},
            round(time.perf_counter() - began, 2),
            datetime.now(timezone.utc).isoformat(timespec='seconds'),
            failure,
            round(_processor_seconds() - spent, 2),
        )
        write_text(folder / FILE, json.dumps(asdict(result), indent=1) + '\n')
        return result
