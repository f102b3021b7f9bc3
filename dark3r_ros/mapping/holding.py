# SPDX-License-Identifier: Apache-2.0
"""Odometry, or the height of the camera above the ground, holds the unit of a map while it grows.

Vision alone lets the unit of a map creep, in the dark always to the same side. The lengths of steps by odometry do
not. How far each step between keyframes is off is smoothed along the way, steps in which wheels slipped are left out,
and the keyframes are moved by what remains. Directions and turns stay those of vision, and nothing moves that the
window adjustment would not move. Where no odometry tells the length of a step, the height of a camera does that sees
the ground: what is known of the unit at a keyframe makes metres of the step that led there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.closing import kept_closed
from dark3r_ros.mapping.ground import height_above_ground
from dark3r_ros.mapping.odometry_track import OdometryTrack
from dark3r_ros.mapping.robust import TUKEY, robust_line, shortest_half, tukey_weights
from dark3r_ros.mapping.similarity import Similarity
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.mapping.submap import Submap
from dark3r_ros.sfm.priors import PlacePrior

Array = NDArray[np.float64]

_HISTORY = 60  # newest keyframes that are looked at
_LEAST_STEPS, _LEAST_SHARE, _DEVIATION = 10, 0.6, 0.03  # agreeing steps that a unit is found from
_END_DEVIATION = 0.05  # of the unit now, where it creeps: to hold it soon is worth more than to know it well
_UNIT_STEPS = 20  # newest steps that it is found from: more of them creep apart
_STEP = (0.02, 0.008)  # deviation of a step: share of its length, metres
# Steps that agree, how well, and on how much, where the unit has leapt: more than most wheels slip, and for longer.
_LEAP, _LEAP_WIDTH, _LEAP_LEAST = 8, 0.1, 0.4
_GROUND = 0.08  # deviation of a step by the height above the ground: 3 %, but neighbours see the same ground
_GROUND_KEYFRAMES = 8  # newest ones whose landmarks show it
_CREEP = 0.01  # deviation of the change of the unit from one step to the next
_FIRST_CREEP, _ANY = 0.03, 3.0  # of the first step: after those that were held, and where nothing was
_NEAR = 8  # steps on either side that show a slip
_TURN = math.radians(6.0)  # by which both may disagree about a step
_LONGEST_NS = 10_000_000_000
_SHORTEST = 0.02  # metres
_ROUNDS = 10
_UNSEEN, _STILL = 0.01, 0.003  # share of the depth that a step may have to show no parallax; its deviation in metres


class ScaleHold:
    """Compares steps between keyframes with those of the odometry, and puts the keyframes right.

    Parameters
    ----------
    track: the odometry of the robot. camera_height: in metres above the ground, 0 where that is not known.

    """

    def __init__(self, track: OdometryTrack, camera_height: float = 0.0) -> None:
        self._track, self._camera_height = track, camera_height

    def remember(self, submap: Submap) -> None:
        """Let the newest keyframes know where the wheels were: it may come late, and is forgotten by the track in time.

        To be called for every keyframe, also where the map is held by something else.
        """
        self._look_up(submap.map.keyframes[-_HISTORY:])

    def see_ground(self, submap: Submap) -> None:
        """Let the newest keyframe know how far it lies from the one before, if the ground below it is seen."""
        keyframes = submap.map.keyframes[-_GROUND_KEYFRAMES:]
        if self._camera_height == 0.0 or len(keyframes) < 2:
            return
        before, newest = keyframes[-2:]
        seen = np.unique(np.concatenate([keyframe.table.landmark for keyframe in keyframes]))
        seen = seen[seen >= 0]
        points = submap.map.landmarks.points[seen[~submap.map.landmarks.provisional[seen]]]
        local = se3.transform_points(newest.camera_from_world, points)
        height = height_above_ground(local, self._track.body_from_camera[2, :3])
        if height is not None:
            way = float(np.linalg.norm(newest.centre - before.centre)) * self._camera_height / height
            newest.way = before.keyframe_id, way

    def _look_up(self, keyframes: Sequence[Keyframe]) -> None:
        for keyframe in keyframes:
            if keyframe.odometry is None:
                keyframe.odometry = self._track.at(keyframe.stamp_ns)

    def expected_places(self, submap: Submap, keyframes: Sequence[Keyframe]) -> PlacePrior | None:
        """Where keyframes are expected that moved too little since the one before for anything to show parallax.

        The picture cannot tell such a way from a turn, as where a robot turns on the spot with the camera beside its
        axis. None where the unit of the map or the odometry are not known.
        """
        if not math.isfinite(submap.metres):
            return None
        self._look_up(keyframes)
        place = {keyframe.keyframe_id: number for number, keyframe in enumerate(keyframes)}
        frames, centres = [], []
        chain = _in_time(keyframes)
        for number, motion in zip(*self._metric_steps(chain), strict=True):
            before, after = chain[number : number + 2]
            step = motion[:3, 3] / submap.metres
            if np.linalg.norm(step) < _UNSEEN * submap.depth(after):
                frames.append(place[after.keyframe_id])
                centres.append(se3.transform_points(before.world_from_camera, step[None])[0])
        return PlacePrior(np.array(frames), np.stack(centres), _STILL / submap.metres) if frames else None

    def straighten(self, submap: Submap, free: Sequence[Keyframe]) -> bool:
        """Move the newest keyframes of a map, those that are free, by what odometry says; returns whether it did."""
        chain = _in_time(submap.map.keyframes[-_HISTORY:])
        found = self._steps(submap, chain)
        if found is None:
            return False
        growth = np.exp(smoothed(*found, _held(*found), _FIRST_CREEP))
        free_ids = {keyframe.keyframe_id for keyframe in free}
        first = next((number for number, one in enumerate(chain) if one.keyframe_id in free_ids), len(chain))
        begin = max(first - 1, 0)
        for keyframe, centre in zip(chain[begin:], _stretched(chain[begin:], growth[begin:]), strict=True):
            if keyframe.keyframe_id in free_ids:
                pose = keyframe.camera_from_world.copy()
                pose[:3, 3] = -pose[:3, :3] @ centre
                keyframe.camera_from_world = pose
        return True

    def leap(self, submap: Submap) -> list[Similarity] | None:
        """Where all keyframes go, world_from_keyframe with a scale, once the unit has leapt; None while it has not.

        One keyframe in a wrong place can leave all that follow in another unit. Wheels that slip look the same, but do
        so for a few steps or by less.
        """
        chain = _in_time(submap.map.keyframes[-_HISTORY:])
        found = self._steps(submap, chain)
        leapt = None if found is None else _leapt(*found)
        if leapt is None:
            return None
        begin, off = leapt
        growth = np.ones(len(chain) - 1)
        growth[begin:] = math.exp(off)
        moved = _grown(chain, growth, np.append(1.0, growth))
        return [
            moved.get(keyframe.keyframe_id, Similarity.of_pose(keyframe.world_from_camera))
            for keyframe in submap.map.keyframes
        ]

    def nodes(self, submap: Submap) -> list[Similarity] | None:
        """Where all keyframes of a map go by odometry: world_from_keyframe with a scale; None where it says nothing.

        What loops tied together stays together.
        """
        chain = _in_time(submap.map.keyframes)
        found = self._steps(submap, chain)
        if found is None:
            return None
        growth = np.exp(smoothed(*found, _around(*found), _ANY))
        around = np.sqrt(np.append(growth[:1], growth) * np.append(growth, growth[-1:]))
        moved = _grown(chain, growth, around)
        return kept_closed(submap, [moved[keyframe.keyframe_id] for keyframe in submap.map.keyframes])

    def _steps(self, submap: Submap, chain: Sequence[Keyframe]) -> tuple[Array, Array] | None:
        """By how much the steps (N - 1,) of a chain are off, and deviations; None while the unit is not known."""
        if len(chain) < 2:
            return None
        self._look_up(chain)
        off, sigma = self._compare(chain)
        if not math.isfinite(submap.metres):
            submap.metres = _unit(off, sigma)
        return (off - math.log(submap.metres), sigma) if math.isfinite(submap.metres) else None

    def _compare(self, chain: Sequence[Keyframe]) -> tuple[Array, Array]:
        """Logarithms (N - 1,) of metres per unit of every step and their deviations, infinite where nothing is said."""
        off, sigma = _by_ground(chain)
        steps, metric = self._metric_steps(chain)
        if not steps:
            return off, sigma
        sigma[steps] = np.inf  # wheels know better, also where they say nothing
        visual = _relative(np.stack([keyframe.world_from_camera for keyframe in chain]))[steps]
        ways, lengths = (np.linalg.norm(motion[:, :3, 3], axis=1) for motion in (metric, visual))
        # Only the angle of a turn: its axis depends on the mounting of the camera, which may be known roughly.
        turns = np.abs(_angles(metric) - _angles(visual))
        good = (ways > _SHORTEST) & (lengths > 0.0) & (turns < _TURN)
        which = np.array(steps)[good]
        off[which] = np.log(ways[good] / lengths[good])
        sigma[which] = np.hypot(_STEP[0], _STEP[1] / ways[good])
        return off, sigma

    def _metric_steps(self, chain: Sequence[Keyframe]) -> tuple[list[int], Array]:
        """Which steps of a chain odometry tells of, and the motion of the camera in each (N, 4, 4), in metres."""
        known = [keyframe.odometry for keyframe in chain]
        steps = [
            number
            for number, (before, after) in enumerate(itertools.pairwise(known))
            if before is not None and after is not None and before[1] == after[1]
            and 0 < chain[number + 1].stamp_ns - chain[number].stamp_ns <= _LONGEST_NS
        ]  # fmt: skip
        if not steps:
            return [], np.zeros((0, 4, 4))
        bodies = np.stack([np.eye(4) if one is None else one[0] for one in known])
        return steps, _relative(bodies @ self._track.body_from_camera)[steps]


def _by_ground(chain: Sequence[Keyframe]) -> tuple[Array, Array]:
    """`ScaleHold._compare` by the height above the ground alone."""
    off, sigma = np.zeros(len(chain) - 1), np.full(len(chain) - 1, np.inf)
    for number, (before, after) in enumerate(itertools.pairwise(chain)):
        length = float(np.linalg.norm(after.centre - before.centre))
        if after.way is None or after.way[0] != before.keyframe_id or after.way[1] <= _SHORTEST or length == 0.0:
            continue
        off[number], sigma[number] = math.log(after.way[1] / length), _GROUND
    return off, sigma


def smoothed(off: Array, sigma: Array, start: Array, first: float) -> Array:
    """How far steps (N,) are off, along the way, from what each says of it with a deviation; some are wrong.

    Least squares in which the result changes little from step to step, reweighted by Tukey's biweight, from a start
    (N,) that the wrong ones are told by. `first` is the deviation of the first one from 0.
    """
    precision = np.where(np.isfinite(sigma), 1.0 / sigma, 0.0)
    change = (np.eye(len(off)) - np.eye(len(off), k=-1)) / _CREEP
    change[0] *= _CREEP / first
    prior, level = change.T @ change, start
    for _ in range(_ROUNDS):
        weight = tukey_weights((off - level) * precision, 1.0) * precision**2
        level = np.asarray(np.linalg.solve(prior + np.diag(weight), weight * off), dtype=np.float64)
    return level


def _leapt(off: Array, sigma: Array) -> tuple[int, float] | None:
    """Number of the first of the newest steps that agree on another unit, and how far they are off.

    None where they do not agree, or are too few.
    """
    said = np.isfinite(sigma)
    agreeing = np.flatnonzero(said & (np.abs(off) <= TUKEY * sigma))
    if not len(agreeing) or said[agreeing[-1] + 1 :].sum() < _LEAP:
        return None
    middle, half_width = shortest_half(off[said][-_LEAP:])
    return (int(agreeing[-1]) + 1, middle) if half_width < _LEAP_WIDTH and abs(middle) > _LEAP_LEAST else None


def _held(off: Array, sigma: Array) -> Array:
    """Start of the smoothing for a map that is held: nothing is off, unless most steps agree on something else."""
    said = np.isfinite(sigma)
    disagreeing = np.abs(off[said]) > TUKEY * sigma[said]
    return np.full(len(off), shortest_half(off[said])[0] if 2 * disagreeing.sum() > said.sum() else 0.0)


def _around(off: Array, sigma: Array) -> Array:
    """Start of the smoothing for a map that may have crept far: the median of the steps around each."""
    said = np.flatnonzero(np.isfinite(sigma))
    if len(said) == 0:
        return np.zeros_like(off)
    place = np.searchsorted(said, np.arange(len(off)))
    near = [said[max(own - _NEAR, 0) : own + _NEAR] for own in np.clip(place, 0, len(said) - 1).tolist()]
    return np.array([np.median(off[which]) for which in near])


def _unit(off: Array, sigma: Array) -> float:
    """Metres per unit that the newest steps agree on, now where they creep; NaN where they do not, or are too few."""
    said = np.flatnonzero(np.isfinite(sigma))[-_UNIT_STEPS:]
    if len(said) < _LEAST_STEPS:
        return math.nan
    found = robust_line((said - said[-1]).astype(np.float64), off[said])
    if found.agreeing < max(_LEAST_STEPS, _LEAST_SHARE * len(said)):
        return math.nan
    if found.deviation <= _DEVIATION:
        return math.exp(found.value)
    return math.exp(found.end) if found.end_deviation <= _END_DEVIATION else math.nan


def _in_time(keyframes: Sequence[Keyframe]) -> list[Keyframe]:
    return sorted(keyframes, key=lambda keyframe: keyframe.stamp_ns)


def _relative(world_from_own: Array) -> Array:
    """Each pose (N, 4, 4) in the one before it, (N - 1, 4, 4)."""
    return np.asarray(se3.inverse(world_from_own[:-1]) @ world_from_own[1:])


def _angles(motions: Array) -> Array:
    """Angles (N,) by which motions (N, 4, 4) turn, in radians."""
    return np.asarray(np.linalg.norm(se3.log_so3(motions[:, :3, :3]), axis=1))


def _stretched(chain: Sequence[Keyframe], growth: Array) -> Array:
    """Centres (N, 3) of a chain whose steps grow by factors (N - 1,); the first keyframe stays, and directions do."""
    centres = np.stack([keyframe.centre for keyframe in chain])
    steps = growth[:, None] * np.diff(centres, axis=0)
    return np.asarray(centres[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]))


def _grown(chain: Sequence[Keyframe], growth: Array, scales: Array) -> dict[int, Similarity]:
    """Nodes, by keyframe ids, of a chain whose steps grow by factors (N - 1,) and keyframes by scales (N,)."""
    return {
        keyframe.keyframe_id: Similarity(float(scale), keyframe.world_from_camera[:3, :3], centre)
        for keyframe, scale, centre in zip(chain, scales, _stretched(chain, growth), strict=True)
    }
