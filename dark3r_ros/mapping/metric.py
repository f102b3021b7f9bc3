# SPDX-License-Identifier: Apache-2.0
"""Metres per map unit, and their slow drift, from any stream of poses in metres such as wheel odometry.

Poses some distance apart by odometry are compared with the visual ones at the same times: the ratio of the two motions
is one measurement of the scale. Slips, sliding and losses of track make single ratios wrong, always in bursts and
mostly to one side; a robust line over the newest ratios leaves them out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting
from dark3r_ros.geometry import se3
from dark3r_ros.mapping.odometry_track import OdometryTrack
from dark3r_ros.mapping.robust import RobustLine, robust_line
from dark3r_ros.types import Trajectory

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# Numbers of steps between the two poses of a comparison. Far poses are measured better, but meet a slip more often.
_STRIDES = (1, 2, 4, 8)
# Directions of the two motions may differ by this much once the mounting of the camera is accounted for.
_MAX_DIRECTION_ERROR = math.radians(25.0)
# Pull of the stated mounting of the camera on the one that the motions show; motion along a line shows only a part.
_MOUNTING_WEIGHT = 0.05
_WAITING_POSES = 1000
_SIGNIFICANT = 3.0


@dataclass(frozen=True)
class MetricConfig(Config):
    """Settings of the estimate of metres per map unit."""

    min_distance: float = setting(
        0.25, 'Distance by odometry after which poses are compared.', unit='m', minimum=0.005, maximum=100.0
    )
    window: int = setting(400, 'Newest such steps that are kept.', minimum=20, maximum=20000)
    min_steps: int = setting(12, 'Fewest agreeing steps that give a scale.', minimum=3, maximum=1000)
    max_deviation: float = setting(
        0.02, 'Relative standard deviation below which the scale counts as known.', minimum=0.0001, maximum=0.5
    )
    change: float = setting(
        0.01, 'Relative error of the published scale above which it is corrected.', minimum=0.0001, maximum=1.0
    )
    max_turn_error: float = setting(
        6.0, 'Largest disagreement about the turn of a step.', unit='deg', minimum=0.1, maximum=90.0
    )
    max_turn: float = setting(45.0, 'Steps that turn by more say nothing.', unit='deg', minimum=1.0, maximum=180.0)
    max_gap: float = setting(
        0.3, 'Longest time between two odometry poses that is interpolated.', unit='s', minimum=0.01, maximum=10.0
    )
    max_speed: float = setting(
        20.0, 'Odometry that jumps faster has started anew.', unit='m/s', minimum=0.1, maximum=1000.0
    )


@dataclass(frozen=True)
class ScaleEstimate:
    """Result of `MetricScale`.

    Attributes
    ----------
    scale: metres per unit of the newest visual poses; NaN while there is none.
    deviation: relative standard deviation of `scale` from the scatter of the measurements. A wrong scale of the
        odometry itself (worn tyres) does not show in it.
    drift: relative change of `scale` per metre, 0 unless it is significant.
    known: whether `scale` is certain enough to be used.
    steps: comparisons that agree, in independent ones. rejected: share of the comparisons left out.
    reason: why the scale is not known, one sentence; empty when it is.

    """

    scale: float = math.nan
    deviation: float = math.nan
    drift: float = 0.0
    known: bool = False
    steps: float = 0.0
    rejected: float = 0.0
    reason: str = 'no odometry'

    def __str__(self) -> str:
        if not self.known:
            return f'arbitrary ({self.reason})'
        return f'metric ({self.scale:.4g} +- {100.0 * self.deviation:.2g} %)'


@dataclass(frozen=True, eq=False)
class _Knot:
    """A time at which both poses of the camera are known; `chain` numbers pieces without a break in either."""

    stamp_ns: int
    world_from_camera: Array
    odom_from_camera: Array
    travelled: float
    chain: tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Pieces:
    """All knots as arrays: poses (N, 4, 4), travelled metres (N,), chains (N, 2)."""

    visual: Array
    metric: Array
    travelled: Array
    chains: NDArray[np.int64]

    @staticmethod
    def of(knots: deque[_Knot]) -> _Pieces:
        return _Pieces(
            np.stack([knot.world_from_camera for knot in knots]),
            np.stack([knot.odom_from_camera for knot in knots]),
            np.array([knot.travelled for knot in knots]),
            np.array([knot.chain for knot in knots]),
        )


class MetricScale:
    """Scale and its drift from two streams of poses that may come in any order.

    Parameters
    ----------
    config: gates and window.
    body_from_camera: mounting of the camera (4, 4) on the body whose odometry is given; optical axes of the camera.

    """

    def __init__(self, config: MetricConfig, body_from_camera: Array) -> None:
        self._config = config
        self.body_from_camera = body_from_camera
        self._track = OdometryTrack(round(config.max_gap * 1e9), config.max_speed)
        self.reset()

    def reset(self) -> None:
        """Forget the visual poses, whose unit has changed; the odometry stays."""
        self._knots: deque[_Knot] = deque(maxlen=self._config.window + 1)
        self._waiting: deque[tuple[int, Array, int]] = deque(maxlen=_WAITING_POSES)
        self._visual_chain = 0
        self._pieces: _Pieces | None = None
        self._estimate: ScaleEstimate | None = None

    def interrupt(self) -> None:
        """Say that vision lost track: the poses before and after are not compared."""
        self._visual_chain += 1

    def add_odometry(self, stamp_ns: int, odom_from_body: Array) -> None:
        """Take an odometry pose (4, 4) in metres."""
        self._track.add(stamp_ns, odom_from_body)
        self._advance()

    def add_pose(self, stamp_ns: int, world_from_camera: Array) -> None:
        """Take a visual pose (4, 4) in map units; in the order of the stamps."""
        self._waiting.append((stamp_ns, world_from_camera, self._visual_chain))
        self._advance()

    def refine(self, newest: Callable[[int], Array | None]) -> None:
        """Replace visual poses by newer estimates, looked up by their stamp; None keeps a pose."""
        for number, knot in enumerate(self._knots):
            pose = newest(knot.stamp_ns)
            if pose is not None:
                self._knots[number] = replace(knot, world_from_camera=pose)
        self._estimate = None

    @property
    def estimate(self) -> ScaleEstimate:
        """What all poses so far say."""
        if self._estimate is None:
            self._estimate = self._evaluate()
        return self._estimate

    def motion(self, first_ns: int, second_ns: int) -> float:
        """Metres, plus radians, that the odometry moved between two times; NaN without odometry."""
        first, second = self._track.nearest(first_ns), self._track.nearest(second_ns)
        if first is None or second is None:
            return math.nan
        moved = se3.inverse(first) @ second
        return float(np.linalg.norm(moved[:3, 3])) + se3.rotation_angle(moved)

    def misalignment(self) -> Array | None:
        """Rotation (3, 3) of the camera out of its stated mounting, by the motions of both streams; None without any.

        Directions of odometry, seen by the camera as it is said to be mounted, turn by it into those that are seen.
        """
        if not self.estimate.steps or self._pieces is None:
            return None
        first, visual, metric, _ = self._motions(1)
        return _alignment(visual, metric) if len(first) >= 2 else None

    def _advance(self) -> None:
        newest = self._track.newest_ns
        while self._waiting and newest is not None and self._waiting[0][0] <= newest:
            stamp_ns, world_from_camera, visual_chain = self._waiting.popleft()
            self._track.forget_before(stamp_ns)
            found = self._track.at(stamp_ns)
            if found is not None:
                odom_from_body, odometry_chain = found
                odom_from_camera = odom_from_body @ self.body_from_camera
                self._take(stamp_ns, world_from_camera, odom_from_camera, (visual_chain, odometry_chain))

    def _take(self, stamp_ns: int, world_from_camera: Array, odom_from_camera: Array, chain: tuple[int, int]) -> None:
        travelled = 0.0
        if self._knots:
            last = self._knots[-1]
            travelled = last.travelled
            if chain == last.chain:
                step = float(np.linalg.norm(odom_from_camera[:3, 3] - last.odom_from_camera[:3, 3]))
                if step < self._config.min_distance:
                    return
                travelled += step
        self._knots.append(_Knot(stamp_ns, world_from_camera, odom_from_camera, travelled, chain))
        self._estimate = None

    # ------------------------------------------------------------------ estimate

    def _evaluate(self) -> ScaleEstimate:
        if not len(self._track):
            return ScaleEstimate()
        if len(self._knots) < 2:
            return ScaleEstimate(reason=self._missing(0))
        self._pieces = _Pieces.of(self._knots)
        best: RobustLine | None = None
        rejected, steps = 0.0, 0
        for stride in _STRIDES:
            if stride >= len(self._knots):
                break
            where, ratios, candidates = self._ratios(stride)
            steps = max(steps, candidates)
            if len(ratios) < stride * self._config.min_steps:
                continue
            line = robust_line(where, ratios, overlap=stride)
            if best is None or line.deviation < best.deviation:
                best, rejected = line, 1.0 - line.agreeing / candidates
        if best is None:
            return ScaleEstimate(reason=self._missing(steps))
        drift = best.slope if abs(best.slope) > _SIGNIFICANT * best.slope_deviation else 0.0
        value, deviation = (best.end, best.end_deviation) if drift else (best.value, best.deviation)
        reason = ''
        if rejected > 0.5:
            reason = f'odometry and vision disagree in {100.0 * rejected:.0f} % of the steps'
        elif best.independent < self._config.min_steps or deviation > self._config.max_deviation:
            reason = f'{best.independent:.0f} agreeing steps leave {100.0 * deviation:.1f} %'
        return ScaleEstimate(math.exp(value), deviation, drift, not reason, best.independent, rejected, reason)

    def _missing(self, steps: int) -> str:
        if not steps:
            return 'odometry and vision share no motion yet'
        return f'only {steps} steps of {self._config.min_distance:g} m so far, or vision and odometry disagree'

    def _motions(self, stride: int) -> tuple[Index, Array, Array, int]:
        """First knots (N,), visual and metric motions (N, 3) of the comparisons that pass the gates, and all tried."""
        pieces = self._pieces
        assert pieces is not None
        first = np.flatnonzero((pieces.chains[stride:] == pieces.chains[:-stride]).all(axis=1))
        second = first + stride
        visual = se3.inverse(pieces.visual[first]) @ pieces.visual[second]
        metric = se3.inverse(pieces.metric[first]) @ pieces.metric[second]
        turns = _angles(metric[:, :3, :3])
        # Only the angle of a turn: its axis depends on the mounting of the camera, which may be known roughly.
        agreeing = np.abs(_angles(visual[:, :3, :3]) - turns) <= math.radians(self._config.max_turn_error)
        lengths = np.linalg.norm(metric[:, :3, 3], axis=1)
        gentle = turns <= math.radians(self._config.max_turn)
        good = agreeing & gentle & (lengths > 0.5 * self._config.min_distance)
        return first[good], visual[good, :3, 3], metric[good, :3, 3], len(first)

    def _ratios(self, stride: int) -> tuple[Array, Array, int]:
        """Travelled metres and log ratios (N,) of the comparisons that pass the gates, and how many were tried."""
        first, visual, metric, tried = self._motions(stride)
        if len(first) < 2:
            return np.zeros(0), np.zeros(0), tried
        along = _projections(visual, metric)
        assert self._pieces is not None
        travelled = self._pieces.travelled
        where = 0.5 * (travelled[first] + travelled[first + stride]) - travelled[-1]
        keep = np.isfinite(along)
        lengths = np.linalg.norm(metric, axis=1)
        return where[keep], np.log(lengths[keep] / along[keep]), tried


def _angles(rotations: Array) -> Array:
    """Angles (N,) of rotations (N, 3, 3), in radians."""
    return np.asarray(np.arccos(np.clip(0.5 * (np.trace(rotations, axis1=1, axis2=2) - 1.0), -1.0, 1.0)))


def _projections(visual: Array, metric: Array) -> Array:
    """Length (N,) of visual motions (N, 3) along the directions of the metric ones, NaN where they point elsewhere.

    Unlike the length of the motion itself, the projection is not made longer by noise across it.
    """
    turn = _alignment(visual, metric)
    norms = np.linalg.norm(visual, axis=1)
    moved = norms > 0.0
    aligned = _unit(metric) @ turn.T
    along = np.sum(visual * aligned, axis=1)
    agrees = moved & (along >= math.cos(_MAX_DIRECTION_ERROR) * norms)
    return np.where(agrees & (along > 0.0), along, np.nan)


def _alignment(visual: Array, metric: Array) -> Array:
    """Rotation (3, 3) that turns directions of metric motions (N, 3) into those of the visual ones."""
    moved = np.linalg.norm(visual, axis=1) > 0.0
    directions, seen = _unit(metric), _unit(visual)
    turn = np.eye(3)
    for _ in range(2):
        cosines = np.sum(seen * (directions @ turn.T), axis=1)
        near = moved & (cosines >= min(float(np.median(cosines[moved])) if moved.any() else 1.0, 0.9))
        turn = _rotation_between(directions[near], seen[near])
    return turn


def _unit(vectors: Array) -> Array:
    """Directions of vectors (N, 3); zero stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0.0, norms, 1.0))


