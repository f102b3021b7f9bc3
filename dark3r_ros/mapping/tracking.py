# SPDX-License-Identifier: Apache-2.0
"""Pose of a new view from its matches with keyframes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.geometry.two_view import reprojection_errors
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.shutter import turned_as_seen
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.model.predictor import Locator, Predictor
from dark3r_ros.sfm.progress import side_by_side
from dark3r_ros.sfm.resection import Resection, resect
from dark3r_ros.types import Correspondences, MappingState

Array = NDArray[np.float64]
Index = NDArray[np.int64]


_CELLS = 10  # parts of the picture's width from which landmarks are chosen in turn
_NEAREST = 0.02  # of the median depth: what lies nearer to the plane of the camera is projected anywhere
_RIVAL_SHARE = 0.5  # of the inliers, with which another place casts doubt


@dataclass(frozen=True, eq=False)
class TrackResult:
    """Pose of a view, or None with the reason.

    Attributes
    ----------
    camera_from_world: (4, 4) or None.
    covariance: (6, 6) of its left twist.
    landmarks: rows of the landmarks that agree.
    inliers, matches: how many agree, and how many were tried.
    overlap: share of the reference keyframe's landmarks that was found again, of those looked for.
    flow: median motion of the inliers in the picture, as a share of its width.
    reason: why there is no pose.
    reprojection: median distance of the inliers from where they should be seen, in pixels.
    camera: that of the view, with the turn that was found with the pose where its shutter is a rolling one.

    """

    camera_from_world: Array | None
    covariance: Array
    landmarks: Index
    inliers: int
    matches: int
    overlap: float
    flow: float
    reason: str = ''
    reprojection: float = math.nan
    camera: Camera | None = None


def started_track(camera_from_world: Array, covariance: Array, inliers: int, matches: int) -> TrackResult:
    """Result of a view that starts a map; `covariance` is that of the second one to the first."""
    return TrackResult(camera_from_world, covariance, np.zeros(0, np.int64), inliers, matches, 0.0, 0.0)


def quality(result: TrackResult, view: View, config: MappingConfig) -> tuple[MappingState, str]:
    """State of a mapping whose newest frame has a pose, and what to do about it."""
    rest = f' (the average of {view.averaged} frames, for the camera stands still)' if view.averaged > 1 else ''
    if math.isfinite(view.snr_db) and view.snr_db < config.degraded_snr:
        advice = 'lengthen the exposure or slow down' if view.averaged == 1 else 'lengthen the exposure'
        return MappingState.DEGRADED, f'signal-to-noise ratio {view.snr_db:.1f} dB{rest}: {advice}'
    if result.inliers < config.degraded_inliers:
        return MappingState.DEGRADED, f'only {result.inliers} correspondences hold the pose: slow down or add light'
    return MappingState.TRACKING, f'tracking{rest}'


def failed_track(matches: int, reason: str) -> TrackResult:
    """Result of a view without a pose."""
    return TrackResult(None, np.zeros((6, 6)), np.zeros(0, np.int64), 0, matches, 0.0, 0.0, reason)


@dataclass(frozen=True, eq=False)
class Links:
    """Candidate links from the view's pixels to landmarks."""

    pixels: Array
    landmark: Index
    reference_pixels: Array
    reference: Index


def find_links(references: Sequence[Keyframe], matches: Sequence[Correspondences]) -> Links:
    """Matches (reference, view) whose reference keypoint observes a landmark, each landmark once."""
    parts: list[tuple[Array, Index, Array, Index, Array]] = []
    for number, (keyframe, found) in enumerate(zip(references, matches, strict=True)):
        landmark = keyframe.table.landmarks_at(found.points_a, found.index_a)
        known = landmark >= 0
        parts.append(
            (
                found.points_b[known],
                landmark[known],
                found.points_a[known],
                np.full(int(known.sum()), number),
                found.confidence[known],
            )
        )
    pixels, landmark, reference_pixels, reference, confidence = (
        np.concatenate([part[number] for part in parts]) for number in range(5)
    )
    # A landmark seen through several keyframes is used once, by its most confident match.
    order = np.lexsort((-confidence, landmark))
    first = np.concatenate([[True], np.diff(landmark[order]) != 0]) if len(order) else np.zeros(0, bool)
    kept = np.sort(order[first])
    return Links(pixels[kept], landmark[kept], reference_pixels[kept], reference[kept])


