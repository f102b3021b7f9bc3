# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of few views, run through without the interpreter: what a window of keyframes asks for.

The same steps as `bundle.adjust`, compiled by TorchScript (`model/compiled.py`): it takes half the time, and threads
that encode or publish meanwhile do not wait for it. Points are eliminated by dense blocks: W V^-1 W^T = D D^T with
D = W L^-T and V = L L^T. Source: Triggs et al., Bundle Adjustment - A Modern Synthesis, 2000, section 6.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.geometry import se3
from dark3r_ros.model.compiled import Compiled
from dark3r_ros.sfm.bundle import BundleResult, scaled_covariance
from dark3r_ros.sfm.equations import BundleProblem
from dark3r_ros.sfm.progress import on_one_core
from dark3r_ros.sfm.rows import (
    Seen,
    Terms,
    damped,
    differentiate,
    down_through,
    factored,
    huber,
    look,
    sums_over_points,
    terms_of,
    unexpected_distances,
    up_through,
)

# Numbers in the dense blocks of the points up to which a problem is a small one: 64 MB.
_MOST_VALUES = 8_000_000


class System(NamedTuple):
    """Normal equations of f free poses, P points, and k observations of free poses.

    Attributes
    ----------
    poses: (f, 6, 6) and pose_gradients: (f, 6) of left twists.
    points: (6, P) and point_gradients: (3, P) as of `sums_over_points`.
    coupling: (6, 3, k).

    """

    poses: Tensor
    pose_gradients: Tensor
    points: Tensor
    point_gradients: Tensor
    coupling: Tensor


def is_small(problem: BundleProblem) -> bool:
    """Whether there is room for the dense blocks of a problem's points."""
    return 18 * int(problem.pose_free.sum()) * len(problem.points) <= _MOST_VALUES


def adjust_small(
    problem: BundleProblem, max_iterations: int = 15, tolerance: float = 1e-4, with_covariance: bool = False
) -> BundleResult:
    """`bundle.adjust` of a small problem."""
    with torch.inference_mode(), on_one_core():
        terms, numbers, order = terms_of(problem)
        found, points, lengths, before, after, iterations = _adjusted(terms, max_iterations, tolerance)
    poses, residuals = np.empty_like(problem.cameras_from_world), np.empty(len(order))
    poses[numbers], residuals[order] = found.numpy(), lengths.numpy()
    places = points.t().contiguous().numpy()
    covariance = None
    if with_covariance:
        covariance = scaled_covariance(replace(problem, cameras_from_world=poses, points=places), residuals)
    return BundleResult(se3.normalised(poses), places, residuals, before, after, iterations, covariance)


def _levenberg_marquardt(
    terms: Terms, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float, float, int]:
    """Poses (F, 4, 4), points (3, P), residual lengths (K,), cost before and after, and iterations."""
    poses, points = terms.poses, terms.points
    seen = look(terms, poses, points)
    cost = _cost(terms, seen, poses, points)
    before, damping, iterations = cost, 1e-4, 0
    blocks = _blocks(terms)
    dense = torch.zeros((6 * terms.free, points.numel()), dtype=points.dtype)
    system = _linearised(terms, seen, poses, points)
    while iterations < max_iterations:
        iterations += 1
        definite, twists, moves = _step(terms, system, damping, blocks, dense)
        trial, trial_poses, trial_points, trial_seen = cost, poses, points, seen
        if definite:
            trial_poses = torch.cat([_exp(twists) @ poses[: terms.free], poses[terms.free :]])
            trial_points = points + moves
            trial_seen = look(terms, trial_poses, trial_points)
            trial = _cost(terms, trial_seen, trial_poses, trial_points)
        if not trial < cost:
            damping *= 8.0
            if damping > 1e8:
                break
            continue
        gained = (cost - trial) / max(cost, 1e-12)
        cost, poses, points, seen = trial, trial_poses, trial_points, trial_seen
        damping = max(damping / 4.0, 1e-9)
        if gained < tolerance or iterations == max_iterations:
            break
        system = _linearised(terms, seen, poses, points)
    return poses, points, torch.where(seen.front, seen.length, float('inf')), before, cost, iterations


def _cost(terms: Terms, seen: Seen, poses: Tensor, points: Tensor) -> float:
    """Robust cost, with that of what is expected."""
    cost = huber(terms, seen).sum()
    if terms.far.numel() > 0:
        cost = cost + 0.5 * unexpected_distances(terms, points)[0].square().sum()
    if terms.held.numel() > 0:
        cost = cost + 0.5 * _unexpected_places(terms, poses).square().sum()
    return float(cost)


def _unexpected_places(terms: Terms, poses: Tensor) -> Tensor:
    """Where the expected centres lie in the frames of their cameras (N, 3), in deviations."""
    pose = poses.index_select(0, terms.held)
    place = pose[:, :3, :3] @ terms.held_centre.t()[:, :, None]
    return (place[:, :, 0] + pose[:, :3, 3]) / terms.held_deviation


