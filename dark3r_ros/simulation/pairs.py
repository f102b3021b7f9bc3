# SPDX-License-Identifier: Apache-2.0
"""Random pairs and groups of overlapping images with exact truth, many at a time: what networks are trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.build import LIGHTS, make_light
from dark3r_ros.simulation.correspond import Flow, true_flow
from dark3r_ros.simulation.interiors import INTERIOR_TEXTURES, corridor_scene, room_scene
from dark3r_ros.simulation.paths import look_along
from dark3r_ros.simulation.render import Rendering, render
from dark3r_ros.simulation.scene import Light, Scene, stack
from dark3r_ros.simulation.texture import (
    TextureBank,
    bank_from_textures,
    make_bank,
    photo_texture,
    procedural_texture,
)
from dark3r_ros.simulation.tunnel import TUNNEL_TEXTURES, tunnel_scene, tunnel_shape
from dark3r_ros.simulation.views import Views, views_of

Array = NDArray[np.float64]
Photos = Sequence[NDArray[np.uint8]]
PoseSampler = Callable[[np.random.Generator, int], Array]
# Second pose far from a first one, but with much of the same in view.
WideStep = Callable[[np.random.Generator, int, Array], Array]

PAIR_SCENES = ('room', 'tunnel', 'corridor')
_CORRIDOR = 20.0  # m, length
_PHOTO_SHARE = 0.6  # of the textures, where photographs are given


@dataclass(frozen=True, eq=False)
class PairBatch:
    """B pairs of images a and b.

    Attributes
    ----------
    a, b: radiance (B, 3, H, W), depth (B, H, W), normals.
    views_a, views_b: their poses and intrinsics.
    flow: true correspondence from a to b.

    """

    a: Rendering
    b: Rendering
    views_a: Views
    views_b: Views
    flow: Flow

    @property
    def overlap(self) -> Tensor:
        """Share (B,) of the pixels of a that b sees as well."""
        return self.flow.visible.to(torch.float32).mean(dim=(1, 2))


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """B groups of N images each, group after group.

    Attributes
    ----------
    images: radiance (B * N, 3, H, W), depth (B * N, H, W), normals. views: their poses and intrinsics.

    """

    images: Rendering
    views: Views


class PairSource:
    """Random pairs and groups out of `scenes` random scenes of one kind that share their textures.

    Parameters
    ----------
    kind: `room`, `tunnel` or `corridor`. scenes: how many different ones. seed: of scenes and pairs.
    camera: of both images. device: where images are made; the random choices are made on the CPU and do not depend
        on it.
    wide: share of the pairs whose second camera goes round the scene (15 to 45 deg in a room, 0.5 to 1.6 m along a
        tunnel) instead of 0.05 to 0.5 m away.
    photos: sRGB photographs (h, w, 3); more than half of the surfaces then show one.

    """

    def __init__(
        self,
        kind: str,
        scenes: int,
        camera: Camera,
        *,
        seed: int = 0,
        device: torch.device | str = 'cpu',
        wide: float = 0.0,
        photos: Photos = (),
    ) -> None:
        if kind not in PAIR_SCENES:
            raise ConfigError(f'unknown scene {kind!r} for pairs; known: {", ".join(PAIR_SCENES)}')
        if scenes < 1:
            raise ConfigError('pairs need at least one scene')
        self._rng = np.random.default_rng([seed, 31])
        self.camera = camera
        self.device = torch.device(device)
        self.wide = wide
        made, self._pose, self._wide_step = _MAKERS[kind](scenes, seed, photos)
        lights = [_random_light(self._rng) for _ in made]
        self.scene = stack([replace(s, light=light) for s, light in zip(made, lights, strict=True)]).to(self.device)

    def sample(self, count: int) -> PairBatch:
        """Make `count` pairs."""
        which = self._rng.integers(len(self.scene), size=count)
        first = np.stack([self._pose(self._rng, int(scene)) for scene in which])
        second = np.stack([self._second(int(scene), pose) for scene, pose in zip(which, first, strict=True)])
        views = views_of(self.camera, np.concatenate([first, second]), np.tile(which, 2), self.device)
        images = render(self.scene, views)
        a = Rendering(images.radiance[:count], images.depth[:count], images.normal[:count])
        b = Rendering(images.radiance[count:], images.depth[count:], images.normal[count:])
        views_a, views_b = views[:count], views[count:]
        return PairBatch(a, b, views_a, views_b, true_flow(a.depth, views_a, b.depth, views_b))

    def groups(self, count: int, size: int, drives: float = 0.4) -> GroupBatch:
        """Make `count` groups of `size` images; a share of them are drives, the others lie around their first.

        In a drive each step is like the one before, along the line of sight give or take some degrees.
        """
        which = self._rng.integers(len(self.scene), size=count)
        poses = [self._group(int(scene), size, self._rng.random() < drives) for scene in which]
        views = views_of(self.camera, np.concatenate(poses), np.repeat(which, size), self.device)
        return GroupBatch(render(self.scene, views), views)

    def _group(self, scene: int, size: int, drive: bool) -> Array:
        first = self._pose(self._rng, scene)
        if not drive:
            return np.stack([first, *(self._second(scene, first) for _ in range(size - 1))])
        return _drive(self._rng, first, size)

    def _second(self, scene: int, first: Array) -> Array:
        if self.wide and self._rng.random() < self.wide:
            return self._wide_step(self._rng, scene, first)
        return _second(self._rng, first)


def _random_light(rng: np.random.Generator) -> Light:
    return make_light(
        str(rng.choice(LIGHTS)),
        lamp=float(rng.uniform(5.0, 15.0)),
        position=(rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(-0.08, 0.08)),
        aim=(float(rng.normal(0.0, 0.1)), float(rng.normal(0.0, 0.1)), 1.0),
        beam_deg=float(rng.uniform(20.0, 50.0)),
        vignetting=float(rng.uniform(0.0, 4.0)),
    )


def _second(rng: np.random.Generator, pose: Array) -> Array:
    """Pose within 0.05 to 0.5 m of the first, turned by a few degrees."""
    step = rng.normal(size=3) * (1.0, 0.5, 1.0)
    step *= rng.uniform(0.05, 0.5) / np.linalg.norm(step)
    return _moved(pose, step, np.radians(8.0) * rng.normal(size=3) * (0.6, 1.0, 0.6))


def _drive(rng: np.random.Generator, first: Array, size: int) -> Array:
    """Poses (size, 4, 4) with steps of 0.08 to 0.5 m, forwards or backwards."""
    step = rng.uniform(0.08, 0.5) * np.array([rng.normal(0.0, 0.2), rng.normal(0.0, 0.1), rng.choice([-1.0, 1.0])])
    poses = [first]
    for _ in range(size - 1):
        poses.append(_moved(poses[-1], step + 0.03 * rng.normal(size=3), np.radians(2.0) * rng.normal(size=3)))
    return np.stack(poses)


def _moved(pose: Array, step: Array, turn: Array) -> Array:
    """Pose after a step (3,) and a turn (3,), axis times angle, both in the camera's axes."""
    result = pose.copy()
    result[:3, 3] += pose[:3, :3] @ step
    angle = float(np.linalg.norm(turn))
    k = np.array([[0.0, -turn[2], turn[1]], [turn[2], 0.0, -turn[0]], [-turn[1], turn[0], 0.0]]) / max(angle, 1e-12)
    result[:3, :3] = pose[:3, :3] @ (np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * k @ k)
    return result


