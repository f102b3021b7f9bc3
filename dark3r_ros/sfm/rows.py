# SPDX-License-Identifier: Apache-2.0
"""A bundle adjustment on rows of tensors, such as all x and then all y, for functions that TorchScript compiles.

Beside `equations.py`, whose small matrices are several times slower here and hold the interpreter meanwhile. All
arithmetic is float64, and the order of every sum is fixed, so that the same problem gives the same result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.sfm.equations import BundleProblem

Index = NDArray[np.int64]


class Terms(NamedTuple):
    """A `BundleProblem`: F poses, the first f of them free, P points, K observations in the order of their poses.

    Attributes
    ----------
    poses: (F, 4, 4). free: f. points: (3, P). frame, point: (K,) of each observation. observed: (2, K). weight: (K,).
    ends: (F + 1,) where the observations of each pose begin, and their end; k of them are those of free poses.
    focal, width: as in the problem.
    far, far_centre, far_length, far_deviation: prior of the distances of M points, (M,), (3, M), (M,).
    held, held_centre, held_deviation: prior of the places of N free poses, (N,), (3, N).

    """

    poses: Tensor
    free: int
    points: Tensor
    frame: Tensor
    point: Tensor
    observed: Tensor
    weight: Tensor
    ends: list[int]
    focal: float
    width: float
    far: Tensor
    far_centre: Tensor
    far_length: Tensor
    far_deviation: float
    held: Tensor
    held_centre: Tensor
    held_deviation: float


class Seen(NamedTuple):
    """Where a problem stands.

    Attributes
    ----------
    local: (3, K) points in the frames of their cameras. front: (K,) which lie before them.
    residual: (2, K) in pixels, zero for those behind. length: (K,) of it.

    """

    local: Tensor
    front: Tensor
    residual: Tensor
    length: Tensor


class Derivatives(NamedTuple):
    """Derivatives of the two residuals of each observation, times the roots of robust weights.

    Attributes
    ----------
    u, v, depth: (K,) where the point is seen, in normalised coordinates, and how far ahead; 1 where it lies behind.
    across, down: (3, K) by the point. residual: (2, K). steepness: (K,) pixels per unit beside the camera.

    """

    u: Tensor
    v: Tensor
    depth: Tensor
    across: Tensor
    down: Tensor
    residual: Tensor
    steepness: Tensor


class PointFactors(NamedTuple):
    """Cholesky factors L of the matrices of P points, entry by entry (P,); i00, i11, i22 are one over the diagonal."""

    i00: Tensor
    l10: Tensor
    i11: Tensor
    l20: Tensor
    l21: Tensor
    i22: Tensor


def terms_of(problem: BundleProblem) -> tuple[Terms, Index, Index]:
    """Tensors of a problem, and in their new order the numbers (F,) of its poses and those (K,) of its observations."""
    poses = np.argsort(~problem.pose_free, kind='stable')
    rank = np.argsort(poses)
    order = np.argsort(rank[problem.frame_index], kind='stable')
    frame = rank[problem.frame_index[order]]
    weights = np.ones(len(order)) if problem.weights is None else problem.weights[order]
    far, held = problem.prior, problem.places
    expected = np.zeros(0, dtype=np.int64) if held is None else np.flatnonzero(problem.pose_free[held.frames])
    terms = Terms(
        torch.from_numpy(problem.cameras_from_world[poses]),
        int(problem.pose_free.sum()),
        torch.tensor(problem.points.T).contiguous(),
        torch.from_numpy(frame),
        torch.from_numpy(problem.point_index[order]),
        torch.tensor(problem.observations[order].T).contiguous(),
        torch.from_numpy(weights),
        np.searchsorted(frame, np.arange(len(poses) + 1)).tolist(),
        problem.focal,
        problem.robust_width,
        torch.from_numpy(np.zeros(0, dtype=np.int64) if far is None else far.points),
        torch.tensor(np.zeros((3, 0)) if far is None else far.centres.T),
        torch.tensor(np.zeros(0) if far is None else far.distances),
        1.0 if far is None else far.deviation,
        torch.from_numpy(expected if held is None else rank[held.frames[expected]]),
        torch.tensor(np.zeros((3, 0)) if held is None else held.centres[expected].T),
        1.0 if held is None else held.deviation,
    )
    return terms, poses, order


def look(terms: Terms, poses: Tensor, points: Tensor, nearest: float = 1e-6) -> Seen:
    """Where poses (F, 4, 4) see points (3, P), and how far off."""
    place = points.index_select(1, terms.point)
    local = torch.empty_like(place)
    for number in range(poses.shape[0]):
        begin, end = terms.ends[number], terms.ends[number + 1]
        local[:, begin:end] = torch.addmm(poses[number, :3, 3:], poses[number, :3, :3], place[:, begin:end])
    front = local[2] > nearest
    depth = torch.where(front, local[2], 1.0)
    residual = terms.focal * (local[:2] / depth - terms.observed) * (terms.weight * front)
    return Seen(local, front, residual, torch.hypot(residual[0], residual[1]))


def huber(terms: Terms, seen: Seen) -> Tensor:
    """Costs (K,) of observations; a point behind its camera costs as much as one 20 widths off."""
    width = terms.width
    length = torch.where(seen.front, seen.length, 20.0 * width)
    return torch.where(length <= width, 0.5 * length * length, width * (length - 0.5 * width))


def differentiate(terms: Terms, poses: Tensor, seen: Seen) -> Derivatives:
    """Derivatives where a problem stands."""
    root = torch.where(seen.length > terms.width, terms.width / seen.length.clamp(min=1e-12), 1.0).sqrt() * seen.front
    depth = torch.where(seen.front, seen.local[2], 1.0)
    steepness = terms.focal * terms.weight * root / depth
    u, v = seen.local[0] / depth, seen.local[1] / depth
    turn = poses[:, :3, :3].reshape(-1, 9).t().contiguous().index_select(1, terms.frame).view(3, 3, -1)
    # The rows of the projection are (1, 0, -u) and (0, 1, -v) times the steepness.
    across, down = (turn[0] - u * turn[2]) * steepness, (turn[1] - v * turn[2]) * steepness
    return Derivatives(u, v, depth, across, down, seen.residual * root, steepness)


def sums_over_points(terms: Terms, found: Derivatives, points: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of the points (3, P), as rows 00, 01, 02, 11, 12, 22 (6, P), and gradients (3, P)."""
    a, d, residual = found.across, found.down, found.residual
    matrices = torch.zeros((6, points.shape[1]), dtype=points.dtype)
    gradients = torch.zeros((3, points.shape[1]), dtype=points.dtype)
    row = 0
    for i in range(3):  # one row at a time is fast, and in order
        gradients[i].index_add_(0, terms.point, a[i] * residual[0] + d[i] * residual[1])
        for j in range(i, 3):
            matrices[row].index_add_(0, terms.point, a[i] * a[j] + d[i] * d[j])
            row += 1
    if terms.far.numel() > 0:
        off, slope = unexpected_distances(terms, points)
        row = 0
        for i in range(3):
            gradients[i].index_add_(0, terms.far, slope[i] * off)
            for j in range(i, 3):
                matrices[row].index_add_(0, terms.far, slope[i] * slope[j])
                row += 1
    return matrices, gradients


