# SPDX-License-Identifier: Apache-2.0
"""Training pairs against what they claim: how strong their noise is, and where points of one view lie in the other."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from dark3r_ros.errors import DataError
from dark3r_ros.model.normalise import normalise_batch
from dark3r_ros.training.exposure import ExposureConfig, normalised
from dark3r_ros.training.noise import add_noise, variance_shares
from dark3r_ros.training.pairs import PairConfig, PairMaker
from dark3r_ros.training.textures import load_textures


@pytest.fixture(scope='module')
def textures():
    return load_textures([], 6, seed=3)


def smooth_signal(count=4, height=96, width=128):
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing='ij')
    light = 1.0 + 0.8 * torch.sin(x) * torch.cos(y)
    return torch.stack([light * 0.6, light, light * 0.8]).expand(count, -1, -1, -1).clone()


@pytest.mark.parametrize('shares', [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.4, 0.1)])
@pytest.mark.parametrize('snr_db', [-10.0, -4.0, 12.0])
@pytest.mark.parametrize('heavy', [0.0, 0.6])
def test_noise_has_the_stated_snr(shares, snr_db, heavy):
    signal = smooth_signal(16)
    count = len(signal)
    noisy = add_noise(
        signal,
        torch.full((count,), snr_db),
        torch.tensor([shares]).expand(count, 3),
        torch.full((count,), heavy),
        torch.Generator().manual_seed(1),
    )
    noise = (noisy - signal).double()
    noise = noise - noise.mean(dim=(2, 3), keepdim=True)
    measured = 10 * math.log10(signal.square().mean() / noise.square().mean())
    assert measured == pytest.approx(snr_db, abs=0.25)


def test_noise_falls_with_the_pixels_averaged_and_follows_the_light():
    signal = smooth_signal(8)
    count = len(signal)

    def noise(shares):
        zero = torch.zeros(count)
        made = add_noise(signal, zero, torch.tensor([shares]).expand(count, 3), zero, torch.Generator().manual_seed(2))
        made = made - signal
        return made - made.mean(dim=(2, 3), keepdim=True)

    read = noise((0.0, 1.0, 0.0)).square().mean(dim=(0, 2, 3))
    assert read[1] / read[0] == pytest.approx(0.5, rel=0.05)
    assert read[2] / read[0] == pytest.approx(1.0, rel=0.05)
    shot = noise((1.0, 0.0, 0.0)).square()
    bright = signal > signal.flatten(2).median(dim=2).values[:, :, None, None]
    ratio = float(signal[bright].mean() / signal[~bright].mean())
    assert shot[bright].mean() / shot[~bright].mean() == pytest.approx(ratio, rel=0.1)
    rows = noise((0.0, 0.0, 1.0))
    assert float(rows.std(dim=3).max()) < 1e-5
    assert torch.allclose(rows[:, 1], (rows[:, 0] + rows[:, 2]) / 2, atol=1e-5)


def test_shares_of_the_variance_sum_to_one():
    shares = variance_shares(np.random.default_rng(0), 200)
    assert torch.allclose(shares.sum(1), torch.ones(200))
    assert float(shares.min()) >= 0.0


def test_correspondence_leads_to_the_same_colour(textures):
    pairs = PairMaker(textures, seed=4).make(0, 8)
    height, width = pairs.clean_a.shape[2:]
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(8, 400, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    target, seen = pairs.correspond(points)
    assert 0.3 < float(seen.float().mean()) < 0.98

    def ratio(image, places):
        # Light is white and gains are those of the pair: only the surface sets the ratio of red to green.
        grid = (places + 0.5) * (2.0 / torch.tensor([width, height])) - 1.0
        color = functional.grid_sample(image, grid[:, None], align_corners=False, padding_mode='border')[:, :, 0]
        return (color[:, 0] / color[:, 1]).log()

    a = ratio(pairs.clean_a, points)
    right = (a - ratio(pairs.clean_b, target)).abs()[seen]
    wrong = (a - ratio(pairs.clean_b, points)).abs()[seen]
    assert float(right.median()) < 0.004
    assert float(right.quantile(0.95)) < 0.03
    assert float(wrong.median()) > 5 * float(right.median())
    assert ((target[seen] >= 0) & (target[seen] <= torch.tensor([width - 1.0, height - 1.0]))).all()


def test_covered_points_do_not_count(textures):
    # Layers move on their own, so that each hides parts of the background of one view that the other view shows.
    pairs = PairMaker(textures, PairConfig(turn=0.0, zoom=0.0, shift=0.0, tilt=0.0), seed=8).make(0, 16)
    height, width = pairs.clean_a.shape[2:]
    y, x = torch.meshgrid(torch.arange(40, height - 40, 4.0), torch.arange(48, width - 48, 4.0), indexing='ij')
    points = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(16, -1, -1)
    target, seen = pairs.correspond(points)
    still = (target - points).norm(dim=-1) < 1e-3
    assert still[seen].any() and (~still)[seen].any()
    covered = still & ~seen
    assert 0.005 < float(covered.float().mean()) < 0.5


def test_noise_of_the_two_views_is_independent_and_pairs_repeat(textures):
    still = PairConfig(layers=0, turn=0.0, zoom=0.0, shift=0.0, tilt=0.0)
    maker = PairMaker(textures, still, seed=5, exposure=ExposureConfig(snr_low=-10.0, snr_high=-10.0))
    pairs = maker.make(3, 4)

    def residual(image, clean):
        fit = image.flatten(1).double()
        base = normalised(clean).flatten(1).double()
        slope = (fit * base).sum(1, keepdim=True) / base.square().sum(1, keepdim=True)
        return fit - slope * base

    a, b = residual(pairs.image_a, pairs.clean_a), residual(pairs.image_b, pairs.clean_b)
    correlation = (a * b).mean(1) / (a.std(1) * b.std(1))
    assert float(correlation.abs().max()) < 0.05
    again, other = maker.make(3, 4), maker.make(4, 4)
    assert torch.equal(pairs.image_a, again.image_a) and torch.equal(pairs.image_b, again.image_b)
    assert not torch.equal(pairs.image_a, other.image_a)


def test_input_is_normalised_as_it_will_be_when_mapping():
    planes = smooth_signal(3) + 0.7 * torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(6))
    expected = normalise_batch(planes * 20 + 240, 4095.0)
    assert torch.allclose(normalised(planes * 20 + 240), expected, rtol=0.03, atol=0.03)


def test_textures_come_from_photographs_and_procedures(tmp_path):
    photo = np.full((40, 80, 3), (0, 0, 188), dtype=np.uint8)
    photo[:, 60:] = (188, 0, 0)
    cv2.imwrite(str(tmp_path / 'one.png'), photo)
    made = load_textures([tmp_path], 2)
    assert made.shape == (4, 3, 384, 384)
    # 188 of 255 in sRGB is half of the light.
    assert made[0, :, 100, 100].tolist() == pytest.approx([0.5, 0.0, 0.0], abs=0.01)
    assert made[1, :, 100, 300].tolist() == pytest.approx([0.0, 0.0, 0.5], abs=0.01)
    with pytest.raises(DataError, match='no pictures'):
        load_textures([tmp_path / 'missing'], 0)
    with pytest.raises(DataError, match='needs textures'):
        load_textures([], 0)
