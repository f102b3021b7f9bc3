# SPDX-License-Identifier: Apache-2.0
"""Trees over views along which poses are chained, from how much each pair has in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import squareform

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """Root and edges (parent, child), parents before their children."""

    root: int
    edges: tuple[tuple[int, int], ...]


def ward_tree(scores: Array, blocks: Array) -> Tree:
    """Tree from Ward's clustering of views; `scores` (n, n) are numbers of matches, `blocks` (n,) those of 8x8 blocks.

    Each cluster is represented by the view that has most in common with the others; merging two joins these.
    """
    count = len(scores)
    smaller = np.minimum(blocks[:, None], blocks[None])
    affinity = np.minimum(scores / (3.0 * smaller), 1.0)
    np.fill_diagonal(affinity, 1.0)
    distance = np.where(affinity == 0, 2.0, 1.0 - affinity)
    np.fill_diagonal(distance, 0.0)
    heads: list[tuple[int, Array]] = [(number, affinity[number]) for number in range(count)]
    weights = np.zeros((count, count))
    np.fill_diagonal(weights, -1.0)
    for merge in linkage(squareform(distance, checks=False), method='ward'):
        (first, row_first), (second, row_second) = heads[int(merge[0])], heads[int(merge[1])]
        weights[first, second] = weights[second, first] = -1.0
        head = first if row_first.sum() > row_second.sum() else second
        heads.append((head, np.maximum(row_first, row_second)))
    return _rooted(minimum_spanning_tree(csr_matrix(weights)))


def maximum_tree(scores: Array) -> Tree:
    """Maximum spanning tree of the scores (n, n)."""
    return _rooted(minimum_spanning_tree(csr_matrix(-np.asarray(scores, dtype=np.float64))))


def _rooted(tree: csr_matrix) -> Tree:
    """Root a tree at the node in its middle: the one latest visited from both of its ends."""
    count = tree.shape[0]

    def ranks(start: int) -> tuple[NDArray[np.int64], int]:
        order, _ = breadth_first_order(tree, start, directed=False)
        rank = np.zeros(count, dtype=np.int64)
        rank[order] = np.arange(len(order))
        return rank, int(order[-1])

    _, end = ranks(0)
    first, other = ranks(end)
    second, _ = ranks(other)
    root = int(np.minimum(first, second).argmax())
    order, parents = breadth_first_order(tree, root, directed=False)
    return Tree(root, tuple((int(parents[node]), int(node)) for node in order[1:]))
