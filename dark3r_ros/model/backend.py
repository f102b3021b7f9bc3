# SPDX-License-Identifier: Apache-2.0
"""What runs a network: the protocol, and the PyTorch implementation.

Precision per device (`auto`): float32 on a CPU, where half precision is slower; bfloat16 on CUDA devices that have it,
float16 on older ones. Raw normalisation, patch embedding and heads are float32 everywhere; `tf32` alone rounds the
factors of matrix products, in the descriptor head too, but not those of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.network import Grid, TwoViewNetwork, ViewPrediction, images_grid
from dark3r_ros.model.weights import fingerprint, load_network

PRECISIONS = ('auto', 'fp32', 'tf32', 'bf16', 'fp16')
COMPILE_MODES = ('', 'default', 'cuda-graphs')
_DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}


class Backend(Protocol):
    """Runs the encoder and the decoder of one network separately."""

    @property
    def name(self) -> str:
        """Runtime, device and precision, such as `torch-cpu-fp32`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of weights, architecture and precision."""
        ...

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        ...

    @property
    def normalisation(self) -> str:
        """How raw becomes network input, one of `normalise.MODES`."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 on the CPU -> tokens (B, N, E) wherever the decoder wants them."""
        ...

    def decode(self, tokens1: Tensor, tokens2: Tensor, grid1: Grid, grid2: Grid) -> tuple[ViewPrediction, ...]:
        """Tokens (B, N1, E), (B, N2, E) -> float32 maps of both views."""
        ...


def choose_device(name: str = 'auto') -> torch.device:
    """`auto` is CUDA where there is a device, else the CPU; ConfigError for a device that is not there."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'unknown device {name!r}: use auto, cpu or cuda') from error
    if device.type not in ('cpu', 'cuda'):
        raise ConfigError(f'device {name!r} is not supported: use auto, cpu or cuda')
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('device cuda was asked for, but PyTorch sees none: use auto or cpu')
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Resolve `auto` for a device; ConfigError for an unknown precision."""
    if name not in PRECISIONS:
        raise ConfigError(f'unknown precision {name!r}; known: {", ".join(PRECISIONS)}')
    if name != 'auto':
        return name
    if device.type == 'cpu':
        return 'fp32'
    return 'bf16' if torch.cuda.get_device_capability(device) >= (8, 0) else 'fp16'


class TorchBackend:
    """Eager or compiled PyTorch, on the CPU or CUDA.

    Parameters
    ----------
    network: in evaluation mode; it is moved to the device.
    normalisation: how raw becomes network input.
    device, precision: see `choose_device` and `choose_precision`.
    compile_mode: empty, `default` (torch.compile) or `cuda-graphs` (the same with CUDA graphs; a frame size is recorded
        at its first use).

    """

    def __init__(
        self,
        network: TwoViewNetwork,
        normalisation: str = 'signed',
        device: str = 'auto',
        precision: str = 'auto',
        compile_mode: str = '',
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        if compile_mode not in COMPILE_MODES:
            raise ConfigError(f'unknown compile mode {compile_mode!r}; known: {", ".join(COMPILE_MODES)}')
        self.normalisation = normalisation
        self.network = network.eval().to(self.device)
        self.name = f'torch-{self.device.type}-{self.precision}'
        self._fingerprint = ''
        self._encode: Callable[..., Any] = network.encode
        self._decode: Callable[..., Any] = network.decode
        if compile_mode:
            mode = 'reduce-overhead' if compile_mode == 'cuda-graphs' else None
            self._encode = torch.compile(network.encode, mode=mode)
            self._decode = torch.compile(network.decode, mode=mode)
        # A recorded graph writes every result into the same memory.
        self._copy = compile_mode == 'cuda-graphs'

    @classmethod
    def from_file(
        cls, path: str | Path, device: str = 'auto', precision: str = 'auto', compile_mode: str = ''
    ) -> TorchBackend:
        """Load a weight file; its header says how raw becomes network input."""
        network, weights, _ = load_network(path)
        return cls(network, weights.normalisation, device, precision, compile_mode)

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        return self.network.config

    @property
    def fingerprint(self) -> str:
        """Hash of weights, architecture, normalisation and precision."""
        if not self._fingerprint:
            self._fingerprint = fingerprint(self.network, self.normalisation, self.precision)
        return self._fingerprint

    @contextmanager
    def _precision_scope(self) -> Iterator[None]:
        matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, conv.allow_tf32
        dtype = _DTYPES.get(self.precision)
        try:
            # What computes in float32 under autocast does so because it must not be rounded: patch embedding and heads.
            matmul.allow_tf32 = self.precision == 'tf32'
            conv.allow_tf32 = False
            with torch.inference_mode(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                yield
        finally:
            matmul.allow_tf32, conv.allow_tf32 = before

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> tokens (B, N, E) on the device."""
        with self._precision_scope():
            grid = images_grid(images, self.config)
            # Made here, so that a compiled graph takes the position tables as they are.
            self.network.rotations(grid, self.device)
            tokens = self._encode(images.to(self.device))
            return tokens.clone() if self._copy else tokens

    def decode(
        self, tokens1: Tensor, tokens2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[ViewPrediction, ViewPrediction]:
        """Tokens (B, N1, E), (B, N2, E) -> float32 maps of both views, on the device."""
        with self._precision_scope():
            view1, view2 = self._decode(tokens1, tokens2, grid1, grid2)
            if self._copy:
                return ViewPrediction(*(m.clone() for m in view1)), ViewPrediction(*(m.clone() for m in view2))
            return view1, view2
