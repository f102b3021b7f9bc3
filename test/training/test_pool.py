# SPDX-License-Identifier: Apache-2.0
"""Rendered training pairs: truth of crops, repeatability, and the chunks that are kept."""

import pytest
import torch
from torch.nn import functional

from dark3r_ros.training import pool
from dark3r_ros.training.pool import Chunk, PoolConfig, RenderedPairs

CONFIG = PoolConfig(rooms=1.0, wide=0.5, scenes=1, pairs=6, chunks=2, first_chunks=1, refresh=10)


def source(cache=None, seed=3):
    return RenderedPairs(96, 64, CONFIG, seed=seed, cache=cache)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('pool')


def test_correspondence_leads_to_the_same_colour(cache):
    pairs = source(cache).make(0, 24)
    height, width = pairs.clean_a.shape[2:]
    points = torch.rand(24, 400, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [width - 1.0, height - 1.0]
    )
    target, seen = pairs.correspond(points)
    assert 0.25 < float(seen.float().mean()) < 0.98
    assert ((target[seen] >= 0) & (target[seen] <= torch.tensor([width - 1.0, height - 1.0]))).all()

    def ratio(image, places):
        # Lamps are white and gains are those of the pair: only the surface sets the ratio of red to green.
        grid = (places + 0.5) * (2.0 / torch.tensor([width, height])) - 1.0
        color = functional.grid_sample(image, grid[:, None], align_corners=False, padding_mode='border')[:, :, 0]
        return (color[:, 0] / color[:, 1]).log()

    a = ratio(pairs.clean_a, points)
    right = (a - ratio(pairs.clean_b, target)).abs()[seen]
    wrong = (a - ratio(pairs.clean_b, points)).abs()[seen]
    assert float(right.median()) < 0.004
    assert float(wrong.median()) > 4 * float(right.median())


def test_some_crops_are_mirrored(cache):
    pairs = source(cache).make(0, 24)
    signs = pairs.truth.intrinsics_a[:, 0].sign()
    assert set(signs.tolist()) == {-1.0, 1.0}


def test_batches_depend_on_their_number_alone(cache):
    first = source(cache)
    straight = [first.make(number, 3) for number in (0, 5)]
    later = RenderedPairs(96, 64, CONFIG, seed=3).make(5, 3)
    assert torch.equal(straight[1].image_a, later.image_a)
    points = torch.ones(3, 1, 2)
    assert torch.equal(straight[1].correspond(points)[0], later.correspond(points)[0])
    assert not torch.equal(straight[0].image_a, later.image_a)


def flat(width, height, config, seed, device, photos):
    """A chunk of a wall a metre away, whose brightness is the number of the chunk."""
    w, h = round(width * config.margin), round(height * config.margin)
    light = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(seed[1])).half()
    ones = torch.ones(2, h, w)
    return Chunk(
        light, light.clone(), ones, ones.bool(), torch.eye(4).expand(2, 4, 4).contiguous(), torch.tensor([80.0])
    )


def test_chunks_are_kept_while_they_serve_and_mended_when_damaged(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(pool, 'render_chunk', lambda *args: (rendered.append(args[3][1]), flat(*args))[1])
    before = source(tmp_path).make(0, 2)
    assert torch.equal(source(tmp_path).make(0, 2).image_a, before.image_a)
    assert rendered == [0]
    kept = list(tmp_path.iterdir())
    kept[0].write_bytes(b'half a file')
    last = source(tmp_path)
    assert torch.equal(last.make(0, 2).image_a, before.image_a)
    assert rendered == [0, 0] and len(list(tmp_path.iterdir())) == 1
    last.make(11, 2)
    assert rendered == [0, 0, 1] and len(list(tmp_path.iterdir())) == 2
    last.make(21, 2)
    names = sorted(path.stem[-6:] for path in tmp_path.iterdir())
    assert names == ['000001', '000002']
