# SPDX-License-Identifier: Apache-2.0
"""Training pairs from recordings: captured brackets, and clean views whose noise is made."""

import json
import math

import cv2
import numpy as np
import pytest
import torch

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.normalise import normalise
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.raw.noise import preset
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.folders import FolderConfig, RecordedPairs
from dark3r_ros.training.sources import SourceConfig, open_data, parse_spec

WIDTH, HEIGHT, BLACK = 320, 192, 240.0


def clean_mosaic(number):
    """Smooth light, brighter to the right, different in every view, in counts above black."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 64.0
    return 900.0 + 500.0 * np.sin(x + 0.3 * number) * np.cos(y) + 200.0 * x


def write_mosaics(folder, frames):
    folder.mkdir(parents=True)
    names = [f'view{number:02d}.png' for number in range(len(frames))]
    for name, mosaic in zip(names, frames, strict=True):
        cv2.imwrite(str(folder / name), mosaic.astype(np.uint16))
    info = {
        'width': WIDTH, 'height': HEIGHT, 'fx': 300, 'fy': 300, 'cx': 160, 'cy': 96, 'cfa': 'rggb',
        'black_level': BLACK, 'white_level': 4095, 'images': [{'file': name, 'c2w': None} for name in names],
    }  # fmt: skip
    (folder / 'cameras.json').write_text(json.dumps(info))


@pytest.fixture
def bracketed(tmp_path):
    model = preset('starvis')
    rng = np.random.default_rng(0)
    write_mosaics(tmp_path / 'clean', [clean_mosaic(n) + BLACK for n in range(3)])
    for name, exposure in (('noisy_1', 0.02), ('noisy_2', 0.01)):
        write_mosaics(tmp_path / name, [model.sample(clean_mosaic(n) * exposure, rng) for n in range(3)])
    return tmp_path


def test_brackets_give_what_was_captured(bracketed):
    data = RecordedPairs(bracketed, 128, 64, FolderConfig(reach=1), seed=1)
    assert data.bracketed and len(data) == 3
    made = data.make(0, 16)
    assert made.snr_db.isnan().all() and not data.knows_truth
    assert torch.allclose(made.clean_a.mean(dim=(1, 2, 3)), torch.ones(16), atol=1e-5)
    # Each noisy crop shows the light of its clean one, under noise.
    for clean, noisy in ((made.clean_a, made.image_a), (made.clean_b, made.image_b)):
        light = clean - clean.mean(dim=(2, 3), keepdim=True)
        shown = (light * noisy).mean(dim=(1, 2, 3)) / light.square().mean(dim=(1, 2, 3))
        assert float(shown.min()) > 0.2
        rest = noisy - shown[:, None, None, None] * light
        assert float(rest.std()) > 0.3
    assert torch.equal(data.make(0, 16).image_a, made.image_a)
    assert not torch.equal(data.make(1, 16).image_a, made.image_a)


def test_input_is_normalised_as_it_will_be_when_mapping(bracketed):
    data = RecordedPairs(bracketed, 160, 96, seed=1)
    made = data.make(0, 8)
    options = [
        normalise(view.noisy[k]).values for view in data._views for k in range(2)
    ]  # the crop is all of the planes
    for image in made.image_a:
        assert min(float(np.abs(image.numpy() - option).max()) for option in options) == 0.0


@pytest.mark.parametrize('noise', ['binned', 'mosaic'])
def test_noise_of_clean_views_has_the_stated_snr(tmp_path, noise):
    write_mosaics(tmp_path / 'seq', [clean_mosaic(n) + BLACK for n in range(2)])
    level = 0.0
    exposure = ExposureConfig(snr_low=level, snr_high=level, heavy=0.0)
    data = RecordedPairs(tmp_path / 'seq', 160, 96, FolderConfig(noise=noise, jitter=0.0), exposure, seed=2)
    made = data.make(0, 12)
    assert torch.equal(made.snr_db, torch.zeros(12))
    ratios = []
    for clean, noisy in zip(made.clean_a.double(), made.image_a.double(), strict=True):
        light = clean - clean.mean(dim=(1, 2), keepdim=True)
        gain = (light * noisy).sum() / light.square().sum()
        rest = (noisy - gain * light) / gain
        rest = rest - rest.mean(dim=(1, 2), keepdim=True)
        ratios.append(10 * math.log10(clean.square().mean() / rest.square().mean()))
    # Light is 1 on the average over the crop, noise what is left; offsets of colours are part of neither.
    assert np.median(ratios) == pytest.approx(level, abs=0.4)


def test_long_recordings_are_thinned_and_black_views_left_out(tmp_path):
    frames = [clean_mosaic(n) + BLACK for n in range(7)]
    frames[4] = np.full((HEIGHT, WIDTH), BLACK)
    write_mosaics(tmp_path / 'seq', frames)
    data = RecordedPairs(tmp_path / 'seq', 64, 64, FolderConfig(most_views=4))
    assert [view.frame.name for view in data._views] == ['view00.png', 'view02.png', 'view06.png']
    assert all(view.frame.mosaic.size == 0 for view in data._views)
    assert data.make(0, 4).image_a.isfinite().all()


def test_sources_are_named(tmp_path, bracketed):
    assert parse_spec('sim@2.5') == ('sim', 2.5) and parse_spec('a/b') == ('a/b', 1.0)
    config = SourceConfig(width=64, height=64)
    device = torch.device('cpu')
    data = open_data([f'{bracketed}@1', 'textures@3'], config, device)
    made = data.make(0, 8)
    assert data.knows_truth and int(made.snr_db.isnan().sum()) == 2
    for specs, kind, text in (
        (['sim@-1'], ConfigError, 'positive number'),
        (['nowhere'], DataError, 'neither sim, textures'),
        ([str(tmp_path / 'clean' / 'view00.png')], DataError, 'pattern'),
        ([], ConfigError, 'no training data'),
        (['textures:nowhere'], DataError, 'no pictures'),
    ):
        with pytest.raises(kind, match=text):
            open_data(specs, config, device)


def test_unusable_recordings_are_told(tmp_path, bracketed):
    with pytest.raises(DataError, match='smaller than a crop'):
        RecordedPairs(bracketed, 320, 192)
    write_mosaics(tmp_path / 'one', [clean_mosaic(0) + BLACK])
    with pytest.raises(DataError, match='two or more'):
        RecordedPairs(tmp_path / 'one', 64, 64)
    alone = tmp_path / 'alone'
    write_mosaics(alone / 'clean', [clean_mosaic(n) + BLACK for n in range(2)])
    with pytest.raises(DataError, match='no noisy'):
        RecordedPairs(alone, 64, 64)
    (alone / 'noisy').mkdir()
    cv2.imwrite(str(alone / 'noisy' / 'other.png'), np.full((HEIGHT, WIDTH), 250, np.uint16))
    with pytest.raises(DataError, match='has the name'):
        RecordedPairs(alone, 64, 64, decode=DecodeOptions(encoding_override='bayer_rggb12', black_level=240.0))