def sought(keyframe: Keyframe, support: Index, predictor: Predictor, config: MappingConfig) -> Index:
    """Rows (N,) of a keyframe's points that are looked for in a view: those that observe a landmark.

    `support` (capacity,) says how many keyframes see each landmark (`SparseMap.support`).

    Of a predictor that can look for given places no more is asked than `track_landmarks`: the best observed ones of
    every part of the picture.
    """
    rows = keyframe.table.observing()
    if len(rows) <= config.track_landmarks or not isinstance(predictor, Locator):
        return rows
    cell = keyframe.camera.width / _CELLS
    column, line = np.floor(keyframe.table.pixels[rows] / cell).astype(np.int64).T
    seen_by = support[keyframe.table.landmark[rows]]
    part = line * (_CELLS + 1) + column
    order = np.lexsort((-seen_by, part))
    begins = np.append(True, np.diff(part[order]) != 0)
    place = np.arange(len(order))
    rank = place - np.maximum.accumulate(np.where(begins, place, 0))
    return np.sort(rows[order[np.argsort(rank, kind='stable')[: config.track_landmarks]]])


@dataclass(frozen=True, eq=False)
class Expectation:
    """Where a view is expected.

    Attributes
    ----------
    camera_from_world: (4, 4). reach: how far off a landmark may be, in picture widths.
    share: the smallest share of the matches found so that must agree with a pose.

    """

    camera_from_world: Array
    reach: float
    share: float


def locate_landmarks(keyframe: Keyframe, view: View | Keyframe, rows: Index, predictor: Predictor) -> Correspondences:
    """Matches (keyframe, view) of points of the keyframe, given by their rows.

    A predictor that can look for given places (`locate`) is asked for no more than that; another one matches whole
    frames.
    """
    if not isinstance(predictor, Locator):
        return predictor.match([(keyframe.features, view.features)])[0]
    pixels = keyframe.table.pixels[rows]
    found = predictor.locate(keyframe.features, pixels, view.features)
    return Correspondences(pixels[found.rows], found.pixels, found.confidence)


def locate_near(
    keyframe: Keyframe,
    view: View | Keyframe,
    rows: Index,
    predictor: Predictor,
    sparse_map: SparseMap,
    expectation: Expectation | None,
) -> Correspondences:
    """`locate_landmarks` of points that observe landmarks, near where these should be seen.

    Those that should not be seen are left out. Without an expectation, or by a predictor that cannot look for given
    places, they are looked for everywhere.
    """
    if expectation is None or not isinstance(predictor, Locator) or len(rows) == 0:
        return locate_landmarks(keyframe, view, rows, predictor)
    points = sparse_map.landmarks.points[keyframe.table.landmark[rows]]
    local = se3.transform_points(expectation.camera_from_world, points)
    ahead = local[:, 2] > _NEAREST * np.median(np.abs(local[:, 2]))
    rows, expected = rows[ahead], view.camera.project(local[ahead])
    reach = expectation.reach * view.camera.width
    beyond = np.array([view.camera.width, view.camera.height]) - 0.5 + reach
    visible = ((expected > -0.5 - reach) & (expected < beyond)).all(axis=1)
    pixels = keyframe.table.pixels[rows[visible]]
    found = predictor.locate(keyframe.features, pixels, view.features, expected[visible], reach)
    return Correspondences(pixels[found.rows], found.pixels, found.confidence)


