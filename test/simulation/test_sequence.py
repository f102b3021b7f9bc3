# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from simulation_helpers import sequence_folder, shared_sequence

from dark3r_ros.errors import CalibrationError, ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.noise import preset
from dark3r_ros.raw.planes import to_planes
from dark3r_ros.simulation.darken import darken_sequence, scaled_camera
from dark3r_ros.simulation.frames import SimulatedFrame, power_ratio_db
from dark3r_ros.simulation.odometry import WheelOdometry
from dark3r_ros.simulation.paths import tunnel_drive
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.simulation.tunnel import tunnel_shape
from dark3r_ros.simulation.turning import Turn, with_turn
from dark3r_ros.simulation.views import views_of

SMALL = {'width': 320, 'height': 240, 'seconds': 1.0, 'rate': 5.0}


def pooled(frames: list[SimulatedFrame]) -> float:
    return power_ratio_db(*np.sum([(f.signal_power, f.noise_variance) for f in frames], axis=0))


@pytest.mark.parametrize('snr_db', [-4.0, 10.0, 20.0])
def test_tunnel_has_the_asked_snr_over_the_sequence(snr_db: float) -> None:
    frames = list(simulate(SimulationConfig(seconds=6.0, rate=3.0, width=320, height=240, snr_db=snr_db, depth=False)))
    assert len(frames) == 18
    assert pooled(frames) == pytest.approx(snr_db, abs=0.3)
    assert max(f.saturated for f in frames) < 0.01


def test_measured_noise_of_frames_agrees_with_their_stated_snr() -> None:
    config = SimulationConfig(seconds=0.4, width=640, height=480, snr_db=-4.0, depth=False)
    noisy = simulate(config)
    model = preset(config.preset)
    for index in range(4):
        made = noisy.photograph(index)
        clean = (
            noisy.sensor.planes(noisy.radiance(index, noisy.camera.binned(2)), config.binning) * noisy.exposure.scale
        )
        planes = to_planes(made.frame, config.binning)
        residual = planes.signal() - clean
        variance = float(((residual - residual.mean((1, 2), keepdims=True)) ** 2).mean())
        measured = 10 * math.log10(float((clean.astype(np.float64) ** 2).mean()) / variance)
        assert measured == pytest.approx(made.snr_db, abs=0.3)
        assert made.frame.black_level == (model.black_level,) * 3


def test_auto_exposure_gives_every_frame_the_snr() -> None:
    frames = list(simulate(SimulationConfig(**SMALL, snr_db=3.0, auto_exposure=True)))
    np.testing.assert_allclose([f.snr_db for f in frames], 3.0, atol=1e-6)


@pytest.mark.parametrize('auto', [False, True])
def test_the_light_goes_out_and_comes_back_when_it_should(auto: bool) -> None:
    dark = SimulationConfig(**SMALL, snr_db=3.0, auto_exposure=auto, dark_at=0.4, dark_seconds=0.4)
    frames, lit = list(simulate(dark)), list(simulate(dataclasses.replace(dark, dark_seconds=0.0)))
    assert [f.signal_power == 0.0 for f in frames] == [False, False, True, True, False]
    for made, other in zip(frames, lit, strict=True):
        if made.signal_power:
            np.testing.assert_array_equal(made.frame.mosaic, other.frame.mosaic)
        else:
            assert abs(float(made.frame.mosaic.mean()) - made.frame.black_level[0]) < 1.0
            assert float(made.frame.mosaic.std()) > 0.0 and made.snr_db == -math.inf


def test_same_seed_same_bits_whatever_the_workers() -> None:
    one = list(simulate(SimulationConfig(**SMALL, workers=1)))
    three = list(simulate(SimulationConfig(**SMALL, workers=3)))
    other = next(iter(simulate(SimulationConfig(**SMALL, seed=9))))
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(a.frame.mosaic, b.frame.mosaic) and np.array_equal(a.depth, b.depth)
    assert not np.array_equal(other.frame.mosaic, one[0].frame.mosaic)
    assert not np.array_equal(one[0].frame.mosaic, one[1].frame.mosaic)


def test_stamps_are_exact_and_poses_belong_to_them() -> None:
    config = SimulationConfig(**{**SMALL, 'rate': 3.0, 'seconds': 2.0})
    frames = list(simulate(config))
    stamps = [f.frame.stamp_ns for f in frames]
    assert stamps == [10**18 + round(k * 1e9 / 3) for k in range(6)]
    path = tunnel_drive(tunnel_shape(0), 0, seconds=2.0)
    expected = path((np.array(stamps) - 10**18) * 1e-9)
    np.testing.assert_allclose([f.world_from_camera for f in frames], expected, atol=1e-9)
    rotation = expected[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (6, 3, 3)), atol=1e-12
    )
    assert (np.linalg.det(rotation) > 0).all()


