# SPDX-License-Identifier: Apache-2.0
"""Weights in and out of a network: files, key names, architecture.

Our own files are safetensors whose header carries architecture, training commit, data and licence. Public checkpoints
are read as safetensors or as pickled files through a restricted loader; pickled code is refused, not run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dark3r_ros.config import from_mapping, to_mapping
from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.model.architecture import infer_config
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.constructor import stated_sizes
from dark3r_ros.model.network import TwoViewNetwork

HEADER_KEY = 'dark3r'
_UNUSED = re.compile(
    r'mask_token|downstream_head[12]\.dpt\.(scratch\.refinenet4\.resConfUnit1\..+|act_\d_postprocess\..+)'
)
# What torch's DistributedDataParallel puts before every name.
_PARALLEL = 'module.'
_ALIAS = re.compile(r'(.*\.scratch\.)layer_rn\.(\d)\.weight')


@dataclass(frozen=True)
class WeightsInfo:
    """What the header of one of our weight files says.

    Attributes
    ----------
    architecture: sizes of the network. normalisation: how raw becomes network input, see `normalise.MODES`.
    commit: commit of the training code. data: what it was trained on. licence: SPDX identifier or text.
    extra: anything else, such as training settings and scores.

    """

    architecture: NetworkConfig
    normalisation: str = 'signed'
    commit: str = ''
    data: str = ''
    licence: str = ''
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """Keys of a state dict against those of the network.

    Attributes
    ----------
    unexpected: keys that nothing in the network takes. ignored: keys known to be unused, or second names.

    """

    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """A weight file read into memory: tensors, architecture, header (ours only) and format."""

    path: Path
    state: dict[str, Tensor]
    config: NetworkConfig
    info: WeightsInfo | None
    format: str

    @property
    def normalisation(self) -> str:
        """How raw becomes network input: stated by our header, `paper` for public checkpoints."""
        return self.info.normalisation if self.info else 'paper'


def canonical_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Bring key names to those of the network: one name a tensor, unused ones out, old files completed.

    Returns the state and the ignored keys. A file without `dec_blocks2` gets a copy of `dec_blocks`; the prefix of
    checkpoints saved from a parallel training goes.
    """
    if state and all(key.startswith(_PARALLEL) for key in state):
        state = {key.removeprefix(_PARALLEL): value for key, value in state.items()}
    result: dict[str, Tensor] = {}
    ignored: list[str] = []
    for key, value in state.items():
        alias = _ALIAS.fullmatch(key)
        if alias:
            name = f'{alias[1]}layer{int(alias[2]) + 1}_rn.weight'
            if name in state:
                ignored.append(key)
            else:
                result[name] = value
        elif _UNUSED.fullmatch(key):
            ignored.append(key)
        else:
            result[key] = value
    if not any(key.startswith('dec_blocks2.') for key in result):
        for key in [key for key in result if key.startswith('dec_blocks.')]:
            result[key.replace('dec_blocks.', 'dec_blocks2.', 1)] = result[key]
    return result, tuple(ignored)


def load_state(network: TwoViewNetwork, state: Mapping[str, Tensor], where: str = 'the weights') -> LoadReport:
    """Copy a state dict into a network, as float32.

    Raises DataError when a key is missing, has another shape, or belongs to a block that the network does not have.
    """
    given, ignored = canonical_state(state)
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    if missing:
        raise DataError(f'{where}: wrong architecture or damaged file: {_listing("missing", missing)}')
    for key, target in wanted.items():
        if given[key].shape != target.shape:
            raise DataError(
                f'{where}: wrong architecture: {key} has shape {tuple(given[key].shape)}, '
                f'the network needs {tuple(target.shape)}'
            )
    surplus = [key for key in unexpected if re.match(r'(enc_blocks|dec_blocks2?)\.\d+\.', key)]
    if surplus:
        raise DataError(f'{where}: wrong architecture: {_listing("surplus", surplus)}')
    assign = next(iter(wanted.values())).is_meta
    # A copy per tensor: several names may share one, and a memory-mapped file must not stay open.
    values = {key: given[key].to(torch.float32, copy=True) if assign else given[key] for key in wanted}
    network.load_state_dict(values, assign=assign)
    return LoadReport(tuple(unexpected), ignored)


def _listing(word: str, keys: list[str]) -> str:
    more = f' and {len(keys) - 3} more' if len(keys) > 3 else ''
    return f'{len(keys)} {word} keys: {", ".join(keys[:3])}{more}'


