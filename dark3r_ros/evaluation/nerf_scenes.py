# SPDX-License-Identifier: Apache-2.0
"""Dark scenes that radiance fields are compared on, with the clean truth of every view.

Either a simulated scene with its true poses and depths spoiled as those of a plane sweep are, or any scene of the
ladder (simulated, or a clean sequence darkened) with the poses and depths that `dark3r sfm` finds in the dark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting, to_mapping
from dark3r_ros.errors import Dark3rError, ReconstructionError
from dark3r_ros.evaluation.evaluate import load_truth
from dark3r_ros.evaluation.scenes import Scene, open_scene
from dark3r_ros.evaluation.trajectory_metrics import associate, score_trajectory
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.nerf.load import PosedFrames, read_poses
from dark3r_ros.nerf.views import Views, frame_values
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.planes import choose_binning
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.sfm.progress import Progress, quiet
from dark3r_ros.simulation.frames import SimulatedFrame
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.simulation.views import views_of
from dark3r_ros.storage.result import jsonable, read_result, write_result
from dark3r_ros.types import Frame

_BINNING = 2
_TOLERANCE_NS = 1_000_000
_PRESET = 'starvis'

Planes3 = NDArray[np.float32]


@dataclass(frozen=True)
class ComparisonConfig(Config):
    """The scene of a comparison; with true poses the mosaic is twice as wide and high as the views."""

    scene: str = setting('room', 'simulated scene, or (poses estimated) the folder of a clean sequence')
    poses: str = setting('true', 'true, or found by `dark3r sfm` in the dark frames', choices=('true', 'estimated'))
    light: str = setting('ambient', 'lamp, ambient or both (poses true)')
    width: int = setting(120, 'width of a view, a multiple of 4', unit='px', minimum=16)
    height: int = setting(88, 'height of a view, a multiple of 4 (poses true)', unit='px', minimum=16)
    views: int = setting(60, 'number of views (poses true)', minimum=4)
    seconds: float = setting(30.0, 'time over which they are taken (poses true)', unit='s', minimum=0.1)
    snr_db: float = setting(-4.0, 'signal-to-noise ratio of a view; with estimated poses at 320 px', unit='dB')
    seed: int = setting(0, 'seed of scene, path and noise', minimum=0)
    depth_noise: float = setting(0.03, 'relative error of the depths (poses true)', minimum=0.0)
    depth_outliers: float = setting(0.05, 'share of depths that are wrong by up to a half', minimum=0.0, maximum=1.0)
    depth_missing: float = setting(0.3, 'share of depths that are missing', minimum=0.0, maximum=1.0)


@dataclass(frozen=True, eq=False)
class DarkScene:
    """Dark frames, what a field gets to know of them, and the truth.

    Attributes
    ----------
    posed: poses and depths that the field is given. frames: raw, in order. noise: of the camera.
    clean: counts above black (3, h, w) of a view by stamp, without noise, in the unit of the dark frames.
    depth: true depth (h, w) by stamp in the unit of the poses, 0 where unknown; empty where there is none.
    true_poses: true `world_from_camera` (4, 4) by stamp in the frame of the poses; empty where those are true.
    facts: how the poses were made, for the report.

    """

    posed: PosedFrames
    frames: MemoryFrames
    noise: NoiseModel
    clean: dict[int, Planes3]
    depth: dict[int, NDArray[np.float32]]
    true_poses: dict[int, NDArray[np.float64]]
    facts: dict[str, Any]

    def with_true_poses(self) -> PosedFrames:
        """The same frames and depths, each camera moved to where it truly was."""
        poses = [self.true_poses[int(stamp)] for stamp in self.posed.stamps_ns]
        return dataclasses.replace(self.posed, world_from_camera=np.stack(poses))

    def truth_of(self, views: Views) -> NDArray[np.float32]:
        """Clean counts above black (V, 3, h, w) of views."""
        return np.stack([self.clean[int(stamp)] for stamp in views.stamps_ns])


class MemoryFrames:
    """Frames in memory as a source."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames
        self.warnings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def make_scene(config: ComparisonConfig, folder: Path | None = None, progress: Progress = quiet) -> DarkScene:
    """Photograph a scene in the dark; `folder` keeps the reconstruction of estimated poses for the next time."""
    if config.poses == 'true':
        return _with_true_poses(config)
    return _with_estimated_poses(config, folder, progress)


# ------------------------------------------------------------------ true poses


def _with_true_poses(config: ComparisonConfig) -> DarkScene:
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
    stamps = [frame.stamp_ns for frame in frames]
    posed = PosedFrames(
        camera=simulation.camera,
        stamps_ns=np.array(stamps),
        names=tuple(frame.name for frame in frames),
        world_from_camera=np.stack(poses),
        points=np.zeros((0, 3)),
        metric=True,
        depth=lambda index, _: (spoiled[index], (spoiled[index] > 0).astype(np.float32)),
        recording=None,
    )
    noise = simulation.sensor.noise
    by_stamp = dict(zip(stamps, clean, strict=True)), dict(zip(stamps, depth, strict=True))
    return DarkScene(posed, MemoryFrames(frames), noise, *by_stamp, {}, {'poses': 'true'})


