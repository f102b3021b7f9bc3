# SPDX-License-Identifier: Apache-2.0
"""LPIPS where its package is installed, and one line where it is not."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dark3r_ros.nerf.evaluate import score
from dark3r_ros.nerf.perceptual import load_lpips


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lpips', None)
    distance, reason = load_lpips()
    assert distance is None and reason.startswith('absent: ') and 'dark3r_ros[metrics]' in reason


def test_without_a_network_one_line_says_so(monkeypatch):
    def fails(**given):
        raise OSError('no route to host\nand more')

    monkeypatch.setitem(sys.modules, 'lpips', SimpleNamespace(LPIPS=fails))
    distance, reason = load_lpips()
    assert distance is None and 'no route to host' in reason and '\n' not in reason


class Network(torch.nn.Module):
    """Has the interface of the package's network; mean absolute difference of what arrives in -1..1."""

    def __init__(self, net, verbose):
        super().__init__()
        assert net == 'alex' and not verbose

    def forward(self, one, other, normalize=False):
        assert one.shape == other.shape == (1, 3, 8, 9) and one.dtype == torch.float32 and not self.training
        return (2.0 if normalize else 1.0) * (one - other).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(sys.modules, 'lpips', SimpleNamespace(LPIPS=Network))


def test_tone_mapped_pictures_are_compared(installed):
    distance, reason = load_lpips()
    assert distance is not None and not reason
    truth = np.random.default_rng(0).uniform(10.0, 90.0, (3, 8, 9)).astype(np.float32)
    assert distance(np.full((3, 8, 9), 0.75), np.full((3, 8, 9), 0.25)) == pytest.approx(1.0)
    same, darker = (score([factor * truth], [truth], distance) for factor in (1.0, 0.5))
    assert same.as_mapping('')['lpips_tone'] == 0.0 and darker.as_mapping('a_')['a_lpips_tone'] > 0.2
    assert 'lpips_tone' not in score([truth], [truth]).as_mapping('')
