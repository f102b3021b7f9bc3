# SPDX-License-Identifier: Apache-2.0
"""The sparse global alignment against arrays that the published one gave on a small problem."""

import numpy as np
import pytest
from star_world import centre_error

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.canonical import canonical_view
from dark3r_ros.sfm.global_align import AlignmentConfig, CrossPoints, GlobalAlignment, PairMatches, pair_scores
from dark3r_ros.sfm.spanning import maximum_tree, ward_tree

VIEWS = range(4)
SHORT = {'coarse_steps': 10, 'fine_steps': 10}


@pytest.fixture(scope='module')
def golden(shared_root):
    folder = shared_root / 'reference' / 'sparse_ga_small'
    return np.load(folder / 'inputs.npz'), np.load(folder / 'outputs.npz')


@pytest.fixture(scope='module')
def problem(golden):
    inputs, _ = golden
    views = [
        canonical_view(
            [inputs[f'X11_{i}_{j}'] for j in VIEWS if j != i], [inputs[f'C11_{i}_{j}'] for j in VIEWS if j != i]
        )
        for i in VIEWS
    ]
    names = [(i, j) for i in VIEWS for j in range(i)]
    matches = [
        PairMatches(i, j, *(inputs[f'corr_{i}_{j}_{part}'] for part in ('xy_i', 'xy_j', 'conf'))) for i, j in names
    ]
    cross = [CrossPoints(j, i, inputs[f'X21_{i}_{j}'], inputs[f'C21_{i}_{j}']) for i in VIEWS for j in VIEWS if i != j]
    return views, matches, cross


def solve(problem, intrinsics=None, **settings):
    alignment = GlobalAlignment(*problem, AlignmentConfig(**settings), intrinsics=intrinsics)
    return (*alignment.run(), alignment.tree)


def relative_rotation_deg(poses, reference):
    """Largest difference of a relative rotation of two views."""
    return max(
        np.degrees(
            se3.rotation_angle(
                (poses[i][:3, :3].T @ poses[j][:3, :3]).T @ reference[i][:3, :3].T @ reference[j][:3, :3]
            )
        )
        for i in VIEWS
        for j in range(i)
    )


def test_canonical_views(golden, problem):
    _, outputs = golden
    for number, view in enumerate(problem[0]):
        assert np.allclose(view.points, outputs[f'stage/canon_{number}'], rtol=1e-5, atol=1e-5)
        assert np.allclose(view.confidence, outputs[f'stage/canon_conf_{number}'], rtol=1e-5)
        assert np.allclose(view.relative, outputs[f'stage/canon2_{number}'], rtol=1e-4, atol=1e-5)
        assert np.allclose(view.core_depth, outputs[f'stage/core_depth_{number}'].ravel(), rtol=1e-5)
        assert view.focal == pytest.approx(float(outputs['stage/base_focals'][number]), rel=1e-5)
        pixels = outputs[f'stage/anchor_pixels_{number}'][:, :2]
        block, relative = view.anchors(pixels)
        assert np.array_equal(block, outputs[f'stage/anchor_idxs_{number}'])
        assert np.allclose(relative, outputs[f'stage/anchor_offsets_{number}'], rtol=1e-4, atol=1e-5)


def test_trees(golden, problem):
    _, outputs = golden
    scores = pair_scores(4, problem[1])
    assert np.array_equal(scores, outputs['stage/pairwise_scores'])
    for name, tree in (('default', ward_tree(scores, np.full(4, 96.0))), ('short_mst', maximum_tree(scores))):
        assert tree.root == int(outputs[f'{name}/mst_root'])
        assert [list(edge) for edge in tree.edges] == outputs[f'{name}/mst_edges'].tolist()


@pytest.mark.parametrize(('name', 'settings'), [('short', {}), ('short_mst', {'tree': 'maximum'})])
def test_short_runs_step_by_step(golden, problem, name, settings):
    _, outputs = golden
    coarse, fine, _ = solve(problem, **SHORT, **settings)
    assert np.allclose(coarse.losses, outputs[f'{name}/loss_coarse'], rtol=3e-5)
    assert np.allclose(fine.losses, outputs[f'{name}/loss_fine'], rtol=3e-5)
    for stage, result in (('coarse', coarse), ('fine', fine)):
        reference = outputs[f'{name}/{stage}_cam2w'].astype(np.float64)
        assert relative_rotation_deg(result.world_from_camera, reference) < 2e-3
        assert centre_error(result.world_from_camera, reference) < 1e-4
        assert np.allclose(result.intrinsics, outputs[f'{name}/{stage}_K'], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ('name', 'settings', 'known'),
    [
        ('default', {}, False),
        ('thr0', {'match_confidence': 0.0}, False),
        ('nodepth', {'move_depth': False}, False),
        ('shared', {'shared_intrinsics': True}, False),
        ('knownK', {'move_centre': False}, True),
    ],
)
def test_full_runs_end_where_the_published_one_does(golden, problem, name, settings, known):
    inputs, outputs = golden
    coarse, fine, _ = solve(problem, inputs['gt_K'] if known else None, **settings)
    assert coarse.losses[0] == pytest.approx(outputs[f'{name}/loss_coarse'][0], rel=1e-5)
    assert coarse.losses[-1] == pytest.approx(outputs[f'{name}/loss_coarse'][-1], rel=1e-3)
    assert fine.losses[-1] == pytest.approx(outputs[f'{name}/loss_fine'][-1], rel=1e-3)
    truth = inputs['gt_cam2w']
    official = centre_error(outputs[f'{name}/fine_cam2w'].astype(np.float64), truth)
    assert centre_error(fine.world_from_camera, truth) < official + 0.002


def test_fixed_intrinsics_do_not_drift_and_serve_the_poses(golden, problem):
    inputs, outputs = golden
    _, fine, _ = solve(problem, inputs['gt_K'], fix_intrinsics=True)
    assert np.allclose(fine.intrinsics, inputs['gt_K'], rtol=1e-9)
    drifted = outputs['knownK/fine_K'][:, 0, 0] / inputs['gt_K'][:, 0, 0] - 1.0
    assert np.abs(drifted).max() > 0.03
    _, held, _ = solve(problem, inputs['gt_K'], focal_prior=100.0, move_centre=False)
    assert np.abs(held.intrinsics[:, 0, 0] / inputs['gt_K'][:, 0, 0] - 1.0).max() < 0.5 * np.abs(drifted).max()
