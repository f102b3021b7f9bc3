# SPDX-License-Identifier: Apache-2.0
"""Truth across views: reprojection, occlusion, brightness constancy, and pictures that features are found in."""

import time

import cv2
import numpy as np
import pytest
import torch

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.planes import display_image, to_planes
from dark3r_ros.simulation.correspond import true_flow
from dark3r_ros.simulation.pairs import PAIR_SCENES, PairSource
from dark3r_ros.simulation.render import render
from dark3r_ros.simulation.sequence import Simulation, SimulationConfig, simulate
from dark3r_ros.simulation.views import views_of
from dark3r_ros.simulation.world import AnalyticWorld, make_world

CAMERA = Camera(320, 240, 200.0, 200.0, 159.5, 119.5)


@pytest.mark.parametrize(
    'scene, path', [('tunnel', 'drive'), ('room', 'handheld'), ('corridor', 'drive'), ('ground', 'drive')]
)
def test_depth_reprojects_onto_the_depth_of_the_other_view(scene: str, path: str) -> None:
    world = make_world(scene, 2, light='ambient', path=path)
    assert isinstance(world, AnalyticWorld)
    views = views_of(CAMERA, world.path(np.array([3.0, 3.6])))
    images = render(world.scene, views)
    flow = true_flow(images.depth[:1], views[:1], images.depth[1:], views[1:])
    seen = flow.visible[0].numpy()
    assert seen.mean() > (0.3 if scene == 'ground' else 0.5)  # half of it is sky
    pixels = flow.pixels[0].numpy()[seen]
    # A ray through the very place in the second image meets the very point.
    x, y = np.round(pixels).astype(int).T
    offset = np.hypot(*(pixels - np.round(pixels)).T)
    close = offset < 0.1
    depth = images.depth[1].numpy()[y[close], x[close]]
    error = np.abs(depth / flow.depth[0].numpy()[seen][close] - 1.0)
    assert np.median(error) < 2e-3
    # Under ambient light alone a surface looks the same from everywhere, but for the lens.
    first = images.radiance[0].mean(0).numpy()[seen][close]
    second = images.radiance[1].mean(0).numpy()[y[close], x[close]]
    assert np.corrcoef(np.log(first + 1e-4), np.log(second + 1e-4))[0, 1] > 0.9


def test_flow_of_a_plane_is_its_homography_and_knows_occlusion() -> None:
    depth = torch.full((1, 240, 320), 4.0, dtype=torch.float64)
    moved = np.eye(4)
    moved[0, 3] = 0.4
    views_a, views_b = views_of(CAMERA, np.eye(4)), views_of(CAMERA, moved)
    flow = true_flow(depth, views_a, depth, views_b)
    column = torch.arange(320, dtype=torch.float64)
    torch.testing.assert_close(flow.pixels[0, 7, :, 0], column - 200.0 * 0.4 / 4.0)
    assert not flow.visible[0, :, :20].any() and flow.visible[0, :, 20:].all()
    blocked = depth.clone()
    blocked[0, 100:120, 100:120] = 2.0
    hidden = true_flow(depth, views_a, blocked, views_b).visible[0]
    assert not hidden[102:118, 122:138].any() and hidden[:90].sum() == 90 * 300


@pytest.fixture(scope='module')
def tunnel() -> Simulation:
    return simulate(SimulationConfig(seconds=4.0, clean=True, seed=1))


def test_tunnel_frames_carry_enough_features_that_match_the_truth(tunnel: Simulation) -> None:
    frames = [tunnel.photograph(index) for index in (5, 10)]
    pictures = [cv2.cvtColor(display_image(to_planes(f.frame, 4)), cv2.COLOR_RGB2GRAY) for f in frames]
    sift = cv2.SIFT_create(contrastThreshold=0.02)
    (points_a, codes_a), (points_b, codes_b) = (sift.detectAndCompute(p, None) for p in pictures)
    assert min(len(points_a), len(points_b)) >= 300
    camera = tunnel.camera.binned(4)
    views = [views_of(camera, f.world_from_camera) for f in frames]
    depths = [torch.from_numpy(f.depth)[None] for f in frames]
    flow = true_flow(depths[0], views[0], depths[1], views[1]).pixels[0].numpy()
    matches = [m for m, n in cv2.BFMatcher().knnMatch(codes_a, codes_b, k=2) if m.distance < 0.8 * n.distance]
    a = np.array([points_a[m.queryIdx].pt for m in matches])
    b = np.array([points_b[m.trainIdx].pt for m in matches])
    column, row = np.round(a).astype(int).T
    true = flow[row, column] + (a - np.round(a))
    good = np.hypot(*(b - true).T) < 2.0
    assert good.sum() >= 100, f'{good.sum()} of {len(matches)} matches agree with the true flow'
    assert np.median(np.hypot(*(b - true)[good].T)) < 0.6


def test_frames_are_not_black_and_depth_belongs_to_network_pixels(tunnel: Simulation) -> None:
    frame = tunnel.photograph(20)
    planes = to_planes(frame.frame, 4)
    assert planes.values.shape[1:] == frame.depth.shape == (240, 320)
    assert np.isfinite(frame.depth).all() and frame.depth.min() > 0.5
    signal = planes.signal().mean(0)
    assert (signal < 0.02 * np.median(signal)).mean() < 0.005  # only the far end of the tunnel
    assert np.percentile(signal, 95) < 30.0 * np.percentile(signal, 5)
    # The depth at a network pixel is that of the middle of its block of the mosaic.
    full = tunnel.world.depth(views_of(tunnel.camera.binned(2), frame.world_from_camera))[0].numpy()
    block = full.reshape(240, 2, 320, 2)
    smooth = block.max((1, 3)) / block.min((1, 3)) < 1.01
    np.testing.assert_allclose(block.mean((1, 3))[smooth], frame.depth[smooth], rtol=6e-3)


@pytest.mark.parametrize('kind', PAIR_SCENES)
def test_pairs_overlap_repeat_and_come_fast(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = PairSource(kind, 3, CAMERA, seed=4)
    source.sample(1)
    start = time.process_time()
    pairs = source.sample(8)
    rate = 8 / (time.process_time() - start)
    with capsys.disabled():
        print(f'\n{kind}: {rate:.1f} pairs a second and processor core at 320x240', end='')
    assert rate > 1.5
    assert float(pairs.overlap.median()) > 0.4
    assert float(pairs.a.depth.amin((1, 2)).min()) > 0.2
    assert bool((pairs.a.radiance.amax((1, 2, 3)) > 0).all())
    again = PairSource(kind, 3, CAMERA, seed=4)
    again.sample(1)
    assert torch.equal(again.sample(8).a.radiance, pairs.a.radiance)
