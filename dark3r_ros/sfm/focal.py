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
from dark3r_ros.sfm.bundle import BundleProblem, focal_step
from dark3r_ros.sfm.refine import refine, thin
from dark3r_ros.sfm.tracks import Tracks, normalise_pixels
from dark3r_ros.sfm.triangulation import Structure, pose_table
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]

_PER_VIEW = 150
_ROUNDS = 6
_LARGEST_STEP = 0.2  # of the logarithm


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
    tracks = chosen.tracks
    if not len(chosen.points):
        return None
    count = max(poses) + 1
    free = np.zeros(count, dtype=bool)
    free[np.unique(tracks.view)] = True
    return focal_step(
        BundleProblem(
            pose_table(poses, count), free, chosen.points, tracks.view, tracks.point, tracks.normalised, focal
        )
    )


def check_focal(
    tracks: Tracks,
    structure: Structure,
    poses: Mapping[int, Array],
    views: Sequence[View],
    max_error: float,
    min_parallax: float,
) -> FocalCheck | None:
    """Focal length that the matches want, from adjusted poses and structure; None where nothing determines it."""
    focal = float(np.median([views[number].focal for number in poses]))
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
