# SPDX-License-Identifier: Apache-2.0
"""Named scenes with a camera path through their free space."""

from __future__ import annotations

from dark3r_ros.errors import ConfigError
from dark3r_ros.simulation.paths import Path, tunnel_drive
from dark3r_ros.simulation.scene import Scene
from dark3r_ros.simulation.tunnel import tunnel_scene, tunnel_shape

SCENES = ('tunnel',)
PATHS = ('auto', 'drive', 'loop')


def make_world(
    scene: str, seed: int, *, light: str = 'lamp', path: str = 'auto', speed: float = 0.75, seconds: float = 20.0
) -> tuple[Scene, Path]:
    """Scene by name and the path of a camera through it that lasts `seconds`."""
    if scene == 'tunnel':
        if path not in ('auto', 'drive', 'loop'):
            raise ConfigError(f'the path {path!r} does not suit a tunnel; take drive or loop')
        shape = tunnel_shape(seed)
        drive = tunnel_drive(shape, seed, speed=speed, seconds=seconds, loop=path == 'loop')
        return tunnel_scene(seed, shape, light=light), drive
    raise ConfigError(f'unknown scene {scene!r}; known: {", ".join(SCENES)}')
