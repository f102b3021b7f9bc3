# SPDX-License-Identifier: Apache-2.0
"""`dark3r nerf train|render|evaluate|export|compare`: a clean radiance field from dark raw views."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import add_config_arguments, config_from_arguments, print_json, progress
from dark3r_ros.errors import ConfigError, ReconstructionError
from dark3r_ros.evaluation.nerf_comparison import compare, variants_for
from dark3r_ros.evaluation.nerf_scenes import ComparisonConfig
from dark3r_ros.nerf.config import PROFILES, NerfConfig, profile
from dark3r_ros.raw.noise import NoiseModel, resolve_noise
from dark3r_ros.types import Frame

NAME = 'nerf'
HELP = 'make a clean radiance field from dark raw views, and render it'
EXAMPLE = 'dark3r nerf train out/tunnel --input tunnel_bag -o out/field --profile preview'

VIEWS = ('path', 'orbit', 'held-out', 'all')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    actions = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
    _add_train(actions.add_parser('train', help='make a field; the same command again goes on after a stop'))
    _add_render(actions.add_parser('render', help='render views and a video of a field'))
    _add_evaluate(actions.add_parser('evaluate', help='score the held-out views of a field'))
    _add_export(actions.add_parser('export', help='write a point cloud, a mesh and a camera path of a field'))
    _add_compare(actions.add_parser('compare', help='measure what each part is worth in a dark scene'))


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('result', type=Path, help='folder of `dark3r sfm` or `map`, or any with a posed cameras.json')
    parser.add_argument('-o', '--output', type=Path, required=True, help='field folder')
    parser.add_argument('--input', default='', help='bag or folder with the raws (default: the one RESULT names)')
    parser.add_argument('--image-topic', default='', help='image topic of a bag (default: the only one there is)')
    parser.add_argument('--profile', choices=tuple(PROFILES), default='standard', help='default: standard')
    parser.add_argument('--noise', default='', metavar='NAME|FILE', help='noise preset or YAML of calibrate-noise')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default)')
    parser.add_argument('--overwrite', action='store_true', help='start anew instead of going on')
    parser.add_argument('--no-depth', action='store_true', help='leave the depths of RESULT aside')
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')
    parser.add_argument('--progress-json', action='store_true', help='print progress as one JSON object a line')
    add_config_arguments(parser, NerfConfig, 'settings that differ from the profile')


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('field', type=Path, help='field folder')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder to create')
    parser.add_argument('--views', choices=VIEWS, default='path', help='which views to render (default: path)')
    parser.add_argument('--poses', type=Path, default=None, help='TUM file or cameras.json with poses to render')
    parser.add_argument('--count', type=int, default=60, help='views on a path or orbit (default: 60)')
    parser.add_argument('--scale', type=float, default=1.0, help='size relative to the views of the field (default: 1)')
    parser.add_argument('--fps', type=float, default=20.0, help='of the video; 0 leaves it out (default: 20)')
    parser.add_argument('--white-balance', choices=('auto', 'none'), default='auto', help='default: auto')
    parser.add_argument('--exposure', type=float, default=0.0, metavar='STOPS', help='brighten by so many stops')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default)')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier rendering')


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('field', type=Path, help='field folder')
    parser.add_argument('--truth', default='', help='clean recording with the same times; without it: noisy frames')
    parser.add_argument('--input', default='', help='bag or folder with the dark raws (default: the one it came from)')
    parser.add_argument('--noise', default='', metavar='NAME|FILE', help='noise preset or YAML of calibrate-noise')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default)')
    parser.add_argument('--lpips', action='store_true', help='with --truth: LPIPS too, by the package lpips')
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('field', type=Path, help='field folder')
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder for the files')
    parser.add_argument('--views', type=int, default=60, help='views whose depths are fused (default: 60)')
    parser.add_argument('--cells', type=int, default=256, help='cells along the longest side (default: 256)')
    parser.add_argument('--count', type=int, default=120, help='poses of the camera path (default: 120)')
    parser.add_argument('--mesh', action='store_true', help='make mesh.ply of the depths as well (needs Open3D)')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto (default)')


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('-o', '--output', type=Path, required=True, help='folder for comparison.json and pictures')
    parser.add_argument('--profile', choices=tuple(PROFILES), default='preview', help='default: preview')
    parser.add_argument('--variants', default='', metavar='A,B', help='only these variants (default: all)')
    parser.add_argument('--steps', type=int, default=None, help='training steps (default: those of the profile)')
    parser.add_argument('--lpips', action='store_true', help='LPIPS too, by the package lpips where it is installed')
    parser.add_argument('--lamp', action='store_true', help='fields learn a light that travels with the camera')
    add_config_arguments(parser, ComparisonConfig, 'scene')


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    actions = {'train': _train, 'render': _render, 'evaluate': _evaluate, 'export': _export, 'compare': _compare}
    return actions[args.action](args)


def _noise(text: str) -> NoiseModel | None:
    return resolve_noise(text) if text else None


def _config(args: argparse.Namespace) -> NerfConfig:
    names = [item.name for item in dataclasses.fields(NerfConfig)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return profile(args.profile, given)


def _train(args: argparse.Namespace) -> int:
    from dark3r_ros.nerf.load import load_views, read_poses
    from dark3r_ros.nerf.session import Session, choose_device, prepare_folder

    config, device = _config(args), choose_device(args.device)
    posed = read_poses(args.result)
    place: Path | None = Path(args.input) if args.input else posed.recording
    if place is None:
        raise ConfigError(f'{args.result} does not say where its recording is: name the bag or folder with --input')
    noise = _noise(args.noise)
    prepare_folder(args.output, overwrite=args.overwrite)
    talk = _Talk(args.progress_json)

    def reading(frames: Iterable[Frame], count: int) -> Iterable[Frame]:
        talk.stage('reading frames')
        return progress(frames, count, 'reading frames')

    views = load_views(args.result, place, config, noise=noise, image_topic=args.image_topic, progress=reading)
    if args.no_depth:
        views = views.without_depth()
    for warning in views.warnings:
        print(f'dark3r: warning: {warning}', file=sys.stderr)
    origin = {
        'result': str(Path(args.result).absolute()),
        'input': str(place.absolute()),
        'image_topic': args.image_topic,
        'profile': args.profile,
        'noise': args.noise,
    }
    session = Session(args.output, views, config, device, origin, talk.progress, talk.preview, talk.warn)
    if session.resumed:
        talk.warn(f'going on from step {session.trainer.step_number} of {config.steps}')
    facts = session.run()
    talk.close()
    figures = {key: facts[key] for key in ('step', 'photometric', 'rays_per_second', 'wall_s', 'skipped_steps')}
    figures |= {'held_out': facts['held_out'], 'output': str(args.output)}
    if args.json:
        print_json(figures)
    else:
        held = facts['held_out'].get('psnr_corrected_db')
        quality = f', held-out PSNR (noise taken off) {held:.1f} dB' if held is not None else ''
        print(f'{facts["step"]} steps in {facts["wall_s"]:.0f} s{quality}; written to {args.output}')
    return 0


class _Talk:
    """Progress for a terminal, or as JSON lines for a program."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._bar: Any = None

    def _line(self, **facts: Any) -> None:
        if self._json:
            print(json.dumps(facts), flush=True)

    def stage(self, name: str) -> None:
        """Name what is being done."""
        self._line(stage=name)

    def progress(self, now: Any) -> None:
        """Show how far the training is."""
        self._line(
            stage='training', step=now.step, steps=now.steps, loss=now.loss, photometric=now.photometric,
            seconds_left=now.seconds_left, rays_per_second=now.rays_per_second,
        )  # fmt: skip
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=now.steps, desc='training', file=sys.stderr, dynamic_ncols=True)
        self._bar.n = now.step
        self._bar.set_postfix(residual=f'{now.photometric:.3f}', rays=f'{now.rays_per_second:.0f}/s')

    def preview(self, file: Path) -> None:
        """Tell where the newest preview is."""
        self._line(preview=str(file))

    def warn(self, text: str) -> None:
        """Tell something that is no error."""
        print(f'dark3r: {text}', file=sys.stderr)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _render(args: argparse.Namespace) -> int:
    import numpy as np

    from dark3r_ros.nerf import output, paths
    from dark3r_ros.nerf.fieldfile import read_field
    from dark3r_ros.nerf.rays import lens_of
    from dark3r_ros.nerf.render import render_view
    from dark3r_ros.nerf.session import choose_device
    from dark3r_ros.storage.files import replacing_folder

    if not 0.01 <= args.scale <= 16.0:
        raise ConfigError(f'--scale {args.scale} is outside 0.01..16')
    if args.count < 1:
        raise ConfigError(f'--count {args.count} must be positive')
    device = choose_device(args.device)
    model, info, _ = read_field(args.field, device)
    stamps: list[int] | None = None
    if args.poses is not None:
        poses = paths.from_file(args.poses)
    elif args.views == 'path':
        poses = paths.along(info.world_from_camera, args.count)
    elif args.views == 'orbit':
        poses = paths.orbit(info.world_from_camera, args.count, info.box.scale)
    else:
        chosen = np.flatnonzero(info.held_out) if args.views == 'held-out' else np.arange(len(info.stamps_ns))
        if not len(chosen):
            raise ConfigError(f'{args.field} was made without held-out views: render --views all')
        poses, stamps = info.world_from_camera[chosen], [int(info.stamps_ns[index]) for index in chosen]
    camera = output.scaled(info.camera, args.scale)
    tone = output.common_tone_map(model, info, white_balance=args.white_balance, exposure=args.exposure)
    lens = lens_of(camera).to(device)
    with replacing_folder(args.output, overwrite=args.overwrite, marker='render.json') as folder:
        writer = output.ViewWriter(folder, camera, info, tone, fps=args.fps)
        for number, pose in enumerate(progress(poses, len(poses), 'rendering')):
            writer.add(pose, render_view(model, camera, pose, lens), None if stamps is None else stamps[number])
        writer.close()
    print(f'{len(poses)} views of {camera.width}x{camera.height} written to {args.output}')
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    import numpy as np

    from dark3r_ros.nerf.evaluate import against_noise, against_truth, clean_values
    from dark3r_ros.nerf.fieldfile import read_field
    from dark3r_ros.nerf.load import load_views
    from dark3r_ros.nerf.perceptual import load_lpips
    from dark3r_ros.nerf.report import write_report
    from dark3r_ros.nerf.resume import read_history
    from dark3r_ros.nerf.session import FACTS_FILE, choose_device, read_facts
    from dark3r_ros.storage.files import write_text
    from dark3r_ros.storage.result import jsonable
    from dark3r_ros.storage.source import open_source

    model, info, _ = read_field(args.field, choose_device(args.device))
    facts = read_facts(args.field)
    held = [int(index) for index in np.flatnonzero(info.held_out)]
    if not held:
        raise ConfigError(f'{args.field} was made without held-out views: train with --holdout 8')
    place = args.input or facts.get('input') or None
    noise = _noise(args.noise or str(facts.get('noise') or ''))
    views = load_views(
        facts['result'], place, info.config, noise=noise, image_topic=str(facts.get('image_topic') or '')
    )
    if args.truth:
        clean = clean_values(open_source(args.truth, camera=None), info, held)
        noisy = {index: views.values[index] for index in clean}
        lpips, absent = load_lpips() if args.lpips else (None, '')
        figures = against_truth(model, info, clean, noisy, lpips)
        if absent:
            figures['lpips'] = absent
        facts['evaluation'] = figures
    else:
        figures = facts['held_out'] = against_noise(model, info, views)
    write_text(Path(args.field) / FACTS_FILE, json.dumps(jsonable(facts), indent=1) + '\n')
    write_report(Path(args.field), facts, read_history(Path(args.field)))
    if args.json:
        print_json(figures)
    else:
        for key, value in figures.items():
            print(f'{key:28} {value:.3f}' if isinstance(value, float) else f'{key:28} {value}')
    return 0


