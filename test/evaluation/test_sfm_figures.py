# SPDX-License-Identifier: Apache-2.0
"""What the page of `dark3r sfm` adds: pairs, best and worst matches, the start, frames set aside."""

import cv2
import numpy as np
import pytest
from evaluation_helpers import make_reconstruction

from dark3r_ros.evaluation.report import write_report
from dark3r_ros.evaluation.sfm_figures import set_aside_table, sfm_figures, sfm_rows
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.views import View
from dark3r_ros.storage.result import build_report

CAMERA = Camera(160, 120, 140.0, 140.0, 79.5, 59.5)


def pair_of(reconstruction, first, second, wrong):
    """Exact matches of random points, of which a share lies elsewhere."""
    rng = np.random.default_rng([first, second])
    poses = [se3.inverse(reconstruction.frames[number].world_from_camera) for number in (first, second)]
    local = np.column_stack([rng.uniform(-1, 1, (200, 2)), rng.uniform(3, 6, 200)])
    world = se3.transform_points(se3.inverse(poses[0]), local)
    pixels = [CAMERA.project(se3.transform_points(pose, world)) for pose in poses]
    pixels[1][: int(200 * wrong)] += rng.uniform(20, 40, (int(200 * wrong), 2))
    nothing = np.full(200, -1)
    relative = poses[1] @ se3.inverse(poses[0])
    agrees = np.arange(200) >= int(200 * wrong)
    return VerifiedPair(first, second, *pixels, nothing, nothing, True, np.ones(200), agrees, relative, 0.1, 200)


@pytest.fixture
def made():
    reconstruction = make_reconstruction()
    posed = [k for k, frame in enumerate(reconstruction.frames) if frame.world_from_camera is not None]
    colors = np.full((120, 160, 3), 90, np.uint8)
    views = [View(frame.stamp_ns, frame.name, CAMERA, CAMERA, None, colors) for frame in reconstruction.frames]
    shares = (0.0, 0.1, 0.6, 0.3)
    pairs = [pair_of(reconstruction, posed[k], posed[k + 1], wrong) for k, wrong in enumerate(shares)]
    return reconstruction, views, pairs


def test_green_and_red_of_the_pairs_follow_their_matches(made):
    reconstruction, views, pairs = made
    figures = sfm_figures(reconstruction, views, pairs, 2.0)
    assert set(figures) == {'pairs', 'pair_matches'}
    shown = cv2.imdecode(np.frombuffer(figures['pair_matches'], np.uint8), cv2.IMREAD_COLOR).astype(int)
    blue, green, red = shown[..., 0], shown[..., 1], shown[..., 2]
    upper, lower = slice(0, len(shown) // 2), slice(len(shown) // 2, None)
    wrong = (red > green + 60) & (red > blue + 60)
    assert wrong[lower].sum() > 5 * max(wrong[upper].sum(), 1)  # the worst pairs are below
    empty = sfm_figures(reconstruction, views, [], 2.0)
    assert set(empty) == {'pairs'}


def test_the_page_says_which_start_was_taken_and_who_was_set_aside(made, tmp_path):
    reconstruction, views, pairs = made
    notes = {
        'pairs': {'tried': 9, 'verified': 4, 'matches': 800},
        'start': {
            'method': 'own',
            'tried': {
                'incremental': {'posed': 3, 'agreeing_share': 0.41},
                'own': {'posed': 5, 'agreeing_share': 0.83},
                'grown again': {'posed': 5, 'agreeing_share': 0.83, 'parts_grown_again': 8, 'parts_kept': 0},
            },
        },
        'focal': {'wanted_scale': 1.25, 'deviation': 0.01, 'contradicts': True},
        'scale': {'deviation': 0.07, 'ends': (0, 3, 5), 'noise': (0.02,), 'common': (-0.067,)},
        'held': {'taken': True, 'agreeing': 0.98, 'drift': 1.12, 'steps': 30, 'slipped': 0.1},
    }
    rows = dict(sfm_rows(notes))
    assert rows['Start by own incremental mapper'].endswith('0.83 of the verified (taken)')
    assert rows['Start by the best of these, parts of it grown again'].endswith('8 parts grown again, 0 kept')
    assert rows['Scale along the path'].startswith('+- 2.0 %')
    assert '6.7 % by common' in rows['Scale along the path']
    assert rows['Drift of the scale by odometry'] == '12.0 % between two places, from 30 steps: taken out'
    assert not rows["Start by COLMAP's incremental mapper"].endswith('(taken)')
    report = build_report(reconstruction, {'sfm': notes, 'wall_s': 1.0})
    report['per_frame'].append({'name': 'dark.png', 'posed': False, 'reason': 'all pixels are <black>'})
    page = write_report(tmp_path, reconstruction, report, further=sfm_figures(reconstruction, views, pairs, 2.0))
    text = page.read_text()
    assert 'all pixels are &lt;black&gt;' in text and 'dark.png' in text
    assert text.count('alt="pair graph"') == text.count('alt="matches of pairs"') == 1
    again = write_report(tmp_path, reconstruction, report).read_text()
    assert 'alt="pair graph"' in again  # kept when the page is made anew, as by `dark3r evaluate`


def test_nobody_set_aside_is_not_mentioned():
    assert set_aside_table([{'posed': True}, {'posed': True}]) == ''
    assert sfm_rows({}) == []
