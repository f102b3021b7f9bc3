# SPDX-License-Identifier: Apache-2.0
"""The protocol that every two-view predictor follows, learned or classical.

A frame is encoded once, however many pairs it joins; pairs are matched in batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.types import Correspondences, Planes


class Features(Protocol):
    """What a predictor remembers of one frame. Only the predictor that made it looks inside."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        ...


class Predictor(Protocol):
    """Two frames in; correspondences with confidence and, where it can, point maps out."""

    @property
    def name(self) -> str:
        """Short name for reports, such as `classical`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings, so that results can be traced and cached."""
        ...

    def encode(self, planes: Planes) -> Features:
        """Encode one frame."""
        ...

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Correspondences]:
        """Match each pair (a, b) of features that this predictor made; the result has one entry a pair, in order."""
        ...


@dataclass(frozen=True, eq=False)
class Located:
    """Places of one frame that were found in another.

    Attributes
    ----------
    rows: (M,) int64, which of the places asked for. pixels: (M, 2) float64 in the other frame. confidence: (M,).

    """

    rows: NDArray[np.int64]
    pixels: NDArray[np.float64]
    confidence: NDArray[np.float64]


@runtime_checkable
class Locator(Protocol):
    """A predictor that can do less than match two frames, at less cost."""

    def locate(
        self,
        reference: Any,
        pixels: NDArray[np.float64],
        view: Any,
        expected: NDArray[np.float64] | None = None,
        reach: float = math.inf,
    ) -> Located:
        """Look for pixels (N, 2) of a reference in a view: anywhere, or within `reach` pixels of `expected` (N, 2)."""
        ...
