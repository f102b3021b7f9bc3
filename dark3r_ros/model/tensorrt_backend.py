# SPDX-License-Identifier: Apache-2.0
"""TensorRT backend: engines built from the exported ONNX graphs on the GPU that will run them.

An engine is kept beside its graph under a name made of GPU, TensorRT version, weights and largest batch, so that a
change of any of them builds a new one. Types are those of the graph (`strongly typed`): half precision comes from an
export with `fp16`, where patch embedding, normalisations and heads stay in float32.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError, DependencyError, OutputError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.export import DECODER_NAMES, ENCODER_NAMES, decoder_file, encoder_file, read_manifest
from dark3r_ros.model.network import Grid, ViewPrediction, activate, images_grid
from dark3r_ros.model.onnx_backend import graph_for

DEVICE = 'cuda'


def _tensorrt() -> Any:
    try:
        import tensorrt
    except Exception as error:  # a half-installed one fails with whatever its libraries lack
        raise DependencyError(
            f'the TensorRT backend needs a working TensorRT ({error}): install `tensorrt` for your CUDA version, '
            'or use the torch or onnx backend'
        ) from error
    return tensorrt


def _gpu_name() -> str:
    if not torch.cuda.is_available():
        raise ConfigError('the TensorRT backend needs a CUDA device: use the torch or onnx backend')
    return torch.cuda.get_device_name()


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


class TensorRtBackend:
    """Runs an export folder through TensorRT.

    Parameters
    ----------
    folder: as written by `export_folder`; engines are kept in it. max_batch: largest number of frames or pairs at once.

    Building an engine takes minutes; `prepare` does it ahead of the first frame.

    """

    def __init__(self, folder: str | Path, max_batch: int = 8) -> None:
        if max_batch < 1:
            raise ConfigError(f'max_batch must be at least 1, got {max_batch}')
        self._trt = _tensorrt()
        self._gpu = _gpu_name()
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.max_batch = max_batch
        self._contexts: dict[str, Any] = {}
        self.name = f'tensorrt-{self.manifest.precision}'
        self.fingerprint = self.manifest.fingerprint
        self.normalisation = self.manifest.normalisation

    @property
    def config(self) -> NetworkConfig:
        """Sizes of the network."""
        return self.manifest.config

    def engine_path(self, graph: str) -> Path:
        """Where the engine of a graph is kept."""
        parts = (self._gpu, self._trt.__version__, self.manifest.fingerprint, str(self.max_batch))
        key = hashlib.blake2b('|'.join(parts).encode(), digest_size=6).hexdigest()
        return self.folder / f'{Path(graph).stem}-{key}.plan'

    def prepare(self) -> list[Path]:
        """Build or load the engines of every size in the folder; returns their files."""
        grids = [self.manifest.grid(size) for size in self.manifest.sizes]
        graphs = [encoder_file(grid) for grid in grids]
        graphs += [decoder_file(first, second) for first in grids for second in grids]
        for graph in graphs:
            self._context(graph)
        return [self.engine_path(graph) for graph in graphs]

    def _context(self, graph: str) -> Any:
        if graph not in self._contexts:
            path = self.engine_path(graph)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes()) if path.is_file() else None
            if engine is None:
                plan = self._build(graph_for(self.folder, graph, self.manifest.sizes))
                try:
                    path.write_bytes(plan)
                except OSError as error:
                    raise OutputError(f'cannot write {path}: {error.strerror or error}') from error
                engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise DataError(f'TensorRT cannot load the engine that it built from {graph}: export it again')
            self._contexts[graph] = engine.create_execution_context()
        return self._contexts[graph]

    def _build(self, path: Path) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._logger)
        # Releases that know no other kind of network have no flag for it.
        flag = getattr(trt.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            reasons = '; '.join(str(parser.get_error(index)) for index in range(min(parser.num_errors, 2)))
            raise DataError(f'TensorRT {trt.__version__} cannot read {path}: {reasons}')
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            # Tuned for what tracking asks of it: one frame, one pair.
            profile.set_shape(tensor.name, (1, *rest), (1, *rest), (self.max_batch, *rest))
        config = builder.create_builder_config()
        config.add_optimization_profile(profile)
        # Allowed otherwise; it would round a dark signal in the patch embedding to ten bits with its pedestal.
        config.clear_flag(trt.BuilderFlag.TF32)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise DataError(f'TensorRT {trt.__version__} cannot build an engine from {path}: see its log above')
        return bytes(plan)

    def _run(self, graph: str, names: tuple[tuple[str, ...], tuple[str, ...]], *inputs: Tensor) -> list[Tensor]:
        if len(inputs[0]) > self.max_batch:
            parts = [
                self._run(graph, names, *(value[start : start + self.max_batch] for value in inputs))
                for start in range(0, len(inputs[0]), self.max_batch)
            ]
            return [torch.cat(group) for group in zip(*parts, strict=True)]
        context = self._context(graph)
        # Kept in a list: the engine knows their addresses only.
        held = [value.to(DEVICE, torch.float32).contiguous() for value in inputs]
        for name, value in zip(names[0], held, strict=True):
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        outputs = []
        for name in names[1]:
            output = torch.empty(tuple(context.get_tensor_shape(name)), dtype=torch.float32, device=DEVICE)
            context.set_tensor_address(name, output.data_ptr())
            outputs.append(output)
        if not context.execute_async_v3(_stream()):
            raise DataError(f'TensorRT failed to run {graph}: see its log above')
        return outputs

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 -> tokens (B, N, E) on the GPU."""
        return self._run(encoder_file(images_grid(images, self.config)), ENCODER_NAMES, images)[0]

    def decode(
        self, tokens1: Tensor, tokens2: Tensor, grid1: Grid, grid2: Grid
    ) -> tuple[ViewPrediction, ViewPrediction]:
        """Tokens (B, N1, E), (B, N2, E) -> float32 maps of both views, on the GPU."""
        graph = decoder_file(grid1, grid2)
        points1, local1, points2, local2 = self._run(graph, DECODER_NAMES, tokens1, tokens2)
        return activate(points1, local1), activate(points2, local2)
