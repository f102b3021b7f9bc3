# SPDX-License-Identifier: Apache-2.0
"""Training of the network that reads depth from a sweep (`model/sweep_depth.py`); `mini` stays as it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import ConfigError, OutputError
from dark3r_ros.model.mini import SMALLEST, fold_norms, load_mini
from dark3r_ros.model.sweep import fine_evidence
from dark3r_ros.model.sweep_depth import (
    SweepDepthConfig,
    SweepDepthNetwork,
    SweptDepth,
    load_sweep_depth,
    peak,
    save_sweep_depth,
)
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.loop import LoopConfig, Trainer
from dark3r_ros.training.networks import BUNDLED_FILES, LICENCE, commit
from dark3r_ros.training.parallel import connect, disconnect
from dark3r_ros.training.session import POOL, SETTINGS
from dark3r_ros.training.sources import read_photos
from dark3r_ros.training.sweeps import RenderedSweeps, SweepPoolConfig, Sweeps, stacked

WEIGHTS = 'depth.safetensors'
LEVELS = (-8.0, -4.0, 20.0)
_HELD_OUT = 977  # seed of views that training does not see
_FACTOR = 1.25  # of the share of good depths


@dataclass(frozen=True)
class DepthLossConfig(Config):
    """Weights of the losses."""

    likely: float = setting(1.0, 'Weight of the cross-entropy of the true depth among those tried.', minimum=0.0)
    error: float = setting(1.0, 'Weight of the logarithm of the depth found over the true one.', minimum=0.0)
    right: float = setting(0.3, 'Weight of the chance that a depth is right, against the truth.', minimum=0.0)
    tolerance: float = setting(0.05, 'A depth this share off is right.', minimum=0.001, maximum=1.0)


def depth_losses(
    found: SweptDepth, inverse: Tensor, depth: Tensor, config: DepthLossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of chances of inverse depths (B, D, h, w) against depths (B, h, w), infinite where they are not known."""
    known = torch.isfinite(depth) & (depth > 0)
    truth = torch.where(known, depth, torch.ones_like(depth)).reciprocal()
    count = inverse.shape[1]
    step = (inverse[:, 1] - inverse[:, 0]).clamp(min=1e-9)
    place = ((truth - inverse[:, 0]) / step).clamp(0.0, count - 1.0)
    lower = place.floor().long().clamp(max=count - 2)
    upper_share = place - lower
    chance = found.logits.log_softmax(1)
    near = chance.gather(1, torch.stack([lower, lower + 1], dim=1))
    likely = -(1.0 - upper_share) * near[:, 0] - upper_share * near[:, 1]
    error = (peak(found.logits, inverse) / truth).log().abs()
    right = functional.binary_cross_entropy_with_logits(
        found.right, (error < config.tolerance).float(), reduction='none'
    )
    weight = known / known.sum().clamp(min=1)
    figures = {
        'likely': (weight * likely).sum(),
        'error': (weight * error.clamp(max=1.0)).sum(),
        'right': (weight * right).sum(),
    }
    total = config.likely * figures['likely'] + config.error * figures['error'] + config.right * figures['right']
    return total, figures


def both_stages(
    network: SweepDepthNetwork, sweeps: Sweeps, factor: float
) -> tuple[SweptDepth, Tensor, SweptDepth, Tensor]:
    """Answers of the first and second stage, each with the inverse depths (B, D, h, w) that it tried.

    `factor` is that of fine similarities before a softmax.
    """
    about = sweeps.about
    first = network(sweeps.evidence, about)
    inverse = sweeps.inverse
    tried = network.tried_around(peak(first.logits, inverse).detach(), inverse)
    with torch.no_grad():
        evidence = stacked(
            [
                fine_evidence(item.view, item.partners, item.project, one, factor)
                for item, one in zip(sweeps.items, tried, strict=True)
            ]
        )
    every = inverse[:, :, None, None].expand_as(first.logits)
    return first, every, network.refine(first, evidence, about), tried


