# SPDX-License-Identifier: Apache-2.0
"""Training pairs from what a user names: `sim`, `textures`, `textures:FOLDER`, or a path, each with a weight `@W`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.training.batch import PairData
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.folders import FolderConfig, RecordedPairs
from dark3r_ros.training.mixture import Mixture
from dark3r_ros.training.pairs import PairConfig, PairMaker
from dark3r_ros.training.pool import PoolConfig, RenderedPairs
from dark3r_ros.training.textures import SUFFIXES, load_textures

SIMULATION, TEXTURES = 'sim', 'textures'


@dataclass(frozen=True)
class SourceConfig:
    """Settings that all sources share.

    `width` and `height` are those of a crop in pixels, `procedural` is the number of procedural textures beside
    photographs.
    """

    width: int = 192
    height: int = 160
    procedural: int = 40
    seed: int = 0
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    folder: FolderConfig = field(default_factory=FolderConfig)
    decode: DecodeOptions = field(default_factory=DecodeOptions)


def parse_spec(text: str) -> tuple[str, float]:
    """Name and weight of `NAME` or `NAME@WEIGHT`; ConfigError for a weight that is none."""
    name, mark, weight = text.rpartition('@')
    if not mark:
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise ConfigError(f'{text!r}: the weight after @ must be a positive number')
    return name, value


def open_data(specs: Sequence[str], config: SourceConfig, device: torch.device, cache: Path | None = None) -> PairData:
    """The training pairs of a list of specs; `cache` keeps rendered pairs.

    Photographs of `textures:FOLDER` also cover the surfaces of the simulated scenes. Raises DataError or ConfigError
    naming what cannot be used.
    """
    named = [parse_spec(spec) for spec in specs]
    if not named:
        raise ConfigError('no training data: name sim, textures, or a folder')
    folders = [Path(name.partition(':')[2]) for name, _ in named if name.startswith(f'{TEXTURES}:')]
    photos = read_photos(folders)
    sources = [_open(name, config, device, photos, cache) for name, _ in named]
    if len(sources) == 1:
        return sources[0]
    return Mixture(sources, [weight for _, weight in named], config.seed)


def _open(
    name: str, config: SourceConfig, device: torch.device, photos: Sequence[NDArray[np.uint8]], cache: Path | None
) -> PairData:
    width, height, seed, exposure = config.width, config.height, config.seed, config.exposure
    if name == SIMULATION:
        return RenderedPairs(
            width, height, config.pool, exposure, seed=seed, device=device, photos=photos, cache=cache
        )  # fmt: skip
    kind, _, folder = name.partition(':')
    if kind == TEXTURES and not Path(name).exists():
        textures = load_textures([Path(folder)] if folder else [], config.procedural, seed)
        return PairMaker(textures.to(device), PairConfig(width=width, height=height), seed, exposure)
    path = Path(name)
    if not path.exists():
        raise DataError(f'{name!r} is neither sim, textures, textures:FOLDER nor an existing folder or bag')
    return RecordedPairs(
        path, width, height, config.folder, exposure, decode=config.decode, seed=seed, device=device
    )  # fmt: skip


def read_photos(folders: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """Photographs (h, w, 3) uint8 sRGB of folders, in the order of their names."""
    found = []
    for folder in folders:
        for path in sorted(item for item in folder.glob('*') if item.suffix.lower() in SUFFIXES):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError(f'cannot read the picture {path}')
            found.append(np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8))
    return found
