# SPDX-License-Identifier: Apache-2.0
"""Compiled functions give the values of the plain ones, and what cannot be compiled still runs."""

import warnings

import pytest
import torch

from dark3r_ros.matching import windows
from dark3r_ros.model import compiled, patches
from dark3r_ros.model.compiled import Compiled, Traced


def twice(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return factor * x


def test_nothing_falls_back_on_the_interpreter_unseen():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for function in (
            patches.compare_lines,
            windows._best_in_window,
            windows._there_and_back,
            windows._cells_there_and_back,
        ):
            torch.jit.script(function)  # raises where it cannot be compiled


def _maps(seed, height=24, width=36):
    values = torch.randn(height * width, 24, generator=torch.Generator().manual_seed(seed))
    return patches.FineMaps(torch.nn.functional.normalize(values, dim=1), height, width).bordered(4)


@pytest.mark.parametrize('near', [True, False])
def test_the_search_is_that_of_the_interpreter(near):
    generator = torch.Generator().manual_seed(0)
    search = windows.window_search(4, 20.0, torch.device('cpu'))
    places = torch.rand(40, 2, generator=generator) * torch.tensor([71.0, 47.0])
    coarse = torch.nn.functional.normalize(torch.randn(2, 64, 6, 9, generator=generator), dim=1)
    described = windows.values_at(coarse[0], places)
    cells = described, places, coarse[0], coarse[1], places if near else None, 20.0, 8.0
    home = (places / 2).round()
    fine = _maps(0), home, (36, 24), _maps(0), home + 1, (35, 23), torch.ones(40), search, 0.001, 2.0
    with torch.inference_mode():
        for function, plain, arguments in (
            (windows.cells_there_and_back, windows._cells_there_and_back, cells),
            (windows.there_and_back, windows._there_and_back, fine),
        ):
            for found, expected in zip(function(*arguments), plain(*arguments), strict=True):
                assert len(expected) > 5
                assert torch.equal(found, expected)


def test_with_gradients_the_function_is_called_as_it_is():
    x = torch.ones(3, requires_grad=True)
    Compiled(twice)(x, factor=3.0).sum().backward()
    assert x.grad.tolist() == [3.0] * 3


def test_a_torch_without_torchscript_calls_the_function(monkeypatch):
    monkeypatch.delattr(compiled.torch.jit, 'script')
    monkeypatch.delattr(compiled.torch.jit, 'trace')
    traced = Traced(lambda x: (twice(x),))
    with torch.inference_mode():
        assert Compiled(twice)(torch.ones(2)).tolist() == [2.0, 2.0]
        assert [traced(torch.ones(2))[0].tolist() for _ in range(5)] == [[2.0, 2.0]] * 5


def test_only_shapes_that_keep_coming_are_recorded():
    calls = []

    def function(x):
        calls.append(x.shape)
        return (torch.sin(x) * x.shape[0],)

    traced = Traced(function)
    with torch.inference_mode():
        for size in range(1, 9):
            traced(torch.ones(size))
        assert len(calls) == 8
        for _ in range(4):
            assert torch.equal(traced(torch.full((3,), 0.5))[0], function(torch.full((3,), 0.5))[0])
        before = len(calls)
        traced(torch.ones(3))
        assert len(calls) == before
