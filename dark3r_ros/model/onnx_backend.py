# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime backend: runs the graphs of an export folder on the CPU or CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError, DependencyError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.export import decoder_file, encoder_file, read_manifest
from dark3r_ros.model.network import Grid, ViewPrediction, activate, images_grid

_PROVIDERS = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}
# What the graph leaves in float32 must stay so: rounded to TF32, the default, a dark signal is a few steps.
_OPTIONS: dict[str, dict[str, str]] = {'cpu': {}, 'cuda': {'use_tf32': '0'}}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError('the ONNX backend needs onnxruntime: install the extra `onnx`') from error
    return onnxruntime


def graph_for(folder: Path, name: str, sizes: tuple[tuple[int, int], ...]) -> Path:
    """Path of a graph of an export folder; DataError naming the sizes there are when it is not among them."""
    path = folder / name
    if not path.is_file():
        known = ', '.join(f'{width}x{height}' for width, height in sizes)
        raise DataError(
            f'{folder} has no {name}: it was exported for frames of {known}; export it again with the size you need'
        )
    return path


class OnnxBackend:
    """Runs exported graphs; a graph is loaded when the first frame of its size comes.

    Parameters
    ----------
    folder: as written by `export_folder`. device: `auto`, `cpu` or `cuda`.
    threads: of one inference on the CPU; 0 lets the runtime choose.

    """

    def __init__(self, folder: str | Path, device: str = 'auto', threads: int = 0) -> None:
        self._runtime = _onnxruntime()
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        available = self._runtime.get_available_providers()
        if device == 'auto':
            device = 'cuda' if _PROVIDERS['cuda'] in available else 'cpu'
        if device not in _PROVIDERS:
            raise ConfigError(f'unknown device {device!r} of the ONNX backend: use auto, cpu or cuda')
        if _PROVIDERS[device] not in available:
            raise ConfigError(
                f'this onnxruntime has no {_PROVIDERS[device]}: use device cpu or install onnxruntime-gpu'
            )
        self._provider = (_PROVIDERS[device], _OPTIONS[device])
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self.name = f'onnx-{device}-{self.manifest.precision}'
        self.fingerprint = self.manifest.fingerprint
        self.normalisation = self.manifest.normalisation

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        return self.manifest.config

    def _run(self, name: str, **inputs: Tensor) -> list[Tensor]:
        if name not in self._sessions:
            path = graph_for(self.folder, name, self.manifest.sizes)
            options = self._runtime.SessionOptions()
            options.intra_op_num_threads = self._threads
            try:
                self._sessions[name] = self._runtime.InferenceSession(str(path), options, providers=[self._provider])
            except Exception as error:  # the runtime has an exception type per cause, all private
                reason = str(error).splitlines()[0][:150]
                raise DataError(f'{path} is no usable ONNX graph ({reason}): export it again') from error
        arrays = {key: value.float().contiguous().numpy() for key, value in inputs.items()}
        return [torch.from_numpy(array) for array in self._sessions[name].run(None, arrays)]

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> tokens (B, N, E)."""
        return self._run(encoder_file(images_grid(images, self.config)), images=images)[0]

    def decode(
        self, tokens1: Tensor, tokens2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[ViewPrediction, ViewPrediction]:
        """Tokens (B, N1, E), (B, N2, E) -> float32 maps of both views."""
        points1, local1, points2, local2 = self._run(decoder_file(grid1, grid2), tokens1=tokens1, tokens2=tokens2)
        return activate(points1, local1), activate(points2, local2)
