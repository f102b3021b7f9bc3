# SPDX-License-Identifier: Apache-2.0
"""Functions on tensors that run through without the interpreter.

A node encodes, follows the camera and publishes in threads of one process. Between any two operations of torch a thread
waits until another one lets go of the interpreter, which doubles the time of work that is made of many small ones.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from functools import update_wrapper
from typing import Generic, ParamSpec, TypeVar

import torch

P = ParamSpec('P')
R = TypeVar('R')
F = TypeVar('F', bound=Callable[..., object])

_MEETINGS, _RECORDS = 2, 4  # times that a shape is met before it is recorded, and shapes that are
_compiling = threading.Lock()


class Compiled(Generic[P, R]):
    """A function whose first argument holds a tensor, compiled by TorchScript at the first call on a CPU.

    The operations, and so the values, are the same. On other devices, with gradients, and by a torch that does not
    compile it, the function is called as it is.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._compiled: Callable[P, R] | None = None
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        first = args[0] if isinstance(args[0], torch.Tensor) else args[0][0]  # type: ignore[index]
        if _interpreted(first):
            return self._function(*args, **kwargs)
        if self._compiled is None:
            with _compiling:
                self._compiled = self._compiled or _made(self._function, lambda: torch.jit.script(self._function))
        return self._compiled(*args, **kwargs)


class Traced:
    """A function from one tensor to several, recorded by TorchScript for the shapes that keep coming on a CPU.

    Recording takes as long as a few calls: a shape is met three times before, and no more than four are kept. Otherwise
    as `Compiled`.
    """

    def __init__(self, function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        self._function = function
        self._met: Counter[torch.Size] = Counter()
        self._recorded: dict[torch.Size, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = {}

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the function."""
        if _interpreted(image):
            return self._function(image)
        recorded = self._recorded.get(image.shape)
        if recorded is not None:
            return recorded(image)
        with _compiling:
            self._met[image.shape] += 1
            if self._met[image.shape] > _MEETINGS and len(self._recorded) < _RECORDS:
                self._recorded[image.shape] = _made(
                    self._function, lambda: torch.jit.trace(self._function, image, check_trace=False)
                )
        return self._function(image)


def _interpreted(tensor: torch.Tensor) -> bool:
    """Whether a function of a tensor is called as it is."""
    return torch.is_grad_enabled() or tensor.device.type != 'cpu'


def _made(function: F, make: Callable[[], F]) -> F:
    """What TorchScript makes of a function, or the function itself where this torch cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript is to go one day
        try:
            return make()
        except (AttributeError, RuntimeError, TypeError):
            return function
