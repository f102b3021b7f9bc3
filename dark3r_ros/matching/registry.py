# SPDX-License-Identifier: Apache-2.0
"""Predictors by name, for commands and nodes."""

from __future__ import annotations

from dark3r_ros.errors import ConfigError
from dark3r_ros.matching.classical import ClassicalConfig, ClassicalPredictor
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.noise import NoiseModel

PREDICTORS = ('classical',)


def make_predictor(
    name: str = 'classical', *, noise: NoiseModel | None = None, classical: ClassicalConfig | None = None
) -> Predictor:
    """Make the named predictor; `noise` is the camera's noise model where it is known."""
    if name != 'classical':
        raise ConfigError(f'unknown predictor {name!r}; known: {", ".join(PREDICTORS)}')
    return ClassicalPredictor(classical, noise)
