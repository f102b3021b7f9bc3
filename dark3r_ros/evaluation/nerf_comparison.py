# SPDX-License-Identifier: Apache-2.0
"""What each part of the radiance field is worth: one dark scene, the same training with one thing changed.

Renders of held-out views are scored against the clean light in the unit of the raw counts, without any fit but where a
figure says so.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dark3r_ros.evaluation.nerf_scenes import ComparisonConfig, DarkScene, make_scene
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.evaluate import Scores, score
from dark3r_ros.nerf.load import PosedFrames, collect_views
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.output import write_png
from dark3r_ros.nerf.perceptual import Distance
from dark3r_ros.nerf.render import Picture, depth_picture, render_view, tone_map_for
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.nerf.views import Views
from dark3r_ros.sfm.progress import Progress, quiet

_BLURS = (0.5, 0.8, 1.2, 1.8, 2.6, 4.0, 6.0, 9.0)

# What each variant changes in the settings.
TRUE_POSES = 'true poses'
VARIANTS: dict[str, Mapping[str, Any]] = {
    'full': {},
    TRUE_POSES: {},
    'no depth': {'depth_weight': 0.0},
    'clipped at black': {'clip_black': True},
    'no preconditioning': {'precondition': 0.0},
    'RawNeRF weighting': {'photometric': 'rawnerf'},
    'plain squared error': {'photometric': 'mse'},
}


def variants_for(config: ComparisonConfig) -> list[str]:
    """Names of the variants that make sense: with true poses, those are no variant."""
    return [name for name in VARIANTS if name != TRUE_POSES or config.poses == 'estimated']


def train_variant(scene: DarkScene, posed: PosedFrames, config: NerfConfig) -> tuple[RadianceModel, Trainer, float]:
    """Train on the scene as `posed` sees it; model with averaged weights, trainer, seconds."""
    views = collect_views(posed, scene.frames, config, noise=scene.noise)
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


def floors(views: Views, clean: NDArray[np.float32], lpips: Distance | None = None) -> dict[str, Scores]:
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
        'noisy input': score(noisy, truths, lpips),
        'nearest view, denoised': score(nearest, truths, lpips),
        'held-out frame itself, denoised': score(own, truths, lpips),
    }


def compare(
    scene_config: ComparisonConfig,
    config: NerfConfig,
    *,
    variants: Sequence[str] | None = None,
    folder: Path | None = None,
    reconstruction: Path | None = None,
    lpips: Distance | None = None,
    told: Callable[[str, dict[str, Any]], None] | None = None,
    progress: Progress = quiet,
) -> dict[str, dict[str, Any]]:
    """Train variants (by name; None: all that make sense) and score them on the held-out views.

    Pictures go into `folder`; `reconstruction` keeps estimated poses for the next call (default: `folder`); `lpips`
    scores tone-mapped pictures too.
    """
    torch.manual_seed(config.seed)
    scene = make_scene(scene_config, reconstruction or folder, progress)
    results: dict[str, dict[str, Any]] = {}

    def keep(name: str, row: dict[str, Any]) -> None:
        results[name] = {**scene.facts, **row}
        if told:
            told(name, results[name])

    plain = collect_views(scene.posed, scene.frames, config, noise=scene.noise)
    clean = scene.truth_of(plain)
    for name, scores in floors(plain, clean, lpips).items():
        keep(name, {'views': scores.views, **scores.as_mapping('')})
    for name in variants_for(scene_config) if variants is None else variants:
        posed = scene.with_true_poses() if name == TRUE_POSES else scene.posed
        model, trainer, seconds = train_variant(scene, posed, dataclasses.replace(config, **VARIANTS[name]))
        held = np.flatnonzero(plain.held_out)
        poses = trainer.views.world_from_camera
        pictures = [render_view(model, plain.camera, poses[index]) for index in held]
        renders = [picture.radiance * np.float32(trainer.views.unit) for picture in pictures]
        scores = score(renders, list(clean[held]), lpips)
        stamps = (int(plain.stamps_ns[index]) for index in held)
        truths = [_sized(scene.depth.get(stamp), picture) for stamp, picture in zip(stamps, pictures, strict=True)]
        row = {
            'views': scores.views,
            **scores.as_mapping(''),
            'depth_error': _depth_error(pictures, truths),
            'residual': trainer.history[-1][2],
            'seconds': seconds,
            'rays_per_second': trainer.rays * config.steps / seconds,
        }
        keep(name, row)
        if folder is not None:
            sheet = _sheet(plain, clean, held[:3], renders, pictures, truths)
            write_png(folder / f'{name.replace(" ", "_")}.png', sheet)
    return results


def _sized(depth: NDArray[np.float32] | None, picture: Picture) -> NDArray[np.float32] | None:
    """True depth at the size of a picture; nearest values, since depths must not be mixed across edges."""
    if depth is None:
        return None
    height, width = picture.depth.shape
    return np.asarray(cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def _depth_error(pictures: Sequence[Picture], truths: Sequence[NDArray[np.float32] | None]) -> float | None:
    """Mean over views of the median relative error; None without truth."""
    errors = [
        float(np.median(np.abs(picture.depth - truth)[truth > 0] / truth[truth > 0]))
        for picture, truth in zip(pictures, truths, strict=True)
        if truth is not None and (truth > 0).any()
    ]
    return float(np.mean(errors)) if errors else None


def _sheet(
    views: Views,
    clean: NDArray[np.float32],
    held: NDArray[np.int64],
    renders: Sequence[NDArray[np.float32]],
    pictures: Sequence[Picture],
    truths: Sequence[NDArray[np.float32] | None],
) -> NDArray[np.uint8]:
    """Rows of noisy frame, render, truth, rendered depth, and true depth where it is known."""
    tone = tone_map_for(clean)
    rows = []
    for index, render, picture, true in zip(held, renders, pictures, truths, strict=False):
        known = picture.depth if true is None else true
        near, far = (float(value) for value in np.percentile(known[known > 0], [2, 98]))
        shown = [tone(views.values[index] * np.float32(views.unit)), tone(render), tone(clean[index])]
        shown.append(depth_picture(picture.depth, near, far))
        if true is not None:
            shown.append(depth_picture(true, near, far))
        rows.append(np.concatenate(shown, axis=1))
    return np.concatenate(rows, axis=0)
