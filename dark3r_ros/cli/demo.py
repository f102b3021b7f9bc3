# SPDX-License-Identifier: Apache-2.0
"""`dark3r demo`: the main job from end to end on a simulated dark tunnel, over real DDS.

The nodes run as processes of their own; the result is what a recorder heard on their topics.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import parse_size, print_json, progress
from dark3r_ros.cli.processes import Child, ChildError, Children, unused_domain
from dark3r_ros.errors import ConfigError, DependencyError
from dark3r_ros.evaluation.evaluate import Evaluation, evaluate_result, write_evaluation
from dark3r_ros.storage.bag import BagReader
from dark3r_ros.storage.files import check_target, output_error
from dark3r_ros.storage.result import REPORT_FILE, read_result
from dark3r_ros.types import Trajectory

NAME = 'demo'
HELP = 'simulate a dark tunnel, map it through ROS 2 and score the result'
EXAMPLE = 'dark3r demo -o out/demo --snr 10 --seconds 20'

DEFAULT_SNR_DB = -4.0
NOISE = 'starvis'
_LOCKSTEP = 4
_START_SECONDS = 90.0


def parse_parameter(text: str) -> tuple[str, str]:
    """Name and value of a text like `mapping.network_width:=160`, for `argparse`."""
    name, _, value = text.partition(':=')
    if not (name and value):
        raise argparse.ArgumentTypeError(f'takes NAME:=VALUE, not {text!r}')
    return name, value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('-o', '--output', type=Path, default=Path('out/demo'), help='result folder (default: out/demo)')
    parser.add_argument(
        '--snr',
        type=float,
        default=DEFAULT_SNR_DB,
        metavar='DB',
        help='signal-to-noise ratio of the frames (default: %(default)s)',
    )
    parser.add_argument('--seconds', type=float, default=20.0, help='length of the drive (default: %(default)s)')
    parser.add_argument('--rate', type=float, default=10.0, help='frames per second (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of scene and noise (default: %(default)s)')
    parser.add_argument('--size', type=parse_size, default=(1280, 960), metavar='WxH', help='default: 1280x960')
    parser.add_argument('--bag', type=Path, help='play this bag instead of simulating one')
    parser.add_argument('--truth', type=Path, help='truth of that bag: TUM file or cameras.json')
    parser.add_argument('--noise', default='', metavar='NAME', help='noise preset or YAML file of that bag')
    parser.add_argument(
        '--live',
        action='store_true',
        help='images come when they were taken, as from a camera, and what the node cannot take is dropped and '
        'counted; by default the player waits for it',
    )
    parser.add_argument(
        '--delay', type=float, default=0.0, metavar='S', help='images come up to S seconds late, at random (default: 0)'
    )
    parser.add_argument(
        '-p',
        '--parameter',
        type=parse_parameter,
        action='append',
        default=[],
        metavar='NAME:=VALUE',
        help='parameter of the mapping node, such as mapping.network_width:=160; any number of them',
    )
    parser.add_argument('--json', action='store_true', help='print the closing figures as JSON')


def check_environment() -> None:
    """DependencyError when ROS 2 or the built interfaces are missing."""
    for name, what in (
        ('rclpy', 'ROS 2'),
        ('tf2_msgs', 'tf2_msgs'),
        ('dark3r_ros.msg', "this package's messages"),
    ):
        if importlib.util.find_spec(name) is None:
            raise DependencyError(
                f'the demo needs {what}, which this Python does not find: run environment/setup.sh, then '
                '`source environment/activate.sh` (or source your ROS 2 workspace)'
            )


def graph_environment() -> dict[str, str]:
    """Environment of the nodes: a domain of their own, and transports that carry large frames."""
    environment = dict(os.environ)
    environment['ROS_DOMAIN_ID'] = str(unused_domain())
    environment.setdefault('OMP_NUM_THREADS', '1')
    if not environment.get('FASTDDS_DEFAULT_PROFILES_FILE'):
        environment.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')
    return environment


def simulate_tunnel(args: argparse.Namespace, bag: Path) -> Path:
    """Make the bag by `dark3r simulate` and return the file with its truth."""
    width, height = args.size
    command = [
        sys.executable, '-m', 'dark3r_ros.cli.main', 'simulate', 'tunnel', '-o', str(bag), '--overwrite',
        '--snr', str(args.snr), '--seconds', str(args.seconds), '--rate', str(args.rate), '--seed', str(args.seed),
        '--size', f'{width}x{height}', '--preset', NOISE, '--odometry', '--no-depth',
    ]  # fmt: skip
    # A process of its own gives its memory back before the nodes start.
    status = subprocess.run(command, check=False).returncode
    if status:
        raise ChildError(f'the simulation ended with status {status}: see the line above')
    return bag / 'truth.tum'


def levels_of(bag: Path) -> dict[str, Any]:
    """Decoding parameters from the levels that the bag states."""
    with BagReader(bag) as reader:
        levels = next(iter(reader.levels.values()), None)
    if levels is None:
        return {}
    white = float(levels['white_level'])
    return {
        'decode.black_level': float(min(levels['black_level'])),
        'decode.white_level': white,
        'decode.alignment': 'lsb',
        'decode.significant_bits': max(8, int(white).bit_length()),
    }


def node_command(name: str, parameters: dict[str, Any]) -> list[str]:
    """Command line of one node."""
    words = [sys.executable, '-m', f'dark3r_ros.nodes.{name}', '--ros-args']
    for key, value in parameters.items():
        words += ['-p', f'{key}:={str(value).lower() if isinstance(value, bool) else value}']
    return words


class PlayedFrames:
    """Progress bar from the log of the replay node."""

    def __init__(self, replay: Child, total: int) -> None:
        self._replay = replay
        self._bar = progress(range(total), total, 'mapping over DDS')
        self._done, self._total = 0, total

    def __call__(self) -> None:
        """Move on to what the log says."""
        found = re.findall(r'(\d+) frames played', self._replay.tail(3))
        for _ in range(min(int(found[-1]) if found else 0, self._total) - self._done):
            next(self._bar, None)
            self._done += 1


def run_graph(
    bag: Path,
    output: Path,
    noise: str,
    live: bool = False,
    delay: float = 0.0,
    parameters: Mapping[str, str] | None = None,
) -> float:
    """Play the bag to the mapping node while a recorder writes `output`; return the seconds that took.

    Each image is up to `delay` seconds late. `live` plays as a camera would, without waiting for the node, whose
    `parameters` go before what the demo sets.
    """
    with BagReader(bag) as reader:
        total = max((topic.count for topic in reader.topics if topic.type == 'sensor_msgs/msg/Image'), default=0)
        length_s = (reader.end_ns - reader.start_ns) / 1e9
    mapping: dict[str, Any] = {'image_reliability': 'reliable', 'idle_flush': 1.5, **levels_of(bag)}
    playing = {'bag': bag.absolute(), 'progress': 0.5, 'odom_tf': True, 'image_delay': delay}
    if not live:
        mapping |= {'queue_length': 4 * _LOCKSTEP, 'image_depth': 4 * _LOCKSTEP}
        playing['lockstep'] = _LOCKSTEP
    if noise:
        mapping['noise_file' if noise.endswith(('.yaml', '.yml')) else 'noise_preset'] = noise
    mapping |= parameters or {}
    started = time.monotonic()
    with Children(output.with_name(f'{output.name}-logs'), graph_environment()) as children:
        node = children.start('mapping_node', node_command('mapping_node', mapping))
        recorder = children.start(
            'recorder', node_command('recorder', {'output': output.absolute(), 'overwrite': True, 'idle': 4.0})
        )
        # Who comes late misses the first frames: the player starts when the others listen.
        children.wait_for_line(node, 'active: waiting for images', _START_SECONDS)
        children.wait_for_line(recorder, 'recording', _START_SECONDS)
        replay = children.start('replay', node_command('replay', playing))
        bar = PlayedFrames(replay, total)
        children.wait_for(replay, _START_SECONDS + 10.0 * length_s + 2.0 * total, each=bar)
        bar()
        children.wait_for(recorder, _START_SECONDS + 2.0 * total, may_end=[replay])
        node.signal(signal.SIGINT)
        children.wait_for(node, 15.0, may_end=[replay, recorder])
    return time.monotonic() - started


def score(output: Path, truth: Path, bag: Path, noise: str) -> Evaluation:
    """Score the result folder and write evaluation.json, report.html and its pictures."""
    from dark3r_ros.evaluation.report import write_report
    from dark3r_ros.evaluation.samples import SampleCollector
    from dark3r_ros.matching.registry import make_predictor
    from dark3r_ros.raw.noise import resolve_noise
    from dark3r_ros.storage.source import open_source

    evaluation = evaluate_result(output, truth)
    write_evaluation(output, evaluation, truth)
    saved = read_result(output)
    predictor = make_predictor(noise=resolve_noise(noise) if noise else None)
    source = open_source(bag)
    samples = SampleCollector(len(source))
    for frame in source:
        samples.offer(frame)
    alignment, true = evaluation.trajectory.alignment, evaluation.truth.trajectory
    aligned = None if alignment is None else Trajectory(true.stamps_ns, alignment.apply_inverse(true.world_from_camera))
    write_report(
        output,
        saved.reconstruction,
        saved.report,
        samples=samples.pictures(predictor),
        truth=aligned,
        truth_aligned=aligned is not None,
    )
    return evaluation


def _figure(value: float | None, pattern: str) -> str:
    return 'unknown' if value is None or not math.isfinite(value) else pattern.format(value)


def closing_rows(report: dict[str, Any], evaluation: Evaluation) -> list[tuple[str, str]]:
    """Rows of the closing table."""
    scores, latency, counts = evaluation.trajectory, report['latency_s'], report.get('counts', {})
    unit = ' m' if evaluation.truth.metric else ''
    if scores.degenerate:
        ate = f'not defined: {scores.degenerate}'
    else:
        ate = f'{scores.ate_relative:.2%} of the extent ({scores.ate.rmse:.4g}{unit} in {scores.extent:.4g}{unit})'
    milliseconds = ['unknown' if latency[key] is None else f'{1e3 * latency[key]:.0f} ms' for key in ('median', 'p95')]
    snr = report['snr_db']
    return [
        ('posed frames', f'{evaluation.posed} of {evaluation.true_frames} ({evaluation.posed_share:.1%})'),
        ('ATE after Sim(3)', ate),
        ('rate', f'{_figure(report["rate_hz"], "{:.1f}")} frames/s, {counts.get("dropped", 0)} dropped'),
        ('latency, image to pose', f'{milliseconds[0]} median, {milliseconds[1]} 95th percentile'),
        ('SNR', f'{_figure(snr["median"], "{:+.1f} dB")} median of the frames, estimated'),
        ('map', f'{report["keyframes"]} keyframes, {report["cloud_points"]} points'),
    ]


def prepare(args: argparse.Namespace) -> None:
    """Check everything that can be wrong before the long work begins."""
    if (args.bag is None) != (args.truth is None):
        raise ConfigError('--bag and --truth belong together: give both or neither')
    if not 0.0 <= args.delay <= 60.0:
        raise ConfigError(f'--delay takes 0 to 60 seconds, not {args.delay:g}')
    check_environment()
    check_target(args.output.absolute(), overwrite=True, marker=REPORT_FILE)
    try:
        args.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(args.output, error) from error


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    prepare(args)
    output = args.output.absolute()
    if args.bag is None:
        print(f'simulating {args.seconds:g} s of a dark tunnel at {args.snr:+g} dB', file=sys.stderr)
        bag, noise = output.with_name(f'{output.name}-bag'), NOISE
        truth = simulate_tunnel(args, bag)
    else:
        bag, truth, noise = args.bag, args.truth, args.noise
    print('replaying it over DDS: replay -> mapping node -> recorder', file=sys.stderr)
    seconds = run_graph(bag, output, noise, args.live, args.delay, dict(args.parameter))
    print(f'mapped in {seconds:.0f} s; scoring against the truth', file=sys.stderr)
    evaluation = score(output, truth, bag, noise)
    report = json.loads((output / REPORT_FILE).read_text())
    rows = closing_rows(report, evaluation)
    if args.json:
        latency = report['latency_s']
        print_json({**evaluation.figures(), 'latency_s': latency, 'snr_db': report['snr_db'], 'output': output})
    else:
        width = max(len(name) for name, _ in rows)
        print('\n'.join(f'{name:<{width}}  {value}' for name, value in rows))
        print(f'\nreport: {output / "report.html"}\nbag:    {bag}')
    return 0
