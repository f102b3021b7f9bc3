# SPDX-License-Identifier: Apache-2.0
"""Where a view is looked for: near the last pose while that is known, in all submaps once it is not."""

from __future__ import annotations

from dataclasses import replace

from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.tracking import Expectation, TrackResult, track
from dark3r_ros.model.predictor import Predictor


def follow(
    view: View,
    submap: Submap,
    predictor: Predictor,
    config: MappingConfig,
    newest_inliers: int,
    expectation: Expectation | None,
) -> TrackResult:
    """Pose of a view right after one that had `newest_inliers`: by the newest keyframe, when weak by more.

    It is looked for near where it is expected, and anywhere. A hand that holds the camera may turn it otherwise than
    before: what few matches say of such a place counts only where nothing else is found.
    """
    bound = submap.trust.bound(0)
    near = submap.narrow_references(newest_inliers)
    result = track(view, near, submap.map, predictor, config, expectation, bound)
    if result.camera_from_world is not None:
        return result
    tries: list[Expectation | None] = [None]
    if expectation is not None and expectation.share < config.min_inlier_share:
        tries = [expectation, None]
    elif expectation is not None:
        tries = [None, replace(expectation, share=config.expected_share)]
    wide = submap.wide_references()
    for expected in tries:
        result = track(view, wide, submap.map, predictor, config, expected, bound)
        if result.camera_from_world is not None:
            break
    return result


def find(
    view: View,
    atlas: Atlas,
    predictor: Predictor,
    config: MappingConfig,
    failures: int,
    *,
    everywhere: bool,
    expectation: Expectation | None = None,
) -> TrackResult:
    """Pose of a view after so many without one: where it is expected, near the last pose, or `everywhere`.

    That is in any submap, which becomes the active one. Far away, a place that has a rival is not believed.
    """
    active = atlas.active
    wide = active.wide_references()
    if expectation is not None:
        result = track(view, wide, active.map, predictor, config, expectation, active.trust.bound(0))
        if result.camera_from_world is not None:
            return result
    groups = dict(atlas.candidates(view.features)) if everywhere else {}
    places = [(active, [*wide, *groups.pop(active, [])]), *groups.items()]
    failed: list[TrackResult] = []
    for submap, keyframes in places:
        references = list({keyframe.keyframe_id: keyframe for keyframe in keyframes}.values())
        bound = submap.trust.bound(failures)
        result = track(view, references, submap.map, predictor, config, min_inliers=bound, alone=everywhere)
        if result.camera_from_world is not None:
            atlas.activate(submap)
            return result
        failed.append(result)
    return max(failed, key=lambda one: one.matches)