def _rotation_between(source: Array, target: Array) -> Array:
    """Rotation (3, 3) that turns unit vectors (N, 3) onto others best, close to none where they leave it open."""
    matrix = target.T @ source + _MOUNTING_WEIGHT * max(len(source), 1) * np.eye(3)
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))]) @ vt)


def estimate_scale(
    visual: Trajectory,
    odometry: Trajectory,
    body_from_camera: Array | None = None,
    config: MetricConfig | None = None,
) -> ScaleEstimate:
    """Scale of a finished trajectory; `odometry` holds odom_from_body (N, 4, 4) in metres.

    Without a mounting the body is taken to be the camera, with optical axes or with those of a robot (x forward),
    whichever agrees better.
    """
    config = config or MetricConfig(window=20000)
    mountings = [np.eye(4), se3.BODY_FROM_OPTICAL] if body_from_camera is None else [body_from_camera]
    found = [_estimate(visual, odometry, mounting, config) for mounting in mountings]
    return max(found, key=lambda estimate: (estimate.known, estimate.steps))


def _estimate(visual: Trajectory, odometry: Trajectory, mounting: Array, config: MetricConfig) -> ScaleEstimate:
    metric = MetricScale(config, mounting)
    streams = ((visual, True), (odometry, False))
    poses = [
        (stamp, is_visual, pose)
        for stream, is_visual in streams
        for stamp, pose in zip(stream.stamps_ns.tolist(), stream.world_from_camera, strict=True)
    ]
    for stamp, is_visual, pose in sorted(poses, key=lambda item: item[:2]):
        (metric.add_pose if is_visual else metric.add_odometry)(stamp, pose)
    return metric.estimate
