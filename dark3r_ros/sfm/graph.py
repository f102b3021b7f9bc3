# SPDX-License-Identifier: Apache-2.0
"""Which pairs of views are matched: all of a small set, a number that grows with the views of a large one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.matching.retrieval import similarity
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.views import View

Likeness = NDArray[np.float32]


def complete_graph(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` views, near ones in time first."""
    return [(number, number + step) for step in range(1, count) for number in range(count - step)]


def pair_graph(views: Sequence[View], config: SfmConfig) -> list[tuple[int, int]]:
    """Pairs of usable views worth matching, in a fixed order.

    Beyond `complete_views` views: neighbours in time, the views that look most alike, and anchor views spread over the
    set, which hold its far ends together.
    """
    usable = [number for number, view in enumerate(views) if view.usable]
    if len(usable) <= config.complete_views:
        return [(usable[a], usable[b]) for a, b in complete_graph(len(usable))]
    features = [views[number].features for number in usable]
    likeness = similarity([one for one in features if one is not None])
    pairs = set(_temporal(len(usable), config.temporal_window))
    if likeness is not None:
        anchors = farthest_points(likeness, max(2, int(np.sqrt(len(usable)))))
        pairs |= _nearest(likeness, config.nearest_views)
        pairs |= _anchored(likeness, anchors)
    return [(usable[a], usable[b]) for a, b in sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair[0]))]


def _temporal(count: int, window: int) -> list[tuple[int, int]]:
    """Next neighbours, and a few at twice, four times, ... the window, against slow drift."""
    steps = [*range(1, window + 1), 2 * window, 4 * window]
    return [(number, number + step) for step in steps for number in range(count - step)]


def _nearest(likeness: Likeness, most: int) -> set[tuple[int, int]]:
    own = likeness.copy()
    np.fill_diagonal(own, -np.inf)
    order = np.argsort(-own, axis=1, kind='stable')[:, :most]
    return {(min(a, int(b)), max(a, int(b))) for a, row in enumerate(order) for b in row}


def _anchored(likeness: Likeness, anchors: Sequence[int]) -> set[tuple[int, int]]:
    """All pairs of anchors, and every view with the anchor most like it."""
    pairs = {(min(a, b), max(a, b)) for a in anchors for b in anchors if a != b}
    closest = np.array(anchors)[likeness[:, list(anchors)].argmax(axis=1)]
    return pairs | {(min(a, int(b)), max(a, int(b))) for a, b in enumerate(closest) if a != b}


def farthest_points(likeness: Likeness, count: int) -> list[int]:
    """Views spread over the set: each next one is least like those chosen before; the first is most like all."""
    chosen = [int(likeness.sum(axis=1).argmax())]
    closest = likeness[chosen[0]].copy()
    while len(chosen) < count:
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, likeness[chosen[-1]])
    return sorted(set(chosen))


def quality(view: View) -> float:
    """How much of a view can be matched: the sum of the reliabilities of its keypoints, or their number."""
    reliability = getattr(view.features, 'reliability', None)
    if reliability is not None:
        return float(reliability.float().sum())
    keypoints = getattr(view.features, 'keypoints', None)
    return float('nan') if keypoints is None else float(len(keypoints))


def poor_views(views: Sequence[View], share: float) -> set[int]:
    """Views with less than a share of the median quality: too dark, blurred or empty to build upon."""
    values = np.array([quality(view) if view.usable else np.nan for view in views])
    if not np.isfinite(values).any():
        return set()
    return set(np.flatnonzero(values < share * np.nanmedian(values)).tolist())
