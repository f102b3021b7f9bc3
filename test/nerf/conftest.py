# SPDX-License-Identifier: Apache-2.0
"""A small simulated room with exact truth, photographed in the dark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.config import NerfConfig, profile
from dark3r_ros.nerf.load import PosedFrames, collect_views
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.simulation.views import views_of
from dark3r_ros.simulation.world import World
from dark3r_ros.types import Frame


@dataclass(frozen=True)
class Room:
    """Raw frames, poses and depth of them, and the clean counts above black at half the mosaic size."""

    posed: PosedFrames
    frames: list[Frame]
    clean: np.ndarray
    depth: np.ndarray
    noise: NoiseModel
    world: World

    def true_depth(self, camera: Camera, pose: np.ndarray) -> np.ndarray:
        """Depth (h, w) that a camera sees from a pose, 0 where nothing is."""
        depth = np.asarray(self.world.depth(views_of(camera, pose))[0], np.float32)
        return np.where(np.isfinite(depth), depth, np.float32(0.0))


class MemorySource(list):
    """Frames in memory as a source."""

    warnings = ()


@pytest.fixture(autouse=True, scope='session')
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_room(width: int, height: int, count: int, snr_db: float, light: str = 'ambient') -> Room:
    config = SimulationConfig(
        scene='room', light=light, seconds=count / 2, rate=2.0, width=2 * width, height=2 * height, snr_db=snr_db,
        workers=1, depth=False,
    )  # fmt: skip
    simulation = simulate(config)
    camera = simulation.camera.binned(2)
    made = [simulation.photograph(index) for index in range(count)]
    clean = [
        simulation.sensor.planes(simulation.radiance(index, camera), 2) * simulation.exposure.scale
        for index in range(count)
    ]
    poses = np.stack([simulation.pose(index) for index in range(count)])
    depth = np.stack([np.asarray(simulation.world.depth(views_of(camera, pose))[0], np.float32) for pose in poses])
    depth = np.where(np.isfinite(depth), depth, 0.0)
    posed = PosedFrames(
        simulation.camera,
        np.array([item.frame.stamp_ns for item in made]),
        tuple('' for _ in made),
        poses,
        np.zeros((0, 3)),
        True,
        lambda index, _: (depth[index], (depth[index] > 0).astype(np.float32)),
        None,
    )
    frames = MemorySource(item.frame for item in made)
    return Room(posed, frames, np.stack(clean), depth, simulation.sensor.noise, simulation.world)


@pytest.fixture(scope='session')
def room() -> Room:
    """Twenty-four views of 32x24 at -4 dB."""
    return make_room(32, 24, 24, -4.0)


@pytest.fixture(scope='session')
def tiny() -> NerfConfig:
    """Settings that train in seconds."""
    changes = {
        'width': 32, 'levels': 3, 'finest': 32, 'hidden': 32, 'rays': 512, 'steps': 300, 'proposal_samples': 24,
        'samples': 16, 'proposal_grid': 24, 'holdout': 4, 'checkpoint_every': 50, 'preview_every': 0,
    }  # fmt: skip
    return profile('preview', changes)


def trained(views, config) -> tuple[Trainer, RadianceModel]:
    trainer = Trainer(views, config)
    trainer.run()
    model = RadianceModel(config, trainer.box, len(views))
    model.load_state_dict(trainer.averaged_state())
    return trainer, model


@pytest.fixture(scope='session')
def views(room, tiny):
    return collect_views(room.posed, room.frames, tiny, noise=room.noise)


@pytest.fixture(scope='session')
def full(views, tiny):
    """Trainer at its end, and the model to render with."""
    return trained(views, tiny)
