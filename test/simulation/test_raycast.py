# SPDX-License-Identifier: Apache-2.0
"""Rays against a float64 brute-force search along the ray of the plain implicit functions."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.build import MaterialList, SolidList, make_light
from dark3r_ros.simulation.ground import terrain
from dark3r_ros.simulation.interiors import room_scene
from dark3r_ros.simulation.paths import look_along, tunnel_drive
from dark3r_ros.simulation.render import render, trace
from dark3r_ros.simulation.scene import Room, Scene, stack
from dark3r_ros.simulation.texture import make_bank
from dark3r_ros.simulation.tunnel import bays_shape, tunnel_scene, tunnel_shape
from dark3r_ros.simulation.views import views_of

CAMERA = Camera(64, 48, 45.0, 46.0, 30.7, 24.2)
Implicit = Callable[[np.ndarray], np.ndarray]


def pose_at(eye: object, target: object) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = look_along(np.subtract(target, eye))[0]
    pose[:3, 3] = eye
    return pose


def first_crossing(outside: Implicit, pose: np.ndarray, pixels: np.ndarray, far: float, step: float) -> np.ndarray:
    """Depth of the first sign change of `outside` (positive in free space) along each ray, bisected to float64."""
    rays = np.column_stack([(pixels - (CAMERA.cx, CAMERA.cy)) / (CAMERA.fx, CAMERA.fy), np.ones(len(pixels))])
    rays = rays @ pose[:3, :3].T
    depth = np.full(len(rays), np.inf)
    for i, ray in enumerate(rays):
        t = np.arange(0.0, far, step)
        value = outside(pose[:3, 3] + t[:, None] * ray)
        hit = np.flatnonzero(value <= 0)
        if len(hit) == 0:
            continue
        low, high = t[hit[0] - 1], t[hit[0]]
        for _ in range(45):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if outside(pose[:3, 3] + middle * ray[None])[0] > 0 else (low, middle)
        depth[i] = high
    return depth


def all_pixels(stride: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(0, 64, stride), np.arange(0, 48, stride)), -1).reshape(-1, 2)


def solid_scene(kind: str, centre: object, half: object, rotation: np.ndarray) -> Scene:
    materials, solids = MaterialList(), SolidList()
    look = materials.add(0, 1.0, detail=0, detail_tile=0.3)
    solids.add(kind, centre, half, look, rotation)
    return Scene(solids.build(), None, None, materials.build(), make_light('both'), make_bank(['noise'], 0, 32))


IMPLICIT = {
    'box': lambda q: np.max(np.abs(q), axis=-1) - 1.0,
    'sphere': lambda q: np.linalg.norm(q, axis=-1) - 1.0,
    'cylinder': lambda q: np.maximum(np.hypot(q[..., 0], q[..., 1]), np.abs(q[..., 2])) - 1.0,
}


@pytest.mark.parametrize('kind', list(IMPLICIT))
@pytest.mark.parametrize('distance', [2.5, 30.0])
def test_solids_match_a_brute_force_search(kind: str, distance: float) -> None:
    rotation = Rotation.from_rotvec([0.4, -0.8, 0.3]).as_matrix()
    scale = distance / 2.5
    centre, half = np.array([0.3, -0.2, 0.5]), np.array([0.5, 0.8, 0.65]) * scale
    if kind == 'cylinder':
        half[1] = half[0]
    pose = pose_at(np.array([2.0, 1.2, 1.1]) * scale, centre)
    hits = trace(solid_scene(kind, centre, half, rotation), views_of(CAMERA, pose))
    pixels = all_pixels(3)
    expected = first_crossing(
        lambda p: IMPLICIT[kind](((p - centre) @ rotation) / half), pose, pixels, 2.0 * distance, 0.004 * scale
    )
    got = hits.depth[0].numpy()[pixels[:, 1], pixels[:, 0]]
    agree = np.isfinite(got) == np.isfinite(expected)
    assert agree.mean() > 0.99  # a ray that touches an edge may go either way
    both = np.isfinite(got) & np.isfinite(expected)
    assert both.sum() > 50
    np.testing.assert_allclose(got[both], expected[both], rtol=2e-6)


@pytest.mark.parametrize('kind', list(IMPLICIT))
def test_normals_are_the_gradient_of_the_implicit_function(kind: str) -> None:
    rotation = Rotation.from_rotvec([0.4, -0.8, 0.3]).as_matrix()
    centre, half = np.array([0.3, -0.2, 0.5]), np.array([0.5, 0.5, 0.65])
    pose = pose_at([2.0, 1.2, 1.1], centre)
    hits = trace(solid_scene(kind, centre, half, rotation), views_of(CAMERA, pose))
    row, column = np.nonzero(np.isfinite(hits.depth[0].numpy()))
    rays = np.column_stack([(column - CAMERA.cx) / CAMERA.fx, (row - CAMERA.cy) / CAMERA.fy, np.ones(len(row))])
    points = rays * hits.depth[0].numpy()[row, column, None] @ pose[:3, :3].T + pose[:3, 3]
    step = 1e-5
    gradient = np.stack(
        [
            IMPLICIT[kind](((points + step * axis - centre) @ rotation) / half)
            - IMPLICIT[kind](((points - step * axis - centre) @ rotation) / half)
            for axis in np.eye(3)
        ],
        axis=-1,
    )
    gradient /= np.linalg.norm(gradient, axis=-1, keepdims=True)
    normal = hits.normal[0].numpy()[:, row, column].T @ pose[:3, :3].T
    cosine = (gradient * normal).sum(-1)
    assert np.quantile(cosine, 0.02) > 0.9999
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1.0, atol=1e-5)


def test_room_matches_a_brute_force_search() -> None:
    centre, half = np.array([0.5, 0.2, 1.4]), np.array([4.0, 3.0, 1.4])
    materials = MaterialList()
    rows = [materials.add(0, 1.0, detail=0, detail_tile=0.3) for _ in range(3)]
    room = Room(torch.from_numpy(centre[None]), torch.from_numpy(half[None]), torch.tensor([rows]))
    scene = Scene(None, room, None, materials.build(), make_light('both'), make_bank(['noise'], 0, 32))
    pose = pose_at([1.0, -0.5, 1.2], [-2.0, 2.0, 0.4])
    hits = trace(scene, views_of(CAMERA, pose))
    pixels = all_pixels(5)
    expected = first_crossing(lambda p: (half - np.abs(p - centre)).min(-1), pose, pixels, 12.0, 0.01)
    np.testing.assert_allclose(hits.depth[0].numpy()[pixels[:, 1], pixels[:, 0]], expected, rtol=2e-6)
    material = hits.material[0].numpy()
    assert material[47, 30] == rows[1] and set(np.unique(material)) <= set(rows)


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 3e-5), (torch.float64, 3e-6)])
def test_tunnel_wall_matches_a_brute_force_search(dtype: torch.dtype, bound: float) -> None:
    shape = tunnel_shape(3, 60.0)
    scene = tunnel_scene(3, shape, spacing=100.0)
    scene = Scene(None, scene.shell, None, scene.materials, scene.light, scene.bank.to(dtype=dtype))
    pose = tunnel_drive(shape, 3)(np.array([4.0]))[0]
    table = scene.shell.profile[0, 0].double().numpy()
    rows, columns = table.shape[0] - 1, table.shape[1] - 1

    def outside(p: np.ndarray) -> np.ndarray:
        # The definition in the docstring of Tube, with the analytic axis and another interpolation routine.
        phi = np.arctan2(p[:, 1], p[:, 0])
        axis = shape.axis(phi * shape.radius)
        lateral, height = np.hypot(p[:, 0], p[:, 1]) - np.hypot(axis[:, 0], axis[:, 1]), p[:, 2] - axis[:, 2]
        at = [(phi / np.pi + 1) / 2 * rows, (np.arctan2(height, lateral) / np.pi + 1) / 2 * columns]
        return map_coordinates(table, at, order=1) - np.hypot(lateral, height)

    pixels = all_pixels(4)
    expected = first_crossing(outside, pose, pixels, 30.0, 0.002)
    got = trace(scene, views_of(CAMERA, pose)).depth[0].numpy()[pixels[:, 1], pixels[:, 0]]
    error = np.abs(got - expected) / expected
    assert np.isfinite(expected).all() and expected.max() > 6.0
    assert np.quantile(error, 0.98) < bound
    assert (error > 1e-3).mean() < 0.01  # rays that graze a silhouette


def test_ground_matches_a_brute_force_search() -> None:
    materials = MaterialList()
    look = materials.add(0, 1.0, detail=0, detail_tile=0.25)
    field = terrain(4, look)
    scene = Scene(None, None, field, materials.build(), make_light('both'), make_bank(['noise'], 0, 32))
    pose = pose_at([3.0, -2.0, 1.0], [7.0, 1.0, 0.2])
    table, side = field.height[0, 0].double().numpy(), float(field.side)

    def outside(p: np.ndarray) -> np.ndarray:
        cells = table.shape[0] - 1
        return p[:, 2] - map_coordinates(table, [p[:, 1] % side / side * cells, p[:, 0] % side / side * cells], order=1)

    pixels = all_pixels(4)
    expected = first_crossing(outside, pose, pixels, 60.0, 0.004)
    got = trace(scene, views_of(CAMERA, pose)).depth[0].numpy()[pixels[:, 1], pixels[:, 0]]
    both = np.isfinite(expected) & np.isfinite(got)
    assert both.sum() > 80 and (np.isfinite(got) == np.isfinite(expected)).mean() > 0.97
    error = np.abs(got[both] - expected[both]) / expected[both]
    assert np.quantile(error, 0.97) < 3e-5


def test_coarse_to_fine_equals_ray_by_ray_marching(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = tunnel_shape(5, 60.0)
    scene = tunnel_scene(5, shape)
    views = views_of(Camera(320, 240, 200.0, 200.0, 159.5, 119.5), tunnel_drive(shape, 5)(np.array([2.0])))
    fast = trace(scene, views).depth
    monkeypatch.setattr('dark3r_ros.simulation.march._COARSEST', 10_000)
    plain = trace(scene, views).depth
    error = ((fast - plain) / plain).abs().numpy()
    assert np.quantile(error, 0.999) < 1e-4 and (error > 1e-3).sum() < 10


def test_a_batch_equals_its_images_one_by_one() -> None:
    bank = make_bank(['bricks', 'speckle', 'mixed', 'noise', 'stripes', 'cracks', 'gravel', 'rock'], 1, 64)
    rooms = [room_scene(k, bank=bank, things=4, pictures=k) for k in (1, 2, 3)]
    batch = stack(rooms)
    poses = np.stack([pose_at([1.5, 0.2 * k, 1.3], [-1.0, 0.3, 0.8]) for k in range(3)])
    views = views_of(CAMERA, poses, [2, 0, 1])
    together = trace(batch, views).depth
    one_by_one = render(batch, views)
    for image, number in enumerate((2, 0, 1)):
        alone = render(rooms[number], views_of(CAMERA, poses[image]))
        torch.testing.assert_close(one_by_one.depth[image], alone.depth[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(one_by_one.radiance[image], alone.radiance[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(together[image], alone.depth[0], rtol=1e-5, atol=0)


def test_tunnels_in_a_batch_equal_single_ones() -> None:
    # One cross-section, so that the tables have one size.
    shapes = [replace(tunnel_shape(k, 60.0), width=1.6, height=1.5) for k in (1, 2)]
    bank = make_bank(['rock', 'gravel', 'cracks', 'mixed', 'bricks', 'speckle', 'noise', 'stripes'], 1, 64)
    tunnels = [tunnel_scene(k, s, bank=bank, texel=0.05) for k, s in zip((1, 2), shapes, strict=True)]
    poses = np.stack([tunnel_drive(s, 1)(np.array([3.0]))[0] for s in shapes])
    together = trace(stack(tunnels), views_of(CAMERA, poses, [0, 1])).depth.numpy()
    for number, tunnel in enumerate(tunnels):
        alone = trace(tunnel, views_of(CAMERA, poses[number])).depth[0].numpy()
        error = np.abs(together[number] - alone) / alone
        assert np.quantile(error, 0.99) < 1e-4


def test_bays_are_copies_of_each_other() -> None:
    shape = bays_shape(3, bays=10, length=60.0)
    scene = tunnel_scene(3, shape)
    here = tunnel_drive(shape, 3)(np.array([1.0]))[0]

    def seen(bays: float) -> tuple[np.ndarray, np.ndarray]:
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec([0.0, 0.0, 2.0 * np.pi * bays / 10]).as_matrix()
        rendering = render(scene, views_of(CAMERA, turn @ here))
        return rendering.depth[0].numpy(), rendering.radiance[0].numpy()

    depth, radiance = seen(0)
    for bays in (1, 4, 9):
        again, shining = seen(bays)
        assert np.quantile(np.abs(again / depth - 1.0), 0.99) < 1e-3
        assert np.abs(shining - radiance).mean() < 1e-3 * radiance.mean()
    half_way, _ = seen(0.5)
    assert np.quantile(np.abs(half_way / depth - 1.0), 0.5) > 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_gives_the_images_of_the_cpu() -> None:
    shape = tunnel_shape(3, 60.0)
    scene = tunnel_scene(3, shape)
    pose = tunnel_drive(shape, 3)(np.array([4.0]))
    cpu = render(scene, views_of(CAMERA, pose))
    gpu = render(scene.to('cuda'), views_of(CAMERA, pose, device='cuda'))
    error = (gpu.depth.cpu() / cpu.depth - 1.0).abs()
    assert float(error.quantile(0.99)) < 1e-4
    assert float((gpu.radiance.cpu() - cpu.radiance).abs().mean() / cpu.radiance.mean()) < 1e-3
