# SPDX-License-Identifier: Apache-2.0
"""Whether the focal length that was given is the one that the matches want.

Every view is scaled by the same factor: calibrations are wrong together, from another resolution or another lens.
A step of the focal length from the finished adjustment says at little cost whether it wants to move. Only then poses
and points are adjusted anew with it, to find where it ends and whether more observations agree there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.matching.verify import estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.bundle import focal_step
from dark3r_ros.sfm.refine import bundle_problem, refine, thin
from dark3r_ros.sfm.tracks import Tracks, normalise_pixels
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View, median_focal
from dark3r_ros.types import Correspondences, Frame

Array = NDArray[np.float64]

_PER_VIEW = 150
_ROUNDS = 6
_LARGEST_STEP = 0.2  # of the logarithm
# Focal length over the longer side that a search begins with: 53 degrees of view; and the factors that it tries.
_GUESS = 1.0
_FACTORS = np.geomspace(0.4, 2.0, 15)
_SAMPLE_PAIRS = 10


@dataclass(frozen=True)
class FocalCheck:
    """Factor of the given focal length that the matches want, and its relative deviation."""

    scale: float
    deviation: float

    def contradicts(self, least: float = 0.08, deviations: float = 10.0) -> bool:
        """Whether the given focal length is wrong beyond noise, by a share of `least` at least."""
        shift = abs(float(np.log(self.scale)))
        return shift > least and shift > deviations * self.deviation


def scaled_view(view: View, scale: float) -> View:
    """The view through a lens of `scale` times the focal length."""

    def scaled(camera: Camera | None) -> Camera | None:
        return None if camera is None else replace(camera, fx=scale * camera.fx, fy=scale * camera.fy)

    return replace(view, full_camera=scaled(view.full_camera), camera=scaled(view.camera))


def rescaled(tracks: Tracks, views: Sequence[View]) -> Tracks:
    """Tracks through the cameras that the views have now."""
    return replace(tracks, normalised=normalise_pixels(views, tracks.view, tracks.pixels))


def wanted_step(structure: Structure, poses: Mapping[int, Array], focal: float) -> tuple[float, float] | None:
    """Step of the logarithm of the focal length from an adjusted structure, and its deviation."""
    chosen = thin(structure, _PER_VIEW)
    return focal_step(bundle_problem(chosen, poses, focal)) if len(chosen.points) else None


def check_focal(
    tracks: Tracks,
    structure: Structure,
    poses: Mapping[int, Array],
    views: Sequence[View],
    max_error: float,
    min_parallax: float,
) -> FocalCheck | None:
    """Focal length that the matches want, from adjusted poses and structure; None where nothing determines it."""
    focal = median_focal(views, poses)
    step = wanted_step(structure, poses, focal)
    if step is None:
        return None
    first = FocalCheck(float(np.exp(np.clip(step[0], -_LARGEST_STEP, _LARGEST_STEP))), step[1])
    if not first.contradicts(0.03, 5.0):
        return first
    logarithm, current = 0.0, dict(poses)
    for _ in range(_ROUNDS):
        logarithm += float(np.clip(step[0], -_LARGEST_STEP, _LARGEST_STEP))
        scale = float(np.exp(logarithm))
        seen = rescaled(tracks, [scaled_view(view, scale) for view in views])
        refined = refine(
            seen,
            current,
            focal * scale,
            errors=(2.0 * max_error, max_error),
            min_parallax=min_parallax,
            per_view=_PER_VIEW,
        )
        current = refined.poses
        step = wanted_step(refined.structure, current, focal * scale)
        if step is None:
            return None
        if abs(step[0]) < max(0.002, step[1]):
            break
    return FocalCheck(float(np.exp(logarithm + step[0])), step[1])


def guessed(frame: Frame) -> Frame:
    """A frame without calibration, with a guessed pinhole."""
    width, height = frame.size
    focal = _GUESS * max(width, height)
    return replace(frame, camera=Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2))


def search_focal(views: Sequence[View], predictor: Predictor, max_error: float) -> float:
    """Factor of a guessed focal length under which most matches of a few neighbouring views agree with two-view poses.

    Coarse: an adjustment has to follow.
    """
    usable = [number for number, view in enumerate(views) if view.usable]
    pairs = [(usable[row], usable[row + step]) for step in (1, 2, 4) for row in range(len(usable) - step)]
    chosen = (
        [pairs[row] for row in np.unique(np.linspace(0, len(pairs) - 1, _SAMPLE_PAIRS).astype(int))] if pairs else []
    )
    matches = predictor.match([(views[a].features, views[b].features) for a, b in chosen]) if chosen else []
    counts = [
        sum(
            _inliers(views[a], views[b], found, float(factor), max_error)
            for (a, b), found in zip(chosen, matches, strict=True)
        )
        for factor in _FACTORS
    ]
    if not any(counts):
        return 1.0
    # The middle of the factors that are nearly as good as the best: the count is flat about its top.
    near = np.flatnonzero(np.array(counts) >= 0.98 * max(counts))
    return float(np.exp(np.log(_FACTORS[near]).mean()))


def _inliers(first: View, second: View, matches: Correspondences, factor: float, max_error: float) -> int:
    one, two = scaled_view(first, factor), scaled_view(second, factor)
    threshold = 2.0 * max_error / (one.focal + two.focal)
    geometry = estimate_two_view(
        one.normalised(matches.points_a), two.normalised(matches.points_b), threshold, max_iterations=300
    )
    return 0 if geometry is None else int(geometry.inliers.sum())
