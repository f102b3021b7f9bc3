# SPDX-License-Identifier: Apache-2.0
"""How well the scale at the beginning of a path is known to be that of its other parts.

A path that goes straight on is a chain: each stretch takes its scale from the one before, so that small errors add up,
and no figure of merit shows it. The information matrix of the adjustment says how far they may add up: by errors that
are independent, and by a small one that all matches have in common, which adds up much faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import percentile_filter

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.equations import BundleProblem, Jacobians, jacobians, linearise
from dark3r_ros.sfm.refine import bundle_problem, thin
from dark3r_ros.sfm.schur import Schur
from dark3r_ros.sfm.triangulation import Structure

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_PARTS = 10
_FEWEST_STEPS = 4  # of a part
# A camera that stands has no length to compare: a view counts when it has moved by this share of the upper quartile of
# steps in a quarter of the path around it, for the unit itself may drift along the way.
_SHORTEST_STEP = 0.1
_PER_VIEW = 100
_DAMPING = 1e-9  # holds the unit, which no ratio depends on
# Share of their own error by which all matches may be off towards the middle of the picture, or away from it. Simulated
# tunnels at -4 dB drift as by a fifth in planes of 320x240, and as by a half in planes of 160x120.
_COMMON = 0.2
_DOUBTFUL = 0.05
_FACTOR = 1.5  # from which it is said as such


@dataclass(frozen=True)
class ScaleTrust:
    """How well the scale of each part of a path is known relative to that of the first part.

    Attributes
    ----------
    ends: views, by number, at the ends of the parts.
    noise: (M - 1,) deviations of the logarithm of the scale of all parts but the first, by independent errors.
    common: (M - 1,) by how much that logarithm changes when all matches are off by a fifth of their error outwards.

    """

    ends: tuple[int, ...]
    noise: tuple[float, ...]
    common: tuple[float, ...]

    @property
    def worst(self) -> float:
        """Deviation of the part that is known least, both causes together."""
        return float(np.hypot(self.noise, self.common).max())

    def warning(self, odometry: bool = False) -> str | None:
        """One line for the user where the scale is doubtful; `odometry` says that it was given and could not help."""
        if self.worst < _DOUBTFUL:
            return None
        advice = 'the odometry given does not fit' if odometry else 'odometry holds the scale (--scale-odometry)'
        factor = float(np.exp(self.worst))
        known = f'+- {100 * (factor - 1):.0f} %' if factor < _FACTOR else f'a factor of {factor:.1f}'
        return (
            f'the scale along the path is known to {known} at best, as errors of the matches add up on the way: '
            f'long distances may be wrong by that; {advice}'
        )


def scale_trust(
    structure: Structure, poses: Mapping[int, Array], order: Sequence[int], focal: float
) -> ScaleTrust | None:
    """Judge adjusted poses (camera_from_world by view) of views in the order of their path.

    None where the path has fewer than two parts, or where nothing holds some view.
    """
    chosen = thin(structure, _PER_VIEW)
    seen = set(np.unique(chosen.tracks.view).tolist())
    path = [number for number in order if number in poses and number in seen]
    if len(path) < 2:
        return None
    return judge(bundle_problem(chosen, poses, focal, held=set(poses) - set(path[1:])), path)


def judge(problem: BundleProblem, path: Sequence[int]) -> ScaleTrust | None:
    """The same for an adjustment with one pose held, the first of the path."""
    kept = _moving(problem, path)
    parts = min(_PARTS, (len(kept) - 1) // _FEWEST_STEPS)
    if parts < 2:
        return None
    bounds = np.linspace(0, len(kept) - 1, parts + 1).round().astype(int)
    ways = [_way_gradient(problem, kept[a : b + 1]) for a, b in itertools.pairwise(bounds)]
    solver = Schur(problem, linearise(problem)).solver(_DAMPING)
    if solver is None:
        return None
    found = jacobians(problem)
    weight, length = _weights(problem, found)
    spread = _spread(problem, weight, length)
    aside = _COMMON * spread * np.sqrt(weight)[:, None] * _outwards(problem)
    noise, common = [], []
    for way in ways[1:]:
        influence = _influence(problem, found, solver(way - ways[0], np.zeros_like(problem.points)))
        noise.append(spread * float(np.linalg.norm(influence)))
        common.append(float((influence * aside).sum()))
    return ScaleTrust(tuple(int(kept[end]) for end in bounds), tuple(noise), tuple(common))


def _moving(problem: BundleProblem, path: Sequence[int]) -> Index:
    """Views of the path that have moved since the one before."""
    centres = se3.inverse(problem.cameras_from_world[list(path)])[:, :3, 3]
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    usual = percentile_filter(steps, 75, size=max(len(steps) // 4, 8), mode='nearest')
    kept = [0]
    for place in range(1, len(path)):
        if np.linalg.norm(centres[place] - centres[kept[-1]]) > _SHORTEST_STEP * usual[place - 1]:
            kept.append(place)
    return np.asarray(path)[kept]


def _way_gradient(problem: BundleProblem, views: Index) -> Array:
    """Derivative (F, 6) of the logarithm of the way through views by left twists of the poses."""
    poses = problem.cameras_from_world[views]
    steps = np.diff(se3.inverse(poses)[:, :3, 3], axis=0)
    ways = np.linalg.norm(steps, axis=1)
    along = steps / ways[:, None] / ways.sum()
    by_centre = np.zeros((len(views), 3))
    by_centre[1:] += along
    by_centre[:-1] -= along
    gradient = np.zeros((len(problem.cameras_from_world), 6))
    # A left twist moves the centre by -R^T times its translation.
    gradient[views, :3] = -np.einsum('nij,nj->ni', poses[:, :3, :3], by_centre)
    return gradient


def _influence(problem: BundleProblem, found: Jacobians, solved: tuple[Array, Array]) -> Array:
    """By how much a quantity changes (K, 2) when a weighted observation moves, from its solved normal equations."""
    twists, moves = solved
    influence = np.einsum('kri,ki->kr', found.by_pose, twists[problem.frame_index])
    return influence + np.einsum('kri,ki->kr', found.by_point, moves[problem.point_index])


def _weights(problem: BundleProblem, found: Jacobians) -> tuple[Array, Array]:
    """Robust weights (K,) of the observations, and lengths (K,) of their weighted residuals."""
    width, rooted = problem.robust_width, np.linalg.norm(found.residual, axis=1)
    length = np.where(rooted > width, rooted**2 / width, rooted)
    return np.minimum(1.0, width / np.maximum(length, 1e-12)), length


def _spread(problem: BundleProblem, weight: Array, length: Array) -> float:
    """What the errors make of a unit of influence: 1 for least squares and weighted errors of deviation 1.

    Source: Huber and Ronchetti, Robust Statistics, 2009, section 7.6: variance of estimates that minimise robust costs.
    """
    # Along each axis: the mean square of the pull of an observation, and how it grows with the residual.
    pull = 0.5 * float(((weight * length) ** 2).mean())
    growth = float(np.where(weight < 1.0, 0.5 * weight, 1.0).mean())
    freedom = 1.0 - (3 * len(problem.points) + 6 * int(problem.pose_free.sum())) / (2 * len(length))
    return float(np.sqrt(pull * weight.mean() / max(freedom, 0.1)) / growth)


def _outwards(problem: BundleProblem) -> Array:
    """Directions (K, 2) away from the principal point; none for the centre of each point, which lies where it lies."""
    radius = np.linalg.norm(problem.observations, axis=1)
    directions = problem.observations / np.maximum(radius, 1e-9)[:, None]
    directions[np.searchsorted(problem.point_index, np.arange(len(problem.points)))] = 0.0
    return directions