def spoil_depth(depth: NDArray[np.float32], config: ComparisonConfig) -> NDArray[np.float32]:
    """Depths (V, h, w) as a plane sweep in the dark would find them."""
    rng = np.random.default_rng([config.seed, 11])
    result = depth * (1.0 + config.depth_noise * rng.standard_normal(depth.shape))
    wrong = rng.random(depth.shape) < config.depth_outliers
    result = np.where(wrong, depth * rng.uniform(0.5, 1.5, depth.shape), result)
    return np.where(rng.random(depth.shape) < config.depth_missing, 0.0, result).astype(np.float32)


# ------------------------------------------------------------------ estimated poses


def _with_estimated_poses(config: ComparisonConfig, folder: Path | None, progress: Progress) -> DarkScene:
    scene = open_scene(config.scene)
    dark = scene.photograph(config.snr_db, config.seed, _PRESET)
    made = list(dark)
    result = (folder or Path('out')) / 'reconstruction'
    facts = _reconstruct(scene, config, [frame.frame for frame in made], result, progress)
    posed = read_poses(result)
    if len(posed.stamps_ns) < 3:
        raise ReconstructionError(f'{scene.name}: {len(posed.stamps_ns)} views were posed, a comparison needs three')
    truth = load_truth(scene.truth(result, config.seed)).trajectory
    mine, theirs = associate(posed.stamps_ns, truth.stamps_ns, _TOLERANCE_NS)
    scores = score_trajectory(posed.stamps_ns[mine], posed.world_from_camera[mine], truth.world_from_camera[theirs])
    alignment = scores.alignment
    if alignment is None:
        raise ReconstructionError(f'{scene.name}: estimated and true poses cannot be aligned ({scores.degenerate})')
    moved = alignment.apply_inverse(truth.world_from_camera)
    true_poses = {int(posed.stamps_ns[i]): moved[k] for i, k in zip(mine, theirs, strict=True)}
    facts |= {'ate_relative': scores.ate_relative, 'rotation_deg': scores.rotation_pairs_median}
    posed = _only(posed, mine)
    binning = choose_binning(posed.camera.width, config.width)
    bright = scene.photograph(None, config.seed, _PRESET)
    factor = dark.exposure.scale / bright.exposure.scale
    clean = {made.frame.stamp_ns: frame_values(made.frame, binning, False) * np.float32(factor) for made in bright}
    depth = {frame.frame.stamp_ns: _scaled(frame, 1.0 / alignment.scale) for frame in made if frame.depth is not None}
    frames = MemoryFrames([frame.frame for frame in made])
    return DarkScene(posed, frames, dark.exposure.sensor.noise, clean, depth, true_poses, facts)


def _reconstruct(
    scene: Scene, config: ComparisonConfig, frames: list[Frame], result: Path, progress: Progress
) -> dict[str, Any]:
    """Poses and depths by `dark3r sfm` into a result folder, unless they are there; how it went."""
    predictor = make_predictor('mini', mini=OFFLINE_MINI)
    sfm = SfmConfig()
    settings = jsonable(
        {
            'scene': scene.description, 'snr_db': config.snr_db, 'seed': config.seed, 'sfm': to_mapping(sfm),
            'fingerprint': predictor.fingerprint,
        }
    )  # fmt: skip
    try:
        report = read_result(result).report
        if report.get('comparison') == settings:
            return {'posed': report['posed'], 'frames': report['frames_in']}
    except (Dark3rError, KeyError):
        pass
    run = SfmRun(sfm, predictor, progress=progress)
    reconstruction = run(frames, len(frames))
    facts = {'posed': len(reconstruction.trajectory()), 'frames': len(frames)}
    report = {'comparison': settings, 'posed': facts['posed'], 'frames_in': facts['frames'], 'stages_s': run.seconds}
    write_result(result, reconstruction, report, overwrite=True, depths=run.depths)
    return facts


def _only(posed: PosedFrames, chosen: NDArray[np.int64]) -> PosedFrames:
    """The chosen frames, in order of time."""
    order = np.sort(chosen)
    return dataclasses.replace(
        posed,
        stamps_ns=posed.stamps_ns[order],
        names=tuple(posed.names[index] for index in order),
        world_from_camera=posed.world_from_camera[order],
        depth=lambda index, camera: posed.depth(int(order[index]), camera),
    )


def _scaled(made: SimulatedFrame, factor: float) -> NDArray[np.float32]:
    assert made.depth is not None
    return np.where(np.isfinite(made.depth), made.depth * np.float32(factor), np.float32(0.0))
