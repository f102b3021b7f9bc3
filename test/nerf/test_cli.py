# SPDX-License-Identifier: Apache-2.0
"""`dark3r nerf` from folders to folders, killed and gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from dark3r_ros.cli.main import main
from dark3r_ros.cli.recording import write_png
from dark3r_ros.errors import ReconstructionError
from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.nerf.fieldfile import info_of, read_field, read_tensors, write_field
from dark3r_ros.nerf.mesh import fused_mesh
from dark3r_ros.nerf.output import scaled
from dark3r_ros.nerf.paths import along, focus_point, looking_at, orbit
from dark3r_ros.nerf.render import Picture, ToneMap
from dark3r_ros.storage.cloud import read_ply
from dark3r_ros.storage.files import OutputError
from dark3r_ros.storage.sequence import SequenceImage, read_cameras_json, read_depth, write_cameras_json

SMALL = [
    '--profile=preview', '--width=32', '--levels=2', '--finest=16', '--hidden=16', '--rays=128', '--samples=8',
    '--proposal-samples=12', '--proposal-grid=12', '--holdout=6', '--noise=starvis', '--device=cpu',
]  # fmt: skip


@pytest.fixture(scope='session')
def sequence(room, tmp_path_factory):
    """Dark recording with true poses and depth; `clean` beside it is the same without noise, three times as bright."""
    root = tmp_path_factory.mktemp('recordings')
    extra = {'cfa': 'rggb', 'black_level': 240, 'white_level': 4095, 'depth_unit': 1000}
    for name in ('dark', 'clean'):
        images = []
        for index, frame in enumerate(room.frames):
            mosaic = frame.mosaic
            if name == 'clean':
                mosaic = np.empty(frame.mosaic.shape)
                red, green, blue = room.clean[index] * 3.0 + 240.0
                mosaic[::2, ::2], mosaic[1::2, 1::2] = red, blue
                mosaic[::2, 1::2] = mosaic[1::2, ::2] = green
                mosaic = np.rint(mosaic).astype(np.uint16)
            write_png(root / name / f'{index:03d}.png', mosaic)
            write_png(root / name / f'depth{index:03d}.png', np.rint(room.depth[index] * 1000).astype(np.uint16))
            images.append(
                SequenceImage(f'{index:03d}.png', frame.stamp_ns, room.posed.world_from_camera[index],
                              f'depth{index:03d}.png')
            )  # fmt: skip
        write_cameras_json(root / name / 'cameras.json', room.posed.camera, images, metric=True, extra=extra)
    return root / 'dark'


@pytest.fixture(scope='session')
def trained_field(sequence, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fields') / 'field'
    command = ['nerf', 'train', str(sequence), '-o', str(folder), *SMALL, '--steps', '60', '--preview-every', '30']
    assert main(command) == 0
    return folder


def one_line(capsys) -> str:
    error = capsys.readouterr().err.strip().splitlines()
    return error[-1]


def test_train_writes_field_previews_and_page(trained_field):
    facts = json.loads((trained_field / 'nerf.json').read_text())
    assert facts['state'] == 'done' and facts['step'] == 60 and facts['held_out']['views'] == 4
    previews = sorted((trained_field / 'previews').iterdir())
    assert [file.name for file in previews] == ['step_000030.png', 'step_000060.png']
    assert cv2.imread(str(previews[0])).shape == (24, 96, 3)
    page = (trained_field / 'report.html').read_text()
    assert page.count('data:image/png') == 2 and '<polyline' in page and 'noise alone' in page
    assert len(read_cameras_json(trained_field).images) == 24


def test_evaluate_with_and_without_truth(trained_field, sequence, capsys):
    assert main(['nerf', 'evaluate', str(trained_field), '--json']) == 0
    blind = json.loads(capsys.readouterr().out)
    against = ['--truth', str(sequence.parent / 'clean'), '--json', '--lpips']
    assert main(['nerf', 'evaluate', str(trained_field), *against]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told['views'] == 4 and told['psnr_linear_db'] > told['noisy_psnr_linear_db'] + 8.0
    assert told['noisy_psnr_linear_fitted_db'] > told['noisy_psnr_linear_db']
    assert 0.8 < blind['residual_over_noise'] < 1.5
    assert 'lpips_tone' in told or told['lpips'].startswith('absent: ')
    assert json.loads((trained_field / 'nerf.json').read_text())['evaluation'] == told


@pytest.mark.parametrize('views', ['path', 'orbit', 'held-out', 'all'])
def test_render_is_a_sequence_with_depth(trained_field, tmp_path, views):
    target = tmp_path / 'out'
    assert main(['nerf', 'render', str(trained_field), '-o', str(target), '--views', views, '--count', '3']) == 0
    info = read_cameras_json(target)
    assert len(info.images) == {'path': 3, 'orbit': 3, 'held-out': 4, 'all': 24}[views]
    depth = read_depth(info, info.images[0])
    assert depth.shape == (24, 32) and 0.5 < np.median(depth[depth > 0]) < 20.0
    linear = cv2.imread(str(target / 'linear' / '000000.png'), cv2.IMREAD_UNCHANGED)
    assert linear.dtype == np.uint16 and 0 < linear.mean() < 65535
    video = cv2.VideoCapture(str(target / 'video.mp4'))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == len(info.images)


def test_linear_pictures_hold_counts(trained_field, tmp_path):
    assert main(['nerf', 'render', str(trained_field), '-o', str(tmp_path / 'out'), '--views', 'held-out']) == 0
    scale = json.loads((tmp_path / 'out' / 'render.json').read_text())['linear_counts_per_step']
    model, info, _ = read_field(trained_field)
    from dark3r_ros.nerf.render import render_view

    index = int(np.flatnonzero(info.held_out)[0])
    expected = render_view(model, info.camera, info.world_from_camera[index]).radiance * info.unit
    stored = cv2.imread(str(tmp_path / 'out' / 'linear' / '000000.png'), cv2.IMREAD_UNCHANGED)[:, :, ::-1]
    assert np.abs(stored.transpose(2, 0, 1) * scale - expected).max() < scale


def test_render_given_poses_at_another_size(trained_field, sequence, tmp_path):
    target = tmp_path / 'out'
    command = ['nerf', 'render', str(trained_field), '-o', str(target), '--poses', str(sequence), '--scale', '0.5']
    assert main([*command, '--fps', '0']) == 0
    assert read_cameras_json(target).camera.width == 16 and not (target / 'video.mp4').exists()
    assert len(read_cameras_json(target).images) == 24


def test_export_cloud_and_camera_path(full, views, tiny, room, tmp_path):
    write_field(tmp_path, full[0].averaged_state(), info_of(views, tiny, full[0].box, views.world_from_camera), {})
    command = ['nerf', 'export', str(tmp_path), '-o', str(tmp_path / 'out'), '--views', '12', '--cells', '64', '--mesh']
    assert main(command) == 0
    vertices, triangles = read_mesh(tmp_path / 'out' / 'mesh.ply')
    assert len(triangles) > 1000 and triangles.max() < len(vertices)
    assert (
        np.median(surface_error(room, views.camera, views.world_from_camera, vertices)) < 0.05
    )  # measured: 0.024, that of the field's depth
    cloud = read_ply(tmp_path / 'out' / 'cloud.ply')
    low, high = np.percentile(cloud.points, [2, 98], axis=0)
    # The room of the simulation is 6.5 m x 6.5 m x 2.9 m.
    assert len(cloud) > 300 and ((high - low) < (7.5, 7.5, 3.6)).all() and ((high - low) > (3, 3, 1.5)).all()
    path = json.loads((tmp_path / 'out' / 'camera_path.json').read_text())
    first = np.array(path['camera_path'][0]['camera_to_world']).reshape(4, 4)
    # OpenGL axes: the camera looks along -z.
    assert np.dot(-first[:3, 2], room.posed.world_from_camera[0][:3, 2]) > 0.95
    assert len(path['camera_path']) == 120


def read_mesh(path):
    mesh = import_open3d().io.read_triangle_mesh(str(path))
    return np.asarray(mesh.vertices), np.asarray(mesh.triangles)


def surface_error(room, camera, poses, vertices):
    """Relative distance in depth of vertices (N, 3) from the true surface, over all views that they project into."""
    errors = []
    for pose in poses:
        local = (vertices - pose[:3, 3]) @ pose[:3, :3]
        ahead = local[:, 2] > 0.1
        columns, rows = np.rint(camera.project(np.where(ahead[:, None], local, 1.0))).astype(int).T
        seen = ahead & (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
        relative = local[seen, 2] / room.true_depth(camera, pose)[rows[seen], columns[seen]] - 1.0
        errors.append(np.abs(relative[relative < 0.3]))  # what lies behind another surface is seen from elsewhere
    return np.concatenate(errors)


def test_a_mesh_of_exact_depths_is_the_true_surface(full, views, tiny, room, monkeypatch):
    trainer, model = full
    info = info_of(views, tiny, trainer.box, views.world_from_camera)
    info = dataclasses.replace(info, camera=scaled(info.camera, 5.0))

    def exact(_, camera, pose, lens):
        light = np.linspace(0.0, 1.0, 3 * lens.width * lens.height, dtype=np.float32)
        shape = lens.height, lens.width
        return Picture(light.reshape(3, *shape), room.true_depth(camera, pose), np.ones(shape, np.float32))

    monkeypatch.setattr('dark3r_ros.nerf.mesh.render_view', exact)
    poses = list(views.world_from_camera[::4])
    mesh = fused_mesh(model, info, ToneMap((1.0, 1.0, 1.0)), poses, cells=200)
    error = surface_error(room, info.camera, poses, mesh.vertices.astype(np.float64))
    assert len(mesh.triangles) > 5000 and np.median(error) < 0.01 and np.percentile(error, 80) < 0.03
    assert mesh.colors.std() > 10
    with pytest.raises(ReconstructionError, match='no depth is sure enough'):
        fused_mesh(model, info, ToneMap((1.0, 1.0, 1.0)), [], cells=64)


@pytest.mark.slow
def test_killed_and_gone_on_with_is_the_same_as_never_killed(sequence, trained_field, tmp_path):
    folder = tmp_path / 'field'
    command = [sys.executable, '-m', 'dark3r_ros.cli.main', 'nerf', 'train', str(sequence), '-o', str(folder), *SMALL]
    command += ['--steps', '60', '--preview-every', '30', '--checkpoint-every', '7', '--progress-json']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not (folder / 'checkpoint.safetensors').exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / 'checkpoint.safetensors').exists()
    step = read_tensors(folder / 'checkpoint.safetensors')[1]['step']
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f'going on from step {step} of 60' in again.stderr
    whole, _ = read_tensors(trained_field / 'field.safetensors')
    parts, _ = read_tensors(folder / 'field.safetensors')
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.slow
def test_interrupting_keeps_the_step(sequence, tmp_path):
    folder = tmp_path / 'field'
    command = [sys.executable, '-m', 'dark3r_ros.cli.main', 'nerf', 'train', str(sequence), '-o', str(folder), *SMALL]
    command += ['--steps', '100000', '--preview-every', '0', '--progress-json']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if '"step": 40' in line:
            break
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    step = int(re.search(r'stopped at step (\d+)', error)[1])
    assert step >= 40 and read_tensors(folder / 'checkpoint.safetensors')[1]['step'] == step
    assert json.loads((folder / 'nerf.json').read_text())['state'] == 'stopped'
    assert read_field(folder)[2]['step'] == step


def test_a_full_disk_loses_no_training(sequence, tmp_path, monkeypatch, capsys):
    from dark3r_ros.nerf import session

    calls = []
    plain = session.save_checkpoint

    def failing(trainer, folder):
        calls.append(trainer.step_number)
        if len(calls) < 3:
            raise OutputError(f'cannot write {folder}: the disk is full')
        plain(trainer, folder)

    monkeypatch.setattr(session, 'save_checkpoint', failing)
    command = ['nerf', 'train', str(sequence), '-o', str(tmp_path / 'field'), *SMALL, '--steps', '15']
    assert main([*command, '--checkpoint-every', '5', '--preview-every', '0']) == 0
    assert capsys.readouterr().err.count('the disk is full; training goes on') == 1
    assert (tmp_path / 'field' / 'field.safetensors').exists()


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (['--hidden', '32'], 'hidden'),
        (['--profile', 'fast'], 'invalid choice'),
        (['--finest', '4', '--coarsest', '8'], 'below coarsest'),
        (['--device', 'cuda'], 'CUDA is not available'),
        (['--noise', 'none'], 'noise preset'),
    ],
)
def test_mistakes_are_one_line(trained_field, sequence, capsys, change, text):
    if change[1] == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert main(['nerf', 'train', str(sequence), '-o', str(trained_field), *SMALL, '--steps', '60', *change]) == 2
    assert text in one_line(capsys)


def test_folders_that_are_no_fields(sequence, tmp_path, capsys):
    assert main(['nerf', 'render', str(sequence), '-o', str(tmp_path / 'x')]) == 2
    assert 'make a field with' in one_line(capsys)
    assert main(['nerf', 'train', str(sequence), '-o', str(sequence), *SMALL]) == 2
    assert 'exists already' in one_line(capsys)
    assert main(['nerf', 'train', str(sequence), '-o', str(sequence), *SMALL, '--overwrite']) == 2
    assert 'so it is not replaced' in one_line(capsys)
    assert (sequence / 'cameras.json').is_file()


def test_paths_stay_with_the_recorded_poses(room):
    poses = room.posed.world_from_camera
    path = along(poses, 50, smooth=0.0)
    assert np.allclose(path[[0, -1]], poses[[0, -1]], atol=1e-6)
    assert np.allclose(path[:, :3, :3] @ path[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-9)
    circle = orbit(poses, 12, 3.0)
    spread = np.linalg.norm(poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0), axis=1).max()
    assert np.linalg.norm(circle[:, :3, 3] - poses[:, :3, 3].mean(axis=0), axis=1).max() < 2 * spread
    assert np.allclose(np.linalg.det(circle[:, :3, :3]), 1.0)


def test_focus_is_where_the_axes_meet():
    goal = np.array([1.0, 2.0, 5.0])
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, :3, 3] = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    for pose in poses:
        pose[:3, :3] = looking_at(pose[:3, 3], goal, np.array([0.0, 1.0, 0.0]))
    assert np.allclose(focus_point(poses, 1.0), goal)
    poses[:, :3, :3] = np.eye(3)
    assert np.allclose(focus_point(poses, 4.0), poses[:, :3, 3].mean(axis=0) + (0, 0, 4.0))
