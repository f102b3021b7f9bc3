# SPDX-License-Identifier: Apache-2.0
"""Export of a network as ONNX graphs, encoder and decoder apart, so that encoder tokens can be kept between pairs.

A graph is made for one frame size, with a free batch; positions are constants in it. Heads are exported before their
activation, which stays in float32 outside. With `fp16` the transformer blocks compute in half precision while patch
embedding, normalisations and heads keep float32, written into the graph itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dark3r_ros.config import from_mapping, to_mapping
from dark3r_ros.errors import ConfigError, DataError, DependencyError, OutputError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.network import Grid, TwoViewNetwork
from dark3r_ros.model.weights import fingerprint

OPSET = 17
MANIFEST = 'engine.json'
GRAPH_PRECISIONS = ('fp32', 'fp16')
ENCODER_NAMES = (('images',), ('tokens',))
DECODER_NAMES = (('tokens1', 'tokens2'), ('points1', 'local1', 'points2', 'local2'))


@dataclass(frozen=True)
class Manifest:
    """What an export folder holds; written as `engine.json`.

    Attributes
    ----------
    config: sizes of the network. normalisation: how raw becomes its input.
    fingerprint: hash of weights, normalisation and precision. precision: of the transformer blocks.
    sizes: width and height of the frames that there are graphs for.

    """

    config: NetworkConfig
    normalisation: str
    fingerprint: str
    precision: str
    sizes: tuple[tuple[int, int], ...]

    def grid(self, size: tuple[int, int]) -> Grid:
        """Rows and columns of tokens of a frame of (width, height)."""
        return size[1] // self.config.patch_size, size[0] // self.config.patch_size


def encoder_file(grid: Grid) -> str:
    """Name of the encoder graph of a token grid (rows, columns)."""
    return f'encoder_{grid[0]}x{grid[1]}.onnx'


def decoder_file(grid1: Grid, grid2: Grid) -> str:
    """Name of the decoder graph of two token grids (rows, columns)."""
    return f'decoder_{grid1[0]}x{grid1[1]}_{grid2[0]}x{grid2[1]}.onnx'


class _Encoder(nn.Module):
    def __init__(self, network: TwoViewNetwork, half: bool) -> None:
        super().__init__()
        self.network = network
        self.half_blocks = half

    def forward(self, images: Tensor) -> Tensor:
        with _graph_precision(self.half_blocks):
            return self.network.encode(images).float()


class _Decoder(nn.Module):
    def __init__(self, network: TwoViewNetwork, half: bool, grid1: Grid, grid2: Grid) -> None:
        super().__init__()
        self.network = network
        self.half_blocks = half
        self.grids = grid1, grid2

    def forward(self, tokens1: Tensor, tokens2: Tensor) -> tuple[Tensor, ...]:
        with _graph_precision(self.half_blocks):
            raw1, raw2 = self.network.decode_raw(tokens1, tokens2, *self.grids)
        return (*raw1, *raw2)


def _graph_precision(half: bool) -> torch.autocast:
    # Without the cache: a cast that is remembered from one block would be missing in the trace of the next.
    return torch.autocast('cpu', torch.float16, enabled=half, cache_enabled=False)


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    try:
        import onnx  # noqa: F401  (the exporter needs it, and says so less clearly)
    except ImportError as error:
        raise DependencyError('exporting a network needs the package onnx: install the extra `onnx`') from error
    axes = {name: {0: 'batch'} for group in names for name in group}
    temporary = path.with_suffix('.tmp')
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # Sizes are constants of the graph on purpose; the tracer warns at each.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                module.eval(),
                inputs,
                temporary,
                input_names=list(names[0]),
                output_names=list(names[1]),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        temporary.unlink(missing_ok=True)


def export_encoder(network: TwoViewNetwork, path: str | Path, grid: Grid, precision: str = 'fp32') -> None:
    """Write the encoder graph: `images` (B, C, H, W) -> `tokens` (B, N, E), float32 at both ends."""
    config = network.config
    images = torch.zeros(2, config.in_channels, grid[0] * config.patch_size, grid[1] * config.patch_size)
    _export(_Encoder(network, _is_half(precision)), (images,), Path(path), ENCODER_NAMES)


def export_decoder(
    network: TwoViewNetwork, path: str | Path, grid1: Grid, grid2: Grid, precision: str = 'fp32'
) -> None:
    """Write the decoder graph: `tokens1`, `tokens2` -> `points1`, `local1`, `points2`, `local2`, not activated."""
    width = network.config.enc_embed_dim
    tokens = tuple(torch.zeros(2, grid[0] * grid[1], width) for grid in (grid1, grid2))
    _export(_Decoder(network, _is_half(precision), grid1, grid2), tokens, Path(path), DECODER_NAMES)


def _is_half(precision: str) -> bool:
    if precision not in GRAPH_PRECISIONS:
        raise ConfigError(f'unknown graph precision {precision!r}; known: {", ".join(GRAPH_PRECISIONS)}')
    return precision == 'fp16'


def export_folder(
    network: TwoViewNetwork,
    folder: str | Path,
    sizes: Sequence[tuple[int, int]],
    *,
    normalisation: str = 'signed',
    precision: str = 'fp32',
) -> Manifest:
    """Write an encoder per frame size, a decoder per ordered pair of sizes, and the manifest.

    Parameters
    ----------
    network: on the CPU. folder: is created; files of the same name are replaced.
    sizes: width and height of the frames, multiples of the patch size.
    normalisation: how raw becomes network input. precision: of the transformer blocks, `fp32` or `fp16`.

    Raises DataError for a size that does not divide into patches, OutputError when the folder cannot be written.

    """
    folder = Path(folder)
    network = network.eval()
    grids = [network.grid(height, width) for width, height in sizes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f'cannot make the folder {folder}: {error.strerror or error}') from error
    for grid in grids:
        export_encoder(network, folder / encoder_file(grid), grid, precision)
    for grid1 in grids:
        for grid2 in grids:
            export_decoder(network, folder / decoder_file(grid1, grid2), grid1, grid2, precision)
    manifest = Manifest(
        network.config, normalisation, fingerprint(network, normalisation, precision), precision, tuple(sizes)
    )
    content: dict[str, Any] = {**manifest.__dict__, 'config': to_mapping(network.config), 'opset': OPSET}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1), encoding='utf-8')
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """Read `engine.json` of an export folder; DataError when it is missing or unreadable."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return Manifest(
            from_mapping(NetworkConfig, content['config']),
            content['normalisation'],
            content['fingerprint'],
            content['precision'],
            tuple((int(width), int(height)) for width, height in content['sizes']),
        )
    except FileNotFoundError as error:
        raise DataError(f'no {MANIFEST} in {folder}: make it with `dark3r export-engine`') from error
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f'{path} is unreadable ({error}): make it again with `dark3r export-engine`') from error
