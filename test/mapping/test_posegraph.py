# SPDX-License-Identifier: Apache-2.0
"""The pose graph against exact truth and finite differences."""

from itertools import pairwise

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.mapping import posegraph
from dark3r_ros.mapping.posegraph import Edge, edge_errors, optimise
from dark3r_ros.mapping.similarity import Similarity, between_poses

SIGMA = (0.01, 0.02, 0.01)


def relative(first: Similarity, second: Similarity) -> Similarity:
    return first.inverse().after(second)


def circle(count=40):
    """Nodes on a circle, all of scale one."""
    nodes = []
    for angle in np.linspace(0.0, 2.0 * np.pi, count, endpoint=False):
        rotation = se3.exp_so3([0.0, 0.0, angle])
        nodes.append(Similarity(1.0, rotation, rotation @ [5.0, 0.0, 0.0]))
    return nodes


def drifted(nodes, turn=0.01, growth=0.01):
    """The same steps, each with an error, from the first node on."""
    error = Similarity(1.0 + growth, se3.exp_so3([0.0, 0.3 * turn, turn]), np.zeros(3))
    result = [nodes[0]]
    for first, second in pairwise(nodes):
        result.append(result[-1].after(relative(first, second)).after(error))
    return result


def spread(estimate, truth):
    return max(float(np.linalg.norm(a.translation - b.translation)) for a, b in zip(estimate, truth, strict=True))


def test_similarities_compose_and_invert():
    a = Similarity(1.7, se3.exp_so3([0.3, -0.2, 0.5]), np.array([1.0, 2.0, 3.0]))
    b = Similarity(0.4, se3.exp_so3([-0.1, 0.9, 0.2]), np.array([-3.0, 0.5, 1.0]))
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(a.after(b).points(points), a.points(b.points(points)), atol=1e-12)
    np.testing.assert_allclose(a.inverse().points(a.points(points)), points, atol=1e-12)
    pose = se3.make(se3.exp_so3([0.2, 0.1, 0.4]), [0.5, 0.6, 0.7])
    moved = a.pose(pose)
    local = se3.transform_points(pose, points)
    np.testing.assert_allclose(se3.transform_points(moved, a.points(points)), a.scale * local, atol=1e-12)
    found = between_poses(moved, pose, a.scale)
    np.testing.assert_allclose(found.points(points), a.points(points), atol=1e-12)


def test_steps_follow_finite_differences():
    rng = np.random.default_rng(1)
    nodes = [
        Similarity(np.exp(rng.normal(0, 0.2)), se3.exp_so3(rng.normal(0, 0.5, 3)), rng.normal(0, 1, 3))
        for _ in range(4)
    ]
    edges = [
        Edge(0, 1, nodes[2], SIGMA),
        Edge(1, 2, nodes[0], SIGMA),
        Edge(2, 3, nodes[1], SIGMA),
        Edge(0, 3, nodes[2], SIGMA),
    ]
    arrays = posegraph._gather(edges)
    state = posegraph._State(
        np.stack([n.rotation for n in nodes]),
        np.stack([n.translation for n in nodes]),
        np.array([n.log_scale for n in nodes]),
    )
    root = np.sqrt(arrays.information)

    def residual(change):
        step = np.concatenate([np.zeros((1, 7)), change.reshape(-1, 7)])
        return (posegraph._errors(posegraph._moved(state, step), arrays) * root).ravel()

    width = 1e-6
    jacobian = np.stack([(residual(width * row) - residual(-width * row)) / (2 * width) for row in np.eye(21)], axis=1)
    normal = jacobian.T @ jacobian
    expected = np.linalg.solve(normal + 1e-12 * np.diag(np.diag(normal)), -jacobian.T @ residual(np.zeros(21)))
    np.testing.assert_allclose(posegraph._step(state, arrays, 3.0, 1e-12)[1:].ravel(), expected, rtol=1e-4, atol=1e-7)


def test_a_closed_circle_loses_its_drift_in_place_turn_and_scale():
    truth = circle()
    estimate = drifted(truth)
    steps = [Edge(k, k + 1, relative(estimate[k], estimate[k + 1]), SIGMA) for k in range(len(truth) - 1)]
    loop = [Edge(0, 39, relative(truth[0], truth[39]), (0.002, 0.005, 0.002), may_be_wrong=False)]
    closed = optimise(estimate, [*steps, *loop])
    assert spread(estimate, truth) > 1.0
    assert spread(closed, truth) < 0.25 * spread(estimate, truth)
    assert abs(closed[39].scale - 1.0) < 0.02
    np.testing.assert_array_equal(closed[0].rotation, truth[0].rotation)


def test_a_wrong_loop_is_outvoted_by_the_others_and_shows():
    truth = circle()
    estimate = drifted(truth, turn=0.002, growth=0.001)
    steps = [Edge(k, k + 1, relative(estimate[k], estimate[k + 1]), SIGMA) for k in range(len(truth) - 1)]
    steps += [Edge(k, k + 2, relative(estimate[k], estimate[k + 2]), SIGMA) for k in range(len(truth) - 2)]
    good = [Edge(k, 39 - k, relative(truth[k], truth[39 - k]), SIGMA, may_be_wrong=True) for k in range(3)]
    wrong = Edge(10, 30, Similarity.identity(), SIGMA, may_be_wrong=True)
    edges = [*steps, *good, wrong]
    closed = optimise(estimate, edges)
    assert spread(closed, truth) < spread(estimate, truth)
    errors = edge_errors(closed, edges)
    assert errors[-1].max() > 50.0
    assert errors[-4:-1].max() < 3.0
