# SPDX-License-Identifier: Apache-2.0
"""A pipeline that is driven through a world of known points, and scored against it."""

import numpy as np
from synthetic_world import World, WorldPredictor, frame, index_of

from dark3r_ros.geometry.align import umeyama
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import FramePosed
from dark3r_ros.mapping.pipeline import MappingPipeline

CONFIG = MappingConfig(binning=2, network_width=160, degraded_snr=-40.0, keyframe_flow=0.05)


class Route:
    """Frames of a world along poses of its own; `dark` frames show nothing."""

    def __init__(self, world, poses, dark=(), config=CONFIG, **predictor):
        self.world, self.poses = world, list(poses)
        self.predictor = HalfSize(world, lambda ns: self.poses[index_of(ns)], blind=dark, **predictor)
        self.pipeline = MappingPipeline(config, self.predictor)
        self.events = []

    def run(self, first=0, last=None):
        for index in range(first, len(self.poses) if last is None else last):
            self.events += self.pipeline.push(frame(index))
        return self

    def posed(self, submap=0):
        return [event for event in self.events if isinstance(event, FramePosed) and event.submap == submap]

    def error(self, **options):
        """Root mean square error of the positions in units of the world after Sim(3), and how many there are."""
        trajectory = self.pipeline.reconstruction(**options).trajectory()
        truth = np.stack([self.poses[index_of(int(ns))][:3, 3] for ns in trajectory.stamps_ns])
        scale, rotation, translation = umeyama(trajectory.world_from_camera[:, :3, 3], truth)
        moved = scale * trajectory.world_from_camera[:, :3, 3] @ rotation.T + translation
        return float(np.sqrt(((moved - truth) ** 2).sum(axis=1).mean())), len(trajectory)


class HalfSize(WorldPredictor):
    """Planes are half the mosaic."""

    def encode(self, planes):
        seen = super().encode(planes)
        seen.pixels = (seen.pixels + 0.5) / 2 - 0.5
        return seen


def descriptors(world, length=24):
    """For `places.local_descriptors`: one random descriptor for every point of the world, by what it looks like."""
    table = np.random.default_rng(5).normal(size=(len(world.points), length)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return lambda features: table[world.looks(features.ids)]


def along(world, metres):
    """Poses at distances along the corridor."""
    return [world.pose(distance / world.step) for distance in metres]


__all__ = ['CONFIG', 'Route', 'World', 'along', 'descriptors']
