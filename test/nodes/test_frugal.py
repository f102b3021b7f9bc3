# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import pytest
import torch

from dark3r_ros.errors import Dark3rError
from dark3r_ros.nodes.frugal import FrugalPredictor
from dark3r_ros.types import Planes

PLANES = Planes(np.zeros((3, 24, 32), np.float32), (0.0,) * 3, 1.0, (1, 2, 1), 2, 0)


class SmallGpu:
    """Predictor on a GPU that holds `room` pairs at a time."""

    name, fingerprint, device = 'small', 'abc', 'cuda:0'

    def __init__(self, room: int) -> None:
        self.room, self.batches, self.encodings = room, [], 0

    def encode(self, planes):
        self.encodings += 1
        if self.encodings > 1 or self.room:
            return planes
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    def match(self, pairs):
        if len(pairs) > self.room:
            raise torch.cuda.OutOfMemoryError(f'CUDA out of memory on {len(pairs)}')
        self.batches.append(len(pairs))
        return [f'{a}{b}' for a, b in pairs]


@pytest.mark.parametrize('room', [1, 2, 3, 8])
def test_the_answers_are_the_same_whatever_fits(room):
    inner, said = SmallGpu(room), []
    frugal = FrugalPredictor(inner, said.append)
    pairs = [('a', str(number)) for number in range(7)]
    assert frugal.match(pairs) == [f'a{number}' for number in range(7)]
    assert max(inner.batches) <= room and sum(inner.batches) == 7
    assert bool(said) == (room < 7)
    before = len(said)
    assert len(frugal.match(pairs)) == 7 and len(said) == before  # learnt once
    assert frugal.match([]) == []


def test_what_does_not_fit_alone_costs_the_frame_and_says_what_to_do():
    frugal = FrugalPredictor(SmallGpu(0), lambda _: None)
    with pytest.raises(Dark3rError, match=r'one pair of frames: lower mapping\.network_width'):
        frugal.match([('a', 'b')])


def test_a_frame_is_encoded_again_after_the_cache_was_emptied():
    inner = SmallGpu(0)
    assert FrugalPredictor(inner, lambda _: None).encode(PLANES) is PLANES and inner.encodings == 2


def test_other_errors_stay_what_they_are():
    class Broken(SmallGpu):
        def match(self, pairs):
            raise RuntimeError('mat1 and mat2 shapes cannot be multiplied')

    frugal = FrugalPredictor(Broken(3), lambda _: None)
    with pytest.raises(RuntimeError, match='shapes'):
        frugal.match([('a', 'b')])


def test_it_is_the_predictor_inside_to_everybody_else():
    frugal = FrugalPredictor(SmallGpu(1), lambda _: None)
    assert (frugal.name, frugal.fingerprint, frugal.device) == ('small', 'abc', 'cuda:0')
    assert copy.copy(frugal).name == 'small' and not hasattr(frugal, 'nothing')
