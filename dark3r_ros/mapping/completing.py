# SPDX-License-Identifier: Apache-2.0
"""What is done once there is time: matches that were left out, and submaps that can still be joined."""

from __future__ import annotations

from collections.abc import Iterator

from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.evidence import Evidence
from dark3r_ros.mapping.finishing import MatchedAgain, match_again
from dark3r_ros.mapping.holding import ScaleHold
from dark3r_ros.mapping.keyframing import link
from dark3r_ros.mapping.loops import LoopGate
from dark3r_ros.mapping.recording import HeldViews
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.window import refine_all, refine_landmarks
from dark3r_ros.model.predictor import Predictor


def complete_matches(submap: Submap, predictor: Predictor, config: MappingConfig) -> None:
    """Match keyframes that see the same landmarks but never met, so that the final adjustment is well tied."""
    sparse_map = submap.map
    sparse_map.revive(sparse_map.keyframes)  # old keyframes gain observations here
    keyframes = [keyframe for keyframe in sparse_map.keyframes if keyframe.matchable]
    for number, keyframe in enumerate(keyframes):
        before = keyframes[: max(number - config.neighbours, 0)]
        seen = keyframe.table.landmark
        partners = sparse_map.covisible(seen[seen >= 0], before)[: config.neighbours]
        link(sparse_map, keyframe, partners, predictor, config)


def finish_map(
    submap: Submap,
    predictor: Predictor,
    hold: ScaleHold,
    log: PoseLog,
    config: MappingConfig,
    held: HeldViews | None = None,
) -> tuple[list[Keyframe], MatchedAgain | None]:
    """Adjust a whole map, then let odometry put its unit right; returns the keyframes that have moved.

    Given the views of the recording, all is matched again where that is worth the time; then also what came of that.
    """
    complete_matches(submap, predictor, config)
    keyframes = refine_all(submap.map, config)
    matched = None if held is None else match_again(submap, predictor, config, log, held)
    if matched is not None and matched.moved:
        refine_landmarks(submap.map, keyframes, config)
    return (submap.map.keyframes if straighten_map(submap, hold, log, config) else keyframes), matched


def straighten_map(submap: Submap, hold: ScaleHold, log: PoseLog, config: MappingConfig) -> bool:
    """Let odometry put the unit of a whole map right; returns whether it says anything."""
    nodes = hold.nodes(submap)
    if nodes is None:
        return False
    submap.move(nodes)
    log.rescale(submap.map.keyframes, [node.scale for node in nodes])
    seeing = [keyframe for keyframe in submap.map.keyframes if len(keyframe.table.observing())]
    refine_landmarks(submap.map, seeing, config)
    return True


def join_what_can_be(atlas: Atlas, gate: LoopGate, config: MappingConfig) -> Iterator[tuple[list[Evidence], Submap]]:
    """Evidence that joins a submap with another one; the caller joins them before it asks for the next."""
    while config.loops and len(atlas.submaps) > 1:
        found = next(_joints(atlas, gate), None)
        if found is None:
            return
        yield found


def _joints(atlas: Atlas, gate: LoopGate) -> Iterator[tuple[list[Evidence], Submap]]:
    for submap in sorted(atlas.submaps, key=lambda one: len(one.map.keyframes)):
        others = [other for other in atlas.submaps if other is not submap]
        gate.forget()
        for keyframe in submap.map.keyframes:
            evidence = gate.consider(keyframe, submap, others) if keyframe.matchable else []
            if evidence:
                yield evidence, submap
    gate.forget()
