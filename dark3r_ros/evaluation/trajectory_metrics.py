# SPDX-License-Identifier: Apache-2.0
"""Trajectory errors: absolute after alignment, relative over one step, rotation between all pairs.

Sources: Sturm et al., A Benchmark for the Evaluation of RGB-D SLAM Systems, IROS 2012 (association, ATE, RPE);
Umeyama, PAMI 1991 (alignment); Zhang and Scaramuzza, A Tutorial on Quantitative Trajectory Evaluation, IROS 2018.
A figure that the data cannot give is NaN and `degenerate` says why; it is never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.types import Float64Array

MIN_POSES = 3
# Frames from which all pairs are compared in rotation; 300 give 44,850 pairs.
_MAX_ROTATION_FRAMES = 300
# A camera whose centres spread by less than this share of their distance from the origin has not moved.
_STILL = 1e-9


@dataclass(frozen=True)
class ErrorStatistics:
    """Root mean square, median and maximum of an error, in its unit."""

    rmse: float
    median: float
    maximum: float

    @staticmethod
    def of(errors: Float64Array) -> ErrorStatistics:
        """Summarise (N,) errors; NaN when there are none."""
        if not len(errors):
            return ErrorStatistics(math.nan, math.nan, math.nan)
        return ErrorStatistics(float(np.sqrt(np.mean(errors**2))), float(np.median(errors)), float(errors.max()))


@dataclass(frozen=True, eq=False)
class Alignment:
    """Similarity that maps the estimate onto the truth: scale, rotation (3, 3), translation (3,)."""

    scale: float
    rotation: Float64Array
    translation: Float64Array

    def apply(self, world_from_camera: Float64Array) -> Float64Array:
        """Map poses (N, 4, 4) of the estimate into the frame of the truth."""
        result = world_from_camera.copy()
        result[:, :3, :3] = self.rotation @ world_from_camera[:, :3, :3]
        result[:, :3, 3] = self.scale * world_from_camera[:, :3, 3] @ self.rotation.T + self.translation
        return result

    def apply_inverse(self, world_from_camera: Float64Array) -> Float64Array:
        """Map poses (N, 4, 4) of the truth into the frame of the estimate."""
        result = world_from_camera.copy()
        result[:, :3, :3] = self.rotation.T @ world_from_camera[:, :3, :3]
        result[:, :3, 3] = (world_from_camera[:, :3, 3] - self.translation) @ self.rotation / self.scale
        return result


@dataclass(frozen=True, eq=False)
class TrajectoryScores:
    """Scores of associated poses; lengths in the unit of the truth, angles in degrees.

    Attributes
    ----------
    pairs: number of associated poses.
    ate: distance of centres after the best Sim(3). ate_relative: its RMSE over `extent`.
    ate_rigid: the same after the best SE(3); NaN unless asked for (both trajectories in metres).
    extent: largest distance between two true camera centres.
    scale: factor from estimate to truth.
    rpe_translation, rpe_rotation: errors of the motion over one step, the estimate scaled.
    rotation_pairs_median: median error of the relative rotation of all pairs of frames.
    degenerate: why figures are NaN, empty when none is.

    """

    pairs: int
    ate: ErrorStatistics
    ate_relative: float
    ate_rigid: ErrorStatistics
    extent: float
    scale: float
    rpe_translation: ErrorStatistics
    rpe_rotation: ErrorStatistics
    rotation_pairs_median: float
    degenerate: str
    alignment: Alignment | None


def associate(
    stamps: NDArray[np.int64], truth_stamps: NDArray[np.int64], tolerance_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair each stamp with the nearest true one within the tolerance, the closest pairs first, each used once.

    Returns indices into both, in the order of the first.
    """
    none = np.zeros(0, np.int64)
    if not len(stamps) or not len(truth_stamps):
        return none, none
    order = np.argsort(truth_stamps, kind='stable')
    ordered = truth_stamps[order]
    right = np.searchsorted(ordered, stamps)
    candidates: list[tuple[int, int, int]] = []
    for offset in (-1, 0):
        position = np.clip(right + offset, 0, len(ordered) - 1)
        difference = np.abs(ordered[position] - stamps)
        candidates += [
            (int(difference[k]), int(k), int(order[position[k]])) for k in np.flatnonzero(difference <= tolerance_ns)
        ]
    used: set[int] = set()
    pairs: dict[int, int] = {}
    for _, index, truth_index in sorted(candidates):
        if index not in pairs and truth_index not in used:
            pairs[index] = truth_index
            used.add(truth_index)
    chosen = sorted(pairs)
    return np.array(chosen, np.int64), np.array([pairs[index] for index in chosen], np.int64)


def largest_distance(points: Float64Array) -> float:
    """Largest distance between two of the points (N, 3); 0 for fewer than two."""
    best = 0.0
    for begin in range(0, len(points), 512):
        block = points[begin : begin + 512]
        best = max(best, float(np.linalg.norm(block[:, None] - points[None], axis=2).max(initial=0.0)))
    return best


