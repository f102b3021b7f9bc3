# SPDX-License-Identifier: Apache-2.0
"""Metric scale from the two cameras of a rig, and their frames in one order."""

from dataclasses import replace

import numpy as np
import pytest
from star_world import CAMERA, STEP_NS, StarPredictor, camera_path, frames

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.sfm.config import SfmConfig
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.sfm.scale import scaled
from dark3r_ros.sfm.stereo import RigSource, scale_from_baseline, static_baseline
from dark3r_ros.storage.bag_writer import BagWriter
from dark3r_ros.storage.result import empty_cloud, no_observations
from dark3r_ros.types import FrameRecord, Reconstruction

BASELINE, TRUE_SCALE = 0.12, 2.5


class Listed(list):
    """A source in memory."""

    warnings = ('a frame was lost',)


def rig(delay_ns=1_000_000, drift=0.0):
    """Poses of both cameras in a unit of 0.4 m; one right frame has none; `drift` grows the distance over time."""
    second_from_first = se3.make(se3.exp_so3([0.0, 0.02, 0.0]), [BASELINE, 0.0, 0.0])
    records = []
    for number, pose in enumerate(camera_path(9)):
        left, right = pose.copy(), pose @ second_from_first
        right[:3, 3] += drift * number * pose[:3, 0]
        for one in (left, right):
            one[:3, 3] /= TRUE_SCALE
        stamp = (number + 1) * STEP_NS
        records.append(FrameRecord(stamp, left, name=f'{number}.png'))
        records.append(FrameRecord(stamp + delay_ns, None if number == 4 else right, name=f'second_{number}.png'))
    return Reconstruction(CAMERA, tuple(records), empty_cloud(), no_observations())


def test_the_baseline_gives_the_scale():
    found = scale_from_baseline(rig(), BASELINE)
    assert found.scale == pytest.approx(TRUE_SCALE, rel=1e-9)
    assert found.deviation < 1e-9
    assert found.pairs == 8


def test_a_baseline_that_varies_is_said():
    assert scale_from_baseline(rig(drift=0.02), BASELINE).deviation > 0.1


def test_cameras_not_exposed_together_and_bad_lengths_are_refused():
    with pytest.raises(ReconstructionError, match='triggered together'):
        scale_from_baseline(rig(delay_ns=40_000_000), BASELINE)
    for metres in (0.0, -1.0, float('nan')):
        with pytest.raises(DataError, match='positive'):
            scale_from_baseline(rig(), metres)


def test_frames_of_both_cameras_come_in_one_order():
    left = Listed(frames(4))
    right = Listed(replace(frame, name='', stamp_ns=frame.stamp_ns + 500) for frame in frames(3))
    source = RigSource(left, right)
    order = list(source)
    assert len(source) == len(order) == 7
    assert [frame.stamp_ns for frame in order] == sorted(frame.stamp_ns for frame in order)
    assert [frame.name for frame in order][:4] == ['000.png', f'second_{STEP_NS + 500}.png', '001.png', order[3].name]
    assert [*source.warnings] == ['a frame was lost', 'second camera: a frame was lost']


def test_the_baseline_of_a_bag(tmp_path):
    mount = se3.exp([0.3, 0.1, 0.5, 0.2, -0.4, 0.1])
    right = mount @ se3.make(np.eye(3), [BASELINE, 0.0, 0.0])
    with BagWriter(tmp_path / 'bag') as bag:
        bag.write_static_transforms(1, [('base', 'left', mount), ('base', 'right', right), ('map', 'far', mount)])
    path = tmp_path / 'bag'
    assert static_baseline(path, 'left', '/right') == pytest.approx(BASELINE, rel=1e-9)
    assert static_baseline(path, 'right', 'base') == pytest.approx(np.linalg.norm(right[:3, 3]), rel=1e-9)
    for other in ('far', 'nowhere', 'left'):
        with pytest.raises(DataError, match='does not join'):
            static_baseline(path, 'left', other)
    with pytest.raises(DataError, match='no bag'):
        static_baseline(tmp_path, 'left', 'right')


class RigPredictor(StarPredictor):
    """Knows frames that come 1 ms after a full step as those of the second camera."""

    def encode(self, planes):
        return planes.stamp_ns // STEP_NS - 1 + (len(self.poses) // 2 if planes.stamp_ns % STEP_NS else 0)


def test_a_rig_is_reconstructed_in_metres():
    count = 5
    left = camera_path(count)
    right = left @ se3.make(se3.exp_so3([0.0, 0.02, 0.0]), [BASELINE, 0.0, 0.0])
    predictor = RigPredictor(np.concatenate([left, right]), noise=0.2)
    second = Listed(replace(frame, stamp_ns=frame.stamp_ns + 1_000_000) for frame in frames(count))
    config = SfmConfig(binning=2, mapper='own', dense=False)
    reconstruction = SfmRun(config, predictor)(RigSource(Listed(frames(count)), second))
    found = scale_from_baseline(reconstruction, BASELINE)
    assert found.pairs == count
    assert found.deviation < 0.1
    metric = scaled(reconstruction, found.scale)
    centres = {frame.name: frame.world_from_camera[:3, 3] for frame in metric.frames}
    length = np.linalg.norm(centres['000.png'] - centres[f'{count - 1:03d}.png'])
    assert length == pytest.approx(np.linalg.norm(left[0, :3, 3] - left[-1, :3, 3]), rel=0.04)
