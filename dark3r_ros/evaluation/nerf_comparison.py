# SPDX-License-Identifier: Apache-2.0
"""What each part of the radiance field is worth: one simulated dark scene, the same training with one thing changed.

Poses are true. Depths are the true ones spoiled as those of a plane sweep are: noise, outliers, holes. Renders of
held-out views are scored against the clean light in the unit of the raw counts, without any fit but where a figure
says so.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.evaluate import Scores, score
from dark3r_ros.nerf.load import PosedFrames, collect_views
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.output import write_png
from dark3r_ros.nerf.render import ToneMap, depth_picture, render_view, tone_map_for
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.nerf.views import Views
from dark3r_ros.simulation.sequence import Simulation, SimulationConfig, simulate
from dark3r_ros.simulation.views import views_of
from dark3r_ros.types import Frame

_BINNING = 2
_BLURS = (0.5, 0.8, 1.2, 1.8, 2.6, 4.0, 6.0, 9.0)

# What each variant changes in the settings.
VARIANTS: dict[str, Mapping[str, Any]] = {
    'full': {},
    'no depth': {'depth_weight': 0.0},
    'clipped at black': {'clip_black': True},
    'no preconditioning': {'precondition': 0.0},
    'RawNeRF weighting': {'photometric': 'rawnerf'},
    'plain squared error': {'photometric': 'mse'},
}


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """The simulated scene of a comparison. The mosaic is twice as wide and high as the views."""

    scene: str = setting('room', 'simulated scene')
    light: str = setting('ambient', 'lamp, ambient or both')
    width: int = setting(120, 'width of a view, a multiple of 4', unit='px', minimum=16)
    height: int = setting(88, 'height of a view, a multiple of 4', unit='px', minimum=16)
    views: int = setting(60, 'number of views', minimum=4)
    seconds: float = setting(30.0, 'time over which they are taken', unit='s', minimum=0.1)
    snr_db: float = setting(-4.0, 'signal-to-noise ratio of a view', unit='dB')
    seed: int = setting(0, 'seed of scene, path and noise', minimum=0)
    depth_noise: float = setting(0.03, 'relative error of the depths', minimum=0.0)
    depth_outliers: float = setting(0.05, 'share of depths that are wrong by up to a half', minimum=0.0, maximum=1.0)
    depth_missing: float = setting(0.3, 'share of depths that are missing', minimum=0.0, maximum=1.0)


@dataclass(frozen=True, eq=False)
class DarkScene:
    """Frames with poses and spoiled depths, and the clean truth: counts above black (V, 3, h, w), depth (V, h, w)."""

    posed: PosedFrames
    frames: _Frames
    clean: NDArray[np.float32]
    depth: NDArray[np.float32]
    simulation: Simulation


class _Frames:
    """Frames in memory."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self.warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def make_scene(config: ComparisonConfig) -> DarkScene:
    """Photograph a simulated scene in the dark."""
    simulation = simulate(
        SimulationConfig(
            scene=config.scene, light=config.light, seconds=config.seconds, rate=config.views / config.seconds,
            width=_BINNING * config.width, height=_BINNING * config.height, snr_db=config.snr_db, seed=config.seed,
            workers=1, depth=False,
        )
    )  # fmt: skip
    camera = simulation.camera.binned(_BINNING)
    frames, clean, depth, poses = [], [], [], []
    for index in range(len(simulation)):
        frames.append(simulation.photograph(index).frame)
        light = simulation.radiance(index, camera)
        clean.append(simulation.sensor.planes(light, _BINNING) * np.float32(simulation.exposure.scale))
        poses.append(simulation.pose(index))
        metres = np.asarray(simulation.world.depth(views_of(camera, poses[-1]))[0], dtype=np.float32)
        depth.append(np.where(np.isfinite(metres), metres, np.float32(0.0)))
    spoiled = spoil_depth(np.stack(depth), config)
    posed = PosedFrames(
        camera=simulation.camera,
        stamps_ns=np.array([frame.stamp_ns for frame in frames]),
        names=tuple(frame.name for frame in frames),
        world_from_camera=np.stack(poses),
        points=np.zeros((0, 3)),
        metric=True,
        depth=lambda index, _: (spoiled[index], (spoiled[index] > 0).astype(np.float32)),
        recording=None,
    )
    return DarkScene(posed, _Frames(frames), np.stack(clean), np.stack(depth), simulation)


def spoil_depth(depth: NDArray[np.float32], config: ComparisonConfig) -> NDArray[np.float32]:
    """Depths (V, h, w) as a plane sweep in the dark would find them."""
    rng = np.random.default_rng([config.seed, 11])
    result = depth * (1.0 + config.depth_noise * rng.standard_normal(depth.shape))
    wrong = rng.random(depth.shape) < config.depth_outliers
    result = np.where(wrong, depth * rng.uniform(0.5, 1.5, depth.shape), result)
    return np.where(rng.random(depth.shape) < config.depth_missing, 0.0, result).astype(np.float32)


