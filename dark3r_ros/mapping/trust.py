# SPDX-License-Identifier: Apache-2.0
"""How many correspondences must agree before a pose is believed.

Predictors differ by an order of magnitude in how many matches they find. Where a dense one usually finds hundreds, a
few dozen may agree by chance on walls that look alike; so the bound follows what was usual lately.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.config import MappingConfig

_REMEMBERED = 30  # accepted frames
_HALVED_AFTER = 20.0  # failures; what was usual in the light must not lock out a camera that stays in the dark


class InlierBound:
    """Fewest inliers of a trusted pose, learned from the poses accepted so far."""

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._recent: deque[int] = deque(maxlen=_REMEMBERED)

    def accept(self, inliers: int) -> None:
        """Remember a pose that was believed."""
        self._recent.append(inliers)

    def state(self) -> NDArray[np.int64]:
        """What is remembered, to be saved."""
        return np.array(self._recent, dtype=np.int64)

    def restore(self, state: NDArray[np.int64]) -> None:
        """Take what was saved."""
        self._recent.clear()
        self._recent.extend(state.tolist())

    def bound(self, failures: int) -> int:
        """Fewest inliers after so many frames in a row without a pose.

        A camera that was followed to here needs a small share of the usual; one that may be anywhere a larger one, and
        at least twice the configured minimum.
        """
        least = self._config.min_inliers
        usual = float(median(self._recent)) if self._recent else 0.0
        if failures == 0:
            return max(least, round(self._config.tracking_share * usual))
        faded = usual * 0.5 ** (failures / _HALVED_AFTER)
        return max(2 * least, round(self._config.relocalisation_share * faded))
