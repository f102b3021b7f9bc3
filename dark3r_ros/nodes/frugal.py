# SPDX-License-Identifier: Apache-2.0
"""A predictor that answers a full GPU with smaller batches instead of failing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dark3r_ros.errors import Dark3rError
from dark3r_ros.model.predictor import Features, Predictor
from dark3r_ros.types import Correspondences, Planes

T = TypeVar('T')

_ADVICE = 'lower mapping.network_width, end other programs on the GPU, or set device to cpu'


class FrugalPredictor:
    """The same answers as the predictor inside, in batches that fit into the memory of the GPU.

    A batch that does not fit is halved, and no later one is larger than what fitted. What does not fit alone raises
    Dark3rError, which costs that frame only. `say` hears of it; it is called in the thread of the pipeline.
    """

    def __init__(self, inner: Predictor, say: Callable[[str], None]) -> None:
        self._inner, self._say = inner, say
        self.limit: int | None = None

    @property
    def name(self) -> str:
        """Name of the predictor inside."""
        return self._inner.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the predictor inside: the answers are its own."""
        return self._inner.fingerprint

    def __getattr__(self, name: str) -> Any:
        # Predictors may offer more than the protocol; a copy of this object has no `_inner` before it is filled.
        if name == '_inner':
            raise AttributeError(name)
        return getattr(self._inner, name)

    def encode(self, planes: Planes) -> Features:
        """Encode one frame, after freeing cached memory where it does not fit at once."""
        for _ in range(2):
            try:
                return self._inner.encode(planes)
            except RuntimeError as error:
                _free_or_raise(error)
        raise Dark3rError(f'the GPU has no memory for one frame of {planes.size[0]}x{planes.size[1]}: {_ADVICE}')

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> list[Correspondences]:
        """Match each pair, in order."""
        result: list[Correspondences] = []
        while len(result) < len(pairs):
            start = len(result)
            count = len(pairs) - start if self.limit is None else min(self.limit, len(pairs) - start)
            try:
                result += self._inner.match(pairs[start : start + count])
            except RuntimeError as error:
                _free_or_raise(error)
                if count == 1:
                    raise Dark3rError(f'the GPU has no memory for one pair of frames: {_ADVICE}') from None
                self.limit = count // 2
                self._say(
                    f'the GPU ran out of memory on {count} pairs: at most {self.limit} at a time from now on, which is '
                    f'slower; {_ADVICE}'
                )
        return result


def _free_or_raise(error: RuntimeError) -> None:
    """Free what the allocator holds after an out-of-memory error; raise any other one again."""
    import torch

    if not isinstance(error, torch.cuda.OutOfMemoryError):
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
