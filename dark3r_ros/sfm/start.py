# SPDX-License-Identifier: Apache-2.0
"""First poses of all views: which method, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, DependencyError
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.ambiguity import settled_views
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.late import agreeing
from dark3r_ros.sfm.pairs import VerifiedPair, thin_pairs
from dark3r_ros.sfm.progress import Progress, Ticker, quiet
from dark3r_ros.sfm.start_colmap import load_pycolmap, map_by_colmap
from dark3r_ros.sfm.start_own import map_incrementally
from dark3r_ros.sfm.start_pointmaps import align_point_maps, gives_point_maps
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]


# More matches than these are thinned out for the start; fewer are all needed.
_PLENTY = 60_000
# Matches that agree with poses beyond doubt, over those that agree with the geometries of single pairs; below it
# another method gets its chance.
_CLEAR = 0.8
# Keypoints of all views together that a start is made from, unless that leaves too few of each.
_START_TOTAL = 20_000


def first_poses(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    predictor: Predictor,
    config: SfmConfig,
    progress: Progress = quiet,
) -> tuple[dict[int, Array], dict[str, Any]]:
    """Poses camera_from_world by view, and a note of the methods, what each found, and which was taken.

    `auto` takes COLMAP's incremental mapper, which measured best on dark sequences. Where pycolmap is missing, views
    are left out, or many matches disagree with its poses, our own tries as well, and the alignment of point maps where
    the predictor gives them; the poses that more matches agree with win. Where even these explain few, views that
    other starts put elsewhere with nearly as many matches are left out, and listed as `ambiguous`.
    """
    if not pairs:
        return {}, {'method': config.mapper, 'posed': 0}
    verified = [pair.verified() for pair in pairs]
    total = sum(len(pair) for pair in verified)
    everyone = {number for pair in pairs for number in (pair.first, pair.second)}
    chosen = verified if total <= _PLENTY else thin_pairs(verified, _per_view(len(everyone), config.start_points))
    best: dict[int, Array] = {}
    found: dict[str, Any] = {}
    method, most = '', -1
    for name in _methods(predictor, config):
        tick = Ticker(progress, len(everyone), f'start ({name})')
        try:
            poses = _run(name, views, chosen, predictor, config, tick)
        except DependencyError as error:
            if config.mapper != 'auto':
                raise
            found[name] = str(error)
            continue
        finally:
            tick.close()
        support = sum(agreeing(pair, poses, views, config.max_error) for pair in pairs)
        found[name] = {'posed': len(poses), 'agreeing_share': support / total}
        if support > most:
            best, method, most = poses, name, support
        if len(poses) == len(everyone) and support >= _CLEAR * total:
            break
    note: dict[str, Any] = {'method': method, 'posed': len(best), 'tried': found}
    if config.mapper == 'auto' and len(best) > 2 and most < _CLEAR * total:
        settled = settled_views(best, most, pairs, views, config)
        note['ambiguous'] = sorted(set(best) - settled)
        best = {number: pose for number, pose in best.items() if number in settled} if len(settled) > 2 else {}
    return best, note


def _per_view(count: int, most: int) -> int:
    """Keypoints of each view that a start is made from: fewer of each where many views share the work."""
    return min(most, max(100, _START_TOTAL // max(count, 1)))


def _methods(predictor: Predictor, config: SfmConfig) -> list[str]:
    if config.mapper != 'auto':
        return [config.mapper]
    return ['incremental', 'own', *(['pointmaps'] if gives_point_maps(predictor) else [])]


def _run(
    name: str,
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    predictor: Predictor,
    config: SfmConfig,
    tick: Ticker,
) -> dict[int, Array]:
    if name == 'pointmaps':
        if not gives_point_maps(predictor):
            raise ConfigError(f'the predictor {predictor.name} gives no point maps: choose another --mapper')
        return align_point_maps(views, pairs, predictor, config)
    if name == 'own':
        return map_incrementally(views, pairs, config, tick)
    load_pycolmap()
    return map_by_colmap(views, pairs, mode=name, max_error=config.max_error, seed=config.seed, tick=tick)