def unexpected_distances(terms: Terms, points: Tensor, nearest: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Residuals (M,) of the prior of distances of points (3, P), and their derivatives (3, M)."""
    away = points.index_select(1, terms.far) - terms.far_centre
    length = away.square().sum(0).sqrt().clamp(min=nearest)
    return (length / terms.far_length).log() / terms.far_deviation, away / (terms.far_deviation * length * length)


def damped(own: Tensor, largest: Tensor, damping: float) -> Tensor:
    """Entries of a diagonal with their damping, as in `schur.py`; `largest` of the same unit."""
    return own + damping * torch.maximum(own, (1e-3 * largest).clamp(1e-60, 1e-6))


def factored(matrices: Tensor, damping: float) -> PointFactors:
    """Factors of damped matrices of points (6, P)."""
    m = matrices
    largest = torch.maximum(torch.maximum(m[0], m[3]), m[5])
    i00 = 1.0 / damped(m[0], largest, damping).sqrt()
    l10, l20 = m[1] * i00, m[2] * i00
    i11 = 1.0 / (damped(m[3], largest, damping) - l10 * l10).sqrt()
    l21 = (m[4] - l20 * l10) * i11
    i22 = 1.0 / (damped(m[5], largest, damping) - l20 * l20 - l21 * l21).sqrt()
    return PointFactors(i00, l10, i11, l20, l21, i22)


def down_through(f: PointFactors, values: Tensor) -> Tensor:
    """L^-1 of values (3, P)."""
    first = values[0] * f.i00
    second = (values[1] - f.l10 * first) * f.i11
    return torch.stack([first, second, (values[2] - f.l20 * first - f.l21 * second) * f.i22])


def up_through(f: PointFactors, values: Tensor) -> Tensor:
    """L^-T of values (3, P)."""
    third = values[2] * f.i22
    second = (values[1] - f.l21 * third) * f.i11
    return torch.stack([(values[0] - f.l10 * second - f.l20 * third) * f.i00, second, third])
