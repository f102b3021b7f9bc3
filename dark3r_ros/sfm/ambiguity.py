# SPDX-License-Identifier: Apache-2.0
"""Views whose poses the matches leave open: other starts, explained nearly as well, put them elsewhere.

Where matches are few and coarse and the scene is nearly flat, quite different poses explain them equally well, and no
threshold on the matches tells the right ones. Maps that grew from other pairs of views do: what all good ones agree
upon is held by the matches, what they contradict is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import agreeing
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.start_own import grow, seed_pairs
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]

_RIVALS = 4
# A rival counts when at least this share of the matches that agree with the best poses agrees with its own.
_NEARLY = 0.9
_SAME_DEG = 5.0


def settled_views(
    poses: Mapping[int, Array],
    support: int,
    pairs: Sequence[VerifiedPair],
    views: Sequence[View],
    config: SfmConfig,
) -> set[int]:
    """Views of `poses` whose relative rotations rivals with nearly as much support share.

    `support` is the number of matches that agree with the poses.
    """
    settled = set(poses)
    tracks = build_tracks(views, pairs)
    for seed in seed_pairs(pairs, _RIVALS):
        rival = grow(seed, tracks, views, config)
        shared = [pair for pair in pairs if pair.first in rival and pair.second in rival]
        own = sum(agreeing(pair, poses, views, config.max_error) for pair in shared)
        theirs = sum(agreeing(pair, rival, views, config.max_error) for pair in shared)
        if own >= _NEARLY * support and theirs >= _NEARLY * own:
            settled &= consistent_views(poses, rival) | (settled - set(rival))
    return settled


def consistent_views(first: Mapping[int, Array], second: Mapping[int, Array]) -> set[int]:
    """Largest set found of views that keep their rotations to one another, within a few degrees, in both."""
    common = sorted(set(first) & set(second))
    if not common:
        return set()
    turns = np.stack([se3.inverse(first[number])[:3, :3] @ second[number][:3, :3] for number in common])
    # The turn between the two worlds, as each view sees it: right views see the same one.
    cosine = 0.5 * (np.einsum('aij,bij->ab', turns, turns) - 1.0)
    same = cosine >= np.cos(np.radians(_SAME_DEG))
    centre = int(same.sum(axis=1).argmax())
    return {number for number, fits in zip(common, same[centre], strict=True) if fits}