def train_variant(scene: DarkScene, config: NerfConfig) -> tuple[RadianceModel, Trainer, float]:
    """Train on the scene; model with averaged weights, trainer, seconds."""
    views = collect_views(scene.posed, scene.frames, config, noise=scene.simulation.sensor.noise)
    began = time.perf_counter()
    trainer = Trainer(views, config)
    trainer.run()
    model = RadianceModel(config, trainer.box, len(views))
    model.load_state_dict(trainer.averaged_state())
    return model, trainer, time.perf_counter() - began


def best_blur(noisy: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image (3, h, w) under the Gaussian that comes nearest to the truth: no denoiser without truth can choose so."""
    tried = [np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in noisy]) for sigma in _BLURS]
    return min(tried, key=lambda image: float(np.mean((image - truth) ** 2)))


def floors(views: Views, clean: NDArray[np.float32]) -> dict[str, Scores]:
    """Scores without any field: the noisy frames, and single frames denoised."""
    held = np.flatnonzero(views.held_out)
    centres = views.world_from_camera[:, :3, 3]
    axes = views.world_from_camera[:, :3, 2]
    noisy, own, nearest = [], [], []
    for index in held:
        frame = views.values[index] * np.float32(views.unit)
        # Metres plus radians: nearest in place and direction.
        gap = np.linalg.norm(centres - centres[index], axis=1) + np.arccos(np.clip(axes @ axes[index], -1, 1))
        gap[views.held_out] = math.inf
        noisy.append(frame)
        own.append(best_blur(frame, clean[index]))
        nearest.append(best_blur(views.values[int(gap.argmin())] * np.float32(views.unit), clean[index]))
    truths = list(clean[held])
    return {
        'noisy input': score(noisy, truths),
        'nearest view, denoised': score(nearest, truths),
        'held-out frame itself, denoised': score(own, truths),
    }


def compare(
    scene_config: ComparisonConfig,
    config: NerfConfig,
    *,
    variants: Mapping[str, Mapping[str, Any]] = VARIANTS,
    folder: Path | None = None,
    told: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Train all variants and score them on the held-out views; pictures go into `folder`."""
    torch.manual_seed(config.seed)
    scene = make_scene(scene_config)
    results: dict[str, dict[str, Any]] = {}

    def keep(name: str, row: dict[str, Any]) -> None:
        results[name] = row
        if told:
            told(name, row)

    plain = collect_views(scene.posed, scene.frames, config, noise=scene.simulation.sensor.noise)
    tone = tone_map_for(scene.clean)
    for name, scores in floors(plain, scene.clean).items():
        keep(name, {'views': scores.views, **scores.as_mapping('')})
    for name, changes in variants.items():
        model, trainer, seconds = train_variant(scene, dataclasses.replace(config, **changes))
        held = np.flatnonzero(plain.held_out)
        pictures = [render_view(model, plain.camera, plain.world_from_camera[index]) for index in held]
        renders = [picture.radiance * np.float32(trainer.views.unit) for picture in pictures]
        scores = score(renders, list(scene.clean[held]))
        depth_error = [
            float(np.median(np.abs(picture.depth - truth)[truth > 0] / truth[truth > 0]))
            for picture, truth in zip(pictures, scene.depth[held], strict=True)
        ]
        row = {
            'views': scores.views,
            **scores.as_mapping(''),
            'depth_error': float(np.mean(depth_error)),
            'residual': trainer.history[-1][2],
            'seconds': seconds,
            'rays_per_second': trainer.rays * config.steps / seconds,
        }
        keep(name, row)
        if folder is not None:
            sheet = _sheet(tone, plain, scene, held[:3], renders[:3], [picture.depth for picture in pictures[:3]])
            write_png(folder / f'{name.replace(" ", "_")}.png', sheet)
    return results


def _sheet(
    tone: ToneMap,
    views: Views,
    scene: DarkScene,
    held: NDArray[np.int64],
    renders: list[NDArray[np.float32]],
    depths: list[NDArray[np.float32]],
) -> NDArray[np.uint8]:
    """Rows of noisy frame, render, truth, rendered depth, true depth."""
    rows = []
    for index, render, depth in zip(held, renders, depths, strict=True):
        true = scene.depth[index]
        near, far = float(true[true > 0].min()), float(true.max())
        noisy = views.values[index] * np.float32(views.unit)
        shown = [tone(noisy), tone(render), tone(scene.clean[index])]
        shown += [depth_picture(depth, near, far), depth_picture(true, near, far)]
        rows.append(np.concatenate(shown, axis=1))
    return np.concatenate(rows, axis=0)
