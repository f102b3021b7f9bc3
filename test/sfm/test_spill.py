# SPDX-License-Identifier: Apache-2.0
"""Features on disk are the same bits, and leave no file behind."""

import torch

from dark3r_ros.matching.mini import MiniFeatures
from dark3r_ros.sfm.spill import spilled


def test_spilled_features_are_the_same_bits_in_a_file_without_a_name(tmp_path):
    torch.manual_seed(0)
    features = MiniFeatures(
        torch.randn(7, 6, 5).half(),
        torch.randn(480, 3).half(),
        torch.arange(29),
        torch.rand(29).half(),
        torch.zeros(0).half(),
        torch.randn(4, 6, 5).half().transpose(1, 2),
        (24, 20),
        (48, 40),
    )
    moved = spilled(features, tmp_path / 'new')
    assert list((tmp_path / 'new').iterdir()) == []
    for name in ('coarse', 'fine', 'keypoints', 'reliability', 'sixteenth', 'eighth'):
        before, after = getattr(features, name), getattr(moved, name)
        assert after.dtype == before.dtype and torch.equal(after, before)
    assert moved.shape == features.shape and moved.size == features.size
    assert moved.fine.untyped_storage().data_ptr() == moved.coarse.untyped_storage().data_ptr()
