# SPDX-License-Identifier: Apache-2.0
"""First poses of all views: which method, and what it found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
from dark3r_ros.sfm.regrow import MOST_TRIALS, Regrown, regrown
from dark3r_ros.sfm.start_colmap import load_pycolmap, map_by_colmap
from dark3r_ros.sfm.start_ordered import Key, OrderedStart, judged_in_order, key_of, start_in_order
from dark3r_ros.sfm.start_own import map_incrementally
from dark3r_ros.sfm.start_pointmaps import align_point_maps, gives_point_maps
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]


# More matches than these are thinned out for the start; fewer are all needed.
_PLENTY = 60_000
# Matches that agree with poses beyond doubt, over those that agree with the geometries of single pairs; below it
# another method gets its chance.
_CLEAR = 0.8
# A chain in time that leaves loops open, with more than this share of the matches, lets the other methods close them.
_OPEN = 0.02
# A chain that contradicts more than this share of the matches may itself be wrong: parts of it are grown again. So are
# parts of other poses that a smaller share agrees with. Not among very many views, as each part takes seconds.
_CONTRADICTED = 0.1
_AGREEING = 0.9
_REGROWN_VIEWS = 150
_REGROWN_POINTS = 200
# Keypoints of all views together that a start is made from, unless that leaves too few of each.
_START_TOTAL = 20_000
# Among more views than these, poses that leave out no more than a share are beyond doubt as well: resection finds the
# rest. Methods whose time grows with the square of the views are not tried.
_MANY = 500
_LEFT_OUT = 0.02


@dataclass(frozen=True, eq=False)
class Start:
    """First poses camera_from_world by view, a note of how they were found, and pairs found to show other places."""

    poses: dict[int, Array]
    note: dict[str, Any]
    refused: frozenset[Key] = frozenset()


def first_poses(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    predictor: Predictor,
    config: SfmConfig,
    progress: Progress = quiet,
    known: Mapping[str, dict[int, Array]] | None = None,
) -> Start:
    """First poses, with a note of the methods, what each found, and which was taken.

    `known` are poses found elsewhere, by the name of their method, that stand for election as well.

    `auto` follows the frames in order of time first. Where that chain stands, pairs that it contradicts are refused:
    they look alike and show different places; where these are many, parts of the chain are grown again from the others,
    in case it is the chain that is wrong. Where it leaves views out, leaves loops open or explains few matches,
    COLMAP's incremental mapper is tried as well, then our own, and the alignment of point maps where the predictor
    gives them; the poses that more matches of the pairs not refused agree with win. Where even these explain few, parts
    of them are grown again as well, and views that other starts put elsewhere with nearly as many matches are left out,
    and listed as `ambiguous`. Beyond 150 views nothing is grown again, beyond 500 neither our own mapper nor these
    other starts are tried.
    """
    if not pairs:
        return Start({}, {'method': config.mapper, 'posed': 0})
    everyone = {number for pair in pairs for number in (pair.first, pair.second)}
    refused: frozenset[Key] = frozenset()
    chain: OrderedStart | None = None
    regrowth: dict[str, Any] = {}
    if config.mapper in ('auto', 'ordered'):
        tick = Ticker(progress, len(everyone), 'start (ordered)')
        chain = start_in_order(views, pairs, config, tick)
        tick.close()
        chain, regrowth = _chain_regrown(chain, pairs, views, config, progress)
        if chain.stands:
            refused = chain.refused
            pairs = [pair for pair in pairs if key_of(pair) not in refused]
    contest = _Contest(views, pairs, everyone, config)
    if chain is not None:
        contest.enter('ordered', chain.poses, {**chain.figures(), **regrowth})
    for name, poses in (known or {}).items():
        contest.enter(name, poses)
    if contest.clear and (chain is None or chain.loops_share <= _OPEN):
        return Start(contest.best, contest.note(), refused)
    verified = [pair.verified() for pair in pairs]
    chosen = (
        verified if contest.total <= _PLENTY else thin_pairs(verified, _per_view(len(everyone), config.start_points))
    )
    for name in _methods(predictor, config, len(everyone)):
        tick = Ticker(progress, len(everyone), f'start ({name})')
        try:
            contest.enter(name, _run(name, views, chosen, predictor, config, tick))
        except DependencyError as error:
            if config.mapper != 'auto':
                raise
            contest.tried[name] = str(error)
        finally:
            tick.close()
        if contest.clear:
            break
    if config.mapper == 'auto' and contest.doubtful(_AGREEING) and len(everyone) <= _REGROWN_VIEWS:
        found = _regrown(contest.best, pairs, views, config, progress)
        contest.enter('grown again', found.state.poses if found.taken else contest.best, _figures(found))
    best, note = contest.best, contest.note()
    if config.mapper == 'auto' and contest.doubtful(_CLEAR) and len(everyone) <= _MANY:
        settled = settled_views(best, contest.most, pairs, views, config)
        note['ambiguous'] = sorted(set(best) - settled)
        best = {number: pose for number, pose in best.items() if number in settled} if len(settled) > 2 else {}
    return Start(best, note, refused)


class _Contest:
    """Poses of several methods, of which those win that most matches agree with."""

    def __init__(
        self, views: Sequence[View], pairs: Sequence[VerifiedPair], everyone: Collection[int], config: SfmConfig
    ) -> None:
        self._views, self._pairs, self._everyone, self._config = views, pairs, everyone, config
        self.total = sum(pair.support for pair in pairs)
        self.best: dict[int, Array] = {}
        self.most = -1
        self.clear = False
        self.tried: dict[str, Any] = {}
        self._method = ''

    def enter(self, name: str, poses: dict[int, Array], figures: Mapping[str, Any] | None = None) -> None:
        """Take poses where more matches agree with them; `clear` says whether they leave no doubt."""
        support = sum(agreeing(pair, poses, self._views, self._config.max_error) for pair in self._pairs)
        self.tried[name] = {'posed': len(poses), 'agreeing_share': support / max(self.total, 1), **(figures or {})}
        if support > self.most:
            self.best, self.most, self._method = poses, support, name
            left_out = len(self._everyone) - len(poses)
            most = int(_LEFT_OUT * len(self._everyone)) if len(self._everyone) > _MANY else 0
            self.clear = left_out <= most and support >= _CLEAR * self.total

    def doubtful(self, share: float) -> bool:
        """Whether less than a share of the matches agrees even with the best poses."""
        return len(self.best) > 2 and self.most < share * self.total

    def note(self) -> dict[str, Any]:
        """What the report says."""
        return {'method': self._method, 'posed': len(self.best), 'tried': self.tried}


def _chain_regrown(
    chain: OrderedStart,
    pairs: Sequence[VerifiedPair],
    views: Sequence[View],
    config: SfmConfig,
    progress: Progress,
) -> tuple[OrderedStart, dict[str, Any]]:
    """The chain, or a better one where it contradicts so much that it may be wrong, and what the report says of it."""
    doubted = chain.stands and chain.refused_share > _CONTRADICTED and len(chain.poses) <= _REGROWN_VIEWS
    if config.mapper != 'auto' or not doubted:
        return chain, {}
    found = _regrown(chain.poses, pairs, views, config, progress, ordered=True)
    if not found.taken:
        return chain, _figures(found)
    # Neighbours fit it as well as they did the chain, or it would not have been taken.
    return replace(judged_in_order(found.state, views, pairs, config), stands=True), _figures(found)


def _regrown(
    poses: Mapping[int, Array],
    pairs: Sequence[VerifiedPair],
    views: Sequence[View],
    config: SfmConfig,
    progress: Progress,
    ordered: bool = False,
) -> Regrown:
    """Poses of which parts were grown again, where more matches agree then."""
    tick = Ticker(progress, MOST_TRIALS, 'start (again)')
    try:
        thinned = thin_pairs([pair.verified() for pair in pairs], _REGROWN_POINTS)
        return regrown(poses, pairs, thinned, views, config, tick, ordered)
    finally:
        tick.close()


def _figures(found: Regrown) -> dict[str, Any]:
    """What the report says of parts that were grown again."""
    return {'parts_grown_again': found.trials, 'parts_kept': found.taken}


def _per_view(count: int, most: int) -> int:
    """Keypoints of each view that a start is made from: fewer of each where many views share the work."""
    return min(most, max(100, _START_TOTAL // max(count, 1)))


def _methods(predictor: Predictor, config: SfmConfig, count: int) -> list[str]:
    if config.mapper == 'ordered':
        return []
    if config.mapper != 'auto':
        return [config.mapper]
    own = ['own'] if count <= _MANY else []
    return ['incremental', *own, *(['pointmaps'] if gives_point_maps(predictor) else [])]


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
