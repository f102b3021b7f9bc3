# SPDX-License-Identifier: Apache-2.0
"""Training pairs from recordings: views of one place, taken clean, and noisy or made so.

Nothing is known of their geometry, and distillation asks for none.

* A bracketed folder holds `clean/` and one or more `noisy*/` whose files have the names of the clean ones: two
  exposures of one view from one tripod.
* Any other folder, bag or file holds clean views, whose noise is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import DataError
from dark3r_ros.model.normalise import normalise
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.raw.noise import PRESETS
from dark3r_ros.raw.planes import choose_binning, to_planes
from dark3r_ros.simulation.sensor import SignalStatistics
from dark3r_ros.storage.source import open_source
from dark3r_ros.training.batch import NoTruth, TrainingPairs
from dark3r_ros.training.exposure import ExposureConfig, expose
from dark3r_ros.training.light import random_gains, unit_mean
from dark3r_ros.types import Frame, Planes

CLEAN, NOISY = 'clean', 'noisy'
_TARGET_WIDTH = 320


@dataclass(frozen=True)
class FolderConfig(Config):
    """How pairs are taken from recordings."""

    noise: str = setting(
        'binned',
        'Where the noise of clean views is made: on the binned planes, with what binning leaves, or on the mosaic, '
        'exact and slow.',
        choices=('binned', 'mosaic'),
    )
    reach: int = setting(4, 'Largest distance between the two views of a pair in the recording.', minimum=1)
    most_views: int = setting(
        600, 'Views kept in memory; of a longer recording every second, third, ... is taken.', minimum=2
    )
    jitter: float = setting(0.1, 'Spread of the shift between the crops, in widths.', minimum=0.0, maximum=0.5)


@dataclass(frozen=True, eq=False)
class _View:
    """Clean frame, its planes, and the planes of its noisy exposures."""

    frame: Frame
    clean: Planes
    noisy: tuple[Planes, ...]


class RecordedPairs:
    """Pairs of neighbouring views of a recording.

    Parameters
    ----------
    path: see the text of the module. width, height: of a crop at network resolution in pixels.
    config: how pairs are taken. exposure: how clean views are darkened. decode: how raw values are read.
    seed: of all choices. device: where pairs are made.

    Raises DataError for a recording with fewer than two views, or too small ones.

    """

    knows_truth = False

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        config: FolderConfig | None = None,
        exposure: ExposureConfig | None = None,
        *,
        decode: DecodeOptions | None = None,
        seed: int = 0,
        device: torch.device | str = 'cpu',
    ) -> None:
        self.width, self.height, self.seed = width, height, seed
        self.config, self.exposure = config or FolderConfig(), exposure or ExposureConfig()
        self.device = torch.device(device)
        self.bracketed = (path / CLEAN).is_dir()
        if self.bracketed:
            self._views = _bracketed(path, decode)
        else:
            self._views = _clean(path, decode, self.config)
        # A lens cap teaches nothing.
        self._views = [view for view in self._views if float(view.clean.signal().mean()) > 0]
        if len(self._views) < 2:
            raise DataError(f'{path} holds {len(self._views)} usable view: training needs two or more')
        for view in self._views:
            if view.clean.size[0] < width or view.clean.size[1] < height:
                raise DataError(
                    f'{path}: {view.frame.name} has planes of {view.clean.size[0]}x{view.clean.size[1]} after binning, '
                    f'smaller than a crop of {width}x{height}: ask for smaller crops'
                )

    def __len__(self) -> int:
        return len(self._views)

    def make(self, number: int, count: int) -> TrainingPairs:
        """Make batch `number` of `count` pairs."""
        rng = np.random.default_rng([self.seed, number, 80])
        first = rng.integers(len(self._views), size=count)
        step = rng.integers(1, min(self.config.reach, len(self._views) - 1) + 1, size=count)
        # Towards the end of the recording pairs look back.
        second = np.where(first + step < len(self._views), first + step, first - step) % len(self._views)
        corners = [self._corners(rng, self._views[a], self._views[b]) for a, b in zip(first, second, strict=True)]
        sides = [
            [(self._views[row], corner[side]) for row, corner in zip(rows, corners, strict=True)]
            for side, rows in enumerate((first, second))
        ]
        clean = [torch.stack([self._light(view, corner) for view, corner in side]).to(self.device) for side in sides]
        if self.bracketed:
            noisy = [torch.stack([self._captured(rng, view, corner) for view, corner in side]) for side in sides]
            snr = torch.full((count,), torch.nan)
        elif self.config.noise == 'mosaic':
            noisy, snr = self._on_mosaic(rng, sides)
        else:
            gains = random_gains(rng, count).to(self.device)
            clean = [unit_mean(view * gains) for view in clean]
            generator = torch.Generator(device=self.device).manual_seed(int(rng.integers(2**62)))
            noisy, snr = expose(clean, rng, generator, self.exposure)
        clean = [unit_mean(view) for view in clean]
        images = [view.to(self.device) for view in noisy]
        return TrainingPairs(clean[0], clean[1], images[0], images[1], snr.to(self.device), NoTruth())

    def _corners(self, rng: np.random.Generator, a: _View, b: _View) -> tuple[tuple[int, int], tuple[int, int]]:
        """Left and top of the crops of both views."""
        free = np.minimum(a.clean.size, b.clean.size) - np.array([self.width, self.height])
        first = rng.integers(free + 1)
        moved = np.rint(first + rng.normal(0.0, self.config.jitter * self.width, 2))
        second = np.clip(moved, 0, free).astype(int)
        return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))

    def _cut(self, planes: Planes, corner: tuple[int, int]) -> Planes:
        x, y = corner
        return replace(planes, values=planes.values[:, y : y + self.height, x : x + self.width])

    def _light(self, view: _View, corner: tuple[int, int]) -> Tensor:
        return torch.from_numpy(np.maximum(self._cut(view.clean, corner).signal(), np.float32(0.0)))

    def _captured(self, rng: np.random.Generator, view: _View, corner: tuple[int, int]) -> Tensor:
        """Network input of one of the noisy exposures."""
        return self._input(self._cut(view.noisy[int(rng.integers(len(view.noisy)))], corner))

    def _input(self, planes: Planes) -> Tensor:
        if self.exposure.clip_black:
            black = np.array(planes.black_level, dtype=np.float32)[:, None, None]
            planes = replace(planes, values=np.maximum(planes.values, black))
        return torch.from_numpy(normalise(planes, self.exposure.normalisation).values)

    def _on_mosaic(
        self, rng: np.random.Generator, sides: Sequence[Sequence[tuple[_View, tuple[int, int]]]]
    ) -> tuple[list[Tensor], Tensor]:
        """Network input of both sides, photographed by one random calibrated sensor a pair; SNR (B,) in dB."""
        names = sorted(PRESETS)
        count = len(sides[0])
        models = [PRESETS[names[int(rng.integers(len(names)))]] for _ in range(count)]
        levels = rng.uniform(self.exposure.snr_low, self.exposure.snr_high, count)
        made: list[Tensor] = []
        for side in sides:
            images = []
            for (view, (x, y)), model, level in zip(side, models, levels, strict=True):
                n = view.clean.binning
                mosaic = view.frame.mosaic[y * n : (y + self.height) * n, x * n : (x + self.width) * n]
                light = np.maximum(mosaic.astype(np.float32) - np.float32(np.mean(view.frame.black_level)), 0.0)
                statistics = SignalStatistics()
                statistics.add(np.maximum(self._cut(view.clean, (x, y)).signal(), 0.0))
                scale = statistics.exposure(model, float(level), view.clean.samples)
                exposed = model.sample(light * np.float32(scale), rng, view.frame.cfa)
                black, white = (model.black_level,) * 3, model.white_level
                frame = replace(view.frame, mosaic=exposed, camera=None, black_level=black, white_level=white)
                images.append(self._input(to_planes(frame, n)))
            made.append(torch.stack(images))
        return made, torch.from_numpy(levels).float()


def _planes(frame: Frame) -> Planes:
    binning = choose_binning(frame.size[0], _TARGET_WIDTH)
    return to_planes(replace(frame, camera=None), binning)


def _clean(path: Path, decode: DecodeOptions | None, config: FolderConfig) -> list[_View]:
    source = open_source(path, decode=decode)
    stride = -(-len(source) // config.most_views)
    if stride > 1:
        source = open_source(path, decode=decode, stride=stride)
    return [_View(_kept(frame, config.noise == 'mosaic'), _planes(frame), ()) for frame in source]


def _kept(frame: Frame, whole: bool) -> Frame:
    """The frame, without its mosaic where nobody will look at it: those of a recording fill the memory."""
    return frame if whole else replace(frame, mosaic=frame.mosaic[:0, :0].copy())


def _bracketed(path: Path, decode: DecodeOptions | None) -> list[_View]:
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name.startswith(NOISY))
    if not folders:
        raise DataError(f'{path} has {CLEAN}/ but no {NOISY}*/ folder with the dark exposures of its views')
    dark: dict[str, list[Planes]] = {}
    for folder in folders:
        for frame in open_source(folder, decode=decode):
            dark.setdefault(Path(frame.name).stem, []).append(_planes(frame))
    views = []
    for frame in open_source(path / CLEAN, decode=decode):
        planes = _planes(frame)
        partners = dark.pop(Path(frame.name).stem, [])
        wrong = [other.size for other in partners if other.size != planes.size]
        if wrong:
            raise DataError(f'{path}: {frame.name} is {planes.size[0]}x{planes.size[1]} clean, {wrong[0]} dark')
        if partners:
            views.append(_View(_kept(frame, False), planes, tuple(partners)))
    if not views:
        raise DataError(f'{path}: no file of {NOISY}*/ has the name of one of {CLEAN}/')
    return views
