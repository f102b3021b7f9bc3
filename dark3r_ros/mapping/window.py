# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of the newest keyframes, and of the whole map at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.provisional import expected_distances
from dark3r_ros.mapping.settling import settled
from dark3r_ros.mapping.sparse_map import Keyframe, ObservationSet, SparseMap
from dark3r_ros.sfm.bundle import BundleResult, adjust
from dark3r_ros.sfm.compact import adjust_small, is_small
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.priors import PlacePrior

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def refine_window(
    sparse_map: SparseMap,
    config: MappingConfig,
    places: Sequence[Keyframe] = (),
    *,
    expected: Callable[[Sequence[Keyframe]], PlacePrior | None] | None = None,
    straighten: Callable[[Sequence[Keyframe]], bool] | None = None,
    with_covariance: bool = False,
) -> tuple[list[Keyframe], Array]:
    """Adjust the newest keyframes against the fixed older ones that share most landmarks with them.

    `places` are keyframes further back that may be among these. `expected` says where some of those that take part are
    expected. `straighten` may move the adjusted keyframes once more,
    by what else is known, and says whether it did; where a place further back holds them it is not asked. Returns the
    keyframes that may have moved and the covariance (6, 6) of the newest one's left twist, zero unless
    `with_covariance`.
    """
    newest = sparse_map.keyframes[-config.window - 4 * config.window_fixed :]
    # A keyframe that the camera has left for good, as at the other end of a bridge, stays where it is.
    window = [keyframe for keyframe in newest[-config.window :] if not sparse_map.is_retired(keyframe)]
    recent = [keyframe for keyframe in newest if keyframe not in window]
    known = {keyframe.keyframe_id for keyframe in [*recent, *window]}
    older = [*(keyframe for keyframe in places if keyframe.keyframe_id not in known), *recent]
    landmarks = np.unique(np.concatenate([keyframe.table.landmark for keyframe in window]))
    fixed = sparse_map.covisible(landmarks[landmarks >= 0], older)[: config.window_fixed]
    # Scale is only held by two fixed poses; the first of the window takes the part of a missing one.
    free = [len(fixed) >= 2 or number > 0 for number in range(len(window))]
    frames = [*fixed, *window]
    seen = sparse_map.observations(frames)
    best = _best_seen(sparse_map, frames, config.window_landmarks)
    poses_free = [False] * len(fixed) + free
    prior = None if expected is None else expected(frames)
    steps = config.window_iterations
    result = _adjust(sparse_map, frames, seen, poses_free, config, steps, best, prior, with_covariance)
    held = any(keyframe.keyframe_id not in known for keyframe in fixed)
    movable = [keyframe for keyframe, moves in zip(window, free, strict=True) if moves]
    straightened = straighten is not None and not held and straighten(movable)
    # All landmarks follow keyframes that were moved since, otherwise only those that the adjustment left out.
    follow = sparse_map.observation_counts(window) > 0
    _settle(sparse_map, frames, seen, config, 2, follow if straightened else follow & ~best)
    covariance = np.zeros((6, 6))
    if result is not None and result.pose_covariance is not None:
        covariance = result.pose_covariance[-1]
    sparse_map.cull(window, config.max_error)
    return window, covariance


def refine_all(sparse_map: SparseMap, config: MappingConfig) -> list[Keyframe]:
    """Adjust every keyframe that still has observations, the first one fixed; outliers are culled in between."""
    keyframes = [keyframe for keyframe in sparse_map.keyframes if len(keyframe.table.observing())]
    everything = np.ones(sparse_map.landmarks.capacity, dtype=bool)
    for _ in range(3):
        free = [number > 0 for number in range(len(keyframes))]
        if _adjust(sparse_map, keyframes, sparse_map.observations(keyframes), free, config, 25, everything) is None:
            break
        sparse_map.cull(keyframes, config.max_error)
    return keyframes


def refine_landmarks(sparse_map: SparseMap, keyframes: Sequence[Keyframe], config: MappingConfig) -> None:
    """Put the landmarks of keyframes where these see them; the keyframes stay."""
    everything = np.ones(sparse_map.landmarks.capacity, dtype=bool)
    _settle(sparse_map, keyframes, sparse_map.observations(keyframes), config, 5, everything)
    sparse_map.cull(keyframes, config.max_error)


def _best_seen(sparse_map: SparseMap, keyframes: Sequence[Keyframe], budget: int) -> NDArray[np.bool_]:
    """Mask over landmark rows: of every keyframe the `budget` landmarks that most of the others see as well."""
    counts = sparse_map.observation_counts(keyframes)
    chosen = np.zeros(len(counts), dtype=bool)
    for keyframe in keyframes:
        own = keyframe.table.landmark[keyframe.table.observing()]
        chosen[own[np.argsort(-counts[own], kind='stable')[:budget]]] = True
    return chosen


def _problem(
    sparse_map: SparseMap,
    keyframes: Sequence[Keyframe],
    seen: ObservationSet,
    free: Sequence[bool],
    config: MappingConfig,
    only: NDArray[np.bool_],
    places: PlacePrior | None = None,
) -> tuple[BundleProblem, Index]:
    """What keyframes see of the landmarks of a mask over landmark rows, and which rows (P,) these are.

    Only landmarks that two of the keyframes see count: another one says nothing about their poses.
    """
    counts = np.bincount(seen.landmark, minlength=1)
    counting = (counts[seen.landmark] >= 2) & only[seen.landmark]
    landmarks, place = np.unique(seen.landmark[counting], return_inverse=True)
    problem = BundleProblem(
        np.stack([keyframe.camera_from_world for keyframe in keyframes]),
        np.array(free, dtype=bool),
        sparse_map.landmarks.points[landmarks],
        seen.keyframe[counting],
        place.astype(np.int64),
        seen.normalised[counting],
        keyframes[-1].focal,
        robust_width=0.5 * config.max_error,
        prior=expected_distances(sparse_map, keyframes, seen, landmarks),
        places=places,
    )
    return problem, landmarks


def _adjust(
    sparse_map: SparseMap,
    keyframes: Sequence[Keyframe],
    seen: ObservationSet,
    free: Sequence[bool],
    config: MappingConfig,
    iterations: int,
    only: NDArray[np.bool_],
    places: PlacePrior | None = None,
    with_covariance: bool = False,
) -> BundleResult | None:
    """Adjust poses that are free, and landmarks of a mask; None where too few are shared."""
    problem, landmarks = _problem(sparse_map, keyframes, seen, free, config, only, places)
    if len(landmarks) < 6 or len(keyframes) < 2:
        return None
    solve = adjust_small if is_small(problem) else adjust
    result = solve(problem, iterations, with_covariance=with_covariance)
    for keyframe, pose, moves in zip(keyframes, result.cameras_from_world, free, strict=True):
        if moves:
            keyframe.camera_from_world = pose
    sparse_map.landmarks.move(landmarks, result.points)
    return result


def _settle(
    sparse_map: SparseMap,
    keyframes: Sequence[Keyframe],
    seen: ObservationSet,
    config: MappingConfig,
    iterations: int,
    only: NDArray[np.bool_],
) -> None:
    """Move landmarks of a mask where the keyframes see them."""
    problem, landmarks = _problem(sparse_map, keyframes, seen, [False] * len(keyframes), config, only)
    if len(landmarks):
        sparse_map.landmarks.move(landmarks, settled(problem, iterations))
