# SPDX-License-Identifier: Apache-2.0
"""Mapping with a camera that is read out row by row while it turns."""

from dataclasses import replace

import numpy as np
import pytest
from drive import CONFIG, Route, World, along
from synthetic_world import CAMERA, Seen

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.rolling import RollingCamera
from dark3r_ros.mapping import packing
from dark3r_ros.mapping.shutter import turned_as_seen, turning, turning_among

READOUT = 0.03
STEP_NS = 100_000_000


def rates(poses):
    """How fast (N, 3) a camera turns at poses 0.1 s apart, in its own frame."""
    inner = [se3.log_so3(a[:3, :3].T @ b[:3, :3]) / 0.2 for a, b in zip(poses[:-2], poses[2:], strict=True)]
    return [inner[0], *inner, inner[-1]]


class RollingWorld(World):
    """The corridor, seen by a rolling shutter where the camera turns."""

    def see_by(self, poses):
        self.rates = {pose.tobytes(): rate for pose, rate in zip(poses, rates(poses), strict=True)}

    def view(self, world_from_camera, limit=12.0):
        ids, _ = super().view(world_from_camera, limit)
        camera = RollingCamera.of(CAMERA, READOUT)
        camera = replace(camera, turn=tuple((READOUT * self.rates[world_from_camera.tobytes()]).tolist()))
        pixels = camera.project(se3.transform_points(se3.inverse(world_from_camera), self.points[ids]))
        inside = (pixels > 0).all(axis=1) & (pixels < [319, 239]).all(axis=1)
        return ids[inside], pixels[inside]


def swaying(count=60):
    """A way along the corridor; the camera looks from side to side and up and down, at up to 60 degrees a second."""
    poses = []
    for number, pose in enumerate(along(World(), 0.1 * np.arange(count))):
        sway = se3.exp_so3([0.12 * np.sin(0.5 * number), 0.2 * np.sin(0.52 * number + 1.0), 0.0])
        poses.append(se3.make(pose[:3, :3] @ sway, pose[:3, 3]))
    return poses


def driven(config, seed=0):
    world, poses = RollingWorld(seed=seed), swaying()
    world.see_by(poses)
    return Route(world, poses, config=config, noise_px=0.3).run()


def test_a_path_is_right_once_the_readout_is_known():
    error, posed = driven(replace(CONFIG, readout=READOUT), seed=1).error()
    assert posed == 60
    assert error < 0.03 and error < 0.5 * driven(CONFIG, seed=1).error()[0]  # 0.005 with the true turns


def test_a_camera_that_does_not_turn_is_followed_as_without_a_readout():
    ahead = [se3.make(np.eye(3), pose[:3, 3]) for pose in along(World(), 0.1 * np.arange(30))]
    plain = Route(World(), ahead, config=CONFIG).run().error()[0]
    assert Route(World(), ahead, config=replace(CONFIG, readout=READOUT)).run().error()[0] < plain + 0.005


def test_the_turn_is_found_beside_the_pose():
    rng = np.random.default_rng(1)
    points = rng.uniform([-2.0, -1.4, 2.0], [2.0, 1.4, 8.0], (200, 3))
    truth = replace(RollingCamera.of(CAMERA, READOUT), turn=(0.02, -0.03, 0.015))
    pixels = truth.project(points) + rng.normal(0.0, 0.3, (200, 2))
    found = turned_as_seen(RollingCamera.of(CAMERA, READOUT), (0, np.eye(4)), None, points, pixels)
    np.testing.assert_allclose(found.turn, truth.turn, atol=0.004)


def test_the_turn_between_two_poses():
    rate = np.array([0.1, 0.8, -0.3])
    before = se3.exp([0.3, 0.1, 0.0, 0.4, 0.0, 0.2])
    after = se3.make(se3.exp_so3(-0.1 * rate), [0.05, 0.0, 0.1]) @ before
    camera = turning(RollingCamera.of(CAMERA, READOUT), (0, before), (STEP_NS, after))
    np.testing.assert_allclose(camera.turn, READOUT * rate, atol=1e-9)
    assert turning(CAMERA, (0, before), (STEP_NS, after)) is CAMERA
    assert turning(camera, (STEP_NS, before), (STEP_NS, after)) is camera
    assert turning(camera, (0, before), (10 * STEP_NS, after)) is camera  # anything may have happened meanwhile


def test_frames_around_a_picture_tell_how_the_camera_turned():
    moments = {place: (place * STEP_NS, se3.exp_so3(-angle * np.array([0.0, 1.0, 0.0]))) for place, angle in
               {-1: -0.05, 0: 0.0, 1: 0.07, 2: 0.16}.items()}  # fmt: skip
    moments = {place: (stamp_ns, se3.make(turn, np.zeros(3))) for place, (stamp_ns, turn) in moments.items()}
    camera = RollingCamera.of(CAMERA, READOUT)

    def rate(*places):
        return turning_among(camera, {place: moments[place] for place in places}).turn[1] / READOUT

    assert rate(-1, 0, 1) == pytest.approx(0.6)  # between 0.5 and 0.7
    assert rate(0, 1, 2) == pytest.approx(0.6)  # 0.7, then 0.9
    assert rate(-1, 0) == rate(0, 1) == 0.0  # too little is known
    late = {place: (3 * stamp_ns, pose) for place, (stamp_ns, pose) in moments.items()}
    assert turning_among(camera, late) is camera


def test_a_saved_map_remembers_how_each_keyframe_turned(tmp_path, monkeypatch):
    monkeypatch.setitem(packing.FEATURE_TYPES, 'Seen', Seen)
    config = replace(CONFIG, readout=READOUT)
    route = driven(config)
    route.pipeline.save_state(tmp_path / 'map')
    before = [keyframe.camera for keyframe in route.pipeline._atlas.active.map.keyframes]
    route.pipeline.load_state(tmp_path / 'map')
    after = [keyframe.camera for keyframe in route.pipeline._atlas.active.map.keyframes]
    assert after == before and any(any(camera.turn) for camera in after)
