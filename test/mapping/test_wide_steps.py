# SPDX-License-Identifier: Apache-2.0
"""A tunnel at -4 dB of which a slow machine takes some frames only: looked for where they should be, all are posed."""

from dataclasses import replace

import pytest
from recorded import score

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.simulation.sequence import SimulationConfig, simulate

# 17 cm from frame to frame, as of a camera at 10 Hz of which three frames in seven are taken.
DRIVE = SimulationConfig(
    scene='tunnel', width=640, height=480, seconds=8.0, rate=30.0 / 7.0, snr_db=-4.0, depth=False, odometry=True
)


@pytest.fixture(scope='module')
def drive():
    return list(simulate(DRIVE))


def followed(drive, *, wheels, **settings):
    config = replace(MappingConfig(loops=False), **settings)
    pipeline = MappingPipeline(config, make_predictor('mini'))
    for made in drive:
        if wheels:
            pipeline.add_odometry(made.frame.stamp_ns, made.odometry.odom_from_body)
        pipeline.push(made.frame)
    return score(pipeline, [(made.frame, made.world_from_camera) for made in drive])


@pytest.mark.parametrize('wheels', [False, True])
def test_frames_far_apart_are_followed_where_they_are_expected(drive, wheels):
    error, posed = followed(drive, wheels=wheels)
    assert posed >= len(drive) - 3
    assert error < 0.05
