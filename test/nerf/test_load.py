# SPDX-License-Identifier: Apache-2.0
"""Reading poses, depths and raws from folders, and what is said when they do not fit."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from dark3r_ros.cli.recording import write_png
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry import se3
from dark3r_ros.nerf.evaluate import against_noise, against_truth
from dark3r_ros.nerf.fieldfile import info_of
from dark3r_ros.nerf.load import collect_views, load_views, read_poses, sparse_depth
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.nerf.views import choose_held_out, clipped_at_black
from dark3r_ros.storage.result import empty_cloud, no_observations, write_result
from dark3r_ros.storage.sequence import SequenceImage, write_cameras_json
from dark3r_ros.types import FrameRecord, Observations, Reconstruction

from .conftest import MemorySource


@pytest.fixture
def recording(room, tmp_path):
    """Folder of raws without poses."""
    folder = tmp_path / 'raws'
    images = []
    for index, frame in enumerate(room.frames):
        write_png(folder / f'{index:03d}.png', frame.mosaic)
        images.append(SequenceImage(f'{index:03d}.png', frame.stamp_ns, None))
    extra = {'cfa': 'rggb', 'black_level': 240, 'white_level': 4095}
    write_cameras_json(folder / 'cameras.json', room.posed.camera, images, extra=extra)
    return folder


def write_reconstruction(folder, room, *, posed=None, observations=None, recording='raws'):
    """Result folder with the true poses of the frames in `posed` (all by default)."""
    keep = range(len(room.frames)) if posed is None else posed
    records = tuple(
        FrameRecord(frame.stamp_ns, room.posed.world_from_camera[index] if index in keep else None, True)
        for index, frame in enumerate(room.frames)
    )
    made = Reconstruction(room.posed.camera, records, empty_cloud(), observations or no_observations(), True)
    write_result(folder, made, {'input': recording})
    return folder


def test_a_result_finds_its_recording_beside_it(room, recording, tmp_path, tiny):
    folder = write_reconstruction(tmp_path / 'map', room)
    views = load_views(folder, None, tiny, noise=room.noise)
    expected = collect_views(room.posed, room.frames, tiny, noise=room.noise)
    assert np.array_equal(views.values, expected.values) and views.metric
    assert np.allclose(views.world_from_camera, expected.world_from_camera)
    assert views.depth is None and any('no depth' in text for text in views.warnings)
    gone = write_reconstruction(tmp_path / 'moved' / 'map', room)
    with pytest.raises(ConfigError, match='--input'):
        load_views(gone, None, tiny)


def test_dense_depth_comes_by_stamp_and_its_bad_values_count_as_unknown(room, recording, tmp_path, tiny):
    folder = write_reconstruction(tmp_path / 'map', room)
    depth = room.depth.copy()
    depth[2, 0, 0], depth[2, 0, 1], depth[2, 0, 2] = np.nan, -1.0, np.inf
    (folder / 'depth').mkdir()
    for index in (1, 2):
        stamp = room.frames[index].stamp_ns
        np.savez(folder / 'depth' / f'{stamp}.npz', depth=depth[index], confidence=np.full((24, 32), 0.7, np.float32))
    views = load_views(folder, recording, tiny, noise=room.noise)
    assert np.array_equal(views.depth[1], room.depth[1]) and np.allclose(views.confidence[1], 0.7)
    assert np.array_equal(views.depth[2, 0, :3], np.zeros(3)) and not views.confidence[2, 0, :3].any()
    assert not views.confidence[0].any()
    (folder / 'depth' / f'{room.frames[3].stamp_ns}.npz').write_bytes(b'PK nonsense')
    with pytest.raises(DataError, match='cannot read the depth'):
        load_views(folder, recording, tiny)


def test_depth_of_another_size_is_resampled(room, recording, tmp_path, tiny):
    folder = write_reconstruction(tmp_path / 'map', room)
    (folder / 'depth').mkdir()
    half = np.ascontiguousarray(room.depth[1, ::2, ::2])
    np.savez(folder / 'depth' / f'{room.frames[1].stamp_ns}.npz', depth=half, confidence=np.ones_like(half))
    views = load_views(folder, recording, tiny)
    assert np.array_equal(views.depth[1, ::2, ::2], half) and np.array_equal(views.depth[1, 1::2, 1::2], half)


def test_sparse_points_serve_where_there_is_no_dense_depth(room, recording, tmp_path, tiny):
    camera = room.posed.camera
    pixels = np.array([[10.0, 12.0], [41.0, 30.0]])
    rows, columns = (pixels[:, 1] // 2).astype(int), (pixels[:, 0] // 2).astype(int)
    z = room.depth[5, rows, columns].astype(np.float64)
    local = np.column_stack([camera.unproject(pixels), np.ones(2)]) * z[:, None]
    world = se3.transform_points(room.posed.world_from_camera[5], local)
    seen = Observations(world, np.zeros((2, 3), np.uint8), np.array([0, 1]), np.array([5, 5]), pixels)
    folder = write_reconstruction(tmp_path / 'map', room, observations=seen)
    views = load_views(folder, recording, tiny)
    assert np.count_nonzero(views.depth) == 2 == np.count_nonzero(views.confidence)
    assert np.allclose(views.depth[5, rows, columns], z, rtol=1e-4)


def test_points_behind_or_outside_give_no_depth(room):
    camera = room.posed.camera.binned(2)
    pixels = np.array([[10.0, 12.0], [900.0, 2.0]])
    points = np.array([[0.0, 0.0, -2.0], [0.0, 0.0, 2.0]])
    depth, confidence = sparse_depth(pixels, points, np.eye(4), room.posed.camera, camera)
    assert not depth.any() and not confidence.any()


def test_unposed_and_missing_frames_are_left_out(room, recording, tmp_path, tiny):
    folder = write_reconstruction(tmp_path / 'map', room, posed=[0, 2, 3, 4, 5, 6, 7, 9])
    source = MemorySource(frame for index, frame in enumerate(room.frames) if index != 4)
    views = collect_views(read_poses(folder), source, tiny)
    assert len(views) == 7
    assert any('1 posed frames have no raw' in text for text in views.warnings)


def test_frames_of_another_size_are_left_out(room, tiny):
    odd = dataclasses.replace(room.frames[3], mosaic=room.frames[3].mosaic[:, :-2])
    source = MemorySource([*room.frames[:3], odd, *room.frames[4:]])
    views = collect_views(room.posed, source, tiny, noise=room.noise)
    assert len(views) == 23 and any('1 frames have another size' in text for text in views.warnings)


def test_clipping_cuts_single_pixels_of_the_mosaic(room, tiny):
    config = dataclasses.replace(tiny, clip_black=True)
    plain = collect_views(room.posed, room.frames, tiny, noise=room.noise)
    cut = collect_views(room.posed, room.frames, config, noise=room.noise)
    above = np.stack([frame.mosaic.astype(np.float64) - 240.0 for frame in room.frames])
    assert (above < 0).mean() > 0.1 and room.frames[0].cfa == 'rggb'
    pixels = np.maximum(above, 0.0)
    red, blue = pixels[:, ::2, ::2], pixels[:, 1::2, 1::2]
    green = (pixels[:, ::2, 1::2] + pixels[:, 1::2, ::2]) / 2.0
    # Cut before the two greens of a value are put together: not the same as cutting the value.
    assert np.allclose(cut.values * cut.unit, np.stack([red, green, blue], axis=1), atol=1e-3)
    assert (cut.values[:, 1] * cut.unit - np.maximum(plain.values[:, 1] * plain.unit, 0.0)).mean() > 0.5
    sites = collect_views(room.posed, room.frames, dataclasses.replace(config, mosaic=True), noise=room.noise)
    assert np.allclose(sites.values[:, 0] * sites.unit, pixels, atol=1e-3)


def test_clipping_subtracts_whole_counts_of_each_colour(room):
    frame = dataclasses.replace(
        room.frames[0], black_level=(239.4, 250.0, 260.6), mosaic=np.full((4, 6), 200, np.uint16)
    )
    lowest = np.tile([[239, 250], [250, 261]], (2, 3))
    assert np.array_equal(clipped_at_black(frame).mosaic, lowest)
    mono = dataclasses.replace(frame, cfa='mono')
    assert np.array_equal(clipped_at_black(mono).mosaic, np.full((4, 6), 239))
    bright = dataclasses.replace(frame, mosaic=np.full((4, 6), 900, np.uint16))
    assert np.array_equal(clipped_at_black(bright).mosaic, bright.mosaic)


@pytest.mark.parametrize('posed', [[], [4]])
def test_too_few_poses(room, recording, tmp_path, tiny, posed):
    folder = write_reconstruction(tmp_path / 'map', room, posed=posed)
    with pytest.raises(DataError, match=f'{len(posed)} posed frames'):
        load_views(folder, recording, tiny)


def test_a_recording_of_something_else_is_noticed(room, tiny):
    others = MemorySource(dataclasses.replace(frame, stamp_ns=frame.stamp_ns + 10**9 * 3600) for frame in room.frames)
    with pytest.raises(DataError, match='is it the recording'):
        collect_views(room.posed, others, tiny)
    with pytest.raises(DataError, match='neither'):
        read_poses('/nonexistent')


def test_black_frames_stay_finite(room, tiny):
    rng = np.random.default_rng(0)
    frames = MemorySource(
        dataclasses.replace(frame, mosaic=rng.normal(240, 8, frame.mosaic.shape).astype(np.uint16))
        for frame in room.frames
    )
    config = dataclasses.replace(tiny, steps=30)
    views = collect_views(room.posed, frames, config)
    assert np.isfinite(views.values).all() and views.unit > 0
    trainer = Trainer(views, config)
    trainer.run()
    assert trainer.skipped == 0 and math.isfinite(trainer.history[-1][1])


def test_brightness_follows_gain_and_time(room, tiny):
    frames = MemorySource(
        dataclasses.replace(frame, gain=2.0 if index % 2 else 1.0, exposure_s=0.1)
        for index, frame in enumerate(room.frames)
    )
    views = collect_views(room.posed, frames, tiny)
    assert views.exposure[1] / views.exposure[0] == pytest.approx(2.0)
    ignored = collect_views(room.posed, frames, dataclasses.replace(tiny, exposure='ignore'))
    assert (ignored.exposure == 1.0).all()


def test_mono_mosaics_work_at_full_size(room, tiny):
    frames = MemorySource(dataclasses.replace(frame, cfa='mono') for frame in room.frames)
    views = collect_views(room.posed, frames, dataclasses.replace(tiny, mosaic=True), noise=room.noise)
    assert views.values.shape == (24, 3, 48, 64) and views.colour is None


def test_measured_noise_is_near_the_true(room, tiny):
    views = collect_views(room.posed, room.frames, tiny)
    true = (views.values - room.clean / views.unit).var(axis=(0, 2, 3))
    # 64x48 sites are few for a measurement.
    assert np.allclose(views.read_variance, true, rtol=0.35)


def test_held_out_views_leave_enough_to_train_on():
    assert choose_held_out(24, 8).nonzero()[0].tolist() == [4, 12, 20]
    assert not choose_held_out(6, 2).any() and not choose_held_out(30, 0).any()


def test_noise_taken_off_gives_the_true_psnr(room, tiny):
    views = collect_views(room.posed, room.frames, tiny, noise=room.noise)
    trainer = Trainer(views, dataclasses.replace(tiny, steps=250))
    trainer.run()
    model = RadianceModel(trainer.config, trainer.box, len(views))
    model.load_state_dict(trainer.averaged_state())
    info = info_of(views, tiny, trainer.box, views.world_from_camera)
    blind = against_noise(model, info, views)
    clean = {int(index): room.clean[index] / views.unit for index in np.flatnonzero(views.held_out)}
    told = against_truth(model, info, clean, {index: views.values[index] for index in clean})
    assert blind['psnr_noisy_db'] < blind['psnr_corrected_db']
    # The peaks are those of render and truth; what is left is the chance of 14,000 noisy values.
    assert abs(blind['psnr_corrected_db'] - told['psnr_linear_db']) < 3.0
    assert told['noisy_psnr_linear_db'] < told['psnr_linear_db'] - 10.0