@pytest.mark.parametrize(
    'scene, path', [('room', 'handheld'), ('room', 'orbit'), ('corridor', 'auto'), ('ground', 'auto')]
)
def test_every_scene_and_path_gives_frames_with_room_before_the_camera(scene: str, path: str) -> None:
    frames = list(
        simulate(
            SimulationConfig(**{**SMALL, 'seconds': 8.0, 'rate': 0.5}, scene=scene, path=path, light='both', clean=True)
        )
    )
    for made in frames:
        assert made.depth is not None and made.depth.min() > 0.3
        assert made.snr_db == math.inf
        assert made.saturated < 0.002
        assert made.frame.mosaic.std() > 30.0


def test_a_loop_ends_where_it_began() -> None:
    shape = tunnel_shape(2)
    path = tunnel_drive(shape, 2, seconds=200.0, loop=True)
    first, last, near = path(np.array([0.0, 200.0, 199.9]))
    np.testing.assert_allclose(last, first, atol=1e-9)
    assert 0.01 < np.linalg.norm(near[:3, 3] - first[:3, 3]) < 0.3
    times = np.linspace(0.0, 200.0, 4001)
    speed = np.linalg.norm(np.diff(path(times)[:, :3, 3], axis=0), axis=1) / np.diff(times)
    assert speed.min() > 0.2 and speed.max() < 1.5


@pytest.mark.parametrize('degrees', [90.0, -180.0, 360.0])
def test_a_turn_on_the_spot_leaves_the_axis_where_it_is(degrees: float) -> None:
    turn = Turn(degrees, rate=30.0, lever=0.1)
    drive = tunnel_drive(tunnel_shape(0), 0, seconds=40.0)
    path = with_turn(drive, turn, seconds=40.0)
    times = np.linspace(0.0, 40.0, 4001)
    poses = path(times)
    assert (np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) < 0.013).all()  # nothing jumps
    np.testing.assert_allclose(poses[:500], drive(times[:500]), atol=1e-9)
    forward = poses[:, :3, 2] * (1.0, 1.0, 0.0)
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    heading = np.degrees(np.unwrap(np.arctan2(forward[:, 1], forward[:, 0])))
    turning = np.abs(np.gradient(heading, times)) > 29.0
    at_full_speed = (abs(degrees) / 30.0 - 0.5) * (2 if degrees == 90.0 else 1)
    assert turning.sum() == pytest.approx(100 * at_full_speed, abs=20)
    axis = (poses[:, :3, 3] - 0.1 * forward)[turning]
    np.testing.assert_allclose(axis, np.broadcast_to(axis[0], axis.shape), atol=1e-6)
    assert np.ptp(poses[turning, :2, 3], axis=0).max() > 0.09  # the camera goes round it
    back = np.linalg.norm(poses[-1, :3, 3] - poses[0, :3, 3])
    assert back < 0.3 if degrees == -180.0 else back > 8.0
    with pytest.raises(ConfigError, match='simulate more seconds'):
        with_turn(drive, turn, seconds=3.0)


def test_motion_blur_is_the_mean_of_sub_poses() -> None:
    sharp = simulate(SimulationConfig(**SMALL, clean=True))
    blurred = simulate(SimulationConfig(**SMALL, clean=True, blur=2, shutter_s=0.2))
    camera = sharp.camera.binned(2)
    times = 0.2 + 0.2 * np.array([-0.25, 0.25])
    parts = [sharp.world.render(views_of(camera, pose)).radiance[0].numpy() for pose in sharp.world.path(times)]
    np.testing.assert_allclose(blurred.radiance(1, camera), np.mean(parts, axis=0), rtol=1e-4, atol=1e-7)


def test_full_rendering_agrees_with_one_ray_a_quad() -> None:
    half = simulate(SimulationConfig(**SMALL, clean=True))
    full = simulate(SimulationConfig(**SMALL, clean=True, full=True))
    a, b = (to_planes(s.photograph(2).frame, 2).signal() for s in (half, full))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
    assert a.mean() == pytest.approx(b.mean(), rel=0.02)