def _export(args: argparse.Namespace) -> int:
    from dark3r_ros.geometry.open3d import import_open3d
    from dark3r_ros.nerf import output, paths
    from dark3r_ros.nerf.fieldfile import read_field
    from dark3r_ros.nerf.mesh import fused_mesh
    from dark3r_ros.nerf.session import choose_device
    from dark3r_ros.storage.cloud import write_ply
    from dark3r_ros.storage.files import write_text
    from dark3r_ros.storage.mesh import write_mesh_ply
    from dark3r_ros.storage.selection import spread

    if min(args.views, args.cells, args.count) < 1:
        raise ConfigError('--views, --cells and --count must be positive')
    if args.mesh:
        import_open3d()  # its absence must not be noticed at the end only
    model, info, _ = read_field(args.field, choose_device(args.device))
    tone = output.common_tone_map(model, info)
    chosen = spread(len(info.world_from_camera), args.views)
    poses = [info.world_from_camera[index] for index in chosen]
    cloud = output.fused_cloud(model, info, tone, progress(poses, len(poses), 'cloud'), args.cells)
    if not len(cloud):
        print('dark3r: warning: no surface was seen by two views: train longer, or with depth', file=sys.stderr)
    write_ply(args.output / 'cloud.ply', cloud, 'points of a radiance field; confidence is the number of pixels')
    path = output.camera_path(info, paths.along(info.world_from_camera, args.count), fps=24.0)
    write_text(args.output / 'camera_path.json', json.dumps(path) + '\n')
    written = f'{len(cloud)} points and {args.count} poses'
    if args.mesh:
        try:
            mesh = fused_mesh(model, info, tone, progress(poses, len(poses), 'mesh'), args.cells)
        except ReconstructionError as error:
            print(f'dark3r: warning: no mesh: {error}', file=sys.stderr)
        else:
            write_mesh_ply(args.output / 'mesh.ply', mesh.vertices, mesh.colors, mesh.triangles)
            written += f', {len(mesh.triangles)} triangles'
    print(f'{written} written to {args.output}')
    return 0


