# SPDX-License-Identifier: Apache-2.0
"""The network `mini` and its weight files."""

import pytest
import torch
from safetensors.torch import save_file

from dark3r_ros.errors import DataError
from dark3r_ros.model.mini import (
    BUNDLED,
    BUNDLED_TEACHER,
    MiniConfig,
    MiniNetwork,
    asinh,
    fold_norms,
    load_mini,
    pad_image,
    read_mini_header,
    save_mini,
)

SMALL = MiniConfig(stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4)


def test_maps_have_their_sizes_and_unit_length():
    torch.manual_seed(0)
    with torch.inference_mode():
        output = MiniNetwork(SMALL).eval()(torch.randn(2, 3, 64, 96))
    assert output.coarse.shape == (2, 8, 8, 12)
    assert output.fine.shape == (2, 4, 32, 48)
    assert output.reliability.shape == (2, 32, 48)
    for descriptors in (output.coarse, output.fine):
        assert torch.allclose(descriptors.norm(dim=1), torch.ones(()), atol=1e-5)


def test_descriptors_move_with_the_image():
    network, _ = load_mini()
    image = torch.randn(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool2d(image, 5, 1, 2) * 5
    with torch.inference_mode():
        still, moved = network(image), network(image.roll(32, dims=3))
    # Far from the borders, beyond which the shifted image differs.
    a, b = still.fine[:, :, 32:64, 40:64], moved.fine[:, :, 32:64, 56:80]
    assert float((a * b).sum(1).mean()) > 0.97


def test_padding_keeps_the_image_at_the_top_left():
    image = torch.randn(1, 3, 40, 70)
    padded = pad_image(image)
    assert padded.shape == (1, 3, 64, 96)
    assert torch.equal(padded[:, :, :40, :70], image)
    with pytest.raises(DataError, match='70x20'):
        pad_image(torch.zeros(1, 3, 20, 70))


def test_weights_survive_the_file_in_half_precision(tmp_path):
    torch.manual_seed(1)
    network = MiniNetwork(SMALL)
    network.train()(torch.randn(2, 3, 64, 64))
    save_mini(tmp_path / 'a.safetensors', network, {'licence': 'Apache-2.0'})
    loaded, digest = load_mini(tmp_path / 'a.safetensors')
    expected = network.state_dict()
    for key, value in loaded.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, expected[key].half().float()), key
    assert len(digest) == 16
    assert read_mini_header(tmp_path / 'a.safetensors')['architecture']['stem'] == 4


def test_other_files_are_refused(tmp_path):
    torch.manual_seed(1)
    save_file({'x': torch.zeros(2)}, tmp_path / 'other.safetensors')
    with pytest.raises(DataError, match='holds no weights of `mini`'):
        load_mini(tmp_path / 'other.safetensors')
    whole = tmp_path / 'whole.safetensors'
    save_mini(whole, MiniNetwork(SMALL), {})
    (tmp_path / 'cut.safetensors').write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match='cannot read the weights'):
        load_mini(tmp_path / 'cut.safetensors')
    with pytest.raises(DataError, match='cannot read the weights'):
        load_mini(tmp_path / 'missing.safetensors')


@pytest.mark.parametrize(('path', 'role'), [(BUNDLED, 'dark student'), (BUNDLED_TEACHER, 'clean teacher')])
def test_bundled_weights_say_where_they_come_from(path, role):
    header = read_mini_header(path)
    assert header['role'] == role
    assert header['architecture']['name'] == 'mini'
    assert header['licence'] == 'Apache-2.0'
    assert 'kodak24' in header['data'] and 'bsds' not in header['data']
    assert len(header['commit']) == 12
    assert header['pairs'] > 0
    assert path.stat().st_size < 10_000_000
    network, _ = load_mini(path)
    assert 2_000_000 < network.parameter_count() < 15_000_000
    assert network.cross_view is not None


def test_a_network_with_folded_norms_says_the_same():
    plain, folded = load_mini(BUNDLED)[0], fold_norms(load_mini(BUNDLED)[0])
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    image = 3.0 * torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected, found = plain(image), folded(image)
        both = (network.relate(x.context, x.context)[0] for network, x in ((plain, expected), (folded, found)))
        assert all(torch.allclose(x.coarse, y.coarse, atol=1e-5) for x, y in [tuple(both)])
    for name in ('coarse', 'fine', 'reliability'):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-4), name


def test_asinh_is_exact_over_all_sizes():
    size = torch.logspace(-12, 12, 2001)
    x = torch.cat([-size, torch.zeros(1), size])
    expected = torch.asinh(x.double())
    assert ((asinh(x) - expected).abs() <= 3e-7 * expected.abs()).all()