def _bank(kinds: Sequence[str], seed: int, photos: Photos) -> TextureBank:
    if not photos:
        return make_bank(kinds, seed)
    rng = np.random.default_rng([seed, 33])
    textures = []
    for number, kind in enumerate(kinds):
        if rng.random() < _PHOTO_SHARE:
            textures.append(photo_texture(photos[int(rng.integers(len(photos)))]))
        else:
            textures.append(procedural_texture(kind, seed * 1009 + number))
    return bank_from_textures(textures)


def _rooms(count: int, seed: int, photos: Photos) -> tuple[Sequence[Scene], PoseSampler, WideStep]:
    bank = _bank(INTERIOR_TEXTURES * 3, seed, photos)
    rng = np.random.default_rng([seed, 32])
    sizes = rng.uniform((4.5, 4.0, 2.4), (9.0, 8.0, 3.4), (count, 3))
    made = [room_scene(seed * 7919 + k, bank=bank, size=sizes[k], things=9, pictures=4) for k in range(count)]

    def ring(rng: np.random.Generator, scene: int, angle: float) -> Array:
        # Between the table in the middle and the things along the walls.
        reach = rng.uniform(0.95, 1.05) * np.maximum(0.5 * sizes[scene][:2] - 1.3, 1.05)
        return np.array([reach[0] * np.cos(angle), reach[1] * np.sin(angle), rng.uniform(1.0, 1.8)])

    def pose(rng: np.random.Generator, scene: int) -> Array:
        eye = ring(rng, scene, rng.uniform(0.0, 2.0 * np.pi))
        target = rng.uniform(-1.0, 1.0, 3) * 0.8 * sizes[scene] / 2 + (0.0, 0.0, 0.45 * sizes[scene][2])
        return _looking(rng, eye, target)

    def wide(rng: np.random.Generator, scene: int, first: Array) -> Array:
        reach = np.maximum(0.5 * sizes[scene][:2] - 1.3, 1.05)
        angle = np.arctan2(first[1, 3] / reach[1], first[0, 3] / reach[0])
        turn = rng.choice([-1.0, 1.0]) * np.radians(rng.uniform(15.0, 45.0))
        target = first[:3, 3] + rng.uniform(2.0, 4.0) * first[:3, 2]
        return _looking(rng, ring(rng, scene, angle + turn), target)

    return made, pose, wide


