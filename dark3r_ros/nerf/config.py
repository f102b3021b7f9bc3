# SPDX-License-Identifier: Apache-2.0
"""Settings of the radiance field and the three named profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dark3r_ros.config import Config, from_mapping, setting
from dark3r_ros.errors import ConfigError

PHOTOMETRIC = ('inverse_variance', 'rawnerf', 'mse')
EXPOSURES = ('metadata', 'learned', 'ignore')


@dataclass(frozen=True)
class NerfConfig(Config):
    """Everything that decides what field comes out. Lengths of the scene box count as 1 along its longest half side."""

    # Data
    width: int = setting(320, 'width of the views trained on; the mosaic is binned to about it', unit='px', minimum=8)
    mosaic: bool = setting(False, 'train on single mosaic sites at full size (each supervises its own colour only)')
    max_views: int = setting(400, 'views at most, spread evenly; 0 takes all', minimum=0)
    holdout: int = setting(8, 'every n-th view is kept out of training for evaluation; 0 keeps none out', minimum=0)
    clip_black: bool = setting(False, 'cut mosaic pixels off at black (destroys dark signal; for comparison only)')
    # Field
    levels: int = setting(12, 'levels of the grid', minimum=1, maximum=24)
    coarsest: int = setting(16, 'cells of the coarsest level along the longest side', minimum=2)
    finest: int = setting(1024, 'cells of the finest level along the longest side', minimum=2, maximum=16384)
    features: int = setting(2, 'features per level', minimum=1, maximum=8)
    table_log2: int = setting(19, 'log2 of the entries of a level; levels that fit are dense', minimum=8, maximum=24)
    hidden: int = setting(64, 'width of the small networks', minimum=8, maximum=256)
    tint_cells: int = setting(16, 'cells of the coarse grid of hues along the longest side; 0: none', minimum=0,
                              maximum=256)  # fmt: skip
    view_degree: int = setting(2, 'degree of the dependence on the viewing direction; 0: none', minimum=0, maximum=3)
    margin: float = setting(0.5, 'shell around the box that holds all beyond it', minimum=0.05, maximum=4.0)
    # Samples along a ray
    proposal_samples: int = setting(96, 'samples of the first, coarse round', minimum=8, maximum=1024)
    samples: int = setting(48, 'samples at which the field is evaluated', minimum=4, maximum=1024)
    proposal_grid: int = setting(96, 'cells of the coarse density grid along the longest side', minimum=4, maximum=512)
    near: float = setting(0.02, 'nearest sample', unit='of the box', minimum=0.0)
    far: float = setting(60.0, 'farthest sample', unit='of the box', minimum=0.1)
    # Loss
    photometric: str = setting('inverse_variance', 'weighting of the residuals', choices=PHOTOMETRIC)
    depth_weight: float = setting(0.5, 'weight of the depth term at the start; 0 switches it off', minimum=0.0)
    depth_weight_end: float = setting(0.02, 'weight of the depth term at the end (exponential decay)', minimum=0.0)
    depth_width: float = setting(0.1, 'spread allowed around a depth at the start, relative to it', minimum=1e-4)
    depth_width_end: float = setting(0.02, 'spread allowed at the end (exponential decay)', minimum=1e-4)
    depth_vote: bool = setting(False, 'let the views agree on their depths before the training')
    distortion_weight: float = setting(0.002, 'weight of the term that gathers density along a ray', minimum=0.0)
    interlevel_weight: float = setting(1.0, 'weight of the term that trains the coarse densities', minimum=0.0)
    precondition: float = setting(0.01, 'noise on sample positions at the start; 0 switches it off', unit='of the box',
                                  minimum=0.0, maximum=0.5)  # fmt: skip
    precondition_share: float = setting(0.25, 'share of the steps until that noise has gone', minimum=0.0, maximum=1.0)
    # Cameras
    exposure: str = setting('metadata', 'brightness of frames: stated, learned, or all equal', choices=EXPOSURES)
    offset_sigma: float = setting(0.3, 'expected shift of black per frame, of the mean signal; 0: none', minimum=0.0)
    vignetting: bool = setting(True, 'learn how the lens darkens towards its border')
    lamp: bool = setting(False, 'the light travels with the camera: learn its falloff and beam')
    refine_poses: bool = setting(False, 'correct the poses while training')
    pose_rate: float = setting(3e-4, 'learning rate of the poses', minimum=0.0)
    # Optimisation
    steps: int = setting(16000, 'training steps', minimum=1, maximum=10_000_000)
    rays: int = setting(4096, 'rays per step', minimum=16)
    rate: float = setting(1e-2, 'learning rate at the start', minimum=1e-8, maximum=1.0)
    rate_end: float = setting(3e-4, 'learning rate at the end (exponential decay)', minimum=1e-9, maximum=1.0)
    clip_gradient: float = setting(1.0, 'largest norm of a gradient', minimum=1e-6)
    average: float = setting(0.995, 'decay of the running average of the weights that is rendered', minimum=0.0,
                             maximum=0.99999)  # fmt: skip
    amp: bool = setting(False, 'bfloat16 inside the small networks on CUDA')
    seed: int = setting(0, 'seed of all random numbers', minimum=0, maximum=2**31 - 1)
    # Bookkeeping
    checkpoint_every: int = setting(500, 'steps between checkpoints', minimum=1)
    preview_every: int = setting(1000, 'steps between preview pictures; 0: none', minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finest < self.coarsest:
            raise ConfigError(f'NerfConfig.finest = {self.finest} is below coarsest = {self.coarsest}')
        if self.far <= self.near:
            raise ConfigError(f'NerfConfig.far = {self.far} is not beyond near = {self.near}')


# What each profile changes. `preview` fits a laptop's processor, `standard` a graphics card for minutes.
PROFILES: dict[str, Mapping[str, Any]] = {
    'preview': {
        'width': 160,
        'max_views': 80,
        'levels': 6,
        'coarsest': 8,
        'finest': 128,
        'table_log2': 22,
        'hidden': 32,
        'proposal_samples': 32,
        'samples': 16,
        'proposal_grid': 48,
        'steps': 3000,
        'rays': 1024,
        'preview_every': 500,
        'checkpoint_every': 250,
    },
    'standard': {},
    'paper': {'levels': 16, 'finest': 2048, 'steps': 120_000, 'width': 640, 'max_views': 0, 'precondition': 1e-3,
              'average': 0.999},
}  # fmt: skip


def profile(name: str, changes: Mapping[str, Any] | None = None) -> NerfConfig:
    """Settings of a profile with some of them changed; ConfigError for an unknown name or setting."""
    if name not in PROFILES:
        raise ConfigError(f'unknown profile {name!r}; known: {", ".join(PROFILES)}')
    return from_mapping(NerfConfig, {**PROFILES[name], **(changes or {})})
