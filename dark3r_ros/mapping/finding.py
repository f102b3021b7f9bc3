# SPDX-License-Identifier: Apache-2.0
"""Where a view is looked for: near the last pose while that is known, in all submaps once it is not."""

from __future__ import annotations

from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import TrackResult, failed_track, track
from dark3r_ros.model.predictor import Predictor


def follow(view: View, submap: Submap, predictor: Predictor, config: MappingConfig, newest_inliers: int) -> TrackResult:
    """Pose of a view right after one that had `newest_inliers`: by the newest keyframe, when weak by more."""
    bound, guess = submap.trust.bound(0), submap.predicted()
    near = submap.narrow_references(newest_inliers)
    result = track(view, near, submap.map, predictor, config, guess, bound)
    if result.camera_from_world is None:
        wide = submap.wide_references()
        result = track(view, wide, submap.map, predictor, config, min_inliers=bound)
    return result


def find(
    view: View, atlas: Atlas, predictor: Predictor, config: MappingConfig, failures: int, *, everywhere: bool
) -> TrackResult:
    """Pose of a view after so many without one: near the last pose, or `everywhere`, in any submap.

    That submap becomes the active one. Far away, a place that has a rival is not believed.
    """
    active = atlas.active
    groups = dict(atlas.candidates(view.features)) if everywhere else {}
    places = [(active, [*active.wide_references(), *groups.pop(active, [])]), *groups.items()]
    failed = failed_track(0, 'no keyframe left to compare with')
    for submap, keyframes in places:
        references = list({keyframe.keyframe_id: keyframe for keyframe in keyframes}.values())
        bound = submap.trust.bound(failures)
        result = track(view, references, submap.map, predictor, config, min_inliers=bound, alone=everywhere)
        if result.camera_from_world is not None:
            atlas.activate(submap)
            return result
        failed = max(failed, result, key=lambda one: one.matches)
    return failed
