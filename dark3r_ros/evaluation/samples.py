# SPDX-License-Identifier: Apache-2.0
"""Sample pictures with matches, collected while a recording is mapped."""

from __future__ import annotations

import numpy as np

from dark3r_ros.evaluation.figures import SamplePicture
from dark3r_ros.matching.draw import draw_matches
from dark3r_ros.matching.verify import estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.types import Frame, Planes


class SampleCollector:
    """Keeps the binned planes of a few frame pairs spread over the recording, and draws their matches at the end."""

    def __init__(
        self, frames: int, pictures: int = 6, gap: int = 3, network_width: int = 320, binning: int = 0
    ) -> None:
        starts = np.linspace(0, max(frames - 1 - gap, 0), pictures).astype(int)
        self._starts = sorted(set(starts.tolist()))
        self._gap = min(gap, max(frames - 1, 0))
        self._wanted = {start + shift for start in self._starts for shift in (0, self._gap)}
        self._network_width, self._binning = network_width, binning
        self._planes: dict[int, Planes] = {}
        self._count = 0

    def offer(self, frame: Frame) -> None:
        """Look at the next frame of the recording."""
        if self._count in self._wanted:
            binning = self._binning or choose_binning(frame.size[0], self._network_width)
            self._planes[self._count] = to_planes(frame, binning)
        self._count += 1

    def pictures(self, predictor: Predictor) -> list[SamplePicture]:
        """Draw every pair with its verified matches in green and the refused ones in red."""
        result = []
        for start in self._starts:
            pair = self._planes.get(start), self._planes.get(start + self._gap)
            if pair[0] is not None and pair[1] is not None:
                result.append(self._draw(predictor, pair[0], pair[1], start))
        return result

    def _draw(self, predictor: Predictor, first: Planes, second: Planes, number: int) -> SamplePicture:
        matches = predictor.match([(predictor.encode(first), predictor.encode(second))])[0]
        inliers = np.zeros(len(matches), dtype=bool)
        if first.camera is not None and second.camera is not None and len(matches) >= 8:
            rays = first.camera.unproject(matches.points_a), second.camera.unproject(matches.points_b)
            geometry = estimate_two_view(*rays, 2.0 / first.camera.fx, min_inliers=8)
            if geometry is not None:
                inliers = geometry.inliers
        image = draw_matches(display_image(first), display_image(second), matches, inliers)
        title = f'frames {number} and {number + self._gap}: {int(inliers.sum())} of {len(matches)} matches agree'
        return SamplePicture(first.stamp_ns, image, title)
