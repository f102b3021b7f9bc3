# SPDX-License-Identifier: Apache-2.0
"""`dark3r sfm`: poses and structure of a whole recording at once, from all pairs of views."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.cli.common import (
    add_config_arguments,
    add_decode_arguments,
    config_from_arguments,
    print_json,
    progress,
)
from dark3r_ros.cli.reconstruction import add_reconstruction_arguments, odometry_of, open_input, open_second, provenance
from dark3r_ros.errors import ConfigError, DataError, ReconstructionError
from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.raw.noise import resolve_noise
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.mesh import fuse_mesh
from dark3r_ros.sfm.pipeline import SfmRun, ShardDone
from dark3r_ros.sfm.result import world_poses
from dark3r_ros.sfm.scale import (
    scale_from_distance,
    scale_from_odometry,
    scaled,
    scaled_covariance,
    scaled_depths,
)
from dark3r_ros.sfm.stereo import RigSource, scale_from_baseline, static_baseline
from dark3r_ros.sfm.views import View
from dark3r_ros.storage.files import check_target, check_writable
from dark3r_ros.storage.mesh import write_mesh_ply
from dark3r_ros.types import DepthMap, Frame, FrameSource, Reconstruction, Trajectory

NAME = 'sfm'
HELP = 'reconstruct a recording offline: all views at once, for the dark and for unordered sets'
EXAMPLE = 'dark3r sfm night_folder -o out/night --predictor mini'
_FROM_TF = 'tf_static'
# Baselines that differ by more than this share over the frames are no good scale.
_MOST_SPREAD = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_reconstruction_arguments(parser)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        '--scale-odometry',
        type=Path,
        metavar='FILE',
        help='odometry that gives the scale and holds it along the path: a TUM file, or a bag such as the input',
    )
    scale.add_argument(
        '--scale-distance',
        nargs=3,
        metavar=('FRAME', 'FRAME', 'M'),
        help='two frames (file name, stamp or number) and their distance in metres, which give the scale',
    )
    scale.add_argument(
        '--scale-baseline',
        nargs='?',
        const=_FROM_TF,
        metavar='M',
        help='distance of the two cameras of a rig in metres, which gives the scale (default: from /tf_static)',
    )
    rig = parser.add_argument_group('stereo rig')
    rig.add_argument(
        '--second-camera',
        default='',
        metavar='TOPIC|INPUT',
        help='raw images of the second camera: another topic of the bag, or a folder or bag of its own',
    )
    rig.add_argument(
        '--second-calibration', default='', metavar='FILE', help='cameras.json with the intrinsics of the second camera'
    )
    parser.add_argument('--mesh', action='store_true', help='make mesh.ply of the depth maps as well (needs Open3D)')
    add_config_arguments(parser, SfmConfig, 'reconstruction')
    add_decode_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from dark3r_ros.evaluation.report import write_report
    from dark3r_ros.evaluation.samples import SampleCollector
    from dark3r_ros.evaluation.sfm_figures import sfm_figures
    from dark3r_ros.storage.result import REPORT_FILE, build_report, write_result

    # Refused now rather than after minutes of work.
    check_target(args.output, overwrite=args.overwrite, marker=REPORT_FILE)
    check_writable(args.output)
    began = time.perf_counter()
    config = config_from_arguments(args, SfmConfig)
    if args.mesh:
        _check_mesh(config)
    _check_rig(args)
    noise = resolve_noise(args.noise) if args.noise else None
    odometry = odometry_of(args.scale_odometry) if args.scale_odometry else None
    predictor = make_predictor(args.predictor, noise=noise, mini=OFFLINE_MINI)
    source: FrameSource = open_input(args)
    baseline: float | None = None
    if args.second_camera:
        source = rig = RigSource(source, open_second(args))
        baseline = _baseline(args, rig)
    samples = SampleCollector(len(source), network_width=config.network_width, binning=config.binning)
    work = args.output.absolute().parent / f'.{args.output.name}.sfm'
    maker = SfmRun(config, predictor, noise, progress, work, odometry)
    try:
        reconstruction = maker(_offered(source, samples), len(source))
    except ShardDone:
        return 0
    warnings = [*source.warnings, *maker.warnings]
    if not any(frame.world_from_camera is not None for frame in reconstruction.frames):
        _say(warnings)
        shutil.rmtree(work, ignore_errors=True)  # another try with these pairs would end the same
        _explain_failure(reconstruction)
    scale = _scale(args, baseline, odometry, reconstruction, warnings)
    if scale is not None:
        reconstruction, depths = scaled(reconstruction, scale), scaled_depths(maker.depths, scale)
    else:
        depths = maker.depths
    _say(warnings)
    report = {
        'wall_s': time.perf_counter() - began,
        'stages_s': maker.seconds,
        **provenance(args, predictor, noise, {'sfm': config}, warnings),
        'sfm': maker.notes,
        'metres_per_unit': scale,
        'pose_sigma': _sigmas(maker.covariance, scale or 1.0),
    }
    write_result(args.output, reconstruction, report, overwrite=args.overwrite, depths=depths)
    if args.mesh:
        _write_mesh(args.output / 'mesh.ply', depths, maker.views, reconstruction)
    if not args.no_report:
        full = build_report(reconstruction, report)
        further = sfm_figures(reconstruction, maker.views, maker.pairs, 1.5 * config.max_error)
        write_report(args.output, reconstruction, full, samples=samples.pictures(predictor), further=further)
    shutil.rmtree(work, ignore_errors=True)
    _print_summary(args, reconstruction, report)
    return 0


def _say(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f'dark3r: warning: {warning}', file=sys.stderr)


def _check_rig(args: argparse.Namespace) -> None:
    """Refuse options of a rig that do not belong together, before any work."""
    if args.scale_baseline and not args.second_camera:
        raise ConfigError('--scale-baseline is the distance of two cameras: name the other one with --second-camera')
    if args.second_calibration and not args.second_camera:
        raise ConfigError('--second-calibration belongs to a second camera: name it with --second-camera')


def _metres(text: str, option: str) -> float:
    try:
        metres = float(text)
    except ValueError:
        raise ConfigError(f'{option}: {text!r} is no number of metres') from None
    if not (math.isfinite(metres) and metres > 0):
        raise ConfigError(f'{option} must be a positive number of metres, not {text}')
    return metres


def _check_mesh(config: SfmConfig) -> None:
    """Refuse at once what would fail after minutes."""
    if not config.dense:
        raise ConfigError('--mesh needs the depth maps that --dense false leaves out')
    import_open3d()


def _write_mesh(
    path: Path, depths: Mapping[int, DepthMap], views: Sequence[View], reconstruction: Reconstruction
) -> None:
    """Write the mesh, or say why there is none: everything else is there already."""
    try:
        mesh = fuse_mesh(depths, views, world_poses(reconstruction))
    except ReconstructionError as error:
        print(f'dark3r: warning: no mesh: {error}', file=sys.stderr)
        return
    write_mesh_ply(path, mesh.vertices, mesh.colors, mesh.triangles)


def _scale(
    args: argparse.Namespace,
    baseline: float | None,
    odometry: Trajectory | None,
    reconstruction: Reconstruction,
    warnings: list[str],
) -> float | None:
    """Metres per unit where the user says how to know them; doubts are added to the warnings."""
    if baseline is not None:
        return _scale_of_rig(baseline, reconstruction, warnings)
    if odometry is not None:
        return scale_from_odometry(reconstruction, odometry)
    if not args.scale_distance:
        return None
    first, second, text = args.scale_distance
    return scale_from_distance(reconstruction, first, second, _metres(text, '--scale-distance'))


def _baseline(args: argparse.Namespace, rig: RigSource) -> float | None:
    """Distance of the two cameras in metres, where the scale is to follow from it."""
    if not args.scale_baseline:
        return None
    if args.scale_baseline == _FROM_TF:
        return static_baseline(args.input, *rig.frame_ids)
    return _metres(args.scale_baseline, '--scale-baseline')


def _scale_of_rig(metres: float, reconstruction: Reconstruction, warnings: list[str]) -> float:
    found = scale_from_baseline(reconstruction, metres)
    if found.deviation > _MOST_SPREAD:
        warnings.append(
            f'the distance of the two cameras varies by {100 * found.deviation:.0f} % over {found.pairs} pairs of '
            'frames: the scale is doubtful'
        )
    return found.scale


def _sigmas(covariance: Mapping[int, NDArray[np.float64]], scale: float) -> dict[int, dict[str, Any]]:
    """How sure each pose is: standard deviations, and the covariance of the left twist of camera_from_world."""
    result = {}
    for number, unscaled in covariance.items():
        matrix = scaled_covariance(unscaled, scale)
        result[number] = {
            'position': math.sqrt(np.trace(matrix[:3, :3])),
            'rotation_deg': math.degrees(math.sqrt(np.trace(matrix[3:, 3:]))),
            'covariance': matrix.tolist(),
        }
    return result


def _offered(source: Iterable[Frame], samples: Any) -> Iterator[Frame]:
    """Frames on their way, shown to the collector of sample pictures."""
    for frame in source:
        samples.offer(frame)
        yield frame


def _explain_failure(reconstruction: Reconstruction) -> NoReturn:
    """Say why no frame got a pose."""
    frames = reconstruction.frames
    if not frames:
        raise DataError('the input holds no usable frame')
    if len(frames) == 1:
        raise ReconstructionError('one frame alone cannot be reconstructed: give two or more')
    reasons = [frame.reason for frame in frames]
    common = max(sorted(set(reasons)), key=reasons.count)
    raise ReconstructionError(f'none of {len(frames)} frames could be posed; most often: {common}')


def _print_summary(args: argparse.Namespace, reconstruction: Reconstruction, report: dict[str, Any]) -> None:
    frames = reconstruction.frames
    posed = sum(frame.world_from_camera is not None for frame in frames)
    figures = {
        'frames': len(frames),
        'posed': posed,
        'landmarks': len(reconstruction.observations.points),
        'pairs': report['sfm']['pairs']['tried'],
        'pairs_verified': report['sfm']['pairs']['verified'],
        'start': report['sfm']['start']['method'],
        'stages_s': {name: round(value, 2) for name, value in report['stages_s'].items()},
        'wall_s': round(report['wall_s'], 3),
        'output': str(args.output),
    }
    if args.json:
        print_json(figures)
        return
    stages = ', '.join(f'{name} {value:.1f}' for name, value in report['stages_s'].items())
    print(
        f'{posed} of {len(frames)} frames posed, {figures["landmarks"]} points from {figures["pairs_verified"]} of '
        f'{figures["pairs"]} pairs in {figures["wall_s"]:.0f} s ({stages}); written to {args.output}'
    )
