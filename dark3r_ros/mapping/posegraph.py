# SPDX-License-Identifier: Apache-2.0
"""Pose graph over keyframes with a scale each: seven unknowns a node, Gauss-Newton on sparse normal equations.

A node is a similarity world_from_node. An edge says where node j lies in node i, in the units of i, and how their
scales compare. Its error is taken apart: a rotation vector, a shift and a logarithm. Edges that may be wrong are
weighed down by the Geman-McClure kernel, the others count in full.
Sources: Strasdat et al., Scale drift-aware large scale monocular SLAM, 2010; Barfoot, State Estimation for Robotics.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.chores import finished
from dark3r_ros.mapping.similarity import Similarity

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_KERNEL = 3.0  # sigmas at which an edge that may be wrong has lost most of its say


@dataclass(frozen=True, eq=False)
class Edge:
    """Node `second` seen from node `first`: x_first = scale * rotation x_second + translation.

    `sigma` holds the deviations of rotation (rad), translation (units of the first) and logarithm of the scale.
    """

    first: int
    second: int
    first_from_second: Similarity
    sigma: tuple[float, float, float]
    may_be_wrong: bool = False


@dataclass(frozen=True, eq=False)
class _Arrays:
    first: Index
    second: Index
    rotation: Array
    translation: Array
    log_scale: Array
    information: Array  # (E, 7)
    robust: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _State:
    rotation: Array  # (N, 3, 3)
    translation: Array  # (N, 3)
    log_scale: Array  # (N,)


def optimise(nodes: Sequence[Similarity], edges: Sequence[Edge], iterations: int = 30) -> list[Similarity]:
    """Nodes that satisfy the edges best; the first node stays where it is."""
    return finished(optimise_in_steps(nodes, edges, iterations))


def optimise_in_steps(
    nodes: Sequence[Similarity], edges: Sequence[Edge], iterations: int = 30
) -> Generator[None, None, list[Similarity]]:
    """As `optimise`, with a pause after every solution of the normal equations."""
    arrays = _gather(edges)
    state = _State(
        np.stack([node.rotation for node in nodes]),
        np.stack([node.translation for node in nodes]),
        np.array([node.log_scale for node in nodes]),
    )
    # The kernel narrows from one that believes everything: a drifted start must not speak against a good loop.
    squared = (_errors(state, arrays) ** 2 * arrays.information).sum(axis=1)
    kernel = max(_KERNEL, float(np.sqrt(np.max(squared, initial=0.0, where=arrays.robust))))
    while True:
        state = yield from _settle(state, arrays, kernel, iterations)
        if kernel <= _KERNEL:
            break
        kernel = max(_KERNEL, 0.5 * kernel)
    scale = np.exp(state.log_scale)
    return [Similarity(float(s), r, t) for s, r, t in zip(scale, state.rotation, state.translation, strict=True)]


def _settle(state: _State, arrays: _Arrays, kernel: float, iterations: int) -> Generator[None, None, _State]:
    cost, damping = _cost(_errors(state, arrays), arrays, kernel), 1e-6
    for _ in range(iterations):
        trial = _moved(state, _step(state, arrays, kernel, damping))
        trial_cost = _cost(_errors(trial, arrays), arrays, kernel)
        yield
        if not trial_cost < cost:
            damping *= 10.0
            if damping > 1e6:
                break
            continue
        gained = (cost - trial_cost) / max(cost, 1e-12)
        state, cost, damping = trial, trial_cost, max(damping / 10.0, 1e-9)
        if gained < 1e-6:
            break
    return state


def edge_errors(nodes: Sequence[Similarity], edges: Sequence[Edge]) -> Array:
    """Error (E, 3) of every edge in its sigmas: rotation, translation, scale."""
    arrays = _gather(edges)
    state = _State(
        np.stack([node.rotation for node in nodes]),
        np.stack([node.translation for node in nodes]),
        np.array([node.log_scale for node in nodes]),
    )
    whitened = _errors(state, arrays) * np.sqrt(arrays.information)
    return np.stack(
        [np.linalg.norm(whitened[:, :3], axis=1), np.linalg.norm(whitened[:, 3:6], axis=1), np.abs(whitened[:, 6])], 1
    )


def _gather(edges: Sequence[Edge]) -> _Arrays:
    sigma = np.array([edge.sigma for edge in edges])
    return _Arrays(
        np.array([edge.first for edge in edges], dtype=np.int64),
        np.array([edge.second for edge in edges], dtype=np.int64),
        np.stack([edge.first_from_second.rotation for edge in edges]),
        np.stack([edge.first_from_second.translation for edge in edges]),
        np.array([edge.first_from_second.log_scale for edge in edges]),
        1.0 / np.repeat(sigma, (3, 3, 1), axis=1) ** 2,
        np.array([edge.may_be_wrong for edge in edges]),
    )


def _errors(state: _State, arrays: _Arrays) -> Array:
    """Error (E, 7) of every edge: rotation vector, shift, logarithm of the scale."""
    i, j = arrays.first, arrays.second
    turned = np.einsum('eji,ejk->eik', state.rotation[i], state.rotation[j])
    turn = se3.log_so3(np.einsum('eji,ejk->eik', arrays.rotation, turned))
    seen = _seen(state, i, j)
    scale = state.log_scale[j] - state.log_scale[i] - arrays.log_scale
    return np.concatenate([turn, seen - arrays.translation, scale[:, None]], axis=1)


def _seen(state: _State, i: Index, j: Index) -> Array:
    """Where nodes j lie in nodes i (E, 3)."""
    local = np.einsum('eji,ej->ei', state.rotation[i], state.translation[j] - state.translation[i])
    return np.asarray(local * np.exp(-state.log_scale[i])[:, None])


def _cost(errors: Array, arrays: _Arrays, kernel: float) -> float:
    squared = (errors**2 * arrays.information).sum(axis=1)
    bounded = kernel**2 * squared / (kernel**2 + squared)
    return float(np.where(arrays.robust, bounded, squared).sum())


def _weights(errors: Array, arrays: _Arrays, kernel: float) -> Array:
    squared = (errors**2 * arrays.information).sum(axis=1)
    return np.where(arrays.robust, (kernel**2 / (kernel**2 + squared)) ** 2, 1.0)


def _step(state: _State, arrays: _Arrays, kernel: float, damping: float) -> Array:
    """Changes (N, 7): rotation from the right, translation, logarithm of the scale."""
    i, j = arrays.first, arrays.second
    errors = _errors(state, arrays)
    count, edges = len(state.log_scale), len(i)
    by_first, by_second = np.zeros((edges, 7, 7)), np.zeros((edges, 7, 7))
    inverse = _right_jacobian_inverse(errors[:, :3])
    turned = np.einsum('eji,ejk->eik', state.rotation[j], state.rotation[i])
    by_second[:, :3, :3] = inverse
    by_first[:, :3, :3] = -inverse @ turned
    seen = _seen(state, i, j)
    shrunk = state.rotation[i].transpose(0, 2, 1) * np.exp(-state.log_scale[i])[:, None, None]
    by_first[:, 3:6, :3] = se3.hat(seen)
    by_first[:, 3:6, 3:6], by_second[:, 3:6, 3:6] = -shrunk, shrunk
    by_first[:, 3:6, 6] = -seen
    by_first[:, 6, 6], by_second[:, 6, 6] = -1.0, 1.0
    root = np.sqrt(arrays.information * _weights(errors, arrays, kernel)[:, None])
    rows = np.repeat(np.arange(7 * edges), 14)
    columns = np.concatenate([7 * i[:, None] + np.arange(7), 7 * j[:, None] + np.arange(7)], axis=1)
    columns = np.repeat(columns[:, None], 7, axis=1).ravel()
    values = (np.concatenate([by_first, by_second], axis=2) * root[:, :, None]).ravel()
    jacobian = sparse.csr_matrix((values, (rows, columns)), shape=(7 * edges, 7 * count))[:, 7:]
    normal = (jacobian.T @ jacobian).tocsc()
    normal = normal + sparse.diags(damping * (normal.diagonal() + 1e-9) + 1e-9, format='csc')
    step = splu(normal).solve(-jacobian.T @ (errors * root).ravel())
    return np.concatenate([np.zeros((1, 7)), step.reshape(-1, 7)])


def _right_jacobian_inverse(turn: Array) -> Array:
    """Inverse right Jacobians of SO(3), (E, 3, 3), to third order of the angle below a tenth of a radian."""
    angle = np.linalg.norm(turn, axis=1)
    safe = np.maximum(angle, 0.1)
    exact = 1.0 / safe**2 - (1.0 + np.cos(safe)) / (2.0 * safe * np.sin(safe))
    factor = np.where(angle < 0.1, 1.0 / 12.0 + angle**2 / 720.0, exact)
    skew = se3.hat(turn)
    return np.asarray(np.eye(3) + 0.5 * skew + factor[:, None, None] * skew @ skew)


def _moved(state: _State, step: Array) -> _State:
    return _State(
        state.rotation @ se3.exp_so3(step[:, :3]), state.translation + step[:, 3:6], state.log_scale + step[:, 6]
    )