def _compare(args: argparse.Namespace) -> int:
    from dark3r_ros.config import to_mapping
    from dark3r_ros.nerf.perceptual import load_lpips
    from dark3r_ros.storage.files import check_writable, write_text
    from dark3r_ros.storage.result import jsonable

    scene = config_from_arguments(args, ComparisonConfig)
    given = {'steps': args.steps} if args.steps else {}
    config = profile(args.profile, {'width': scene.width, 'lamp': args.lamp, **given})
    names = [name.strip() for name in args.variants.split(',') if name.strip()]
    known = variants_for(scene)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f'unknown variant {unknown[0]!r} with --poses {scene.poses}; known: {", ".join(known)}')
    check_writable(args.output / 'comparison.json')
    results: dict[str, Any] = {}
    lpips, absent = load_lpips() if args.lpips else (None, '')
    if absent:
        print(f'{"LPIPS":32} {absent}')

    def told(name: str, row: dict[str, Any]) -> None:
        print(
            f'{name:32} {row["psnr_linear_db"]:6.2f} dB  fitted {row["psnr_linear_fitted_db"]:6.2f} dB  '
            f'tone {row["psnr_tone_db"]:6.2f} dB  SSIM {row["ssim_tone"]:.3f}'
            + (f'  LPIPS {row["lpips_tone"]:.3f}' if 'lpips_tone' in row else ''),
            flush=True,
        )
        # Written after each variant: a stop loses the one under way only.
        results[name] = row
        facts: dict[str, Any] = {'scene': to_mapping(scene), 'config': to_mapping(config), 'results': results}
        facts |= {'lpips': absent} if absent else {}
        write_text(args.output / 'comparison.json', json.dumps(jsonable(facts), indent=1) + '\n')

    compare(scene, config, variants=names or known, folder=args.output, lpips=lpips, told=told, progress=progress)
    return 0
