# SPDX-License-Identifier: Apache-2.0
"""How far a long drive drifts: at its end, and over pieces of a given length.

Poses are aligned with their turns. The centres of a nearly straight beginning alone leave the turn about it open, which
moves the far end by any amount.
Source of the pieces: Geiger et al., Are we ready for Autonomous Driving? The KITTI Vision Benchmark Suite, CVPR 2012.
"""

from __future__ import annotations

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.types import Float64Array

_MIN_POSES = 3


def way(truth: Float64Array) -> Float64Array:
    """Metres travelled up to each of the poses (N, 4, 4)."""
    steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def end_drift(estimate: Float64Array, truth: Float64Array, head: float) -> float:
    """Distance of the last of associated poses (N, 4, 4) from its true place, in units of the truth.

    Place, turn and scale are those that fit the first `head` (a share) of the poses.
    """
    count = max(_MIN_POSES, round(head * len(estimate)))
    own, true = estimate[:count], truth[:count]
    turn = se3.normalised(se3.make((true[:, :3, :3] @ own[:, :3, :3].transpose(0, 2, 1)).mean(axis=0), np.zeros(3)))
    middle, true_middle = own[:, :3, 3].mean(axis=0), true[:, :3, 3].mean(axis=0)
    scale = np.linalg.norm(true[:, :3, 3] - true_middle) / np.linalg.norm(own[:, :3, 3] - middle)
    end = scale * turn[:3, :3] @ (estimate[-1, :3, 3] - middle) + true_middle
    return float(np.linalg.norm(end - truth[-1, :3, 3]))


def piece_drift(estimate: Float64Array, truth: Float64Array, metres: float) -> float:
    """Mean error of the motion over pieces of the way, as a share of their length; NaN for a shorter way.

    Every piece is seen from its first pose; the scale is the one that fits all poses best.
    """
    travelled = way(truth)
    ends = np.searchsorted(travelled, travelled + metres)
    first = np.flatnonzero(ends < len(truth))
    if len(first) == 0:
        return float('nan')
    scale = umeyama(estimate[:, :3, 3], truth[:, :3, 3])[0]
    second = ends[first]
    moved = (se3.inverse(estimate[first]) @ estimate[second])[:, :3, 3]
    true = (se3.inverse(truth[first]) @ truth[second])[:, :3, 3]
    return float((np.linalg.norm(scale * moved - true, axis=1) / (travelled[second] - travelled[first])).mean())
