# SPDX-License-Identifier: Apache-2.0
"""Predictors by name, for commands and nodes."""

from __future__ import annotations

from pathlib import Path

from dark3r_ros.errors import ConfigError
from dark3r_ros.matching.classical import ClassicalConfig, ClassicalPredictor
from dark3r_ros.matching.learned import LearnedConfig, load_predictor
from dark3r_ros.matching.mini import MiniMatchConfig, MiniPredictor, is_mini
from dark3r_ros.model.mini import BUNDLED_TEACHER
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel

PREDICTORS = ('mini', 'mini-teacher', 'classical')
WEIGHT_SUFFIXES = ('.safetensors', '.pth')


def make_predictor(
    name: str = PREDICTORS[0],
    *,
    noise: NoiseModel | None = None,
    classical: ClassicalConfig | None = None,
    learned: LearnedConfig | None = None,
    mini: MiniMatchConfig | None = None,
    device: str = 'auto',
) -> Predictor:
    """Make a predictor.

    Parameters
    ----------
    name: `mini` (the bundled student), `mini-teacher` (its teacher, for light), `classical`, or the path of a weight
        file (.safetensors, .pth) or of a folder of `dark3r export-engine`.
    noise: the camera's noise model where it is known, for the classical one.
    classical, learned, mini: settings of each kind. device: `auto`, `cpu` or `cuda`, for a network.

    """
    if name == 'classical':
        return ClassicalPredictor(classical, noise)
    if name == 'mini':
        return MiniPredictor(config=mini, device=device)
    if name == 'mini-teacher':
        return MiniPredictor(BUNDLED_TEACHER, mini, device=device)
    path = Path(name).expanduser()
    if is_mini(path):
        return MiniPredictor(path, mini, device=device)
    if path.suffix in WEIGHT_SUFFIXES or path.is_dir():
        return load_predictor(path, learned, device=device)
    raise ConfigError(
        f'unknown predictor {name!r}; known: {", ".join(PREDICTORS)}, a weight file ({", ".join(WEIGHT_SUFFIXES)}) or '
        'a folder of `dark3r export-engine`'
    )
