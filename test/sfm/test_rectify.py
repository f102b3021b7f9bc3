# SPDX-License-Identifier: Apache-2.0
"""Pictures of one view as another would see them, against exact depth and exact motion."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dark3r_ros.geometry import se3
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.rectify import Transfer, believable, rectified, relief_of, smooth_inverse_depth, transfer
from dark3r_ros.sfm.rematch import project
from dark3r_ros.sfm.views import take_view
from dark3r_ros.simulation.sequence import SimulationConfig, simulate


@pytest.fixture(scope='module')
def lit_room():
    """Two views of a lit room a second apart, their true poses (camera_from_world), and the true depth of the first."""
    scene = SimulationConfig(scene='room', width=640, height=480, seconds=1.0, rate=2.0, clean=True)
    made = list(simulate(scene))
    predictor = MiniPredictor(config=OFFLINE_MINI, device='cpu')
    views = [take_view(one.frame, predictor, SfmConfig()) for one in made]
    poses = {number: se3.inverse(one.world_from_camera) for number, one in enumerate(made)}
    return views, poses, made[0].depth


def between(views, poses, inverse):
    """Where the pixels of the first view lie in the second."""
    return transfer(relief_of(views[0], inverse), views[1], poses[1] @ se3.inverse(poses[0]))


def grid(step=7):
    x, y = np.meshgrid(np.arange(10.0, 310.0, step), np.arange(10.0, 230.0, step))
    return np.column_stack([x.ravel(), y.ravel()])


def world_points(view, camera_from_world, pixels, depth):
    rays = np.column_stack([view.normalised(pixels), np.ones(len(pixels))])
    return se3.transform_points(se3.inverse(camera_from_world), rays * depth[:, None])


def test_places_are_those_of_the_points_at_that_depth(lit_room):
    views, poses, depth = lit_room
    pixels = grid()
    column, row = pixels.astype(int).T
    expected = project(views[1], poses[1], world_points(views[0], poses[0], pixels, depth[row, column].astype(float)))
    found = between(views, poses, 1.0 / depth).at(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_rectified_picture_looks_like_the_other_view(lit_room):
    views, poses, depth = lit_room
    moved = rectified(views[1].planes, between(views, poses, 1.0 / depth))
    inner = (slice(None), slice(20, -20), slice(20, -20))

    def unlike(values):
        own = views[0].planes.values[inner]
        return np.median(np.abs(values[inner] - own)) / own.std()

    assert moved.values.shape == views[0].planes.values.shape
    assert unlike(moved.values) < 0.5 * unlike(views[1].planes.values)


def test_what_the_other_view_does_not_see_is_its_mean(lit_room):
    planes = lit_room[0][1].planes
    height, width = planes.values.shape[1:]
    moved = rectified(planes, Transfer(np.full((height, width, 2), -1e4, np.float32)))
    expected = planes.values.mean(axis=(1, 2))[:, None, None]
    np.testing.assert_allclose(moved.values, np.broadcast_to(expected, moved.values.shape), rtol=1e-5)


def test_slopes_are_those_of_the_places(lit_room):
    views, poses, _ = lit_room
    height, width = views[0].camera.height, views[0].camera.width
    found = between(views, poses, np.full((height, width), 0.4))
    pixels, aside = grid(40), np.array([4.0, -5.0])
    expected = found.at(pixels + aside) - found.at(pixels)
    np.testing.assert_allclose(np.einsum('mij,j->mi', found.slope(pixels), aside), expected, atol=0.1)
    assert believable(found.slope(pixels)).all()
    assert not believable(np.array([[[1.0, 0.0], [0.0, -1.0]], [[9.0, 0.0], [0.0, 9.0]]])).any()


def test_the_smooth_depth_of_a_slanted_wall(lit_room):
    view, pose = lit_room[0][0], np.eye(4)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 1, (800, 2)) * (view.camera.width, view.camera.height)

    def inverse_at(places):
        x, y = view.normalised(places).T
        return 0.4 + 0.1 * x - 0.05 * y

    inverse = inverse_at(pixels)
    wrong = rng.choice(800, 40, replace=False)
    measured = inverse.copy()
    measured[wrong] *= 3.0
    found = smooth_inverse_depth(view, pose, pixels, world_points(view, pose, pixels, 1.0 / measured))
    places = grid()
    column, row = places.astype(int).T
    np.testing.assert_allclose(found[row, column], inverse_at(places), rtol=0.03)


def test_few_points_make_no_depth(lit_room):
    view = lit_room[0][0]
    points = np.random.default_rng(1).uniform(1.0, 2.0, (9, 3))
    assert smooth_inverse_depth(view, np.eye(4), np.full((9, 2), 50.0), points) is None
    assert smooth_inverse_depth(view, np.eye(4), np.full((20, 2), 50.0), np.full((20, 3), -1.0)) is None


def test_points_at_infinity_stay_where_the_turn_puts_them(lit_room):
    views, poses, _ = lit_room
    bare = [dataclasses.replace(view, planes=None) for view in views]
    height, width = views[0].camera.height, views[0].camera.width
    found = between(bare, poses, np.zeros((height, width)))
    pixels = grid(30)
    far = world_points(views[0], poses[0], pixels, np.full(len(pixels), 1e7))
    np.testing.assert_allclose(found.at(pixels), project(views[1], poses[1], far), atol=1e-2)
