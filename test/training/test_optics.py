# SPDX-License-Identifier: Apache-2.0
"""Blur out of focus and highlights against closed forms."""

import numpy as np
import pytest
import torch

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.render import Rendering
from dark3r_ros.simulation.views import views_of
from dark3r_ros.training.optics import blurred, highlights, through_lens

CAMERA = Camera(81, 61, 70.0, 70.0, 40.0, 30.0)


def wall(*, x=0.0, distance=2.0, yaw=0.0):
    """The plane z = distance of the world, seen by a camera at (x, 0, 0) turned about its y axis by yaw."""
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    pose[0, 3] = x
    views = views_of(CAMERA, pose)
    u, v = views.axes(torch.float32)
    ray_z = pose[2, 0] * u[:, None, :] + pose[2, 1] * v[:, :, None] + pose[2, 2]
    normal = torch.from_numpy(pose[:3, :3].T @ [0.0, 0.0, -1.0]).float()
    size = (CAMERA.height, CAMERA.width)
    depth, normals = (distance / ray_z).expand(1, *size), normal[None, :, None, None].expand(1, 3, *size)
    return views, Rendering(torch.ones(1, 3, *size), depth, normals)


def brightest(light):
    place = int(light[0, 0].argmax())
    return place % light.shape[3], place // light.shape[3]


@pytest.mark.parametrize('sigma', [0.5, 1.0, 1.4, 2.0])
def test_a_point_spreads_by_the_variance_asked_for(sigma):
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1.0
    spot = blurred(point, torch.full((1, 41, 41), sigma))[0, 0].double()
    at = torch.arange(41) - 20.0
    assert float(spot.sum()) == pytest.approx(1.0, abs=1e-4)
    # A kernel cut at three standard deviations lacks 3 % of its variance.
    assert float((spot.sum(0) * at**2).sum()) == pytest.approx(sigma**2, rel=0.04)


def test_what_is_in_focus_stays_as_it_was():
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    sigma = torch.zeros(1, 40, 40)
    sigma[..., 20:] = torch.inf  # nothing hit: blurred as far as it goes
    result = blurred(image, sigma)
    assert torch.equal(result[..., :20], image[..., :20])
    assert float(result[..., 20:].std()) < 0.3 * float(image[..., 20:].std())
    assert bool(result.isfinite().all())


def test_the_highlight_of_a_lamp_lies_at_the_foot_of_the_perpendicular():
    strength, exponent = np.array([[0.0, 1.0]]), np.array([[50.0, 50.0]])
    views, seen = wall(yaw=0.2)
    light = highlights(views, seen, np.array([[0.0, 0.0, -1.0]]), exponent, strength)
    assert brightest(light) == (round(40 - 70 * np.tan(0.2)), 30)
    assert float(light.max()) == pytest.approx(1.0, abs=1e-3)


def test_the_highlight_of_a_far_light_mirrors_it_and_moves_with_the_camera():
    strength, exponent = np.array([[1.0, 0.0]]), np.array([[100.0, 50.0]])
    # Light from (-s, 0, -c) and a view from (s, 0, -c) have the wall's normal half-way: seen along (-s, 0, c).
    window = np.array([[-np.sin(0.3), 0.0, -np.cos(0.3)]])
    places = [brightest(highlights(*wall(x=x), window, exponent, strength)) for x in (0.0, 0.4)]
    assert places[0] == places[1] == (round(40 - 70 * np.tan(0.3)), 30)


def test_only_the_share_of_pairs_asked_for_is_changed():
    (views, seen), (views_b, seen_b) = wall(), wall(x=0.3)
    same = through_lens((views, views_b), (seen, seen_b), np.random.default_rng(0), defocus=0.0, shine=0.0)
    assert same[0] is seen
    assert same[1] is seen_b
    shining = through_lens((views, views_b), (seen, seen_b), np.random.default_rng(0), defocus=0.0, shine=1.0)
    assert all(float(view.radiance.std()) > 0.01 for view in shining)
