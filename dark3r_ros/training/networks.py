# SPDX-License-Identifier: Apache-2.0
"""The networks that can be distilled, `mini` and those of the MASt3R family, behind one face."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.matching.learned import NetworkPredictor
from dark3r_ros.matching.mini import MiniMatchConfig, MiniPredictor, is_mini
from dark3r_ros.model.backend import TorchBackend
from dark3r_ros.model.config import PRESETS
from dark3r_ros.model.lora import adapted, merge, unmerge
from dark3r_ros.model.mini import BUNDLED, BUNDLED_TEACHER, SMALLEST, MiniNetwork, load_mini, save_mini
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.model.weights import WeightsInfo, load_network, save_network
from dark3r_ros.training.distill import DistillConfig
from dark3r_ros.training.features import MiniSubject, Subject, TwoViewSubject

LICENCE = 'Apache-2.0'
BUNDLED_FILES = {'mini': BUNDLED, 'mini-teacher': BUNDLED_TEACHER}  # the dark student, the clean teacher


@dataclass(frozen=True, eq=False)
class Model:
    """A network with what belongs to it.

    Attributes
    ----------
    network: on the device of training. normalisation: how raw becomes its input. origin: file or name.

    """

    network: MiniNetwork | TwoViewNetwork
    normalisation: str
    origin: str

    @property
    def step(self) -> int:
        """What the sides of its images must be multiples of."""
        return SMALLEST if isinstance(self.network, MiniNetwork) else self.network.config.patch_size

    def subject(self, config: DistillConfig) -> Subject:
        """Its part in a distillation."""
        if isinstance(self.network, MiniNetwork):
            return MiniSubject(self.network, config.encoder_layers)
        wrong = [layer for layer in config.encoder_layers if not layer.isdigit()]
        if wrong:
            raise ConfigError(f'the layers of this network are numbers, not {wrong[0]!r}')
        blocks = [int(layer) for layer in config.encoder_layers]
        return TwoViewSubject(self.network, blocks, config.decoder_layers, encoder_only=config.encoder_only)

    def predictor(self, *, every: bool = False) -> Predictor:
        """Matches with the present weights, on the CPU for `mini`, where the network is else.

        `every` keeps also those that the network thinks unlikely.
        """
        if isinstance(self.network, MiniNetwork):
            # Through the file, so that what is scored is what would ship: half precision and all.
            with TemporaryDirectory() as folder, _plain(self.network) as network:
                path = Path(folder) / 'mini.safetensors'
                save_mini(path, network, {})
                config = MiniMatchConfig(min_confidence=0.0, max_matches=0, max_keypoints=0) if every else None
                return MiniPredictor(path, config, device='cpu')
        device = str(next(self.network.parameters()).device)
        return NetworkPredictor(TorchBackend(self.network, self.normalisation, device, 'fp32'))

    def save(self, path: Path, header: Mapping[str, Any]) -> None:
        """Write the weights, whole at any moment; `header` holds commit, data, licence and anything else.

        Raises OutputError where they cannot be written.
        """
        temporary = path.with_suffix('.new')
        try:
            self._write(temporary, header)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f'cannot write weights to {path}: {error}') from error

    def _write(self, path: Path, header: Mapping[str, Any]) -> None:
        with _plain(self.network) as network:
            if isinstance(network, MiniNetwork):
                save_mini(path, network, header)
                return
            known = {key: str(header[key]) for key in ('commit', 'data', 'licence')}
            extra = {key: value for key, value in header.items() if key not in known}
            info = WeightsInfo(network.config, self.normalisation, **known, extra=extra)
            save_network(path, network, info)

    def digest(self) -> str:
        """Hash of the weights, 16 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=8)
        for key, value in sorted(self.network.state_dict().items()):
            digest.update(key.encode())
            digest.update(memoryview(value.detach().cpu().contiguous().numpy()).cast('B'))
        return digest.hexdigest()


def load_model(source: str, device: torch.device, seed: int = 0) -> Model:
    """Read a weight file, a bundled one by its name, or make a fresh network `new:mini`, `new:compact-10m`, ...

    Raises DataError or ConfigError for what is neither.
    """
    if source.startswith('new:'):
        return _fresh(source, device, seed)
    path = BUNDLED_FILES.get(source) or Path(source)
    if not path.is_file():
        known = ', '.join(f'new:{name}' for name in ('mini', *PRESETS))
        bundled = ', '.join(BUNDLED_FILES)
        raise DataError(f'{source!r} is no weight file, none of {bundled}, and none of {known}')
    if is_mini(path):
        return Model(load_mini(path)[0].requires_grad_(True).to(device), 'signed', source)
    network, weights, _ = load_network(path)
    return Model(network.to(device), weights.normalisation, source)


def _fresh(source: str, device: torch.device, seed: int) -> Model:
    name = source.removeprefix('new:')
    if name == 'mini':
        torch.manual_seed(seed)
        return Model(MiniNetwork().to(device), 'signed', source)
    if name not in PRESETS:
        raise ConfigError(f'unknown network {name!r}; known: mini, {", ".join(PRESETS)}')
    return Model(initialise(TwoViewNetwork(PRESETS[name]), seed).to(device), 'signed', source)


def check_alike(teacher: Model, student: Model) -> None:
    """Raise ConfigError for networks whose features cannot be compared one by one."""
    if type(teacher.network) is not type(student.network) or teacher.network.config != student.network.config:
        raise ConfigError(
            f'teacher {teacher.origin} and student {student.origin} are different networks: the student starts as a '
            'copy of the teacher, or from another training of the same network'
        )


@contextmanager
def _plain(network: MiniNetwork | TwoViewNetwork) -> Iterator[Any]:
    """The network itself, or for a while one that shares its weights, with its adapters merged."""
    if not any(True for _ in adapted(network)):
        yield network
        return
    merge(network)
    try:
        with torch.device('meta'):
            result = MiniNetwork(network.config) if isinstance(network, MiniNetwork) else TwoViewNetwork(network.config)
        state = {key: value for key, value in network.state_dict().items() if '.lora_' not in key}
        result.load_state_dict(state, assign=True)
        yield result.eval()
    finally:
        unmerge(network)


def commit() -> str:
    """Commit of this code, or `unknown` outside of a repository."""
    where = Path(__file__).parent
    try:
        found = subprocess.run(
            ['git', 'rev-parse', '--short=12', 'HEAD'], cwd=where, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return found.stdout.strip()
