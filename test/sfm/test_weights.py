# SPDX-License-Identifier: Apache-2.0
"""Observations count by how exact they are expected to be; pairs by how far their matches lie apart."""

from dataclasses import replace

import numpy as np
import pytest
from star_world import StarPredictor, camera_path, centre_error, frames

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.graph import complete_graph
from dark3r_ros.sfm.pairs import cells_hit, match_pair, verify
from dark3r_ros.sfm.refine import refine
from dark3r_ros.sfm.tracks import build_tracks, expected_error, merge_stars
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.views import take_view

COUNT = 6
CONFIG = SfmConfig(binning=2)


class Uneven(StarPredictor):
    """Every second match is four times as exact as the others, and its confidence says so."""

    def _match(self, a, b):
        exact, coarse = (StarPredictor(self.poses, noise, 0.0)._match(a, b) for noise in (0.3, 1.2))
        odd = np.arange(len(exact)) % 2 == 1
        assert len(exact) == len(coarse)
        points = [np.where(odd[:, None], one, two) for one, two in zip(_sides(exact), _sides(coarse), strict=True)]
        return replace(exact, points_a=points[0], points_b=points[1], confidence=np.where(odd, 0.9, 0.3))


def _sides(matches):
    return matches.points_a, matches.points_b


@pytest.fixture(scope='module')
def uneven():
    predictor = Uneven(camera_path(COUNT))
    views = [take_view(frame, predictor, CONFIG) for frame in frames(COUNT)]
    pairs = [match_pair(pair, views, predictor, CONFIG) for pair in complete_graph(COUNT)]
    return predictor.poses, views, [pair for pair in pairs if pair is not None]


def test_weights_by_confidence_give_better_poses(uneven):
    poses, views, pairs = uneven
    tracks = build_tracks(views, pairs)
    assert tracks.sigma.min() < 0.5 < 1.0 < tracks.sigma.max()
    rng = np.random.default_rng(1)
    start = {number: se3.exp(0.01 * rng.normal(size=6)) @ se3.inverse(pose) for number, pose in enumerate(poses)}

    def error(seen):
        found = refine(seen, start, views[0].focal, errors=(4.0, 3.0)).poses
        return centre_error(np.stack([se3.inverse(found[number]) for number in range(COUNT)]), poses)

    assert error(tracks) < 0.8 * error(replace(tracks, sigma=np.ones_like(tracks.sigma)))


def test_bounds_are_in_units_of_the_expected_error(uneven):
    poses, views, pairs = uneven
    tracks = build_tracks(views, pairs)
    truth = {number: se3.inverse(pose) for number, pose in enumerate(poses)}
    loose = replace(tracks, sigma=2.0 * tracks.sigma)
    one = triangulate_tracks(tracks, truth, views[0].focal, 3.0, 0.005)
    two = triangulate_tracks(loose, truth, views[0].focal, 1.5, 0.005)
    np.testing.assert_array_equal(one.tracks.pixels, two.tracks.pixels)
    np.testing.assert_allclose(one.points, two.points, atol=1e-6)


def test_a_posed_view_without_any_match_keeps_its_pose(uneven):
    poses, views, pairs = uneven
    tracks = build_tracks(views, [pair for pair in pairs if COUNT - 1 not in (pair.first, pair.second)])
    truth = {number: se3.inverse(pose) for number, pose in enumerate(poses)}
    found = refine(tracks, truth, views[0].focal, errors=(3.0,))
    assert len(found.structure.points) > 20
    np.testing.assert_allclose(found.poses[COUNT - 1], truth[COUNT - 1], atol=1e-12)


def test_expected_errors_fall_with_confidence_and_survive_a_merge(uneven):
    errors = expected_error(np.array([0.0, 0.15, 0.5, 0.7, 1.0]))
    assert (np.diff(errors) <= 0).all() and errors[-1] == pytest.approx(0.6)
    _, views, pairs = uneven
    tracks = build_tracks(views, pairs)
    again = merge_stars(views, tracks, replace(tracks, sigma=9.0 * tracks.sigma))
    np.testing.assert_allclose(again.sigma, tracks.sigma)


def test_a_pair_whose_matches_lie_in_a_patch_is_refused():
    predictor = StarPredictor(camera_path(2), noise=0.3, outliers=0.0)
    views = [take_view(frame, predictor, CONFIG) for frame in frames(2)]
    matches = predictor.match([(0, 1)])[0]
    assert verify((0, 1), views, matches, CONFIG) is not None
    patch = matches.select(np.flatnonzero((np.abs(matches.points_a - (60, 50)) < 26).all(axis=1)))
    assert len(patch) > 2 * CONFIG.min_inliers
    assert verify((0, 1), views, patch, CONFIG) is None
    assert verify((0, 1), views, patch, replace(CONFIG, min_cells=4)) is not None


def test_cells_are_counted_once():
    assert cells_hit(np.array([[-0.5, 3.0], [0.0, 3.0], [15.9, 3.0], [16.0, 3.0], [16.0, 200.0]])) == 4
