# SPDX-License-Identifier: Apache-2.0
"""Odometry holds the unit of a path that the matches alone let drift.

Vision says directions and turns; odometry says how long steps are. How far the steps between views are off is found as
a smooth function along the path, with steps in which wheels slipped left out, and the views are moved by it. How much
it may bend is chosen by the evidence: a constant, which is a matter of the unit and moves nothing, unless the steps
speak clearly for more. Source: MacKay, Bayesian Interpolation, Neural Computation 1992.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.scale import odometry_at
from dark3r_ros.sfm.stereo import SECOND
from dark3r_ros.sfm.views import View
from dark3r_ros.types import Trajectory

Array = NDArray[np.float64]

_FEWEST = 20  # steps that odometry must know
_STEP = (0.02, 0.008)  # deviation of a step by odometry: share of its length, metres
_LEVER = 0.3  # deviation of the place of the camera on the body along each axis, metres
_TURN = np.radians(6.0)  # by which both may disagree about a step
_SHORTEST = 0.02  # metres
_NEAR = 15  # steps on either side that show a slip
_TUKEY = 4.685  # deviations from which a step says nothing
_ROUNDS = 5
_KNOTS = 100
# Deviations of the level of the logarithms, of its change from a step to the next, and of the change of that.
_ANY, _SLOPE = 3.0, 0.01
# No drift, a steady one, and ones that change.
_CANDIDATES = ((0.0, 0.0), *((_SLOPE, bend) for bend in (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03)))
_CLEARLY = 3.0  # logarithm of the evidence for a drift over that for none


@dataclass(frozen=True, eq=False)
class HeldUnit:
    """Poses camera_from_world whose unit is the same all along, and by what factor that of each view has grown.

    `steps` of the path were compared with odometry, of which a share of `slipped` was left out.
    """

    poses: dict[int, Array]
    growth: dict[int, float]
    steps: int
    slipped: float

    @property
    def note(self) -> dict[str, float]:
        """For the report: the largest factor between the units of two views before, and what says so."""
        return {
            'drift': max(self.growth.values()) / min(self.growth.values()),
            'steps': self.steps,
            'slipped': self.slipped,
        }


def hold_unit(poses: Mapping[int, Array], views: Sequence[View], odometry: Trajectory) -> HeldUnit | None:
    """Move views along their path until its unit is that of odometry all along; which unit stays open.

    `odometry` is that of any body fixed to the camera. None where it says too little.
    """
    path = sorted(
        (number for number in poses if not views[number].name.startswith(SECOND)),
        key=lambda number: (views[number].stamp_ns, number),
    )
    if len(path) < 2:
        return None
    world_from_camera = se3.inverse(np.stack([poses[number] for number in path]))
    stamps = np.array([views[number].stamp_ns for number in path])
    off, sigma, levers = compared(world_from_camera, *odometry_at(odometry, stamps))
    said = np.isfinite(sigma)
    if said.sum() < _FEWEST:
        return None
    level, weight = drift(off, sigma, levers)
    growth = np.exp(level - np.median(level[said]))
    at_view = np.sqrt(np.append(growth[:1], growth) * np.append(growth, growth[-1:]))
    centres = world_from_camera[:, :3, 3]
    steps = growth[:, None] * np.diff(centres, axis=0)
    moved = centres[0] + np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)])
    found, grown = {}, {}
    for number, pose in sorted(poses.items()):
        # A second camera goes with the view of the first that is nearest in time.
        place = int(np.argmin(np.abs(stamps - views[number].stamp_ns)))
        own = se3.inverse(pose)[:3, 3]
        centre = moved[place] + at_view[place] * (own - centres[place])
        found[number] = se3.make(pose[:3, :3], -pose[:3, :3] @ centre)
        grown[number] = float(at_view[place])
    return HeldUnit(found, grown, int(said.sum()), float((weight[said] < 0.5).mean()))


def compared(world_from_camera: Array, odom_from_body: Array, known: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
    """Logarithms (N - 1,) of metres per unit of the steps of a path (N, 4, 4), and their deviations.

    The latter are infinite where nothing is said: without odometry, at rest, and where both turn differently. Turns
    lengthen or shorten the steps of a camera that is not in the middle of the body: third, (N - 1, 3), by how much
    that changes the logarithms for a place that is one deviation off along each axis.
    """
    visual, metric = (_relative(one) for one in (world_from_camera, odom_from_body))
    lengths, ways = (np.linalg.norm(motion[:, :3, 3], axis=1) for motion in (visual, metric))
    # Only the angle of a turn: its axis depends on how the camera is mounted.
    turns = [np.linalg.norm(se3.log_so3(motion[:, :3, :3]), axis=1) for motion in (visual, metric)]
    good = known[1:] & known[:-1] & (ways > _SHORTEST) & (lengths > 0.0) & (np.abs(turns[0] - turns[1]) < _TURN)
    off, sigma, levers = np.zeros(len(ways)), np.full(len(ways), np.inf), np.zeros((len(ways), 3))
    off[good] = np.log(ways[good] / lengths[good])
    sigma[good] = np.hypot(_STEP[0], _STEP[1] / ways[good])
    shifts, moved = metric[good, :3, :3] - np.eye(3), metric[good, :3, 3]
    levers[good] = -_LEVER * np.einsum('ni,nij->nj', moved, shifts) / ways[good, None] ** 2
    return off, sigma, levers


def drift(off: Array, sigma: Array, levers: Array) -> tuple[Array, Array]:
    """How far steps (N,) are off along the way, from what each says of it; and how far each was believed, 0 to 1.

    The level is constant unless the evidence is clearly for a drift. Some steps may be wrong. `levers` (N, M) are what
    else may change them, by independent numbers of deviation 1.
    """
    said = np.isfinite(sigma)
    level = _lines_nearby(off, said)
    # Steps of the path err, too, and odometry may be better or worse than expected.
    sigma = sigma * max(1.4826 * float(np.median(np.abs(off - level)[said] / sigma[said])), 0.1)
    basis, expected = _hats(len(off)), level
    for _ in range(_ROUNDS):
        weight = np.where(said, (1.0 - np.minimum(((off - expected) / (_TUKEY * sigma)) ** 2, 1.0)) ** 2, 0.0)
        fits = []
        for slope, bend in _CANDIDATES:
            features = np.hstack([levers, basis @ _prior(basis.shape[1], len(off), slope, bend)])
            number, evidence = _fitted(features, off, weight / sigma**2)
            fits.append((evidence, features, number))
        best = max(fits, key=lambda fit: fit[0])
        _, features, number = best if best[0] > fits[0][0] + _CLEARLY else fits[0]
        expected = features @ number
        level = expected - levers @ number[: levers.shape[1]]
    return level, weight


def _fitted(features: Array, off: Array, precision: Array) -> tuple[Array, float]:
    """Numbers (M,) of deviation 1 by which features (N, M) explain what is off, with their log evidence."""
    matrix = features.T @ (precision[:, None] * features) + np.eye(features.shape[1])
    right = features.T @ (precision * off)
    number = np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)
    return number, float(0.5 * right @ number - 0.5 * np.linalg.slogdet(matrix)[1])


def _prior(knots: int, steps: int, slope: float, bend: float) -> Array:
    """Values at knots (K, M) by independent numbers of deviation 1: level, steady change, and its bends."""
    spacing = steps / knots
    place = np.arange(knots)
    bends = spacing**1.5 * np.maximum(place[:, None] - place[None, :-1], 0.0)
    return np.column_stack([np.full(knots, _ANY), slope * spacing * (place - place.mean()), bend * bends])


def _hats(steps: int) -> Array:
    """Weights (N, K) of the knots of a broken line at N steps."""
    knots = min(steps, _KNOTS)
    place = np.linspace(0.0, knots - 1.0, steps)
    return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(knots)))


def _lines_nearby(off: Array, said: NDArray[np.bool_]) -> Array:
    """Level (N,) of each step by a line through what the steps around it say, of which less than half are wrong.

    Source: Siegel, Robust regression using repeated medians, Biometrika 1982.
    """
    rows = np.flatnonzero(said)
    level = np.zeros(len(off))
    for step in range(len(off)):
        begin = int(np.clip(np.searchsorted(rows, step) - _NEAR, 0, max(len(rows) - 2 * _NEAR - 1, 0)))
        near = rows[begin : begin + 2 * _NEAR + 1]
        apart = (near[:, None] - near).astype(np.float64)
        np.fill_diagonal(apart, np.nan)
        slope = np.median(np.nanmedian((off[near][:, None] - off[near]) / apart, axis=1))
        level[step] = np.median(off[near] - slope * (near - step))
    return level


def _relative(world_from_own: Array) -> Array:
    """Each pose (N, 4, 4) in the one before it, (N - 1, 4, 4)."""
    return np.asarray(se3.inverse(world_from_own[:-1]) @ world_from_own[1:])
