# SPDX-License-Identifier: Apache-2.0
"""Growing tables of keypoints and landmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def _grown(array: NDArray[np.generic], length: int, fill: float) -> NDArray[np.generic]:
    """Return an array of at least `length` rows that starts with the given one; capacity doubles."""
    if length <= len(array):
        return array
    result = np.full((max(length, 2 * len(array), 64), *array.shape[1:]), fill, dtype=array.dtype)
    result[: len(array)] = array
    return result


class KeypointTable:
    """The points of one keyframe that took part in a match, and the landmark each one observes.

    A predictor with repeatable keypoints names them by index. Others give positions only: positions within the same
    cell of one pixel are then the same point.
    """

    def __init__(self) -> None:
        self.pixels: Array = np.zeros((0, 2))
        self.landmark: Index = np.zeros(0, dtype=np.int64)
        # Occupied cells in order, and the row of each.
        self._cells: Index = np.zeros(0, dtype=np.int64)
        self._cell_rows: Index = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.landmark)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.pixels.nbytes + self.landmark.nbytes + self._cells.nbytes + self._cell_rows.nbytes

    @property
    def named(self) -> bool:
        """Whether points are named by index rather than by position."""
        return len(self) > 0 and len(self._cells) == 0

    def lookup(self, pixels: Array, index: Index | None) -> Index:
        """Rows (N,) of points (N, 2); unknown ones are added without a landmark."""
        if index is None:
            index = self._rows_by_cell(pixels)
        if len(index) == 0:
            return index
        size = max(len(self), int(index.max()) + 1)
        if size > len(self):
            added = size - len(self)
            self.pixels = np.concatenate([self.pixels, np.full((added, 2), np.nan)])
            self.landmark = np.concatenate([self.landmark, np.full(added, -1, dtype=np.int64)])
        fresh = np.isnan(self.pixels[index, 0])
        self.pixels[index[fresh]] = pixels[fresh]
        return index

    def landmarks_at(self, pixels: Array, index: Index | None) -> Index:
        """Landmarks (N,) that points (N, 2) observe, -1 where they observe none or are not known; adds nothing."""
        if index is None:
            index = self._known_rows(_cells(pixels))
        result = np.full(len(index), -1, dtype=np.int64)
        known = (index >= 0) & (index < len(self))
        result[known] = self.landmark[index[known]]
        return result

    def _known_rows(self, cells: Index) -> Index:
        """Rows (N,) of cells (N,), -1 for empty ones."""
        if len(self._cells) == 0:
            return np.full(len(cells), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._cells, cells), len(self._cells) - 1)
        return np.where(self._cells[place] == cells, self._cell_rows[place], -1)

    def _rows_by_cell(self, pixels: Array) -> Index:
        cells = _cells(pixels)
        rows = self._known_rows(cells)
        fresh = np.flatnonzero(rows < 0)
        if len(fresh):
            # New rows follow in the order in which their cells appear.
            unique, first, inverse = np.unique(cells[fresh], return_index=True, return_inverse=True)
            order = np.empty(len(unique), dtype=np.int64)
            order[np.argsort(first)] = np.arange(len(unique))
            added = len(self) + order
            rows[fresh] = added[inverse]
            self._set_cells(np.concatenate([self._cells, unique]), np.concatenate([self._cell_rows, added]))
        return rows

    def _set_cells(self, cells: Index, rows: Index) -> None:
        order = np.argsort(cells)
        self._cells, self._cell_rows = cells[order], rows[order]

    def observing(self) -> Index:
        """Rows that observe a landmark."""
        return np.flatnonzero(self.landmark >= 0)

    def compact(self, *, matchable: bool = False) -> None:
        """Forget all points without a landmark. Unless `matchable`, no match may follow.

        Rows are renumbered, which would take the names of named points: where matches may follow they stay as they are.
        """
        if matchable and self.named:
            return
        rows = self.observing()
        self.pixels, self.landmark = self.pixels[rows], self.landmark[rows]
        self._set_cells(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if matchable:
            self._set_cells(_cells(self.pixels), np.arange(len(rows)))

    def restore(self, pixels: Array, landmark: Index, *, named: bool) -> None:
        """Take the content of a saved table."""
        self.pixels, self.landmark = pixels, landmark
        if not named:
            self._set_cells(_cells(pixels), np.arange(len(pixels)))


def _cells(pixels: Array) -> Index:
    """One number (N,) for the pixel that each position (N, 2) lies in."""
    xy = np.rint(pixels).astype(np.int64)
    return (xy[:, 1] << 32) + xy[:, 0]


class LandmarkTable:
    """Positions and colours of the landmarks; rows are reused after `remove`.

    A landmark that was never seen with parallax is provisional: it has a bearing, and a distance that was guessed.
    """

    def __init__(self) -> None:
        self._points: Array = np.zeros((0, 3))
        self._colors: NDArray[np.uint8] = np.zeros((0, 3), dtype=np.uint8)
        self._alive: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._guessed: Array = np.zeros(0)
        self._free: list[int] = []
        self._end = 0

    def __len__(self) -> int:
        return self._end - len(self._free)

    @property
    def capacity(self) -> int:
        """One more than the largest row in use."""
        return self._end

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        own = (self._points, self._colors, self._alive, self._guessed)
        return sum(array.nbytes for array in own) + 8 * len(self._free)

    @property
    def points(self) -> Array:
        """Positions (capacity, 3) in the world; rows that are not alive hold old values."""
        return self._points[: self._end]

    @property
    def colors(self) -> NDArray[np.uint8]:
        """Colours (capacity, 3) sRGB."""
        return self._colors[: self._end]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which rows are in use (capacity,)."""
        return self._alive[: self._end]

    @property
    def guessed(self) -> Array:
        """Distances (capacity,) at which provisional landmarks were guessed, in map units; 0 for all others."""
        return self._guessed[: self._end]

    @property
    def provisional(self) -> NDArray[np.bool_]:
        """Which rows (capacity,) hold a landmark without parallax."""
        return np.asarray(self.guessed > 0.0)

    def restore(self, points: Array, colors: NDArray[np.uint8], alive: NDArray[np.bool_], guessed: Array) -> None:
        """Take the content of a saved table."""
        self._points, self._colors, self._alive, self._guessed = points, colors, alive, guessed
        self._end = len(alive)
        self._free = np.flatnonzero(~alive)[::-1].tolist()

    def add(self, points: Array, colors: NDArray[np.uint8], guessed: Array | float = 0.0) -> Index:
        """Store points (N, 3) and return their rows (N,); `guessed` as of the table."""
        reused = [self._free.pop() for _ in range(min(len(self._free), len(points)))]
        appended = np.arange(self._end, self._end + len(points) - len(reused))
        rows = np.concatenate([np.array(reused, dtype=np.int64), appended])
        self._end += len(appended)
        self._points = np.asarray(_grown(self._points, self._end, 0), dtype=np.float64)
        self._colors = np.asarray(_grown(self._colors, self._end, 0), dtype=np.uint8)
        self._alive = np.asarray(_grown(self._alive, self._end, 0), dtype=bool)
        self._guessed = np.asarray(_grown(self._guessed, self._end, 0), dtype=np.float64)
        self._points[rows], self._colors[rows], self._alive[rows] = points, colors, True
        self._guessed[rows] = guessed
        return rows

    def remove(self, rows: Index) -> None:
        """Give rows back; the caller has removed every reference to them."""
        rows = rows[self._alive[rows]]
        self._alive[rows] = False
        self._guessed[rows] = 0.0
        self._free.extend(np.sort(rows)[::-1].tolist())

    def move(self, rows: Index, points: Array) -> None:
        """Set new positions."""
        self._points[rows] = points

    def confirm(self, rows: Index) -> None:
        """Say that the places of landmarks are known by parallax."""
        self._guessed[rows] = 0.0

    def rescale(self, rows: Index, scale: Array | float) -> None:
        """Let guessed distances grow with the unit of the map; positions are moved by `move`."""
        self._guessed[rows] *= scale