def test_odometry_follows_the_truth_with_the_stated_faults() -> None:
    path = tunnel_drive(tunnel_shape(0), 0, seconds=30.0)
    times = np.arange(0.0, 30.0, 0.1)
    poses = path(times)

    def travelled(**faults: float) -> tuple[float, np.ndarray]:
        wheels = WheelOdometry(
            np.random.default_rng(1), **{'scale_error': 0.0, 'noise': 0.0, 'slip_rate': 0.0, **faults}
        )
        readings = [wheels.read(round(t * 1e9), pose) for t, pose in zip(times, poses, strict=True)]
        ends = np.array([r.odom_from_body[:2, 3] for r in readings])
        return float(np.linalg.norm(np.diff(ends, axis=0), axis=1).sum()), ends

    true = float(np.linalg.norm(np.diff(poses[:, :2, 3], axis=0), axis=1).sum())
    perfect, ends = travelled()
    assert perfect == pytest.approx(true, rel=1e-3)
    # The same curve, seen from the first pose of the body.
    distance = np.linalg.norm(poses[-1, :2, 3] - poses[0, :2, 3])
    assert np.linalg.norm(ends[-1] - ends[0]) == pytest.approx(distance, rel=5e-3)
    assert travelled(scale_error=0.05)[0] == pytest.approx(1.05 * true, rel=2e-3)
    assert travelled(slip_rate=0.5)[0] > 1.02 * true
    assert np.linalg.norm(travelled(noise=0.05)[1][-1] - ends[-1]) > 0.02


def test_wrong_settings_are_explained() -> None:
    with pytest.raises(ConfigError, match='multiple of 8'):
        SimulationConfig(width=1279)
    with pytest.raises(ConfigError, match=r"'moon'.*tunnel"):
        simulate(SimulationConfig(**SMALL, scene='moon'))
    with pytest.raises(ConfigError, match=r'orbit.*tunnel.*drive or loop'):
        simulate(SimulationConfig(**SMALL, path='orbit'))
    with pytest.raises(ConfigError, match='preset'):
        simulate(SimulationConfig(**SMALL, preset='no_such_camera'))
    with pytest.raises(CalibrationError, match='pinhole'):
        views_of(Camera(32, 32, 30, 30, 15, 15, 'plumb_bob', (0.1, 0, 0, 0)), np.eye(4))


def test_scaled_intrinsics_keep_pixels_where_they_are(tmp_path: Path) -> None:
    camera = Camera(120, 90, 100.0, 100.0, 59.0, 44.0)
    x0, y0 = 37.3, 61.8
    y, x = np.mgrid[0:90, 0:120]
    blob = (250 * np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 40.0)).astype(np.uint8)
    folder = sequence_folder(tmp_path / 'blob', [np.repeat(blob[..., None], 3, 2)], camera)
    dark = darken_sequence(folder, 0.0, clean=True)
    frame = dark.photograph(0).frame
    assert frame.camera == scaled_camera(camera, 1280, 960)
    planes = to_planes(frame, 4)
    signal = planes.signal()[1].astype(np.float64)
    row, column = np.mgrid[0 : signal.shape[0], 0 : signal.shape[1]]
    found = np.array([(signal * column).sum(), (signal * row).sum()]) / signal.sum()
    normalised = (found - (planes.camera.cx, planes.camera.cy)) / (planes.camera.fx, planes.camera.fy)
    np.testing.assert_allclose(normalised, np.array([x0 - 59.0, y0 - 44.0]) / 100.0, atol=5e-4)


@pytest.mark.parametrize('snr_db', [-4.0, 10.0, 20.0])
def test_darkened_real_sequence_has_the_asked_snr(snr_db: float) -> None:
    dark = darken_sequence(shared_sequence('strecha_fountain_p11'), snr_db)
    assert dark.metric and len(dark) == 11
    frames = list(dark)
    assert pooled(frames) == pytest.approx(snr_db, abs=0.3)
    assert [f.frame.stamp_ns for f in frames] == [10**18 + k * 10**8 for k in range(11)]
    assert all(f.world_from_camera is not None for f in frames)
    assert max(f.saturated for f in frames) < 0.01
    assert frames[0].frame.size == (1280, 856)


def test_real_depth_and_timestamps_come_along() -> None:
    dark = darken_sequence(shared_sequence('tum_fr1_rpy'), 10.0)
    made = dark.photograph(3)
    assert made.depth is not None and made.depth.shape == (240, 320)
    assert 0.3 < np.nanmedian(made.depth) < 6.0 and np.isnan(made.depth).any()
    stamps = [image.stamp_ns for image in dark.images]
    assert 1.3e18 < stamps[0] < 1.4e18 and all(b > a for a, b in itertools.pairwise(stamps))


def test_broken_sequences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no sequence folder'):
        darken_sequence(tmp_path, 0.0)
    camera = Camera(40, 30, 30.0, 30.0, 19.5, 14.5)
    folder = sequence_folder(tmp_path / 'a', [np.full((30, 40, 3), 90, np.uint8)] * 2, camera)
    (folder / '1.png').unlink()
    with pytest.raises(DataError, match=r'1\.png'):
        darken_sequence(folder, 0.0)
    other = sequence_folder(tmp_path / 'b', [np.full((20, 40, 3), 90, np.uint8)], camera)
    with pytest.raises(DataError, match='40x20'):
        darken_sequence(other, 0.0)
    (other / 'cameras.json').write_text('{"images": []}')
    with pytest.raises(DataError, match='lists no images'):
        darken_sequence(other, 0.0)
