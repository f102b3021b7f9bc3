# SPDX-License-Identifier: Apache-2.0
"""Settings of the offline reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

from dark3r_ros.config import Config, setting
from dark3r_ros.matching.mini import MiniMatchConfig

# Offline there is time to verify doubtful matches, and four in ten of the least confident are right at -4 dB.
OFFLINE_MINI = MiniMatchConfig(min_confidence=0.003, max_matches=0, max_keypoints=0)


@dataclass(frozen=True)
class SfmConfig(Config):
    """Settings of `dark3r sfm`; pixels are those of the binned planes."""

    binning: int = setting(
        0, 'Side of the block of raw pixels averaged into one value; 0 chooses one for network_width.', minimum=0
    )
    network_width: int = setting(320, 'Width that the automatic binning aims at.', unit='px', minimum=64, maximum=4096)
    complete_views: int = setting(60, 'All pairs are matched in sets of no more views than these.', minimum=2)
    temporal_window: int = setting(3, 'Neighbours in time that each view of a large set is matched with.', minimum=1)
    nearest_views: int = setting(
        8, 'Views that look most alike that each view of a large set is matched with.', minimum=0, maximum=200
    )
    pair_matches: int = setting(800, 'Most confident matches kept of a pair; 0 keeps all.', minimum=0)
    poor_share: float = setting(
        0.25,
        'Views with less than this share of the median matchable content take no part in the start.',
        minimum=0.0,
        maximum=1.0,
    )
    min_inliers: int = setting(20, 'Fewest matches that must agree with the geometry of a pair.', minimum=8)
    min_inlier_share: float = setting(
        0.12, 'Smallest share of the matches of a pair that must agree with its geometry.', minimum=0.0, maximum=1.0
    )
    min_cells: int = setting(
        22,
        'Fewest cells of 16x16 pixels, in either view, that the matches agreeing with a pair must lie in.',
        minimum=1,
    )
    min_agreement: float = setting(
        0.6,
        'Smallest share of the matches of a view that must agree with the final poses; below it the view is set aside.',
        minimum=0.0,
        maximum=1.0,
    )
    max_error: float = setting(
        2.0, 'Largest reprojection or epipolar error of an inlier.', unit='px', minimum=0.1, maximum=20.0
    )
    mapper: str = setting(
        'auto',
        'How first poses are found: along the order of time, by COLMAP global or incremental mapper, our own, '
        'alignment of point maps, or the best of them.',
        choices=('auto', 'ordered', 'global', 'incremental', 'own', 'pointmaps'),
    )
    fix_intrinsics: bool = setting(
        True, 'Hold the focal length; false corrects it by the matches, and finds it for frames without calibration.'
    )
    focal_prior: float = setting(
        10.0, 'Weight of changes of the focal length in the alignment of point maps, where not held.', minimum=0.0
    )
    start_points: int = setting(
        300, 'Keypoints of each view, found in most pairs, that the first poses are made from.', minimum=50
    )
    min_parallax: float = setting(
        0.3, 'Smallest triangulation angle of a point.', unit='deg', minimum=0.0, maximum=20.0
    )
    rematch_rounds: int = setting(1, 'Rounds of guided matching with known poses.', minimum=0, maximum=10)
    pool: bool = setting(
        True, 'Adjust the poses a last time by the likelihood of all places, with a predictor that can (mini).'
    )
    dense: bool = setting(True, 'Make depth maps and a dense cloud, with a predictor that can (mini).')
    seed: int = setting(0, 'Seed of everything random.', minimum=0)
