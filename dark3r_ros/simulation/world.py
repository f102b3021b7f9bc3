# SPDX-License-Identifier: Apache-2.0
"""Named scenes with a camera path through their free space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import ConfigError
from dark3r_ros.simulation.ground import ground_scene
from dark3r_ros.simulation.interiors import corridor_scene, room_scene
from dark3r_ros.simulation.paths import Path, hand_held, orbit, straight_drive, tunnel_drive
from dark3r_ros.simulation.render import Rendering, render, trace
from dark3r_ros.simulation.scene import Scene
from dark3r_ros.simulation.tunnel import bays_shape, tunnel_scene, tunnel_shape
from dark3r_ros.simulation.turning import Turn, with_turn
from dark3r_ros.simulation.views import Views

SCENES = ('tunnel', 'bays', 'corridor', 'room', 'ground')
PATHS = ('auto', 'drive', 'loop', 'turn', 'handheld', 'orbit')
_SUITABLE = {
    'tunnel': ('drive', 'loop', 'turn'),
    'bays': ('drive', 'loop', 'turn'),
    'corridor': ('drive', 'turn'),
    'room': ('handheld', 'orbit'),
    'ground': ('drive', 'turn'),
}


class World(Protocol):
    """Something that can be photographed along a path."""

    @property
    def path(self) -> Path:
        """Poses over time."""
        ...

    def render(self, views: Views) -> Rendering:
        """Radiance and truth of views."""
        ...

    def depth(self, views: Views) -> Tensor:
        """Depth (I, H, W) of views."""
        ...


@dataclass(frozen=True, eq=False)
class AnalyticWorld:
    """Scene of analytic surfaces with a path."""

    scene: Scene
    path: Path

    def render(self, views: Views) -> Rendering:
        """Radiance and truth of views."""
        return render(self.scene, views)

    def depth(self, views: Views) -> Tensor:
        """Depth (I, H, W) of views."""
        return trace(self.scene, views).depth


def make_world(
    scene: str,
    seed: int,
    *,
    light: str = 'lamp',
    path: str = 'auto',
    speed: float = 0.75,
    seconds: float = 20.0,
    turn: Turn | None = None,
) -> World:
    """World by name, or of a .glb mesh, with the path of a camera through it that lasts `seconds`.

    `turn` is that of the path `turn`. Raises ConfigError for an unknown scene, or a path that does not suit it.
    """
    if FilePath(scene).suffix.lower() == '.glb':
        from dark3r_ros.simulation.mesh import mesh_world

        if path not in ('auto', 'handheld'):
            raise ConfigError(f'the path {path!r} does not suit a mesh: take handheld')
        return mesh_world(scene, seed, light=light, speed=speed, seconds=seconds)
    if scene not in SCENES:
        raise ConfigError(f'unknown scene {scene!r}; known: {", ".join(SCENES)}, or the path of a .glb mesh')
    return AnalyticWorld(*_analytic(scene, seed, light, path, speed, seconds, turn or Turn()))


def _analytic(
    scene: str, seed: int, light: str, path: str, speed: float, seconds: float, turn: Turn
) -> tuple[Scene, Path]:
    suitable = _SUITABLE[scene]
    path = suitable[0] if path == 'auto' else path
    if path not in suitable:
        raise ConfigError(f'the path {path!r} does not suit the scene {scene!r}: take {" or ".join(suitable)}')

    def turned(drive: Path) -> Path:
        return with_turn(drive, turn, seconds=seconds) if path == 'turn' else drive

    if scene in ('tunnel', 'bays'):
        shape = tunnel_shape(seed) if scene == 'tunnel' else bays_shape(seed)
        route = tunnel_drive(shape, seed, speed=speed, seconds=seconds, loop=path == 'loop')
        return tunnel_scene(seed, shape, light=light), turned(route)
    if scene == 'room':
        route = hand_held(seed) if path == 'handheld' else orbit(seconds=seconds)
        return room_scene(seed, light=light, keep_free=visited(route, seconds)), route
    length = speed * seconds + 12.0
    if scene == 'corridor':
        route = turned(straight_drive(seed, speed=speed))
        return corridor_scene(seed, length, light=light, keep_free=visited(route, seconds)), route
    route = turned(straight_drive(seed, speed=speed, height=1.1, pitch_deg=12.0))
    return ground_scene(seed, length, light=light, keep_free=visited(route, seconds)), route


def visited(path: Path, seconds: float) -> NDArray[np.float64]:
    """Camera centres (N, 3) along a path, a tenth of a second apart."""
    time = np.arange(0.0, seconds + 0.1, 0.1)
    return path(time)[:, :3, 3]
