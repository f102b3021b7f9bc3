# SPDX-License-Identifier: Apache-2.0
"""Metric scale from odometry and from known distances."""

import numpy as np
import pytest
from star_world import CAMERA, STEP_NS, camera_path

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.sfm.scale import scale_from_distance, scale_from_odometry, scaled
from dark3r_ros.storage.result import empty_cloud, no_observations
from dark3r_ros.types import FrameRecord, Reconstruction, Trajectory

TRUE_SCALE = 2.5


@pytest.fixture
def small():
    """Poses in a unit of 0.4 m, one frame without."""
    poses = camera_path(12)
    records = []
    for number, pose in enumerate(poses):
        shrunk = pose.copy()
        shrunk[:3, 3] /= TRUE_SCALE
        stamp = (number + 1) * STEP_NS
        records.append(FrameRecord(stamp, None if number == 4 else shrunk, name=f'{number:03d}.png', reason='dark'))
    return Reconstruction(CAMERA, tuple(records), empty_cloud(), no_observations()), poses


def test_odometry_of_a_body_in_another_frame_gives_the_scale(small):
    reconstruction, poses = small
    rng = np.random.default_rng(0)
    elsewhere = se3.exp([3.0, -1.0, 0.5, 0.1, 0.7, -0.2])
    wheels = np.stack([elsewhere @ pose for pose in poses])
    wheels[:, :3, 3] += 0.002 * rng.normal(size=(len(poses), 3))
    odometry = Trajectory((np.arange(len(poses)) + 1) * STEP_NS + 3_000_000, wheels)
    scale = scale_from_odometry(reconstruction, odometry)
    assert scale == pytest.approx(TRUE_SCALE, rel=0.01)
    metric = scaled(reconstruction, scale)
    assert metric.metric_scale
    assert np.allclose(metric.frames[0].world_from_camera[:3, 3], poses[0, :3, 3], atol=0.02)
    with pytest.raises(ReconstructionError, match='odometry'):
        scale_from_odometry(reconstruction, Trajectory(odometry.stamps_ns + 10**12, wheels))


def test_a_known_distance_gives_the_scale(small):
    reconstruction, poses = small
    metres = float(np.linalg.norm(poses[0, :3, 3] - poses[9, :3, 3]))
    assert scale_from_distance(reconstruction, '000.png', '9', metres) == pytest.approx(TRUE_SCALE)
    for first, second, length, words in (
        ('nowhere.png', '9', 1.0, 'no frame'),
        ('4', '9', 1.0, 'no pose'),
        ('9', '9', 1.0, 'positive'),
        ('0', '9', -1.0, 'positive'),
    ):
        with pytest.raises(DataError, match=words):
            scale_from_distance(reconstruction, first, second, length)
