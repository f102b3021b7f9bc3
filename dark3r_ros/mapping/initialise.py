# SPDX-License-Identifier: Apache-2.0
"""Finding the first two keyframes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.matching.verify import TwoViewGeometry, estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.types import Correspondences


@dataclass(frozen=True, eq=False)
class InitialPair:
    """Two views that start a map, their matches and geometry."""

    first: View
    second: View
    matches: Correspondences
    geometry: TwoViewGeometry


class Initialiser:
    """Waits for a view with enough parallax to a reference, and slides the reference on when overlap ends.

    Views seen meanwhile are kept (at most `retry_frames`) so that they can be posed once the map exists. While the
    camera stands still the newest view, an average, takes the place of those before it.
    """

    def __init__(self, config: MappingConfig, predictor: Predictor) -> None:
        self._config, self._predictor = config, predictor
        self.pending: list[View] = []
        self.dropped: list[View] = []
        self.message = 'waiting for the first frame'
        self._best: InitialPair | None = None

    def push(self, view: View) -> InitialPair | None:
        """Take one more view; returns the pair that starts the map once there is one."""
        while self.pending and view.since_ns is not None and self.pending[-1].stamp_ns >= view.since_ns:
            if self._best is not None and self._best.first is self.pending[-1]:
                self._best = None
            self._drop(-1)
        self.pending.append(view)
        if len(self.pending) > max(self._config.retry_frames, 2):
            self._drop(0)
        while len(self.pending) > 1:
            reference = self.pending[0] if self._best is None else self._best.first
            pair, matched = self._try(reference, view)
            if pair is not None and self._good(pair):
                return pair
            if pair is not None and (self._best is None or self._score(pair) > self._score(self._best)):
                self._best = pair
            if matched >= self._config.min_matches:
                return None
            if self._best is not None and self._acceptable(self._best):
                return self._best
            # No overlap with the reference is left: the next pending view takes its place.
            self._best = None
            self._drop(0)
        return None

    def _drop(self, place: int) -> None:
        """Take a view out of those that may start a map; the newest of these are kept, to be posed later."""
        self.dropped.append(self.pending.pop(place))
        del self.dropped[: -max(self._config.retry_frames - len(self.pending), 1)]

    def finish(self) -> InitialPair | None:
        """Best pair so far at the end of the input, if it is any good."""
        return self._best if self._best is not None and self._acceptable(self._best) else None

    def _try(self, first: View, second: View) -> tuple[InitialPair | None, int]:
        matches = self._predictor.match([(first.features, second.features)])[0]
        if len(matches) < self._config.min_matches:
            self.message = f'{len(matches)} matches between the first frames: too dark, blurred or without texture'
            return None, len(matches)
        threshold = self._config.max_error / max(first.focal, second.focal)
        geometry = estimate_two_view(
            first.camera.unproject(matches.points_a),
            second.camera.unproject(matches.points_b),
            threshold,
            self._config.min_inliers,
        )
        if geometry is None:
            self.message = f'{len(matches)} matches between the first frames, but no motion explains them'
            return None, 0
        pair = InitialPair(first, second, matches, geometry)
        self.message = (
            f'{int(geometry.inliers.sum())} matches, parallax {math.degrees(geometry.median_parallax):.2f} deg of '
            f'{self._config.init_parallax} deg: move the camera sideways'
        )
        return pair, int(geometry.inliers.sum())

    @staticmethod
    def _score(pair: InitialPair) -> float:
        return pair.geometry.median_parallax * math.sqrt(float(pair.geometry.inliers.sum()))

    def _good(self, pair: InitialPair) -> bool:
        enough = int(pair.geometry.inliers.sum()) >= self._config.init_inliers
        return enough and math.degrees(pair.geometry.median_parallax) >= self._config.init_parallax

    def _acceptable(self, pair: InitialPair) -> bool:
        enough = int(pair.geometry.inliers.sum()) >= self._config.init_inliers
        return enough and math.degrees(pair.geometry.median_parallax) >= 0.4 * self._config.init_parallax
