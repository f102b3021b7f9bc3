# SPDX-License-Identifier: Apache-2.0
"""Scenes that methods are measured on, with their truth: clean sequences of pictures, darkened, or simulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import DataError
from dark3r_ros.simulation.darken import Darkening
from dark3r_ros.simulation.frames import Exposure, SimulatedFrame
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.trajectory import write_tum
from dark3r_ros.types import Trajectory


class Photographs(Protocol):
    """Raw frames of a scene, in order or one by one."""

    @property
    def exposure(self) -> Exposure:
        """How light became counts."""

    def __len__(self) -> int:
        """How many."""

    def __iter__(self) -> Iterator[SimulatedFrame]:
        """All, in order."""

    def photograph(self, index: int) -> SimulatedFrame:
        """One of them, the same as in the order."""


class Scene(Protocol):
    """Something that can be photographed at any SNR, again and again with the same result."""

    @property
    def name(self) -> str:
        """Name in tables and paths."""

    @property
    def description(self) -> dict[str, Any]:
        """What tells two scenes of the same name apart, as JSON."""

    def photograph(self, snr_db: float | None, seed: int, preset: str) -> Photographs:
        """Raw frames in order, noisy to `snr_db`, or clean for None."""

    def truth(self, folder: Path, seed: int) -> Path:
        """File with the true poses; a scene that has none makes it in `folder`."""


@dataclass(frozen=True)
class SequenceScene:
    """A folder with `cameras.json` and clean pictures."""

    folder: Path

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.absolute().name

    @property
    def description(self) -> dict[str, Any]:
        """The name alone: where the folder lies does not matter."""
        return {'sequence': self.name}

    def photograph(self, snr_db: float | None, seed: int, preset: str) -> Photographs:
        """Frames as `dark3r darken` makes them."""
        return Darkening(self.folder, snr_db or 0.0, seed=seed, preset=preset, clean=snr_db is None)

    def truth(self, folder: Path, seed: int) -> Path:
        """The sequence's own poses."""
        return self.folder / 'cameras.json'


@dataclass(frozen=True)
class SimulatedScene:
    """A scene of the simulator; exposure, noise and seed are set when it is photographed."""

    config: SimulationConfig

    @property
    def name(self) -> str:
        """Name of the simulator's scene."""
        return self.config.scene

    @property
    def description(self) -> dict[str, Any]:
        """The whole configuration."""
        return {'simulation': to_mapping(self.config)}

    def photograph(self, snr_db: float | None, seed: int, preset: str) -> Photographs:
        """Frames as `dark3r simulate` makes them."""
        changes: dict[str, Any] = {'clean': True} if snr_db is None else {'snr_db': snr_db}
        return simulate(replace(self.config, seed=seed, preset=preset, **changes))

    def truth(self, folder: Path, seed: int) -> Path:
        """Poses of the path, as `truth.tum` in the folder."""
        config = replace(self.config, seed=seed)
        world = config.world()
        stamps = np.array([config.stamp_ns(index) for index in range(config.count)], dtype=np.int64)
        poses = world.path(np.asarray((stamps - config.start_ns) * 1e-9, dtype=np.float64))
        write_tum(folder / 'truth.tum', Trajectory(stamps, poses))
        return folder / 'truth.tum'


@dataclass(frozen=True)
class KeptPhotographs:
    """Frames that were made already."""

    frames: tuple[SimulatedFrame, ...]
    exposure: Exposure

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[SimulatedFrame]:
        return iter(self.frames)

    def photograph(self, index: int) -> SimulatedFrame:
        """One of them."""
        return self.frames[index]


class KeptScene:
    """A scene whose frames of the last level are kept: many methods on one level photograph it once.

    Scenes of more than `most` frames are photographed again and again, as they are.
    """

    def __init__(self, scene: Scene, most: int = 100) -> None:
        self._scene, self._most = scene, most
        self._level: tuple[float | None, int, str] = (None, 0, '')
        self._kept: KeptPhotographs | None = None

    @property
    def name(self) -> str:
        """Name of the scene."""
        return self._scene.name

    @property
    def description(self) -> dict[str, Any]:
        """Description of the scene."""
        return self._scene.description

    def photograph(self, snr_db: float | None, seed: int, preset: str) -> Photographs:
        """Frames of the scene, made now or kept."""
        level = snr_db, seed, preset
        if self._kept is None or self._level != level:
            made = self._scene.photograph(snr_db, seed, preset)
            if len(made) > self._most:
                return made
            self._level, self._kept = level, KeptPhotographs(tuple(made), made.exposure)
        return self._kept

    def truth(self, folder: Path, seed: int) -> Path:
        """Truth of the scene."""
        return self._scene.truth(folder, seed)


# Small enough for a laptop: 320x240 planes under a quarter of the usual mosaic pixels.
_SMALL = SimulationConfig(width=640, height=480, depth=False)
SIMULATED = {
    'room': replace(_SMALL, scene='room', light='ambient', seconds=20.0, rate=2.0),
    'corridor': replace(_SMALL, scene='corridor', light='lamp', seconds=16.0, rate=2.5),
    'tunnel': replace(_SMALL, scene='tunnel', light='lamp', seconds=16.0, rate=2.5),
}


def open_scene(name: str) -> Scene:
    """A sequence folder, or one of `SIMULATED` by name; DataError for anything else."""
    folder = Path(name)
    if (folder / 'cameras.json').is_file():
        return SequenceScene(folder)
    if name in SIMULATED:
        return SimulatedScene(SIMULATED[name])
    raise DataError(f'{name} is neither a folder with cameras.json nor one of {", ".join(SIMULATED)}')
