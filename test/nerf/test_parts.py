# SPDX-License-Identifier: Apache-2.0
"""The parts of the field against plain float64 statements of the same formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.box import SceneBox, box_around, contract, reflect
from dark3r_ros.nerf.cameras import rotation_matrices
from dark3r_ros.nerf.compositing import composite, expected_distance, median_distance, ray_weights
from dark3r_ros.nerf.config import profile
from dark3r_ros.nerf.encoding import GridEncoding, encode_reference, level_cells, spherical_harmonics
from dark3r_ros.nerf.field import Field
from dark3r_ros.nerf.losses import decayed, depth_loss, distortion_loss, interlevel_loss, photometric
from dark3r_ros.nerf.metrics import affine_fit, psnr, ssim
from dark3r_ros.nerf.rays import lens_of, make_rays
from dark3r_ros.nerf.sampling import distance, edges_from_weights, even_edges, spacing


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('table_log2', [8, 12, 20])
def test_encoding_equals_its_plain_statement(table_log2):
    torch.manual_seed(1)
    cells = level_cells(4, 4, 40, (1.0, 0.5, 0.7))
    encoding = GridEncoding(cells, 2, 2**table_log2, spread=1.0)
    assert (encoding.dense_levels == 4) == (table_log2 == 20)
    x = torch.rand(500, 3, generator=generator()) * 2.0 - 1.0
    x[0], x[1] = 1.0, -1.0
    assert torch.allclose(encoding(x).double(), encode_reference(encoding, x), atol=2e-5)


def test_encoding_gradients_equal_those_of_its_plain_statement():
    torch.manual_seed(2)
    encoding = GridEncoding(level_cells(3, 4, 30, (1.0, 1.0, 1.0)), 2, 2**10, spread=1.0)
    assert 0 < encoding.dense_levels < 3
    x = (torch.rand(200, 3, generator=generator()) * 1.9 - 0.95).requires_grad_()
    probe = torch.randn(200, encoding.width, generator=generator(3))
    inputs = [x, *encoding.parameters()]
    fast = torch.autograd.grad((encoding(x) * probe).sum(), inputs)
    plain = torch.autograd.grad((encode_reference(encoding, x) * probe.double()).sum(), inputs)
    for a, b in zip(fast, plain, strict=True):
        assert torch.allclose(a, b, atol=2e-3, rtol=1e-3)


def test_points_that_are_not_numbers_give_features_that_are_none():
    encoding = GridEncoding(level_cells(2, 4, 8, (1.0, 1.0, 1.0)), 2, 2**12, spread=1.0)
    x = torch.tensor([[0.1, float('nan'), 0.3], [0.1, 0.2, 0.3]])
    found = encoding(x)
    assert found[0].isnan().all() and found[1].isfinite().all()


def test_colours_equal_those_of_one_network_a_point():
    torch.manual_seed(0)
    field = Field(profile('preview', {'levels': 2, 'finest': 16}), (1.0, 1.0, 0.5))
    x = torch.rand(12, 3) * 2.0 - 1.0
    towards = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    density, radiance = field(x, towards)
    hidden = field.density(field.encoding(x))
    whole = torch.cat([hidden[:, 1:], spherical_harmonics(towards.repeat_interleave(3, dim=0), 2)], dim=1)
    colour = field.colour(torch.relu(field.mixing(whole))) + 0.5 * field.tint_encoding(x)
    assert torch.allclose(radiance, torch.exp(colour), rtol=1e-5)
    assert Field(profile('preview', {'tint_cells': 0}), (1.0, 1.0, 1.0)).tint_encoding is None
    assert torch.allclose(density, torch.exp(hidden[:, 0] - 1.5), rtol=1e-5)


def test_spherical_harmonics_are_orthonormal():
    z, weights = np.polynomial.legendre.leggauss(12)
    phi = np.arange(24) * 2 * np.pi / 24
    sine = np.sqrt(1 - z**2)[:, None]
    points = np.stack([sine * np.cos(phi), sine * np.sin(phi), np.repeat(z[:, None], 24, axis=1)], axis=-1)
    values = spherical_harmonics(torch.from_numpy(points.reshape(-1, 3)), 3).numpy()
    area = np.repeat(weights, 24) * 2 * np.pi / 24
    assert values.shape[1] == 16
    assert np.allclose(values.T @ (values * area[:, None]), np.eye(16), atol=1e-6)


def test_contraction_keeps_the_box_and_never_folds():
    inside = torch.rand(100, 3, generator=generator()) * 2 - 1
    assert torch.equal(contract(inside, 0.5), inside)
    radii = torch.logspace(-2, 4, 400, dtype=torch.float64)
    direction = torch.tensor([1.0, -0.3, 0.2], dtype=torch.float64)
    out = contract(radii[:, None] * direction, 0.5)
    reached = out.abs().amax(dim=1)
    assert (reached.diff() > 0).all() and reached.max() < 1.5
    # With m = 1 it is the contraction of mip-NeRF 360: 2 - 1 / r.
    assert torch.allclose(contract(torch.tensor([[4.0, 0.0, 0.0]]), 1.0), torch.tensor([[1.75, 0.0, 0.0]]))


def test_reflection_mirrors_at_the_border():
    x = torch.tensor([0.3, 1.2, -1.1, 1.0, -1.0, 3.1])
    assert torch.allclose(reflect(x), torch.tensor([0.3, 0.8, -0.9, 1.0, -1.0, -0.9]), atol=1e-6)


def test_box_holds_cameras_and_most_points():
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -1, 0], [5, 2, 9], (2000, 3))
    points[:10] = 1e6
    points[10] = np.nan
    box = box_around(rng.uniform(-0.5, 0.5, (9, 3)), points, 0.5)
    # The cameras reach half a unit in front of the points.
    assert np.allclose(box.centre, (1.0, 0.5, 4.25), atol=0.15) and np.allclose(box.half, (4, 1.5, 4.75), rtol=0.08)
    assert np.allclose(box.denormalise(box.normalise(points[20:30])), points[20:30])
    with pytest.raises(DataError, match='stand still'):
        box_around(np.ones((4, 3)), np.zeros((0, 3)), 0.5)


def test_rays_of_a_distorted_lens_project_back():
    camera = Camera(40, 30, 30.0, 31.0, 19.0, 15.0, 'plumb_bob', (-0.2, 0.05, 0.001, -0.002, 0.0))
    lens = lens_of(camera)
    assert lens.usable.all()
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.2, -0.4, 0.1]).as_matrix()
    pose[:3, 3] = (1.0, 2.0, 3.0)
    pixels = torch.arange(40 * 30)
    rays = make_rays(lens, torch.from_numpy(pose.astype(np.float32)), pixels)
    assert torch.allclose(rays.directions.norm(dim=1), torch.ones(1200))
    world = rays.origins.numpy() + 2.5 * rays.directions.numpy()
    local = (world - pose[:3, 3]) @ pose[:3, :3]
    expected = np.column_stack([pixels.numpy() % 40, pixels.numpy() // 40])
    assert np.abs(camera.project(local) - expected).max() < 1e-3


def test_composited_light_is_that_of_the_sum_of_a_loop():
    density = torch.rand(5, 7, generator=generator()).double() * 3
    edges = torch.cumsum(torch.rand(5, 8, generator=generator(1)).double(), dim=1)
    values = torch.rand(5, 7, 3, generator=generator(2)).double()
    weights = ray_weights(density, edges)
    for ray in range(5):
        through, total = 1.0, np.zeros(3)
        for sample in range(7):
            stopped = 1.0 - math.exp(-float(density[ray, sample] * (edges[ray, sample + 1] - edges[ray, sample])))
            total += through * stopped * values[ray, sample].numpy()
            through *= 1.0 - stopped
        assert np.allclose(composite(weights, values)[ray].numpy(), total, atol=1e-6)
        assert math.isclose(float(weights[ray].sum()), 1.0 - through, abs_tol=1e-6)


def test_distances_of_a_wall():
    edges = torch.linspace(0, 10, 101)[None]
    density = torch.where((edges[:, :-1] >= 4.0), 50.0, 0.0)
    weights = ray_weights(density, edges)
    assert abs(float(median_distance(weights, edges)) - 4.02) < 0.05
    assert abs(float(expected_distance(weights, edges)) - 4.05) < 0.05


def test_spacing_has_an_inverse_and_edges_grow():
    t = torch.tensor([0.0, 0.02, 1.0, 60.0])
    assert torch.allclose(distance(spacing(t)), t, rtol=1e-4)
    edges = even_edges(50, 16, 0.02, 60.0, generator(), torch.device('cpu'))
    assert (edges.diff(dim=1) > 0).all()
    assert torch.allclose(distance(edges[:, [0, -1]]), torch.tensor([0.02, 60.0]), rtol=1e-3)


def test_samples_follow_the_weights():
    edges = torch.linspace(0, 1, 11).repeat(20_00, 1)
    weights = torch.zeros(2000, 10)
    weights[:, 3], weights[:, 7] = 0.25, 0.75
    new = edges_from_weights(edges, weights, 15, generator())
    assert (new.diff(dim=1) >= 0).all()
    counts = torch.histc(new, 10, 0, 1) / new.numel()
    assert abs(float(counts[3]) - 0.25) < 0.02 and abs(float(counts[7]) - 0.75) < 0.02


def test_photometric_loss_of_pure_noise_is_one():
    rng = np.random.default_rng(0)
    clean = torch.from_numpy(rng.uniform(0.0, 3.0, (40_000, 3)))
    read, shot = torch.tensor([0.5, 0.25, 0.7]), torch.tensor([0.2, 0.1, 0.3])
    offset = torch.full((40_000, 3), 0.4)
    noisy = clean + offset + torch.sqrt(read + shot * clean) * torch.from_numpy(rng.standard_normal(clean.shape))
    loss = photometric(
        clean + offset, noisy, torch.ones_like(clean), kind='inverse_variance', read_variance=read, shot_gain=shot,
        offset=offset, white=100.0,
    )  # fmt: skip
    assert abs(float(loss) - 1.0) < 0.02
    with pytest.raises(ConfigError):
        photometric(clean, noisy, clean, kind='l1', read_variance=read, shot_gain=shot, offset=offset, white=1.0)


def test_rawnerf_loss_is_the_published_one_up_to_a_factor():
    predicted, observed = torch.tensor([[0.2, 0.5, 1.4]]), torch.tensor([[0.1, 0.7, 1.2]])
    loss = photometric(
        predicted, observed, torch.tensor([[1.0, 0.0, 1.0]]), kind='rawnerf', read_variance=torch.full((3,), 0.5),
        shot_gain=torch.full((3,), 0.5), offset=torch.zeros(1, 3), white=1.0,
    )  # fmt: skip
    expected = ((0.1 / 0.201) ** 2 + (0.2 / 1.401) ** 2) / 2.0
    assert abs(float(loss) - expected) < 1e-5


def test_weights_of_the_loss_have_no_gradient():
    predicted = torch.full((1, 3), 1.0, requires_grad=True)
    loss = photometric(
        predicted, torch.zeros(1, 3), torch.ones(1, 3), kind='inverse_variance', read_variance=torch.ones(3),
        shot_gain=torch.ones(3), offset=torch.zeros(1, 3), white=9.0,
    )  # fmt: skip
    assert torch.allclose(torch.autograd.grad(loss, predicted)[0], torch.full((1, 3), 2.0 / 2.0 / 3.0))


def test_depth_loss_is_least_at_the_depth():
    edges = torch.linspace(0.1, 10, 60)[None]
    centre = (edges[:, 1:] + edges[:, :-1]) / 2

    def loss(at: float) -> float:
        weights = torch.softmax(-((centre - at) ** 2) / 0.02, dim=1)
        return float(depth_loss(weights, edges, torch.tensor([4.0]), torch.tensor([1.0]), 0.05))

    places = np.arange(2.0, 6.1, 0.5)
    assert places[int(np.argmin([loss(float(at)) for at in places]))] == 4.0
    weights = torch.full((1, 59), 1 / 59)
    assert float(depth_loss(weights, edges, torch.tensor([0.0]), torch.tensor([0.0]), 0.05)) == 0.0


def test_interlevel_loss_asks_the_coarse_weights_to_bound_the_fine():
    coarse_edges, edges = torch.linspace(0, 1, 5)[None], torch.linspace(0, 1, 9)[None]
    fine = torch.tensor([[0.0, 0.0, 0.5, 0.3, 0.0, 0.0, 0.0, 0.0]])
    bounding = torch.tensor([[0.0, 0.9, 0.0, 0.0]])
    elsewhere = torch.tensor([[0.9, 0.0, 0.0, 0.0]])
    assert float(interlevel_loss(coarse_edges, bounding, edges, fine)) == 0.0
    assert abs(float(interlevel_loss(coarse_edges, elsewhere, edges, fine)) - 0.8) < 1e-4


def test_distortion_loss_equals_the_double_sum():
    weights = torch.rand(4, 9, generator=generator()).double()
    edges = torch.cumsum(torch.rand(4, 10, generator=generator(1)).double(), dim=1)
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    plain = (weights[:, :, None] * weights[:, None, :] * (middle[:, :, None] - middle[:, None, :]).abs()).sum((1, 2))
    plain = plain + (weights**2 * edges.diff(dim=1)).sum(1) / 3
    assert torch.allclose(distortion_loss(weights, edges), plain.mean())


def test_decay():
    assert decayed(1.0, 0.01, 0.5) == pytest.approx(0.1)
    assert decayed(0.0, 0.5, 0.5) == 0.0 and decayed(0.4, 0.0, 0.5) == pytest.approx(0.2)


def test_small_rotations_equal_scipy():
    vectors = np.random.default_rng(0).normal(0, 0.05, (20, 3))
    ours = rotation_matrices(torch.from_numpy(vectors.astype(np.float32))).numpy()
    assert np.abs(ours - Rotation.from_rotvec(vectors).as_matrix()).max() < 1e-6


def test_metrics():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 1, (3, 40, 50))
    assert psnr(truth + 0.1, truth, 1.0) == pytest.approx(20.0)
    assert ssim(truth, truth, 1.0) == pytest.approx(1.0)
    assert ssim(rng.uniform(0, 1, truth.shape), truth, 1.0) < 0.1
    assert np.allclose(affine_fit(0.3 * truth - 2.0, truth), truth)
    assert np.allclose(affine_fit(np.ones_like(truth), truth), truth.mean(axis=(1, 2), keepdims=True))


def test_profiles():
    assert profile('preview').steps < profile('standard').steps < profile('paper').steps == 120_000
    with pytest.raises(ConfigError, match='preview, standard, paper'):
        profile('fast')
    with pytest.raises(ConfigError, match='beyond near'):
        profile('preview', {'near': 3.0, 'far': 2.0})


def test_domain_of_a_flat_box():
    box = SceneBox((0.0, 0.0, 0.0), (4.0, 2.0, 1.0), 0.5)
    corner = torch.from_numpy(box.normalise([[4.0, -2.0, 1.0]]).astype(np.float32))
    assert torch.allclose(box.domain(corner), torch.tensor([[1.0, -1.0, 1.0]]) / 1.5)