def read_weights(path: str | Path, config: NetworkConfig | None = None) -> WeightsFile:
    """Read a safetensors or pickled weight file.

    The architecture comes from our header; else it is `config` when given; else it comes from the shapes, with what the
    constructor call in the checkpoint says of head numbers and positions. Raises DataError with one line for a missing,
    truncated, foreign or code-carrying file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'no weight file at {path}: name an existing .safetensors or .pth file')
    try:
        with path.open('rb') as stream:
            start = stream.read(16)
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror or error}') from error
    # A safetensors file begins with the length of its JSON header, whose first byte may be that of a pickle.
    known_pickle = start[:2] == b'PK' or start[:1] == b'\x80'
    if start[8:9] != b'{' and (known_pickle or path.suffix != '.safetensors'):
        state, constructor = _read_pickled(path)
        return WeightsFile(path, state, config or _architecture(state, path, constructor), None, 'pickled checkpoint')
    state, metadata = _read_safetensors(path)
    if HEADER_KEY in metadata:
        info = _parse_header(metadata[HEADER_KEY], path)
        return WeightsFile(path, state, info.architecture, info, 'safetensors with dark3r header')
    return WeightsFile(path, state, config or _architecture(state, path), None, 'safetensors')


def _architecture(state: Mapping[str, Tensor], path: Path, constructor: str = '') -> NetworkConfig:
    try:
        stated = stated_sizes(constructor) if constructor else {}
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    return infer_config(canonical_state(state)[0], str(path), stated)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework='pt') as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f'{path} is no complete safetensors file ({error}): fetch it again') from error


def _read_pickled(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors and constructor call of a pickled checkpoint, by the unpickler that knows tensors and Namespace only."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Other pickle protocols are worth no second line: they load, or are refused below.
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r'(?:GLOBAL|Global|global) ([\w.]+)', str(error))
        what = f' ({found[1]})' if found else ''
        raise DataError(
            f'{path} holds pickled objects other than tensors{what} or is damaged: refused without running it; '
            'use a safetensors export'
        ) from error
    except Exception as error:  # damaged bytes raise nearly anything inside the unpickler
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(f'{path} is no complete checkpoint ({reason}): fetch it again') from error
    constructor = ''
    if isinstance(content, dict) and isinstance(content.get('model'), dict):
        constructor = str(getattr(content.get('args'), 'model', '') or '')
        content = content['model']
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise DataError(f'{path} holds no state dict of tensors: not a checkpoint of this kind of network')
    return content, constructor


def _parse_header(text: str, path: Path) -> WeightsInfo:
    try:
        header = json.loads(text)
        architecture = from_mapping(NetworkConfig, header.pop('architecture'))
        return WeightsInfo(architecture=architecture, **header)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f'{path} has an unreadable dark3r header: {error}') from error


def load_network(
    source: str | Path | WeightsFile, config: NetworkConfig | None = None
) -> tuple[TwoViewNetwork, WeightsFile, LoadReport]:
    """Build the network that a weight file describes and fill it; evaluation mode, float32, on the CPU.

    `config` gives the sizes of a file that does not tell them, see `read_weights`.
    """
    weights = source if isinstance(source, WeightsFile) else read_weights(source, config)
    with torch.device('meta'):
        network = TwoViewNetwork(weights.config)
    report = load_state(network, weights.state, str(weights.path))
    return network.eval(), weights, report


def save_network(path: str | Path, network: TwoViewNetwork, info: WeightsInfo, half: bool = False) -> None:
    """Write a network and its header; `half` stores float16 (to ship), which is read back as float32.

    Raises ConfigError when the header describes another architecture, OutputError when the file cannot be written.
    """
    if info.architecture != network.config:
        raise ConfigError('the header describes another architecture than the network has')
    header = {**asdict(info), 'architecture': to_mapping(network.config)}
    state = {
        key: value.detach().to('cpu', torch.float16 if half else torch.float32).contiguous()
        for key, value in network.state_dict().items()
    }
    try:
        save_file(state, path, metadata={HEADER_KEY: json.dumps(header), 'format': 'pt'})
    except (OSError, SafetensorError) as error:
        raise OutputError(f'cannot write weights to {path}: {error}') from error


def fingerprint(network: TwoViewNetwork, *settings: str) -> str:
    """Hash of architecture, weights and settings, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps([to_mapping(network.config), *settings], sort_keys=True).encode())
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(memoryview(value.detach().to('cpu', torch.float32).contiguous().numpy()).cast('B'))
    return digest.hexdigest()
