# SPDX-License-Identifier: Apache-2.0
"""Where the time of `map`, `sfm` and `nerf train` goes, beside what the arithmetic of their networks would take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dark3r_ros.config import to_mapping
from dark3r_ros.evaluation.bench.cells import Cell, Measured
from dark3r_ros.evaluation.bench.layout import Choice, markdown_table
from dark3r_ros.evaluation.bench.machine import ceilings
from dark3r_ros.evaluation.bench.poses import fingerprint
from dark3r_ros.evaluation.bench.speed import small_training
from dark3r_ros.evaluation.scenes import SIMULATED
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.types import Planes

# Parts of a training step by the names of PyTorch's operations; what is none of them is small operations.
_STEP_PARTS = {
    'grids': ('_Interpolate', '_InterpolateBackward'),
    'matrix products': ('aten::mm', 'aten::addmm', 'aten::bmm'),
    'optimiser': ('aten::_fused_adam_', 'aten::_foreach_lerp_', 'aten::_foreach_norm', 'aten::_foreach_mul_'),
}


class CountingPredictor:
    """A predictor whose arithmetic and time are counted; one count a method, since all calls have one size.

    Attributes
    ----------
    flops: floating point operations so far. seconds: spent in the predictor.

    """

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self._each: dict[str, int] = {}
        self.flops, self.seconds = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def encode(self, planes: Planes) -> Any:
        """As the predictor does."""
        return self._counted('encode', 1, lambda: self._predictor.encode(planes))

    def match(self, pairs: Sequence[tuple[Any, Any]]) -> Any:
        """As the predictor does."""
        return self._counted('match', len(pairs), lambda: self._predictor.match(pairs))

    def _counted(self, name: str, units: int, work: Callable[[], Any]) -> Any:
        if name not in self._each and units:
            # Counting costs time, so that this first call does not count as any.
            with FlopCounterMode(display=False) as counter:
                work()
            self._each[name] = counter.get_total_flops() // units
        began = time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - began
        self.flops += units * self._each.get(name, 0)
        return result


def profile_cells(choice: Choice) -> Iterator[Cell]:
    """A short run of each of the three."""
    map_scene = replace(SIMULATED['tunnel'], seconds=3.0 if choice.quick else 10.0, rate=10.0, snr_db=-4.0)
    sfm_scene = replace(SIMULATED['room'], seconds=5.0 if choice.quick else 20.0, snr_db=-4.0)
    steps = 10 if choice.quick else 60
    threads = torch.get_num_threads()
    runs: tuple[tuple[str, dict[str, Any], Callable[[], dict[str, Any]]], ...] = (
        ('map, a frame of the tunnel at -4 dB', _settings('map', map_scene), lambda: _profile_map(map_scene)),
        ('sfm, a view of the room at -4 dB', _settings('sfm', sfm_scene), lambda: _profile_sfm(sfm_scene)),
        ('nerf train, a step of `preview`', {'steps': steps}, lambda: _profile_training(steps)),
    )
    for label, settings, run in runs:

        def work(folder: Path, *, run: Callable[[], dict[str, Any]] = run) -> dict[str, Any]:
            return run()

        yield Cell('profile', label, {**settings, 'threads': threads}, work)


def _settings(engine: str, scene: SimulationConfig) -> dict[str, Any]:
    config = MappingConfig() if engine == 'map' else SfmConfig()
    return {'scene': to_mapping(scene), 'config': to_mapping(config), 'fingerprint': fingerprint(engine, 'mini')}


def _profile_map(scene: SimulationConfig) -> dict[str, Any]:
    frames = [made.frame for made in simulate(scene)]
    predictor = CountingPredictor(make_predictor('mini'))
    pipeline = MappingPipeline(MappingConfig(), predictor)
    began = time.perf_counter()
    for frame in frames:
        pipeline.push(frame)
    pipeline.flush()
    return _shares(time.perf_counter() - began, len(frames), pipeline.stage_seconds, predictor)


def _profile_sfm(scene: SimulationConfig) -> dict[str, Any]:
    frames = [made.frame for made in simulate(scene)]
    predictor = CountingPredictor(make_predictor('mini', mini=OFFLINE_MINI))
    run = SfmRun(SfmConfig(), predictor)
    began = time.perf_counter()
    run(frames, len(frames))
    return _shares(time.perf_counter() - began, len(frames), run.seconds, predictor)


def _shares(seconds: float, units: int, stages: Mapping[str, float], predictor: CountingPredictor) -> dict[str, Any]:
    """Milliseconds a frame or view: whole, in the predictor, by stage, and at the rate of a large matrix product."""
    limit = predictor.flops / ceilings(torch.device('cpu'))['flops']
    each = 1e3 / units
    return {
        'ms': seconds * each,
        'network_ms': predictor.seconds * each,
        'limit_ms': limit * each,
        'parts_ms': {name: value * each for name, value in stages.items() if value > 0.005 * seconds},
    }


def _profile_training(steps: int) -> dict[str, Any]:
    trainer = small_training('cpu', steps + 6)
    for _ in range(3):
        trainer.step()
    with FlopCounterMode(display=False) as counter:
        trainer.step()
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    whole = 1e3 * (time.perf_counter() - began) / steps
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(2):
            trainer.step()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    parts = {}
    for part, names in _STEP_PARTS.items():
        spent = sum(event.cpu_time_total for event in events if event.key in names)
        parts[part] = whole * spent / total
    parts['small operations'] = whole - sum(parts.values())
    limit = 1e3 * counter.get_total_flops() / ceilings(torch.device('cpu'))['flops']
    return {'ms': whole, 'network_ms': parts['matrix products'], 'limit_ms': limit, 'parts_ms': parts}


def profile_markdown(cells: Sequence[Measured]) -> str:
    """A row a command: time, that of the networks, their limit, and the parts, the largest first."""
    rows = []
    for cell in cells:
        if cell.failure:
            rows.append([cell.label, f'failed: {cell.failure}'])
            continue
        figures = cell.figures
        parts = sorted(figures['parts_ms'].items(), key=lambda item: -item[1])
        shares = ', '.join(f'{name} {value / figures["ms"]:.0%}' for name, value in parts)
        rows.append([cell.label, *(f'{figures[key]:.1f}' for key in ('ms', 'network_ms', 'limit_ms')), shares])
    return markdown_table(['', 'ms', 'in the networks', 'limit of their arithmetic', 'where the time goes'], rows)