class DepthTask:
    """What a step of training does, for `loop.Trainer`."""

    def __init__(self, network: SweepDepthNetwork, data: RenderedSweeps, config: DepthLossConfig | None = None) -> None:
        self.network, self.data = network, data
        self.config = config or DepthLossConfig()
        self.device = data.device
        self._factor = float(data.network.fine_factor)

    def make(self, number: int, count: int) -> Sweeps:
        """Sweeps of a part of a step."""
        return self.data.make(number, count)

    def losses(self, sweeps: Sweeps, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Total of a batch and its parts, of both stages."""
        first, inverse, second, tried = both_stages(self.network, sweeps, self._factor)
        coarse, figures = depth_losses(first, inverse, sweeps.true_depth(8), self.config)
        fine, more = depth_losses(second, tried, sweeps.true_depth(4), self.config)
        return coarse + fine, {**figures, **{f'fine_{name}': value for name, value in more.items()}}


class DepthValidation:
    """Scores and pictures of a network on views that it is not trained on, at several levels of light."""

    def __init__(self, network: SweepDepthNetwork, data: Sequence[tuple[float, Sweeps]], factor: float) -> None:
        self.network, self.data, self.factor = network, data, factor

    def figures(self) -> dict[str, float]:
        """AbsRel, share within a factor of 1.25, and both of what is called right more likely than not."""
        figures: dict[str, float] = {}
        for level, sweeps in self.data:
            depth, right = self._depth(sweeps)
            truth = sweeps.true_depth(4)
            known = torch.isfinite(truth)
            sure = known & (right > 0.5)
            for name, kept in (('', known), ('sure_', sure)):
                ratio = (depth / truth)[kept]
                figures |= {
                    f'{level:+g}dB_{name}abs_rel': round(float((ratio - 1.0).abs().mean()), 4),
                    f'{level:+g}dB_{name}delta': round(
                        float((torch.maximum(ratio, 1.0 / ratio) < _FACTOR).float().mean()), 4
                    ),
                }
            figures[f'{level:+g}dB_sure'] = round(float(sure.sum() / known.sum()), 4)
        return figures

    def picture(self) -> NDArray[np.uint8]:
        """True and found depths of the first views at the lowest level, near ones bright, and how sure they are."""
        sweeps = self.data[0][1]
        depth, right = self._depth(sweeps)
        truth = sweeps.true_depth(4)
        columns = []
        for number in range(min(4, len(sweeps))):
            inverse = sweeps.items[number].inverse
            low, high = float(inverse[0]), float(inverse[-1])
            parts = [_shaded(1.0 / one[number], low, high) for one in (truth, depth)]
            columns.append(np.concatenate([*parts, _shaded(right[number], 0.0, 1.0)]))
        return np.concatenate(columns, axis=1)

    def _depth(self, sweeps: Sweeps) -> tuple[Tensor, Tensor]:
        _, _, second, tried = both_stages(self.network, sweeps, self.factor)
        return peak(second.logits, tried).reciprocal(), second.right.sigmoid()


def _shaded(values: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    scaled = ((values - low) / (high - low)).clamp(0.0, 1.0).cpu().numpy()
    coloured = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    return np.repeat(np.repeat(coloured, 3, axis=0), 3, axis=1)


@dataclass(frozen=True)
class DepthSessionConfig:
    """All settings of a training: `weights` is that of `mini`, by name or file, `start` a depth file to begin with."""

    weights: str = 'mini'
    start: str = ''
    textures: tuple[str, ...] = ()
    width: int = 256
    height: int = 192
    device: str = 'auto'
    validation: int = 12
    network: SweepDepthConfig = field(default_factory=SweepDepthConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    losses: DepthLossConfig = field(default_factory=DepthLossConfig)
    exposure: ExposureConfig = field(default_factory=ExposureConfig)
    pool: SweepPoolConfig = field(default_factory=SweepPoolConfig)


class DepthSession:
    """A training in a folder, begun or continued.

    Raises DataError, ConfigError or OutputError saying what cannot be used.
    """

    def __init__(self, config: DepthSessionConfig, folder: Path, progress: Callable[[str], None] | None = None) -> None:
        if config.width % SMALLEST or config.height % SMALLEST:
            raise ConfigError(f'views of {config.width}x{config.height}: both sides must be multiples of {SMALLEST}')
        device = ('cuda' if torch.cuda.is_available() else 'cpu') if config.device == 'auto' else config.device
        self.group, self.device = connect(device)
        self.config, self.folder = config, folder
        mini, self.digest = load_mini(BUNDLED_FILES.get(config.weights) or Path(config.weights))
        self.mini = fold_norms(mini).to(self.device)
        self.network = self._network().to(self.device)
        photos = read_photos([Path(name) for name in config.textures])
        cache = folder / POOL / str(self.group.rank)
        data = self._data(config.pool, config.exposure, config.loop.seed, photos, cache)
        self.trainer = Trainer(
            DepthTask(self.network, data, config.losses), config.loop, folder, self._observer(), self.group, progress
        )
        if self.group.leads:
            self._write_settings()

    def _network(self) -> SweepDepthNetwork:
        if self.config.start:
            return load_sweep_depth(Path(self.config.start))[0].requires_grad_(True)
        torch.manual_seed(self.config.loop.seed)
        return SweepDepthNetwork(self.config.network)

    def _data(
        self,
        pool: SweepPoolConfig,
        exposure: ExposureConfig,
        seed: int,
        photos: Sequence[NDArray[np.uint8]] = (),
        cache: Path | None = None,
    ) -> RenderedSweeps:
        width, height, depths = self.config.width, self.config.height, self.network.config.depths
        return RenderedSweeps(
            self.mini, width, height, depths, pool, exposure, seed=seed, photos=photos, cache=cache
        )  # fmt: skip

    def _observer(self) -> DepthValidation | None:
        if not self.config.validation or not self.group.leads:
            return None
        pool = SweepPoolConfig(chunks=3, first_chunks=3, dark=0.0)
        data = []
        for level in LEVELS:
            exposure = replace(self.config.exposure, snr_low=level, snr_high=level, difference=0.0)
            data.append((level, self._data(pool, exposure, _HELD_OUT).make(0, self.config.validation)))
        return DepthValidation(self.network, data, float(self.mini.fine_factor))

    def _write_settings(self) -> None:
        path = self.folder / SETTINGS
        try:
            path.write_text(json.dumps(to_mapping(self.config), indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            raise OutputError(f'cannot write {path}: {error.strerror}') from error

    def run(self, minutes: float = math.inf) -> bool:
        """Train until all steps are done (True) or the time is over (False), then write the weights."""
        done = self.trainer.run(minutes)
        if self.group.leads:
            with self.trainer.averaged():
                save_sweep_depth(self.folder / WEIGHTS, self.network, self.header())
        self.group.wait()
        return done

    def header(self) -> dict[str, Any]:
        """What the weight file says of its origin."""
        loop, config = self.trainer.config, self.config
        return {
            'commit': commit(),
            'data': ', '.join(['sim', *config.textures]),
            'licence': LICENCE,
            'weights': self.digest,
            'steps': self.trainer.step,
            'sweeps': self.trainer.step * loop.batch,
            'minutes': round(self.trainer.seconds / 60, 1),
            'seed': loop.seed,
            'snr_db': [config.exposure.snr_low, config.exposure.snr_high],
        }

    def close(self) -> None:
        """Leave the group of processes."""
        disconnect(self.group)