def _still(centres: Float64Array) -> bool:
    return largest_distance(centres) <= _STILL * (1.0 + float(np.abs(centres).max(initial=0.0)))


def relative_pose_errors(
    estimate: Float64Array, truth: Float64Array, steps: NDArray[np.int64]
) -> tuple[Float64Array, Float64Array]:
    """Translation errors and rotation errors (radians) of the motions k -> k + 1 for each k of `steps`.

    E_k = (Q_k^-1 Q_k+1)^-1 (P_k^-1 P_k+1) with truth Q and estimate P (Sturm et al. 2012, equation 2).
    """
    true_motion = se3.inverse(truth[steps]) @ truth[steps + 1]
    motion = se3.inverse(estimate[steps]) @ estimate[steps + 1]
    error = se3.inverse(true_motion) @ motion
    return np.linalg.norm(error[:, :3, 3], axis=1), np.linalg.norm(se3.log_so3(error[:, :3, :3]), axis=-1)


def consecutive(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices k whose successor is one step away: no longer than 1.5 times the median interval."""
    gaps = np.diff(stamps)
    return np.flatnonzero(gaps <= 1.5 * np.median(gaps)) if len(gaps) else np.zeros(0, np.int64)


def pairwise_rotation_errors(estimate: Float64Array, truth: Float64Array) -> Float64Array:
    """Angles in radians between the relative rotations of all pairs of frames (evenly thinned beyond 300)."""
    keep = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), _MAX_ROTATION_FRAMES)).astype(int))
    # Relative rotations Re_i^T Re_j and Rt_i^T Rt_j differ by the angle between Re_i Rt_i^T and Re_j Rt_j^T.
    difference = estimate[keep, :3, :3] @ np.swapaxes(truth[keep, :3, :3], 1, 2)
    first, second = np.triu_indices(len(keep), 1)
    traces = np.einsum('nij,nij->n', difference[first], difference[second])
    return np.arccos(np.clip((traces - 1.0) / 2.0, -1.0, 1.0))


def score_trajectory(
    stamps: NDArray[np.int64],
    estimate: Float64Array,
    truth: Float64Array,
    *,
    all_truth: Float64Array | None = None,
    metric: bool = False,
) -> TrajectoryScores:
    """Score associated poses.

    Parameters
    ----------
    stamps: (N,) times of the poses, for finding consecutive frames.
    estimate, truth: (N, 4, 4) world_from_camera.
    all_truth: (M, 4, 4) all true poses, for the extent; default the associated ones.
    metric: both are in metres, so that the error without scale correction is given as well.

    """
    extent = largest_distance((truth if all_truth is None else all_truth)[:, :3, 3])
    nothing = ErrorStatistics.of(np.zeros(0))
    centres, true_centres = estimate[:, :3, 3], truth[:, :3, 3]
    degenerate = ''
    if len(truth) < MIN_POSES:
        degenerate = f'{len(truth)} associated poses are too few to align, {MIN_POSES} are needed'
    elif _still(true_centres):
        degenerate = 'the true camera does not move'
    elif _still(centres):
        degenerate = 'the estimated camera does not move'
    rotation = pairwise_rotation_errors(estimate, truth) if len(truth) > 1 else np.zeros(0)
    rotation_median = math.degrees(float(np.median(rotation))) if len(rotation) else math.nan
    steps = consecutive(stamps)
    if degenerate:
        _, turning = relative_pose_errors(estimate, truth, steps)
        return TrajectoryScores(
            pairs=len(truth),
            ate=nothing,
            ate_relative=math.nan,
            ate_rigid=nothing,
            extent=extent,
            scale=math.nan,
            rpe_translation=nothing,
            rpe_rotation=ErrorStatistics.of(np.degrees(turning)),
            rotation_pairs_median=rotation_median,
            degenerate=degenerate,
            alignment=None,
        )
    alignment = Alignment(*umeyama(centres, true_centres))
    aligned = alignment.apply(estimate)
    ate = ErrorStatistics.of(np.linalg.norm(aligned[:, :3, 3] - true_centres, axis=1))
    rigid = nothing
    if metric:
        placed = Alignment(*umeyama(centres, true_centres, with_scale=False)).apply(estimate)
        rigid = ErrorStatistics.of(np.linalg.norm(placed[:, :3, 3] - true_centres, axis=1))
    translation, turning = relative_pose_errors(aligned, truth, steps)
    return TrajectoryScores(
        pairs=len(truth),
        ate=ate,
        ate_relative=ate.rmse / extent,
        ate_rigid=rigid,
        extent=extent,
        scale=alignment.scale,
        rpe_translation=ErrorStatistics.of(translation),
        rpe_rotation=ErrorStatistics.of(np.degrees(turning)),
        rotation_pairs_median=rotation_median,
        degenerate='',
        alignment=alignment,
    )