def _linearised(terms: Terms, seen: Seen, poses: Tensor, points: Tensor) -> System:
    found = differentiate(terms, poses, seen)
    matrices, point_gradients = sums_over_points(terms, found, points)
    count = terms.ends[terms.free]
    x, y, z = seen.local[0, :count], seen.local[1, :count], found.depth[:count]
    u, v = found.u[:count], found.v[:count]
    # A turn moves a point by its cross product with the rows of the projection, (1, 0, -u) and (0, 1, -v).
    by_pose = torch.zeros((2, 6, count), dtype=points.dtype)
    by_pose[0, 0] = 1.0
    by_pose[0, 2] = -u
    by_pose[0, 3] = -u * y
    by_pose[0, 4] = z + u * x
    by_pose[0, 5] = -y
    by_pose[1, 1] = 1.0
    by_pose[1, 2] = -v
    by_pose[1, 3] = -z - v * y
    by_pose[1, 4] = v * x
    by_pose[1, 5] = x
    by_pose *= found.steepness[:count]
    coupling = by_pose[0][:, None] * found.across[:, :count]
    coupling.addcmul_(by_pose[1][:, None], found.down[:, :count])
    hessians = torch.zeros((terms.free, 6, 6), dtype=points.dtype)
    gradients = torch.zeros((terms.free, 6), dtype=points.dtype)
    for number in range(terms.free):
        begin, end = terms.ends[number], terms.ends[number + 1]
        for side in range(2):
            part = by_pose[side, :, begin:end]
            hessians[number] += part @ part.t()
            gradients[number] += part @ found.residual[side, begin:end]
    if terms.held.numel() > 0:
        _expect_places(terms, poses, hessians, gradients)
    return System(hessians, gradients, matrices, point_gradients, coupling)


def _expect_places(terms: Terms, poses: Tensor, hessians: Tensor, gradients: Tensor) -> None:
    """Add the prior of places to (f, 6, 6) and (f, 6)."""
    place = _unexpected_places(terms, poses)
    slope = torch.zeros((3, 6), dtype=poses.dtype)
    for axis in range(3):
        slope[axis, axis] = 1.0 / terms.held_deviation
    for number in range(terms.held.shape[0]):
        own = int(terms.held[number])
        x, y, z = place[number, 0], place[number, 1], place[number, 2]
        # A left twist (v, w) moves what lies at p in the camera by v + w x p.
        slope[0, 4], slope[0, 5] = z, -y
        slope[1, 3], slope[1, 5] = -z, x
        slope[2, 3], slope[2, 4] = y, -x
        hessians[own] += slope.t() @ slope
        gradients[own] += slope.t() @ place[number]


def _blocks(terms: Terms) -> Tensor:
    """Where the coupling (6, 3, k) lies in the dense blocks (6 f, 3 P) of the points, (18 k,)."""
    count, end = terms.points.shape[1], terms.ends[terms.free]
    row = 6 * terms.frame[:end] + torch.arange(6)[:, None]
    return (3 * count * row[:, None] + count * torch.arange(3)[:, None] + terms.point[:end]).reshape(-1)


def _step(terms: Terms, system: System, damping: float, blocks: Tensor, dense: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Whether the system is positive definite, and its twists (f, 6) and moves (3, P) of the points.

    `dense` (6 f, 3 P) is zero but at `blocks`.
    """
    f = factored(system.points, damping)
    seen = terms.point[: terms.ends[terms.free]]
    w = system.coupling  # D solves D L^T = W column by column
    first = w[:, 0] * f.i00.index_select(0, seen)
    second = (w[:, 1] - first * f.l10.index_select(0, seen)) * f.i11.index_select(0, seen)
    third = w[:, 2] - first * f.l20.index_select(0, seen) - second * f.l21.index_select(0, seen)
    dense.view(-1)[blocks] = torch.stack([first, second, third * f.i22.index_select(0, seen)], 1).view(-1)
    matrix = -(dense @ dense.t())
    for number in range(terms.free):
        block = system.poses[number].clone()
        diagonal = block.diagonal()
        largest = diagonal.view(2, 3).amax(1, keepdim=True).expand(2, 3).reshape(6)  # lengths and angles apart
        diagonal.copy_(damped(diagonal, largest, damping))
        matrix[6 * number : 6 * number + 6, 6 * number : 6 * number + 6] += block
    factor, flaw = torch.linalg.cholesky_ex(matrix)
    if int(flaw) != 0:
        return False, system.pose_gradients, system.point_gradients
    half = down_through(f, system.point_gradients)
    right = dense @ half.view(-1) - system.pose_gradients.view(-1)
    twists = torch.cholesky_solve(right[:, None], factor)[:, 0]
    rest = half + (dense.t() @ twists).view(3, -1)
    return True, twists.view(-1, 6), -up_through(f, rest)


def _exp(twists: Tensor) -> Tensor:
    """Transforms (f, 4, 4) of twists (f, 6), as `se3.exp`."""
    phi = twists[:, 3:]
    angle = phi.square().sum(1).sqrt()[:, None, None]
    small = angle < 1e-5  # second order is exact to float64 here
    safe = torch.where(small, 1.0, angle)
    first = torch.where(small, 1.0 - angle * angle / 6.0, safe.sin() / safe)
    second = torch.where(small, 0.5, 2.0 * ((0.5 * safe).sin() / safe).square())
    third = torch.where(small, 1.0 / 6.0, (safe - safe.sin()) / (safe * safe * safe))
    x, y, z = phi[:, 0], phi[:, 1], phi[:, 2]
    none = torch.zeros_like(x)
    skew = torch.stack([none, -z, y, z, none, -x, -y, x, none], 1).view(-1, 3, 3)
    square = skew @ skew
    one = torch.eye(3, dtype=twists.dtype)
    result = torch.zeros((twists.shape[0], 4, 4), dtype=twists.dtype)
    result[:, :3, :3] = one + first * skew + second * square
    result[:, :3, 3] = ((one + second * skew + third * square) @ twists[:, :3, None])[:, :, 0]
    result[:, 3, 3] = 1.0
    return result


_adjusted = Compiled(_levenberg_marquardt)