def _tunnels(count: int, seed: int, photos: Photos) -> tuple[Sequence[Scene], PoseSampler, WideStep]:
    bank = _bank(TUNNEL_TEXTURES, seed, photos)
    # One length of lap for all, so that their tables stack.
    shapes = [replace(tunnel_shape(seed * 7919 + k, 60.0), width=1.65, height=1.5) for k in range(count)]
    made = [tunnel_scene(seed * 7919 + k, shape, bank=bank, texel=0.04) for k, shape in enumerate(shapes)]

    def pose(rng: np.random.Generator, scene: int) -> Array:
        arc = np.array([rng.uniform(0.0, shapes[scene].length)])
        axes, origin = shapes[scene].frame(arc)[0], shapes[scene].axis(arc)[0]
        eye = origin + axes @ (rng.uniform(-0.35, 0.35), 0.0, rng.uniform(-0.4, 0.3))
        forward = rng.choice([-1.0, 1.0]) * axes[:, 1]
        return _looking(rng, eye, eye + forward + 0.35 * rng.normal(size=3) * (1.0, 1.0, 0.5))

    def wide(rng: np.random.Generator, scene: int, first: Array) -> Array:
        shape = shapes[scene]
        arcs = np.linspace(0.0, shape.length, 481)[:-1]
        arc = arcs[np.linalg.norm(shape.axis(arcs) - first[:3, 3], axis=1).argmin()]
        arc = np.array([(arc + rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.6)) % shape.length])
        eye = shape.axis(arc)[0] + shape.frame(arc)[0] @ (rng.uniform(-0.35, 0.35), 0.0, rng.uniform(-0.4, 0.3))
        return _looking(rng, eye, first[:3, 3] + rng.uniform(3.0, 5.0) * first[:3, 2])

    return made, pose, wide


def _corridors(count: int, seed: int, photos: Photos) -> tuple[Sequence[Scene], PoseSampler, WideStep]:
    bank = _bank(INTERIOR_TEXTURES, seed, photos)
    rng = np.random.default_rng([seed, 34])
    sizes = rng.uniform((1.8, 2.2), (4.5, 3.6), (count, 2))
    free = np.column_stack([np.linspace(-1.0, _CORRIDOR - 2.0, 60), np.zeros(60), np.full(60, 0.9)])
    made = [
        corridor_scene(seed * 7919 + k, _CORRIDOR, bank=bank, width=width, height=height, keep_free=free)
        for k, (width, height) in enumerate(sizes.tolist())
    ]

    def place(rng: np.random.Generator, scene: int, along: float) -> Array:
        return np.array([along, rng.uniform(-0.125, 0.125) * sizes[scene][0], rng.uniform(0.5, 1.5)])

    def pose(rng: np.random.Generator, scene: int) -> Array:
        eye = place(rng, scene, rng.uniform(0.0, _CORRIDOR - 6.0))
        forward = np.array([rng.choice([-1.0, 1.0], p=[0.4, 0.6]), 0.0, 0.0])
        return _looking(rng, eye, eye + forward + 0.3 * rng.normal(size=3) * (1.0, 1.0, 0.5))

    def wide(rng: np.random.Generator, scene: int, first: Array) -> Array:
        along = first[0, 3] + rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 1.5)
        return _looking(rng, place(rng, scene, along), first[:3, 3] + rng.uniform(3.0, 5.0) * first[:3, 2])

    return made, pose, wide


_MAKERS = {'room': _rooms, 'tunnel': _tunnels, 'corridor': _corridors}


def _looking(rng: np.random.Generator, eye: Array, target: Array) -> Array:
    roll = rng.normal(0.0, np.radians(4.0))
    cos, sin = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = look_along(target - eye)[0] @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    pose[:3, 3] = eye
    return pose
