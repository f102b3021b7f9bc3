# SPDX-License-Identifier: Apache-2.0
"""Matches of a scene's pairs against the true epipolar geometry, before any mapping could mend or spoil them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.evaluation.scenes import Scene
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.two_view import sampson_distance
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.planes import choose_binning, to_planes

STEPS = (1, 3)  # frames between the two of a pair
NETWORK_WIDTH = 320
_TOLERANCE_PX = 1.0


@dataclass(frozen=True)
class MatchScores:
    """Means over the pairs: matches, those within a pixel of the true epipolar lines, and their share of all."""

    pairs: int
    matches: float
    right: float
    share: float


def pair_indices(count: int, pairs: int) -> list[tuple[int, int]]:
    """About `pairs` pairs of frames out of `count`, spread evenly, their steps in turn."""
    usable = count - max(STEPS)
    if usable < 1:
        raise DataError(f'{count} frames are too few to make pairs: {max(STEPS) + 1} are needed')
    starts = np.unique(np.linspace(0, usable - 1, min(pairs, usable)).round().astype(int))
    return [(int(start), int(start) + STEPS[number % len(STEPS)]) for number, start in enumerate(starts)]


def score_matches(
    scene: Scene, snr_db: float | None, predictor: Predictor, *, seed: int = 0, preset: str = 'starvis', pairs: int = 10
) -> MatchScores:
    """Match pairs of a scene at an SNR (None: clean). DataError for a scene without poses or with too few frames.

    That a match lies on the true epipolar line does not prove it right, but of wrong ones only one in a hundred does:
    the line covers that share of the picture.
    """
    frames = scene.photograph(snr_db, seed, preset)
    found, right = [], []
    for first, second in pair_indices(len(frames), pairs):
        made = [frames.photograph(index) for index in (first, second)]
        planes = [to_planes(one.frame, choose_binning(one.frame.size[0], NETWORK_WIDTH)) for one in made]
        camera = planes[0].camera
        poses = [one.world_from_camera for one in made]
        if camera is None or poses[0] is None or poses[1] is None:
            raise DataError(f'{scene.name} lacks poses or calibration, so its matches cannot be judged')
        matches = predictor.match([(predictor.encode(planes[0]), predictor.encode(planes[1]))])[0]
        second_from_first = se3.inverse(poses[1]) @ poses[0]
        rays = [camera.unproject(pixels) for pixels in (matches.points_a, matches.points_b)]
        distance = sampson_distance(second_from_first, *rays) * camera.fx if len(matches) else np.zeros(0)
        found.append(len(matches))
        right.append(int((distance < _TOLERANCE_PX).sum()))
    total = sum(found)
    return MatchScores(len(found), float(np.mean(found)), float(np.mean(right)), sum(right) / total if total else 0.0)
