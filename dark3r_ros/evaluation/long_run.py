# SPDX-License-Identifier: Apache-2.0
"""A long drive through the simulated tunnel, as a robot meets it: dark, lamp on board, slipping wheels, a blackout.

`python -m dark3r_ros.evaluation.long_run -o out --minutes 10` drives round the ring of the tunnel at 10 Hz and -4 dB
and writes `long_run.json`. Frames are mapped one after the other; what two threads of a node would make of the times
(one encodes, the other maps; three images wait at most) is worked out from the time of each part by the clock, for
which the machine must be idle. `dark3r demo --live` measures the node itself.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.evaluation.evaluate import evaluate_result
from dark3r_ros.evaluation.long_run_drift import end_drift, piece_drift, way
from dark3r_ros.evaluation.scenes import SIMULATED
from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import Event, FramePosed
from dark3r_ros.mapping.metric import estimate_scale
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.result import jsonable, write_result
from dark3r_ros.storage.trajectory import write_tum
from dark3r_ros.types import Trajectory

Array = NDArray[np.float64]

_HEAD = 0.1  # share of the drive that fixes place, turn and scale before the drift at its end is measured
_PIECE = 10.0  # metres over which the drift is measured everywhere


@dataclass(frozen=True)
class LongRun:
    """What is driven, and how it is mapped."""

    simulation: SimulationConfig
    mapping: MappingConfig

    @property
    def lit_again(self) -> float:
        """Second at which the light comes back; infinity where it is never out."""
        dark = self.simulation
        return dark.dark_at + dark.dark_seconds if dark.dark_seconds > 0 else math.inf


@dataclass
class Schedule:
    """When frames would be posed by two threads, from how long each part takes (seconds); what waits is bounded."""

    interval: float
    waiting: int = 3
    encoder_free: float = 0.0
    mapper_free: float = 0.0
    dropped: int = 0

    def latency(self, number: int, prepare: float, pose: float, work: float) -> float:
        """Seconds from the image to its pose."""
        arrived = number * self.interval
        start = max(arrived, self.encoder_free)
        if start - arrived > self.waiting * self.interval:
            self.dropped += 1
        ready = start + prepare
        mapped = max(ready, self.mapper_free)
        # The next image is encoded once this one has been taken over.
        self.encoder_free = mapped
        self.mapper_free = mapped + pose + work
        return mapped + pose - arrived


def drive(run: LongRun, output: Path, predictor: str = 'mini') -> dict[str, Any]:
    """Map the drive; writes the result under `output` and returns the figures."""
    pipeline = MappingPipeline(run.mapping, make_predictor(predictor))
    schedule = Schedule(1.0 / run.simulation.rate)
    truth: list[tuple[int, Array]] = []
    odometry: list[tuple[int, Array]] = []
    times: list[tuple[float, float, float]] = []
    latencies: list[float] = []
    memory: list[tuple[float, float]] = []
    recovered: float | None = None
    for number, made in enumerate(simulate(run.simulation)):
        assert made.world_from_camera is not None and made.odometry is not None
        stamp = made.frame.stamp_ns
        truth.append((stamp, made.world_from_camera))
        odometry.append((stamp, made.odometry.odom_from_body))
        pipeline.add_odometry(stamp, made.odometry.odom_from_body)
        clock = [time.perf_counter()]
        prepared = pipeline.prepare(made.frame)
        clock.append(time.perf_counter())
        events = pipeline.pose(prepared)
        clock.append(time.perf_counter())
        events += pipeline.work()
        clock.append(time.perf_counter())
        after = number / run.simulation.rate - run.lit_again
        if recovered is None and after >= 0 and _in_map(events, stamp):
            recovered = after
        times.append((clock[1] - clock[0], clock[2] - clock[1], clock[3] - clock[2]))
        latencies.append(schedule.latency(number, *times[-1]))
        status = pipeline.status()
        if number % 100 == 99:
            memory.append((_resident_mb(), status.map_bytes / 1e6))
            print(f'{number + 1} frames, {status.posed} posed, {status.message}, {memory[-1]} MB', file=sys.stderr)
    figures = _scores(run, pipeline, truth, odometry, output)
    status = pipeline.status()
    spent = 1e3 * np.array(times)
    return {
        **figures,
        'frames': len(times),
        'seconds': run.simulation.seconds,
        'encode_ms': float(spent[:, 0].mean()),
        'map_ms': float(spent[:, 1:].sum(axis=1).mean()),
        'pose_ms': float(np.median(spent[:, 1])),
        'latency_p50_ms': 1e3 * float(np.median(latencies)),
        'latency_p95_ms': 1e3 * float(np.percentile(latencies, 95)),
        'late_for_the_queue': schedule.dropped,
        'recovered_after_s': recovered,
        'memory_mb': memory,
        'keyframes': status.keyframes,
        'submaps': status.submaps,
        'loops': {'accepted': status.loops_accepted, 'refused': dict(status.loops_refused)},
    }


def _scores(
    run: LongRun,
    pipeline: MappingPipeline,
    truth: Sequence[tuple[int, Array]],
    odometry: Sequence[tuple[int, Array]],
    output: Path,
) -> dict[str, Any]:
    """Errors of the live map, before anything is refined as a whole."""
    reconstruction = pipeline.reconstruction(largest=True)
    trajectory = reconstruction.trajectory()
    stamps = np.array([stamp for stamp, _ in truth], dtype=np.int64)
    poses = np.stack([pose for _, pose in truth])
    write_result(output / 'result', reconstruction, {'run': jsonable(asdict(run))}, overwrite=True)
    write_tum(output / 'truth.tum', Trajectory(stamps, poses))
    scores = evaluate_result(output / 'result', output / 'truth.tum').figures()
    own, estimate = poses[np.searchsorted(stamps, trajectory.stamps_ns)], trajectory.world_from_camera
    metres_driven = float(way(poses)[-1])
    wheels = Trajectory(stamps, np.stack([pose for _, pose in odometry]))
    metres = estimate_scale(trajectory, wheels)
    true_scale = umeyama(estimate[:, :3, 3], own[:, :3, 3])[0]
    return {
        'posed': len(trajectory),
        'ate_relative': scores['ate_relative'],
        'ate_of_way': float(scores['ate_relative']) * _extent(poses) / metres_driven,
        'drift_of_way': end_drift(estimate, own, _HEAD) / metres_driven,
        'drift_of_10_m': piece_drift(estimate, own, _PIECE),
        'way_m': metres_driven,
        'scale_error': metres.scale / true_scale - 1.0 if metres.known else None,
    }


def _extent(poses: Array) -> float:
    """Largest distance between two of at most some hundred cameras."""
    centres = poses[:: max(1, len(poses) // 500), :3, 3]
    return float(np.linalg.norm(centres[:, None] - centres[None], axis=2).max())


def _in_map(events: Sequence[Event], stamp_ns: int) -> bool:
    """Whether a frame has a pose in the map, be it that its submap has just been joined."""
    return any(isinstance(event, FramePosed) and event.submap == 0 and event.stamp_ns == stamp_ns for event in events)


def _resident_mb() -> float:
    """Memory of this process in MB; 0 where the system does not say."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('-o', '--output', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=10.0)
    parser.add_argument('--rate', type=float, default=10.0, help='frames a second (default: %(default)s)')
    parser.add_argument('--snr', type=float, default=-4.0)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--dark-at', type=float, help='second at which the light goes out (default: in the middle)')
    parser.add_argument('--dark-seconds', type=float, default=5.0)
    parser.add_argument('--no-loops', action='store_true')
    parser.add_argument('--scene', choices=('tunnel', 'bays'), default='tunnel', help='bays are copies of each other')
    parser.add_argument('--predictor', default='mini')
    args = parser.parse_args(arguments)
    seconds = 60.0 * args.minutes
    simulation = replace(
        SIMULATED['tunnel'],
        scene=args.scene,
        seconds=seconds,
        rate=args.rate,
        snr_db=args.snr,
        seed=args.seed,
        odometry=True,
        dark_at=seconds / 2 if args.dark_at is None else args.dark_at,
        dark_seconds=args.dark_seconds,
    )
    run = LongRun(simulation, MappingConfig(loops=not args.no_loops))
    args.output.mkdir(parents=True, exist_ok=True)
    figures = drive(run, args.output, args.predictor)
    write_text(args.output / 'long_run.json', json.dumps(jsonable(figures), indent=1) + '\n')
    print(json.dumps(jsonable({key: value for key, value in figures.items() if key != 'memory_mb'}), indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
