# SPDX-License-Identifier: Apache-2.0
"""Adjustments of all views with the settings of a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.focal import FocalCheck, check_focal
from dark3r_ros.sfm.progress import Progress, Ticker, quiet
from dark3r_ros.sfm.refine import Refined, refine
from dark3r_ros.sfm.tracks import Tracks
from dark3r_ros.sfm.triangulation import Structure, triangulate_tracks
from dark3r_ros.sfm.views import View, median_focal

Array = NDArray[np.float64]

# More views than these are not asked how sure their poses are: that grows with their cube.
_COVARIANCE_VIEWS = 200


@dataclass(frozen=True)
class Adjuster:
    """Adjusts tracks and poses camera_from_world by view as the settings say; `progress` hears of it."""

    config: SfmConfig
    progress: Progress = quiet

    @property
    def _parallax(self) -> float:
        """Smallest angle of a point in radians."""
        return float(np.radians(self.config.min_parallax))

    def refined(self, tracks: Tracks, poses: Mapping[int, Array], views: Sequence[View]) -> Refined:
        """Poses and points after three rounds of falling errors."""
        error = self.config.max_error
        focal = median_focal(views, poses)
        errors = (2.0 * error, 1.5 * error, error)
        tick = Ticker(self.progress, len(errors), f'adjusting {len(poses)} views')
        refined = refine(tracks, poses, focal, errors=errors, min_parallax=self._parallax, tick=tick)
        tick.close()
        return refined

    def with_covariance(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> Refined:
        """A last adjustment that also says how sure the poses are, relative to two that are far apart.

        Not for very many views: these stay as they are.
        """
        if len(refined.poses) > _COVARIANCE_VIEWS:
            return refined
        return refine(
            tracks,
            refined.poses,
            median_focal(views, refined.poses),
            errors=(self.config.max_error,),
            min_parallax=self._parallax,
            iterations=4,
            with_covariance=True,
            held=_gauge(refined.poses),
        )

    def triangulated(self, tracks: Tracks, poses: Mapping[int, Array], views: Sequence[View]) -> Structure:
        """Points of all tracks for poses that stay."""
        return triangulate_tracks(tracks, poses, median_focal(views, poses), self.config.max_error, self._parallax)

    def wanted_focal(self, tracks: Tracks, refined: Refined, views: Sequence[View]) -> FocalCheck | None:
        """The focal length that the matches want, by adjusted poses and points."""
        return check_focal(tracks, refined.structure, refined.poses, views, self.config.max_error, self._parallax)


def _gauge(poses: Mapping[int, Array]) -> list[int]:
    """The first view and the one farthest from it: held, they fix position, rotation and scale of the rest."""
    centres = {number: se3.inverse(pose)[:3, 3] for number, pose in poses.items()}
    first = min(poses)
    farthest = max(sorted(poses), key=lambda number: float(np.linalg.norm(centres[number] - centres[first])))
    return [first, farthest]
