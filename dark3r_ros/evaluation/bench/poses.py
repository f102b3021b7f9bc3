# SPDX-License-Identifier: Apache-2.0
"""Tables of poses and depths: the dark ladder, online mapping, depth maps."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import to_mapping
from dark3r_ros.evaluation import ladder
from dark3r_ros.evaluation.bench.alone import alone
from dark3r_ros.evaluation.bench.cells import Cell, Measured
from dark3r_ros.evaluation.bench.layout import Choice, level_name, markdown_table
from dark3r_ros.evaluation.depth_metrics import score_depth
from dark3r_ros.evaluation.evaluate import evaluate_result
from dark3r_ros.evaluation.external import ExternalMethod
from dark3r_ros.evaluation.matches import score_matches
from dark3r_ros.evaluation.scenes import SIMULATED, KeptScene, Scene, SimulatedScene, open_scene
from dark3r_ros.evaluation.trajectory_metrics import score_trajectory
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.result import peak_memory_mb, write_result
from dark3r_ros.types import Frame

# Method: what computes (`ladder.ENGINES`) and which matcher it gets.
METHODS: dict[str, tuple[str, str]] = {
    'student, sfm': ('sfm', 'mini'),
    'teacher, sfm': ('sfm', 'mini-teacher'),
    'student, map': ('map', 'mini'),
    'SIFT, map': ('map', 'classical'),
    'COLMAP': ('colmap', ''),
    'COLMAP linear': ('colmap-linear', ''),
    'COLMAP denoised': ('colmap-denoised', ''),
    'COLMAP global': ('colmap-global', ''),
    'SIFT odometry': ('vo-sift', ''),
    'ORB odometry': ('vo-orb', ''),
}


def ladder_text(figures: Mapping[str, Any]) -> str:
    """Posed frames and error of a row of the ladder."""
    ate = figures.get('ate_relative')
    posed = f'{figures["posed"]}/{figures["frames"]}'
    return posed if ate is None else f'{posed}, {100 * ate:.2f} %'


def pivot(text: Callable[[Mapping[str, Any]], str]) -> Callable[[Sequence[Measured]], str]:
    """Layout with a row a scene and level and a column a method; `text` writes the figures of a cell."""

    def markdown(cells: Sequence[Measured]) -> str:
        methods = list(dict.fromkeys(cell.settings['method'] for cell in cells))
        rungs: dict[tuple[str, float | None], dict[str, str]] = {}
        for cell in cells:
            rung = rungs.setdefault((_scene_name(cell), cell.settings['snr_db']), {})
            rung[cell.settings['method']] = 'failed' if cell.failure else text(cell.figures)
        rows = [
            [scene, level_name(snr), *(rung.get(method, '') for method in methods)]
            for (scene, snr), rung in rungs.items()
        ]
        return markdown_table(['scene', 'SNR', *methods], rows)

    return markdown


def _scene_name(cell: Measured) -> str:
    scene = cell.settings['scene']
    return str(scene.get('sequence') or scene['simulation']['scene'])


# ------------------------------------------------------------------ the dark ladder


@functools.cache
def fingerprint(engine: str, predictor: str) -> str:
    """What tells one matcher from another; empty for none."""
    return make_predictor(predictor, mini=OFFLINE_MINI if engine == 'sfm' else None).fingerprint if predictor else ''


def ladder_cells(choice: Choice) -> Iterator[Cell]:
    """Every scene at every level by every method."""
    methods: dict[str, tuple[str, str, ExternalMethod | None]] = {
        name: (*METHODS[name], None) for name in choice.methods
    }
    methods |= {name: (name, '', peer) for name, peer in choice.peers.items()}
    for name in choice.scenes:
        scene = open_scene(name)
        scene = KeptScene(_shortened(scene) if choice.quick else scene)
        for snr in choice.levels:
            for method, (engine, predictor, peer) in methods.items():
                settings = {
                    'method': method,
                    'engine': engine,
                    'scene': scene.description,
                    'snr_db': snr,
                    'seed': choice.seed,
                    'preset': choice.preset,
                    'fingerprint': fingerprint(engine, predictor),
                    'config': ladder.engine_config(engine),
                    'command': peer.command if peer else '',
                }

                def work(folder: Path, *, row: Sequence[Any] = (scene, snr, engine, predictor, peer)) -> dict[str, Any]:
                    scene, snr, engine, predictor, peer = row
                    output = folder / 'result'
                    made = ladder.run_row(scene, snr, predictor, choice.seed, choice.preset, output, engine, peer)
                    return {**asdict(made), 'stages_s': _stages(output)}

                yield Cell('ladder', f'{scene.name} {level_name(snr)} {method}', settings, work)


def _stages(result: Path) -> dict[str, float]:
    try:
        stages = json.loads((result / 'report.json').read_text(encoding='utf-8')).get('stages_s') or {}
    except (OSError, json.JSONDecodeError):
        return {}
    return {name: round(seconds, 2) for name, seconds in stages.items() if seconds > 0.005}


def _shortened(scene: Scene) -> Scene:
    """Simulated scenes with a few views only."""
    return SimulatedScene(replace(scene.config, seconds=6.0)) if isinstance(scene, SimulatedScene) else scene


# ------------------------------------------------------------------ matches

MATCHERS = {'student': 'mini', 'teacher': 'mini-teacher', 'SIFT': 'classical'}


def match_cells(choice: Choice) -> Iterator[Cell]:
    """Ten pairs of every scene at every level by every matcher."""
    for name in choice.scenes:
        scene = open_scene(name)
        if choice.quick:
            scene = KeptScene(_shortened(scene))
        for snr in choice.levels:
            for label, predictor in MATCHERS.items():
                settings = {
                    'method': label,
                    'scene': scene.description,
                    'snr_db': snr,
                    'seed': choice.seed,
                    'preset': choice.preset,
                    'fingerprint': fingerprint('map', predictor),
                }

                def work(folder: Path, *, row: tuple[Scene, float | None, str] = (scene, snr, predictor)) -> Any:
                    scene, snr, predictor = row
                    scores = score_matches(
                        scene, snr, make_predictor(predictor), seed=choice.seed, preset=choice.preset
                    )
                    return {'sequence': scene.name, **asdict(scores)}

                yield Cell('matches', f'{scene.name} {level_name(snr)} {label}', settings, work)


def match_text(figures: Mapping[str, Any]) -> str:
    """Right matches a pair and their share of all."""
    return f'{figures["right"]:.0f} ({figures["share"]:.0%})'


# ------------------------------------------------------------------ online


def online_cells(choice: Choice) -> Iterator[Cell]:
    """A tunnel, frame by frame, by the student in the dark and by SIFT in twilight."""
    seconds = 6.0 if choice.quick else 20.0
    for label, predictor, snr in (('student', 'mini', -4.0), ('SIFT', 'classical', 10.0)):
        config = replace(SIMULATED['tunnel'], seconds=seconds, rate=10.0, snr_db=snr, seed=choice.seed)
        settings = {
            'simulation': to_mapping(config),
            'mapping': to_mapping(MappingConfig()),
            'fingerprint': fingerprint('map', predictor),
        }

        def work(folder: Path, *, config: SimulationConfig = config, name: str = predictor) -> dict[str, Any]:
            return dict(alone(_map_online, config, name, folder))

        yield Cell('online', f'tunnel, {level_name(snr)}, {label}', settings, work)


def _map_online(config: SimulationConfig, predictor: str, folder: Path) -> dict[str, Any]:
    pipeline = MappingPipeline(MappingConfig(), make_predictor(predictor))
    times = []
    for made in simulate(config):
        began = time.perf_counter()
        pipeline.push(made.frame)
        times.append(1e3 * (time.perf_counter() - began))
    pipeline.flush()
    reconstruction = pipeline.reconstruction()
    write_result(folder / 'result', reconstruction, {'stages_s': pipeline.stage_seconds}, overwrite=True)
    posed = len(reconstruction.trajectory())
    figures: dict[str, Any] = {
        'frames': len(times),
        'posed': posed,
        'rate': 1e3 / float(np.mean(times)),
        'median_ms': float(np.median(times)),
        'p95_ms': float(np.percentile(times, 95)),
        'memory_mb': peak_memory_mb(),
        'stages_s': pipeline.stage_seconds,
    }
    if posed >= 3:
        truth = SimulatedScene(config).truth(folder, config.seed)
        figures['ate_relative'] = evaluate_result(folder / 'result', truth).figures()['ate_relative']
    return figures


# ------------------------------------------------------------------ depth


def depth_cells(choice: Choice) -> Iterator[Cell]:
    """Depth maps of simulated scenes at -4 dB, by student and teacher."""
    for scene in ('room',) if choice.quick else ('room', 'corridor'):
        seconds = 6.0 if choice.quick else SIMULATED[scene].seconds
        for label, predictor in (('student', 'mini'), ('teacher', 'mini-teacher')):
            config = replace(SIMULATED[scene], seconds=seconds, snr_db=-4.0, seed=choice.seed, depth=True)
            settings = {
                'simulation': to_mapping(config),
                'sfm': to_mapping(SfmConfig()),
                'fingerprint': fingerprint('sfm', predictor),
            }

            def work(folder: Path, *, config: SimulationConfig = config, name: str = predictor) -> dict[str, Any]:
                return _depth(config, name)

            yield Cell('depth', f'{scene}, -4 dB, {label}', settings, work)


def _depth(config: SimulationConfig, predictor: str) -> dict[str, Any]:
    """Depths of `dark3r sfm` with its own poses; one scale for the whole scene, as poses have only one."""
    run = SfmRun(SfmConfig(), make_predictor(predictor, mini=OFFLINE_MINI))
    simulation, truths = simulate(config), []

    def frames() -> Iterator[Frame]:
        for made in simulation:
            truths.append(made.depth)
            yield made.frame

    trajectory = run(frames()).trajectory()
    figures: dict[str, Any] = {'posed': len(trajectory), 'frames': len(truths)}
    poses = {config.stamp_ns(number): simulation.pose(number) for number in range(len(truths))}
    if len(trajectory) < 3:
        return figures
    true_poses = np.stack([poses[int(stamp)] for stamp in trajectory.stamps_ns])
    alignment = score_trajectory(trajectory.stamps_ns, trajectory.world_from_camera, true_poses).alignment
    pairs = [(depth, truths[number]) for number, depth in run.depths.items()]
    found = [(depth, truth) for depth, truth in pairs if truth is not None]
    if alignment is None or not found:
        return figures
    return figures | depth_figures(
        np.stack([np.asarray(depth.depth) for depth, _ in found]),
        np.stack([np.asarray(depth.confidence) for depth, _ in found]),
        np.stack([truth for _, truth in found]),
        alignment.scale,
    )


def depth_figures(
    depth: NDArray[np.floating], confidence: NDArray[np.floating], truth: NDArray[np.floating], scale: float
) -> dict[str, float]:
    """Errors of depths (V, h, w) times the scale of their poses, and of those that are more sure than not.

    The scale that makes the medians equal is another one wherever what has no depth is not like the rest.
    """
    figures: dict[str, float] = {}
    for name, kept in (('', depth), ('sure_', np.where(confidence > 0.5, depth, 0.0))):
        scores = score_depth(kept, truth, scale)
        share = scores.pixels / max(int((truth > 0).sum()), 1)
        figures |= {f'{name}abs_rel': scores.abs_rel, f'{name}delta': scores.delta, f'{name}share': share}
    return figures
