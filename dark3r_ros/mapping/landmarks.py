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
        self._cells: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.landmark)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.pixels.nbytes + self.landmark.nbytes + 120 * len(self._cells)

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
            cells = np.rint(pixels).astype(np.int64).tolist()
            index = np.array([self._cells.get((x, y), -1) for x, y in cells], dtype=np.int64)
        result = np.full(len(index), -1, dtype=np.int64)
        known = (index >= 0) & (index < len(self))
        result[known] = self.landmark[index[known]]
        return result

    def _rows_by_cell(self, pixels: Array) -> Index:
        rows = np.empty(len(pixels), dtype=np.int64)
        following = max(len(self), len(self._cells))
        for number, (x, y) in enumerate(np.rint(pixels).astype(np.int64).tolist()):
            row = self._cells.setdefault((x, y), following)
            following += row == following
            rows[number] = row
        return rows

    def observing(self) -> Index:
        """Rows that observe a landmark."""
        return np.flatnonzero(self.landmark >= 0)

    def compact(self) -> None:
        """Forget all points without a landmark; rows are renumbered, so no match may follow."""
        rows = self.observing()
        self.pixels, self.landmark, self._cells = self.pixels[rows], self.landmark[rows], {}


class LandmarkTable:
    """Positions and colours of the landmarks; rows are reused after `remove`."""

    def __init__(self) -> None:
        self._points: Array = np.zeros((0, 3))
        self._colors: NDArray[np.uint8] = np.zeros((0, 3), dtype=np.uint8)
        self._alive: NDArray[np.bool_] = np.zeros(0, dtype=bool)
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
        return self._points.nbytes + self._colors.nbytes + self._alive.nbytes + 8 * len(self._free)

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

    def add(self, points: Array, colors: NDArray[np.uint8]) -> Index:
        """Store points (N, 3) and return their rows (N,)."""
        reused = [self._free.pop() for _ in range(min(len(self._free), len(points)))]
        appended = np.arange(self._end, self._end + len(points) - len(reused))
        rows = np.concatenate([np.array(reused, dtype=np.int64), appended])
        self._end += len(appended)
        self._points = np.asarray(_grown(self._points, self._end, 0), dtype=np.float64)
        self._colors = np.asarray(_grown(self._colors, self._end, 0), dtype=np.uint8)
        self._alive = np.asarray(_grown(self._alive, self._end, 0), dtype=bool)
        self._points[rows], self._colors[rows], self._alive[rows] = points, colors, True
        return rows

    def remove(self, rows: Index) -> None:
        """Give rows back; the caller has removed every reference to them."""
        rows = rows[self._alive[rows]]
        self._alive[rows] = False
        self._free.extend(np.sort(rows)[::-1].tolist())

    def move(self, rows: Index, points: Array) -> None:
        """Set new positions."""
        self._points[rows] = points
