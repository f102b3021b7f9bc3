# SPDX-License-Identifier: Apache-2.0
"""A doubtful map of a short recording stands for election against what `sfm` makes of all pairs of its views.

What was followed into a wrong shape, no adjustment mends; and where views lie a wide step apart nothing is followed at
all. All pairs of views together tell. The map that more matches agree with is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import Dark3rError
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.finishing import MatchedAgain, all_agreeing, sfm_view
from dark3r_ros.mapping.recording import hanging
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import View
from dark3r_ros.matching.mini import MiniMatchConfig, MiniPredictor
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm import views as sfm_views
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.pipeline import SfmRun, Solution
from dark3r_ros.sfm.progress import Progress

Array = NDArray[np.float64]
Poses = dict[int, Array]

TRACKED = 'tracked'
_LEAST_VIEWS = 3
_POSED = 0.95  # share of the views that a map beyond doubt has poses of
# Matches of the pairs that the map was adjusted by which another one must agree with, over those that agree with the
# map: a path that folds where places look alike has most matches of all pairs, but not of neighbours.
_NEAR_SHARE = 0.97


@dataclass(frozen=True, eq=False)
class Verdict:
    """Whether another map was looked for, and what came of it.

    Attributes
    ----------
    note: for the report. solution: what takes the place of the map, its numbers those of `views`; None keeps it.
    warnings: lines that the user should read.

    """

    note: dict[str, Any] = field(default_factory=dict)
    views: Sequence[View] = ()
    solution: Solution | None = None
    warnings: Sequence[str] = ()


def look_again(
    views: Sequence[View],
    atlas: Atlas,
    log: PoseLog,
    matched: MatchedAgain | None,
    predictor: Predictor,
    config: MappingConfig,
    progress: Progress,
) -> Verdict:
    """Compare the map with what `sfm` makes of all views of a recording, where it is doubtful.

    `matched` are the pairs that the map was matched again by. What cannot be done, for want of space say, leaves the
    map as it is.
    """
    if not isinstance(predictor, MiniPredictor) or not config.doubtful_share or len(views) < _LEAST_VIEWS:
        return Verdict()
    tracked = tracked_poses(views, atlas, log)
    near = [] if matched is None else _renumbered(matched, views)
    seen = [sfm_view(view) for view in views]
    share = _share(near, tracked, seen, config.max_error)
    note: dict[str, Any] = {'method': TRACKED, 'posed': len(tracked), 'views': len(views), 'agreeing_share': share}
    doubt = doubt_of(len(tracked), len(views), share, config.doubtful_share)
    if not doubt:
        return Verdict(note)
    note['doubt'] = doubt
    options = SfmConfig(max_error=config.max_error, dense=False)
    run = SfmRun(options, predictor.with_config(_generous(predictor)), progress=progress)
    try:
        solution = run.solve(seen, {TRACKED: tracked} if len(tracked) >= 2 else {})
    except (Dark3rError, OSError) as error:
        return Verdict({**note, 'failed': str(error)}, warnings=[_warning(doubt, f'no other could be made: {error}')])
    before, after = (all_agreeing(solution.pairs, poses, seen, config.max_error) for poses in (tracked, solution.poses))
    near_before, near_after = (all_agreeing(near, poses, seen, config.max_error) for poses in (tracked, solution.poses))
    taken = after > before and near_after >= _NEAR_SHARE * near_before
    start = run.notes.get('start', {})
    note |= {
        'method': start.get('method', 'none') if taken else TRACKED,
        'taken': taken,
        'tried': start.get('tried', {}),
        'matches': sum(pair.support for pair in solution.pairs),
        'agreeing_tracked': before,
        'agreeing_anew': after,
        'posed_anew': len(solution.poses),
        'stages_s': run.seconds,
    }
    if taken:
        # The same option has another name here.
        return Verdict(note, views, solution, [line.replace('--scale-odometry', '--odometry') for line in run.warnings])
    warnings = [_warning(doubt, 'no other start gave a better one')] if tracked else []
    return Verdict(note, warnings=warnings)


def doubt_of(posed: int, views: int, share: float | None, least_share: float) -> str:
    """Why a map is doubtful that poses some of the views and that a share of its matches agrees with, or nothing."""
    if not posed:
        return 'the camera could not be followed'
    if posed < _POSED * views:
        return f'{views - posed} of {views} views have no pose'
    if share is not None and share < least_share:
        return f'only {100 * share:.0f} % of the matches agree with it'
    return ''


def tracked_poses(views: Sequence[View], atlas: Atlas, log: PoseLog) -> Poses:
    """Poses camera_from_world of those views that the largest submap holds, by their number."""
    place = {view.stamp_ns: number for number, view in enumerate(views)}
    posed = hanging(views, atlas.largest(log), log)
    return {place[one.view.stamp_ns]: one.camera_from_world for one in posed}


def _generous(predictor: MiniPredictor) -> MiniMatchConfig:
    """Settings that keep doubtful matches as well: offline there is time to verify them."""
    return replace(
        predictor.config,
        min_confidence=min(predictor.config.min_confidence, OFFLINE_MINI.min_confidence),
        max_matches=OFFLINE_MINI.max_matches,
        max_keypoints=OFFLINE_MINI.max_keypoints,
    )


def _renumbered(matched: MatchedAgain, views: Sequence[View]) -> list[VerifiedPair]:
    """Pairs whose numbers are those of `views`."""
    place = {view.stamp_ns: number for number, view in enumerate(views)}
    number = [place[stamp_ns] for stamp_ns in matched.stamps_ns]
    return [replace(pair, first=number[pair.first], second=number[pair.second]) for pair in matched.pairs]


def _share(
    pairs: Sequence[VerifiedPair], poses: Mapping[int, Array], views: Sequence[sfm_views.View], max_error: float
) -> float | None:
    total = sum(pair.support for pair in pairs)
    return None if not total else all_agreeing(pairs, poses, views, max_error) / total


def _warning(doubt: str, outcome: str) -> str:
    return f'the map is doubtful ({doubt}), and {outcome}'
