# SPDX-License-Identifier: Apache-2.0
"""Closing a loop: the error is spread over the keyframes, and what was seen twice becomes one."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np

from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.chores import finished
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.evidence import Evidence
from dark3r_ros.mapping.keyframing import link_matched
from dark3r_ros.mapping.posegraph import Edge, edge_errors, optimise, optimise_in_steps
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.mapping.window import refine_window

# Deviations of a step between neighbours: rotation (rad), shares of its length and of the depth, scale.
_STEP = (0.003, 0.01, 0.001, 0.01)
# Where odometry holds the unit a loop closes by turns: 1 % of scale in 400 steps, and turns as they drift at -4 dB.
# With steps to three keyframes before each, 0.01 rad are 12 mrad in 20 keyframes, where 20 were measured; more would
# let a drive there and back end a bay too far.
_TURN_HELD, _SCALE_HELD = 0.01, 0.0005
# Of a loop: rotation, share of the depth, scale. How large a place looks at -4 dB is off by 0.05 to 0.2, mostly to one
# side; where odometry holds the unit it knows better.
_LOOP, _LOOP_HELD = (0.003, 0.015, 0.015), (0.01, 0.015, 0.1)
# Sigmas that a step or a loop may be off once the error is spread. True loops of a map that is held end below 3.
_STRAIN, _STRAIN_HELD = 8.0, 5.0


def tie_places(submap: Submap, evidence: Sequence[Evidence], config: MappingConfig) -> list[Keyframe]:
    """Tie keyframes to the places that they recognised once the error is spread; returns what has moved by that."""
    return refine_window(submap.map, config, fuse(submap, evidence, config))[0]


def join_submaps(
    atlas: Atlas, evidence: Sequence[Evidence], new: Submap, config: MappingConfig
) -> tuple[Submap, list[Keyframe], float]:
    """Join the submap of some keyframes with that of the places they recognised.

    Returns the joined submap, the keyframes that moved into it and the growth of their surroundings.
    """
    # The one that the others agree with best speaks for all.
    apart = [sum(one.disagreement(other) for other in evidence) for one in evidence]
    joined, moved, growth = atlas.join(evidence[int(np.argmin(apart))], new)
    refine_window(joined.map, config, fuse(joined, evidence, config))
    return joined, moved, growth


def spread_error(submap: Submap, evidence: Sequence[Evidence]) -> list[float] | None:
    """Move a submap so that its loop closes; returns the growth of every keyframe's surroundings.

    None, and nothing has moved, where the loop contradicts the graph.
    """
    return finished(spread_error_in_steps(submap, evidence))


def spread_error_in_steps(submap: Submap, evidence: Sequence[Evidence]) -> Generator[None, None, list[float] | None]:
    """As `spread_error`, in pieces; nothing moves before the last one."""
    moved = yield from _spread(submap, evidence)
    if moved is None:
        return None
    submap.move(moved)
    submap.ties += [(item.place.keyframe_id, item.query.keyframe_id) for item in evidence]
    return [node.scale for node in moved]


def _spread(submap: Submap, evidence: Sequence[Evidence]) -> Generator[None, None, list[Similarity] | None]:
    """Where the keyframes of a submap go so that its loop closes; None where it contradicts the graph.

    Where odometry holds the unit it hardly changes.
    """
    keyframes = submap.map.keyframes
    nodes = [_node(keyframe) for keyframe in keyframes]
    number = {keyframe.keyframe_id: place for place, keyframe in enumerate(keyframes)}
    steps = [(number[parent], own) for own, keyframe in enumerate(keyframes) for parent in keyframe.parents
             if parent in number]  # fmt: skip
    steps += [(number[first], number[second]) for first, second in submap.ties]
    edges = [_step(nodes, first, second, submap) for first, second in steps]
    edges += [
        Edge(number[first], number[second], _between(nodes, number[first], number[second]), (turn, shift, scale))
        for first, second, turn, shift, scale in submap.bridges
    ]
    loops = [_loop(item, number, submap) for item in evidence]
    moved = yield from optimise_in_steps(nodes, [*edges, *loops])
    strain = _STRAIN_HELD if math.isfinite(submap.metres) else _STRAIN
    return None if edge_errors(moved, [*edges, *loops]).max() > strain else moved


def kept_closed(submap: Submap, nodes: Sequence[Similarity]) -> list[Similarity]:
    """Nodes of a submap that are to move as little from each other as its loops allow."""
    if not submap.ties:
        return list(nodes)
    keyframes = submap.map.keyframes
    now = [_node(keyframe) for keyframe in keyframes]
    number = {keyframe.keyframe_id: place for place, keyframe in enumerate(keyframes)}
    edges = [_step(nodes, place, place + 1, submap) for place in range(len(nodes) - 1)]
    ties = [(number[first], number[second]) for first, second in submap.ties]
    loops = [_step(now, first, second, submap) for first, second in ties]
    return optimise(nodes, [*edges, *loops])


def fuse(submap: Submap, evidence: Sequence[Evidence], config: MappingConfig) -> list[Keyframe]:
    """Let keyframes and the places that they recognised share landmarks; returns the keyframes of the places.

    The matches by which a place was verified serve again.
    """
    partners: dict[int, Keyframe] = {}
    for item in evidence:
        link_matched(submap.map, item.query, item.partners, item.matches, config)
        partners.update({keyframe.keyframe_id: keyframe for keyframe in item.partners})
    return list(partners.values())


def _node(keyframe: Keyframe) -> Similarity:
    return Similarity.of_pose(keyframe.world_from_camera)


def _between(nodes: Sequence[Similarity], first: int, second: int) -> Similarity:
    return nodes[first].inverse().after(nodes[second])


def _step(nodes: Sequence[Similarity], first: int, second: int, submap: Submap) -> Edge:
    relative, keyframes = _between(nodes, first, second), submap.map.keyframes
    length, depth = float(np.linalg.norm(relative.translation)), submap.depth(keyframes[first])
    turn, share, floor, scale = _STEP
    if math.isfinite(submap.metres) and _connected(keyframes[first], keyframes[second]):
        turn, scale = _TURN_HELD, _SCALE_HELD
    return Edge(first, second, relative, (turn, share * length + floor * depth, scale))


def _connected(first: Keyframe, second: Keyframe) -> bool:
    """Whether odometry leads from one keyframe to another."""
    return first.odometry is not None and second.odometry is not None and first.odometry[1] == second.odometry[1]


def _loop(item: Evidence, number: dict[int, int], submap: Submap) -> Edge:
    """Where the query lies in the place, as the evidence has it."""
    place = _node(item.place)
    query = item.old_from_new.after(_node(item.query))
    turn, share, scale = _LOOP_HELD if math.isfinite(submap.metres) else _LOOP
    sigma = (turn, share * submap.depth(item.place), scale)
    return Edge(number[item.place.keyframe_id], number[item.query.keyframe_id], place.inverse().after(query), sigma)
