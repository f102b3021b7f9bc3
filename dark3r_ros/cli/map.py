# SPDX-License-Identifier: Apache-2.0
"""`dark3r map`: poses and a map from a recording, by the same pipeline as the node."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import (
    add_config_arguments,
    add_decode_arguments,
    config_from_arguments,
    print_json,
    progress,
)
from dark3r_ros.cli.reconstruction import add_reconstruction_arguments, odometry_of, open_input, provenance
from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import PipelineStatus
from dark3r_ros.mapping.ground import scale_from_height
from dark3r_ros.mapping.metric import estimate_scale
from dark3r_ros.mapping.odometry_track import OdometryReplay
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.state_file import STATE_FILE
from dark3r_ros.mapping.viewer import WINDOW, LiveViewer
from dark3r_ros.mapping.viewer import check_target as check_viewer
from dark3r_ros.matching.classical import ClassicalConfig
from dark3r_ros.matching.mini import MiniMatchConfig
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.raw.checks import check_frame
from dark3r_ros.raw.noise import resolve_noise
from dark3r_ros.sfm.scale import scaled
from dark3r_ros.storage.files import check_target, check_writable
from dark3r_ros.types import Reconstruction

NAME = 'map'
HELP = 'map a recording: poses, cloud and report from a bag or a folder'
EXAMPLE = 'dark3r map tunnel_bag -o out/tunnel'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_reconstruction_arguments(parser)
    group = parser.add_argument_group('live map')
    group.add_argument('--continue-from', type=Path, metavar='MAP',
                       help='find the camera in this saved map, and go on in it')  # fmt: skip
    group.add_argument('--save-map', type=Path, metavar='MAP',
                       help='also write the live map, so that a later run or a node can go on in it')  # fmt: skip
    group.add_argument('--odometry', type=Path, metavar='FILE',
                       help='odometry for scale and against jumps: a TUM file, or a bag such as the input')  # fmt: skip
    group.add_argument('--live', nargs='?', const=WINDOW, metavar='FILE.rrd',
                       help='show camera and map as they grow (rerun), or record them to FILE.rrd')  # fmt: skip
    add_config_arguments(parser, MappingConfig, 'mapping')
    add_config_arguments(parser, MiniMatchConfig, 'mini', 'mini')
    add_config_arguments(parser, ClassicalConfig, 'classical matcher', 'classical')
    add_decode_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from dark3r_ros.evaluation.report import write_report
    from dark3r_ros.evaluation.samples import SampleCollector
    from dark3r_ros.storage.result import REPORT_FILE, build_report, write_result

    # Refused now rather than after minutes of work.
    check_target(args.output, overwrite=args.overwrite, marker=REPORT_FILE)
    check_writable(args.output)
    if args.save_map is not None:
        check_target(args.save_map, overwrite=args.overwrite, marker=STATE_FILE)
        check_writable(args.save_map)
    odometry = None if args.odometry is None else odometry_of(args.odometry)
    if args.live is not None:
        check_viewer(args.live)
    began = time.perf_counter()
    mapping = config_from_arguments(args, MappingConfig)
    classical = config_from_arguments(args, ClassicalConfig, 'classical')
    mini = config_from_arguments(args, MiniMatchConfig, 'mini')
    noise = resolve_noise(args.noise) if args.noise else None
    predictor = make_predictor(args.predictor, noise=noise, classical=classical, mini=mini)
    pipeline = MappingPipeline(mapping, predictor, noise, offline=True)
    notes = pipeline.load_state(args.continue_from) if args.continue_from is not None else ()
    for note in notes:
        print(f'dark3r: {note}', file=sys.stderr)
    replay = None if odometry is None else OdometryReplay(odometry, pipeline.add_odometry)
    source = open_input(args)
    samples = SampleCollector(len(source), network_width=mapping.network_width, binning=mapping.binning)
    advice: list[str] = []
    viewer = None if args.live is None else LiveViewer(args.live, _warn)
    for number, frame in enumerate(progress(source, len(source), 'mapping')):
        if number == 0:
            advice = check_frame(frame, noise)
        if replay is not None:
            replay.until(frame.stamp_ns)
        events = pipeline.push(frame)
        if viewer is not None:
            viewer.show(frame, events, pipeline.status())
        samples.offer(frame)
    if sys.stderr.isatty():
        print('dark3r: the map is being finished', file=sys.stderr)
    events = pipeline.flush(progress)
    if viewer is not None:
        viewer.show(None, events, pipeline.status())
    status = pipeline.status()
    warnings = [*advice, *source.warnings, *_submap_warning(status), *pipeline.verdict.warnings]
    for warning in warnings:
        _warn(warning)
    if not status.posed:
        _explain_failure(pipeline)
    reconstruction = pipeline.reconstruction(largest=True)
    scale = None if odometry is None else estimate_scale(reconstruction.trajectory(), odometry)
    if mapping.camera_height > 0.0 and not (scale is not None and scale.known):
        scale = scale_from_height(reconstruction, mapping.camera_height)
    if scale is not None and scale.known:
        reconstruction = scaled(reconstruction, scale.scale)
    elif scale is not None:
        _warn(f'the scale stays {scale}')
    report = {
        'scale': None if scale is None else asdict(scale),
        'wall_s': time.perf_counter() - began,
        'stages_s': pipeline.stage_seconds,
        'start': pipeline.verdict.note,
        'submaps': pipeline.submap_frames(),
        'loops': {
            'proposed': status.loops_proposed,
            'verified': status.loops_verified,
            'accepted': status.loops_accepted,
            'refused': dict(status.loops_refused),
        },
        **provenance(args, predictor, noise, {'mapping': mapping, 'mini': mini, 'classical': classical}, warnings),
    }
    write_result(args.output, reconstruction, report, overwrite=args.overwrite)
    if args.save_map is not None:
        pipeline.save_state(args.save_map, overwrite=args.overwrite)
    if not args.no_report:
        full = build_report(reconstruction, report)
        write_report(args.output, reconstruction, full, samples=samples.pictures(predictor))
    _print_summary(args, reconstruction, report)
    return 0


def _warn(text: str) -> None:
    print(f'dark3r: warning: {text}', file=sys.stderr)


def _submap_warning(status: PipelineStatus) -> list[str]:
    if status.submaps < 2:
        return []
    return [
        f'{status.submaps} submaps could not be joined, for none sees enough of another: the result holds the largest; '
        'the report lists the others'
    ]


def _explain_failure(pipeline: MappingPipeline) -> None:
    """Say why no frame got a pose."""
    status = pipeline.status()
    if not status.frames:
        raise DataError('the input holds no usable frame')
    try:
        reasons = [frame.reason for frame in pipeline.reconstruction().frames if frame.reason]
    except ReconstructionError:  # every frame was refused at the door
        reasons = [status.message]
    common = max(set(reasons), key=reasons.count) if reasons else 'unknown'
    raise ReconstructionError(f'none of {status.frames} frames could be posed; most often: {common}')


def _print_summary(args: argparse.Namespace, reconstruction: Reconstruction, report: dict[str, Any]) -> None:
    frames = reconstruction.frames
    posed = sum(frame.world_from_camera is not None for frame in frames)
    figures = {
        'frames': len(frames),
        'posed': posed,
        'keyframes': sum(frame.keyframe for frame in frames),
        'landmarks': len(reconstruction.observations.points),
        'wall_s': round(report['wall_s'], 3),
        'frames_per_second': round(len(frames) / report['wall_s'], 2),
        'output': str(args.output),
    }
    if args.json:
        print_json(figures)
        return
    print(
        f'{posed} of {len(frames)} frames posed, {figures["keyframes"]} keyframes, {figures["landmarks"]} landmarks, '
        f'{figures["frames_per_second"]} frames/s; written to {args.output}'
    )