def track(
    view: View | Keyframe,
    references: Sequence[Keyframe],
    sparse_map: SparseMap,
    predictor: Predictor,
    config: MappingConfig,
    expectation: Expectation | None = None,
    min_inliers: int = 0,
    alone: bool = False,
) -> TrackResult:
    """Look for landmarks of the reference keyframes in the view, and resect it from them.

    With an `expectation` they are looked for near where they should be, else anywhere. A pose needs `min_inliers`, but
    never fewer than configured. The first reference is the one whose overlap and flow are reported. `alone` refuses a
    pose that has a rival: another one that half as many of the other matches agree with, as where parts of a tunnel are
    copies of each other.
    """
    usable = [keyframe for keyframe in references if keyframe.features is not None]
    if not usable:
        return failed_track(0, 'no keyframe left to compare with')
    support = sparse_map.support()
    rows = [sought(keyframe, support, predictor, config) for keyframe in usable]
    tasks = list(zip(usable, rows, strict=True))
    matches = side_by_side(lambda task: locate_near(task[0], view, task[1], predictor, sparse_map, expectation), tasks)
    links = find_links(usable, matches)
    tried = len(links.landmark)
    if tried < config.min_matches:
        return failed_track(tried, f'{tried} matches with the map, {config.min_matches} needed')
    points = sparse_map.landmarks.points[links.landmark]
    provisional = sparse_map.landmarks.provisional[links.landmark]
    least, error, focal = config.min_inliers, config.max_error, view.focal
    guess = None if expectation is None else expectation.camera_from_world
    camera, observed = view.camera, view.camera.unproject(links.pixels)
    found = resect(points, observed, focal, error, guess=guess, min_inliers=least, provisional=provisional)
    if found is not None and isinstance(camera, RollingCamera) and isinstance(view, View):
        good, guess = found.inliers, found.camera_from_world
        now = view.stamp_ns, guess
        camera = turned_as_seen(camera, now, view.motion, points[good], links.pixels[good])
        observed = camera.unproject(links.pixels)
        found = resect(points, observed, focal, error, guess=guess, min_inliers=least, provisional=provisional)
    if found is None:
        return failed_track(tried, f'no pose explains {config.min_inliers} of {tried} matches with the map')
    inliers = int(found.inliers.sum())
    # References that look elsewhere only add wrong matches; the share counts where any agree.
    agreeing = np.bincount(links.reference[found.inliers], minlength=len(usable)) > 0.1 * np.bincount(
        links.reference, minlength=len(usable)
    )
    share = inliers / max(int(agreeing[links.reference].sum()), 1)
    if share < (config.min_inlier_share if expectation is None else expectation.share):
        return failed_track(tried, f'only {inliers} of {tried} matches with the map agree with one pose')
    if inliers < min_inliers:
        return failed_track(tried, f'only {inliers} matches with the map agree, {min_inliers} are needed here')
    if alone and _has_rival(found, points, observed, view, config):
        return failed_track(tried, f'{inliers} matches agree with one place, and others with another that looks alike')
    own = found.inliers & (links.reference == 0)
    reference_count = max(len(rows[0]), 1)
    shift = np.linalg.norm(links.pixels[own] - links.reference_pixels[own], axis=1)
    flow = float(np.median(shift)) / view.camera.width if own.any() else 1.0
    errors = reprojection_errors(found.camera_from_world, points[found.inliers], observed[found.inliers])
    return TrackResult(
        found.camera_from_world,
        found.covariance,
        links.landmark[found.inliers],
        int(found.inliers.sum()),
        tried,
        float(own.sum()) / reference_count,
        flow,
        reprojection=float(np.median(errors)) * view.focal,
        camera=camera,
    )


def _has_rival(found: Resection, points: Array, observed: Array, view: View | Keyframe, config: MappingConfig) -> bool:
    """Whether what disagrees with a pose agrees with another one, elsewhere."""
    least = max(config.min_inliers, int(_RIVAL_SHARE * found.inliers.sum()))
    others = ~found.inliers
    rival = resect(points[others], observed[others], view.focal, config.max_error, min_inliers=least)
    if rival is None:
        return False
    depth = float(np.median(se3.transform_points(found.camera_from_world, points[found.inliers])[:, 2]))
    apart = se3.inverse(rival.camera_from_world)[:3, 3] - se3.inverse(found.camera_from_world)[:3, 3]
    return float(np.linalg.norm(apart)) > config.loop_agreement * depth


def needs_keyframe(
    result: TrackResult, reference: TrackResult | None, config: MappingConfig, patience: float = 1.0
) -> bool:
    """Whether a tracked view shows enough new to become a keyframe; `patience` asks for that many times as much.

    `reference` is the result of the first view tracked against the present reference keyframe, None for that view
    itself: what can be found again at best is less than all landmarks, so overlap is judged relative to it.
    """
    if result.flow > patience * config.keyframe_flow or result.inliers < 3 * config.min_inliers:
        return True
    return reference is not None and result.overlap * patience < config.keyframe_overlap * reference.overlap
