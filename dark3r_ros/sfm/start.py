# SPDX-License-Identifier: Apache-2.0
"""First poses of all views: which method, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DependencyError
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.start_colmap import load_pycolmap, map_by_colmap
from dark3r_ros.sfm.start_own import map_incrementally
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]


def first_poses(
    views: Sequence[View], pairs: Sequence[VerifiedPair], config: SfmConfig
) -> tuple[dict[int, Array], dict[str, Any]]:
    """Poses camera_from_world by view, and a note of the method and of how many views it posed.

    `auto` takes COLMAP's incremental mapper, which measured best on dark sequences, and our own where pycolmap is
    missing or finds less than half of the views.
    """
    if not pairs:
        return {}, {'method': config.mapper, 'posed': 0}
    methods = ['incremental', 'own'] if config.mapper == 'auto' else [config.mapper]
    enough = 0.5 * len({number for pair in pairs for number in (pair.first, pair.second)})
    best: dict[int, Array] = {}
    method, remarks = methods[0], []
    for name in methods:
        try:
            poses = _run(name, views, pairs, config)
        except DependencyError as error:
            if config.mapper != 'auto':
                raise
            remarks.append(str(error))
            continue
        if len(poses) > len(best):
            best, method = poses, name
        if len(best) >= enough:
            break
    return best, {'method': method, 'posed': len(best), 'remarks': remarks}


def _run(name: str, views: Sequence[View], pairs: Sequence[VerifiedPair], config: SfmConfig) -> dict[int, Array]:
    if name == 'own':
        return map_incrementally(views, pairs, config)
    load_pycolmap()
    return map_by_colmap(views, pairs, mode=name, max_error=config.max_error, seed=config.seed)
