# SPDX-License-Identifier: Apache-2.0
"""Geometry of a recognised place: where a keyframe would lie in another part of the map, or in another map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.similarity import Similarity, between_poses
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import find_links, locate_landmarks, sought, track
from dark3r_ros.model.predictor import Locator, Predictor
from dark3r_ros.sfm.resection import resect
from dark3r_ros.types import Correspondences

Array = NDArray[np.float64]

_LEAST_SCALES = 10  # landmarks known on both sides that a scale needs
_SCALE_SPREAD = 0.2  # median deviation of the logarithm of the scales that is still believed


@dataclass(frozen=True, eq=False)
class Evidence:
    """A keyframe that recognised a place, and where it lies by that.

    Attributes
    ----------
    query: the keyframe. place: the keyframe that it was matched with. partners: `place` and keyframes around it.
    old: the submap of the place.
    camera_from_old: (4, 4) pose of the query in the submap of the place.
    scale: how many units of that submap make one of the query's.
    inliers: correspondences that agree.
    depth: median depth of the query's landmarks, in units of its submap.
    matches: of each partner with the query, as they were made to verify it.

    """

    query: Keyframe
    place: Keyframe
    partners: tuple[Keyframe, ...]
    old: Submap
    camera_from_old: Array
    scale: float
    inliers: int
    depth: float
    matches: tuple[Correspondences, ...]

    @property
    def old_from_new(self) -> Similarity:
        """From the frame of the query's submap to that of the place, as the query lies now."""
        return between_poses(self.camera_from_old, self.query.camera_from_world, self.scale)

    def disagreement(self, other: Evidence) -> float:
        """How far apart the two see the query and what lies before it, as a share of its depth."""
        world_from_camera = self.query.world_from_camera
        ahead = world_from_camera[:3, 3] + self.depth * world_from_camera[:3, 2]
        probes = np.stack([world_from_camera[:3, 3], ahead])
        apart = np.linalg.norm(self.old_from_new.points(probes) - other.old_from_new.points(probes), axis=1)
        return float(apart.max()) / (self.depth * self.scale)


def verify(
    query: Keyframe, new: Submap, place: Keyframe, old: Submap, predictor: Predictor, config: MappingConfig
) -> Evidence | None:
    """Pose of a keyframe by a place and those around it, and the scale between both maps; None without support."""
    # Most places that look alike are not the same, as the cheapest comparison says.
    if isinstance(predictor, Locator) and track(query, [place], old.map, predictor, config).camera_from_world is None:
        return None
    seen = place.table.landmark
    around = [keyframe for keyframe in old.around(seen[seen >= 0], exclude=place) if keyframe is not query]
    references, matches = _matched(query, [place, *around[:2]], old, predictor, config)
    if not references:
        return None
    links = find_links(references, matches)
    least = old.trust.bound(failures=1)
    if len(links.landmark) < max(config.min_matches, least):
        return None
    points = old.map.landmarks.points[links.landmark]
    observed = query.camera.unproject(links.pixels)
    found = resect(points, observed, query.focal, config.max_error, min_inliers=least)
    if found is None or int(found.inliers.sum()) < config.min_inlier_share * len(links.landmark):
        return None
    scale = _scale(query, new, references, matches, old, found.camera_from_world)
    if scale is None:
        return None
    inliers = int(found.inliers.sum())
    pose, depth = found.camera_from_world, new.depth(query)
    return Evidence(query, place, tuple(references), old, pose, scale, inliers, depth, tuple(matches))


def _matched(
    query: Keyframe, partners: Sequence[Keyframe], old: Submap, predictor: Predictor, config: MappingConfig
) -> tuple[list[Keyframe], list[Correspondences]]:
    """Match the place first, and those around it only where that found something, by their landmarks if possible."""
    references: list[Keyframe] = []
    matches: list[Correspondences] = []
    for partner in partners:
        if partner.features is None or query.features is None:
            continue
        if references and isinstance(predictor, Locator):
            found = locate_landmarks(partner, query, sought(partner, old.map.support(), predictor, config), predictor)
        else:
            found = predictor.match([(partner.features, query.features)])[0]
        if not references and len(found) < config.min_matches:
            return [], []
        references.append(partner)
        matches.append(found)
    return references, matches


def _scale(
    query: Keyframe,
    new: Submap,
    references: Sequence[Keyframe],
    matches: Sequence[Correspondences],
    old: Submap,
    camera_from_old: Array,
) -> float | None:
    """How many units of the old map make one of the new, from landmarks that both know; None where they disagree."""
    pairs = []
    for reference, found in zip(references, matches, strict=True):
        theirs = reference.table.landmarks_at(found.points_a, found.index_a)
        own = query.table.landmarks_at(found.points_b, found.index_b)
        known = (theirs >= 0) & (own >= 0)
        pairs.append(np.stack([theirs[known], own[known]], axis=1))
    theirs, own = np.concatenate(pairs).T
    if len(own) < _LEAST_SCALES:
        return None
    far = se3.transform_points(camera_from_old, old.map.landmarks.points[theirs])[:, 2]
    near = se3.transform_points(query.camera_from_world, new.map.landmarks.points[own])[:, 2]
    front = (far > 0) & (near > 0)
    if front.sum() < _LEAST_SCALES:
        return None
    ratio = np.log(far[front] / near[front])
    middle = float(np.median(ratio))
    if float(np.median(np.abs(ratio - middle))) > _SCALE_SPREAD:
        return None
    return float(np.exp(middle))
