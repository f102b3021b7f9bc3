# SPDX-License-Identifier: Apache-2.0
"""Raw image sequences with exact truth: what a robot's camera would record in a simulated scene."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.noise import resolve_noise
from dark3r_ros.raw.planes import choose_binning
from dark3r_ros.simulation.build import LIGHTS
from dark3r_ros.simulation.darken import darken_sequence
from dark3r_ros.simulation.frames import (
    EPOCH_NS,
    FRAME_ID,
    NETWORK_WIDTH,
    Exposure,
    SimulatedFrame,
    in_order,
    spread_indices,
)
from dark3r_ros.simulation.odometry import WheelOdometry
from dark3r_ros.simulation.sensor import RawSensor, SignalStatistics
from dark3r_ros.simulation.turning import Turn
from dark3r_ros.simulation.views import views_of
from dark3r_ros.simulation.world import PATHS, World, make_world
from dark3r_ros.types import CFA_PATTERNS

__all__ = ['SimulatedFrame', 'Simulation', 'SimulationConfig', 'darken_sequence', 'simulate']

_PROBES = 12  # frames that the exposure of a sequence is found from


@dataclass(frozen=True)
class SimulationConfig(Config):
    """What is simulated: scene, camera, light, noise and wheels."""

    scene: str = setting('tunnel', 'tunnel, bays, corridor, room, ground or the path of a .glb mesh')
    seconds: float = setting(20.0, 'length of the recording', unit='s', minimum=0.05, maximum=86400.0)
    rate: float = setting(10.0, 'frames per second', unit='Hz', minimum=0.1, maximum=1000.0)
    width: int = setting(1280, 'mosaic width, a multiple of 8', unit='px', minimum=32, maximum=16384)
    height: int = setting(960, 'mosaic height, a multiple of 8', unit='px', minimum=32, maximum=16384)
    hfov_deg: float = setting(78.0, 'horizontal field of view', unit='deg', minimum=10.0, maximum=140.0)
    snr_db: float = setting(-4.0, 'signal-to-noise ratio at network resolution', unit='dB', minimum=-60.0, maximum=60.0)
    clean: bool = setting(False, 'no noise at all; the SNR is then ignored')
    auto_exposure: bool = setting(False, 'every frame gets the asked SNR instead of the sequence as a whole')
    preset: str = setting('starvis', 'noise preset or YAML file of a noise model')
    cfa: str = setting('rggb', 'phase of the Bayer mosaic', choices=CFA_PATTERNS)
    light: str = setting('lamp', 'lamp on the robot, ambient light or both', choices=LIGHTS)
    dark_at: float = setting(0.0, 'time at which the light goes out', unit='s', minimum=0.0)
    dark_seconds: float = setting(0.0, 'how long it stays out; 0 leaves it on', unit='s', minimum=0.0)
    seed: int = setting(0, 'seed of scene, path and noise', minimum=0, maximum=2**31 - 1)
    path: str = setting('auto', 'camera path; auto takes what suits the scene', choices=PATHS)
    speed: float = setting(0.75, 'mean speed of a drive', unit='m/s', minimum=0.01, maximum=20.0)
    turn_deg: float = setting(
        180.0, 'turn on the spot of the path turn, to the left', unit='deg', minimum=-3600.0, maximum=3600.0
    )
    turn_rate: float = setting(30.0, 'speed of that turn', unit='deg/s', minimum=1.0, maximum=720.0)
    turn_lever: float = setting(
        0.05, 'how far ahead of the axis of that turn the camera sits', unit='m', minimum=-2.0, maximum=2.0
    )
    blur: int = setting(1, 'sub-poses averaged into one frame; 1 is a sharp picture', minimum=1, maximum=64)
    shutter_s: float = setting(0.04, 'time over which motion blur is taken', unit='s', minimum=0.0, maximum=10.0)
    full: bool = setting(False, 'one ray per mosaic site instead of one per 2x2 quad (four times slower)')
    depth: bool = setting(True, 'true depth at network size with every frame')
    odometry: bool = setting(False, 'noisy wheel odometry with every frame')
    odometry_scale_error: float = setting(0.02, 'relative error of the distance', minimum=-0.5, maximum=0.5)
    odometry_noise: float = setting(0.01, 'error per square root of metre, m and rad', minimum=0.0, maximum=1.0)
    odometry_slip_rate: float = setting(0.05, 'slips per metre', unit='1/m', minimum=0.0, maximum=10.0)
    start_ns: int = setting(EPOCH_NS, 'stamp of the first frame', unit='ns', minimum=0)
    frame_id: str = setting(FRAME_ID, 'ROS frame of the optical axes')
    workers: int = setting(2, 'frames made at the same time; the result does not depend on it', minimum=1, maximum=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (('width', self.width), ('height', self.height)):
            if value % 8:
                raise ConfigError(f'SimulationConfig.{name} = {value} is not a multiple of 8, take {value // 8 * 8}')

    @property
    def count(self) -> int:
        """Number of frames."""
        return max(1, round(self.seconds * self.rate))

    @property
    def camera(self) -> Camera:
        """Intrinsics at mosaic size, principal point in the middle."""
        focal = 0.5 * self.width / math.tan(math.radians(self.hfov_deg) / 2.0)
        return Camera(self.width, self.height, focal, focal, (self.width - 1) / 2.0, (self.height - 1) / 2.0)

    @property
    def binning(self) -> int:
        """Mosaic pixels per side of a network pixel."""
        return choose_binning(self.width, NETWORK_WIDTH)

    def world(self) -> World:
        """Make the scene, with the path through it."""
        return make_world(
            self.scene,
            self.seed,
            light=self.light,
            path=self.path,
            speed=self.speed,
            seconds=self.seconds,
            turn=Turn(self.turn_deg, self.turn_rate, self.turn_lever),
        )

    def is_dark(self, index: int) -> bool:
        """Whether a frame has no light."""
        return 0 <= index / self.rate - self.dark_at < self.dark_seconds

    def stamp_ns(self, index: int) -> int:
        """Time of a frame."""
        return self.start_ns + round(index * 1e9 / self.rate)


class Simulation:
    """A scene being photographed; iterating gives the frames in order, holding only a few at a time.

    The same configuration gives the same frames bit for bit, whatever the number of workers.
    """

    def __init__(self, config: SimulationConfig) -> None:
        self.config = config
        self.sensor = RawSensor(resolve_noise(config.preset), config.cfa)
        self.camera = config.camera
        self.world: World = config.world()
        self.statistics = SignalStatistics()
        scale = self._sequence_scale()
        self.exposure = Exposure(
            sensor=self.sensor,
            camera=self.camera,
            binning=config.binning,
            scale=0.0 if config.auto_exposure else scale,
            snr_db=config.snr_db,
            clean=config.clean,
            full=config.full,
            frame_id=config.frame_id,
        )

    def __len__(self) -> int:
        return self.config.count

    def __iter__(self) -> Iterator[SimulatedFrame]:
        config = self.config
        wheels = WheelOdometry(
            np.random.default_rng([config.seed, 5]),
            scale_error=config.odometry_scale_error,
            noise=config.odometry_noise,
            slip_rate=config.odometry_slip_rate,
        )
        for made in in_order(self.photograph, config.count, config.workers):
            yield self._with_odometry(made, wheels) if config.odometry else made

    @staticmethod
    def _with_odometry(made: SimulatedFrame, wheels: WheelOdometry) -> SimulatedFrame:
        assert made.world_from_camera is not None
        reading = wheels.read(made.frame.stamp_ns, made.world_from_camera)
        return dataclasses.replace(made, odometry=reading)

    def pose(self, index: int) -> NDArray[np.float64]:
        """True world_from_camera (4, 4) of a frame."""
        return self._poses(index, 1)[0]

    def _poses(self, index: int, count: int) -> NDArray[np.float64]:
        middle = (self.config.stamp_ns(index) - self.config.start_ns) * 1e-9
        offsets = (np.arange(count) + 0.5) / count - 0.5
        return self.world.path(middle + self.config.shutter_s * offsets)

    def radiance(self, index: int, camera: Camera) -> NDArray[np.float32]:
        """Clean light (3, H, W) of a frame through any camera, motion blur included."""
        poses = self._poses(index, self.config.blur)
        # One sub-pose after the other: memory stays that of one image.
        total = sum(self.world.render(views_of(camera, pose)).radiance[0] for pose in poses)
        return np.asarray(total / self.config.blur, dtype=np.float32)

    def depth(self, index: int) -> NDArray[np.float32]:
        """True depth (h, w) of a frame at network size."""
        views = views_of(self.camera.binned(self.config.binning), self.pose(index))
        return np.asarray(self.world.depth(views)[0], dtype=np.float32)

    def photograph(self, index: int) -> SimulatedFrame:
        """Make one frame, odometry aside; frames can be made in any order."""
        config = self.config
        camera, exposure = self.camera if config.full else self.camera.binned(2), self.exposure
        if config.is_dark(index):  # no exposure gives it the asked SNR
            light = np.zeros((3, camera.height, camera.width), np.float32)
            exposure = dataclasses.replace(exposure, scale=exposure.scale or 1.0)
        else:
            light = self.radiance(index, camera)
        rng = np.random.default_rng([config.seed, 4, index])
        return exposure.photograph(
            light,
            config.stamp_ns(index),
            rng,
            world_from_camera=self.pose(index),
            depth=self.depth(index) if config.depth else None,
        )

    def _sequence_scale(self) -> float:
        """Counts per unit of radiance, from frames spread over the sequence at the resolution that the SNR means."""
        config = self.config
        probes = spread_indices(config.count, _PROBES)
        camera = self.camera.binned(2)

        def planes(number: int) -> NDArray[np.float32]:
            return self.sensor.planes(self.radiance(probes[number], camera), config.binning)

        for signal in in_order(planes, len(probes), config.workers):
            self.statistics.add(signal)
        target = math.inf if config.clean else config.snr_db
        return self.statistics.exposure(self.sensor.noise, target, self.sensor.samples(config.binning))


def simulate(config: SimulationConfig) -> Simulation:
    """Simulate a recording: iterate over the result for the frames, `len()` tells their number."""
    return Simulation(config)
