# SPDX-License-Identifier: Apache-2.0
"""Comparison of patches of fine descriptors against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dark3r_ros.model import patches
from dark3r_ros.model.patches import PATCH, PATCH_SPREAD, PATCH_STEP, FineMaps, patch_similarity

HEIGHT, WIDTH, LENGTH, RADIUS = 20, 24, 6, 2
HOME = torch.tensor([[3, 4], [12, 10], [23, 19], [0, 7]])
CENTRE = torch.tensor([[5, 4], [10, 12], [0, 0], [31, -8]])  # the last one far outside
IMAGE = torch.tensor([0, 1, 1, 0])


def plain(a: np.ndarray, b: np.ndarray, home: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Similarity of one place; a, b (H, W, F)."""

    def at(values: np.ndarray, x: int, y: int) -> np.ndarray:
        return values[min(max(y, 0), HEIGHT - 1), min(max(x, 0), WIDTH - 1)]

    samples = range(-PATCH, PATCH + 1)
    weights = {(x, y): np.exp(-(x * x + y * y) / (2 * PATCH_SPREAD**2)) for x in samples for y in samples}
    found = []
    for ky in range(-RADIUS, RADIUS + 1):
        for kx in range(-RADIUS, RADIUS + 1):
            products = [
                weight
                * at(a, home[0] + PATCH_STEP * x, home[1] + PATCH_STEP * y)
                @ at(b, centre[0] + kx + PATCH_STEP * x, centre[1] + ky + PATCH_STEP * y)
                for (x, y), weight in weights.items()
            ]
            found.append(np.sum(products) / sum(weights.values()))
    return np.array(found)


@pytest.fixture
def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors of two images each."""
    generator = torch.Generator().manual_seed(3)
    shape = (2 * HEIGHT * WIDTH, LENGTH)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))


@pytest.mark.parametrize('with_gradient', [False, True])
def test_equals_plain_sums_up_to_the_border(tables, with_gradient, monkeypatch):
    monkeypatch.setattr(patches, '_CHUNK', 2)  # more than one
    a, b = tables
    with torch.set_grad_enabled(with_gradient):
        found = patch_similarity(FineMaps(a, HEIGHT, WIDTH), HOME, FineMaps(b, HEIGHT, WIDTH), CENTRE, IMAGE, RADIUS)
    maps_a, maps_b = (table.reshape(2, HEIGHT, WIDTH, LENGTH).numpy() for table in tables)
    for row, (home, centre, image) in enumerate(zip(HOME, CENTRE, IMAGE, strict=True)):
        expected = plain(maps_a[image], maps_b[image], home.numpy(), centre.numpy())
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-12)


def test_gradient_is_that_of_the_sums(tables):
    a, b = (table.requires_grad_() for table in tables)

    def similarity(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        maps = (FineMaps(first, HEIGHT, WIDTH), FineMaps(second, HEIGHT, WIDTH))
        return patch_similarity(maps[0], HOME, maps[1], CENTRE, IMAGE, RADIUS)

    assert torch.autograd.gradcheck(similarity, (a, b), fast_mode=True)


def test_no_places_are_no_similarities(tables):
    a, b = (FineMaps(table, HEIGHT, WIDTH) for table in tables)
    with torch.inference_mode():
        assert patch_similarity(a, HOME[:0], b, CENTRE[:0], IMAGE[:0], RADIUS).shape == (0, (2 * RADIUS + 1) ** 2)


def test_patches_that_inference_asked_for_serve_training():
    patches.patch_sides.cache_clear()
    with torch.inference_mode():
        sides = patches.patch_sides(torch.device('cpu'), torch.float32)
    scale = torch.ones((), requires_grad=True)
    (scale * sides.weights).sum().backward()
    assert scale.grad.item() == pytest.approx(1.0)
