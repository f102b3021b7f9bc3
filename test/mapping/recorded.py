# SPDX-License-Identifier: Apache-2.0
"""Short simulated recordings mapped with `mini`, and scored against exact truth."""

from dataclasses import replace

import numpy as np

from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.simulation.sequence import SimulationConfig, simulate

DARK = SimulationConfig(
    scene='room', light='ambient', width=320, height=240, seconds=4.0, rate=3.0, snr_db=-4.0, depth=False
)
SMALL = MappingConfig(network_width=160)


def recorded(config=DARK):
    """Frames of a simulation, each with its true world_from_camera (4, 4)."""
    return [(made.frame, made.world_from_camera) for made in simulate(config)]


def in_order(frames, order):
    """The frames in another order, as if that were the order of time."""
    stamps = [frame.stamp_ns for frame, _ in frames]
    return [
        (replace(frames[number][0], stamp_ns=stamp), frames[number][1])
        for stamp, number in zip(stamps, order, strict=True)
    ]


def mapped(frames, config=SMALL, *, offline):
    """The pipeline at the end, the error of the frames as a share of the extent, and the frames that are posed."""
    pipeline = MappingPipeline(config, make_predictor('mini'), offline=offline)
    for frame, _ in frames:
        pipeline.push(frame)
    pipeline.flush()
    return pipeline, *score(pipeline, frames)


def score(pipeline, frames):
    """Root mean square error of the positions as a share of the extent of all frames, and how many are posed."""
    trajectory = pipeline.reconstruction(largest=True).trajectory()
    if len(trajectory) < 3:
        return float('nan'), len(trajectory)
    truth = {frame.stamp_ns: pose[:3, 3] for frame, pose in frames}
    true = np.stack([truth[int(stamp)] for stamp in trajectory.stamps_ns])
    found = trajectory.world_from_camera[:, :3, 3]
    scale, rotation, shift = umeyama(found, true)
    error = np.sqrt(((scale * found @ rotation.T + shift - true) ** 2).sum(axis=1).mean())
    return error / np.linalg.norm(np.ptp(np.stack(list(truth.values())), axis=0)), len(true)
