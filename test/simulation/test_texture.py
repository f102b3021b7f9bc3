# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.simulation.texture import (
    MEAN_REFLECTANCE,
    TEXTURE_KINDS,
    bank_from_textures,
    make_bank,
    photo_texture,
    procedural_texture,
    srgb_to_linear,
)


@pytest.mark.parametrize('kind', TEXTURE_KINDS)
def test_texture_is_deterministic_bright_enough_and_tileable(kind: str) -> None:
    texture = procedural_texture(kind, 5, 128)
    assert torch.equal(texture, procedural_texture(kind, 5, 128))
    assert not torch.equal(texture, procedural_texture(kind, 6, 128))
    assert float(texture.min()) > 0.0 and float(texture.max()) <= 0.97
    assert float(texture.mean()) == pytest.approx(MEAN_REFLECTANCE, rel=0.1)
    assert float(texture.mean(0).std()) > 0.06
    for image in (texture, texture.transpose(1, 2)):
        # The step over the seam is like the largest of the steps between neighbouring columns.
        steps = (image[:, :, 1:] - image[:, :, :-1]).abs().mean((0, 1))
        seam = (image[:, :, 0] - image[:, :, -1]).abs().mean()
        assert float(seam) < 1.3 * float(steps.max())


def test_finest_level_returns_texels_of_the_right_texture() -> None:
    textures = [procedural_texture(kind, 1, 32) for kind in ('noise', 'bricks', 'speckle', 'rock', 'gravel')]
    bank = bank_from_textures(textures)
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing='ij')
    for number, texture in enumerate(textures):
        u, v = (column.flatten() + 0.5) / 32, (row.flatten() + 0.5) / 32
        index = torch.full_like(u, number)
        got = bank.sample(index, u + 3.0, v - 2.0, torch.zeros_like(u))
        torch.testing.assert_close(got, texture.reshape(3, -1), atol=2e-3, rtol=0)


@pytest.mark.parametrize('level', [1, 2, 3])
def test_coarse_levels_are_box_averages(level: int) -> None:
    texture = procedural_texture('mixed', 2, 64)
    bank = bank_from_textures([procedural_texture('noise', 1, 64), texture])
    side = 64 >> level
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    u, v = (column.flatten() + 0.5) / side, (row.flatten() + 0.5) / side
    got = bank.sample(torch.ones_like(u), u, v, torch.full_like(u, float(level)))
    expected = texture.reshape(3, side, 1 << level, side, 1 << level).mean((2, 4)).reshape(3, -1)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)


def test_detail_fades_with_the_footprint() -> None:
    bank = make_bank(['speckle'], 3, 128)
    u, v = torch.rand(4000, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 4000)
    spread = [float(bank.sample(0 * u, u, v, torch.full_like(u, level)).std()) for level in (0.0, 1.5, 3.0, 5.0, 6.0)]
    assert all(b < a for a, b in itertools.pairwise(spread))
    assert spread[-1] < 0.35 * spread[0]


def test_photo_is_linear_and_its_edges_meet() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    texture = photo_texture(photo, 64)
    assert texture.shape == (3, 64, 64)
    torch.testing.assert_close(texture[:, 0], texture[:, -1])
    torch.testing.assert_close(texture[:, :, 0], texture[:, :, -1])
    with pytest.raises(DataError, match='photo texture'):
        photo_texture(photo[:, :, 0])


def test_srgb_curve_at_known_values() -> None:
    np.testing.assert_allclose(srgb_to_linear(np.array([0, 10, 188, 255], np.uint8)),
                               [0.0, 0.0030353, 0.5028865, 1.0], rtol=1e-5)  # fmt: skip


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="'velvet'"):
        procedural_texture('velvet', 0)
