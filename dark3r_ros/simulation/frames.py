# SPDX-License-Identifier: Apache-2.0
"""Raw frames with truth, and making many of them at a time in a fixed order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.odometry import OdometrySample
from dark3r_ros.simulation.sensor import RawSensor, SignalStatistics
from dark3r_ros.types import Frame

EPOCH_NS = 1_000_000_000_000_000_000
FRAME_ID = 'camera_optical'
NETWORK_WIDTH = 320

T = TypeVar('T')


@dataclass(frozen=True, eq=False)
class SimulatedFrame:
    """A raw frame with its truth.

    Attributes
    ----------
    frame: what the camera gave.
    world_from_camera: (4, 4) float64 at the stamp (middle of the exposure), or None where a sequence has no pose.
    depth: (h, w) float32 metres along the optical axis at network size, infinity where nothing is seen, NaN where it
        is unknown; or None.
    odometry: wheel odometry at the stamp, or None.
    signal_power, noise_variance: true means over the planes at network resolution, counts squared.
    saturated: share of mosaic pixels at the white level.

    """

    frame: Frame
    world_from_camera: NDArray[np.float64] | None
    depth: NDArray[np.float32] | None
    odometry: OdometrySample | None
    signal_power: float
    noise_variance: float
    saturated: float

    @property
    def snr_db(self) -> float:
        """True SNR of this frame at network resolution in dB, infinity without noise."""
        return power_ratio_db(self.signal_power, self.noise_variance)


def power_ratio_db(signal: float, noise: float) -> float:
    """Ratio of powers in dB; infinite without noise, minus infinity without signal."""
    if noise <= 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


@dataclass(frozen=True, eq=False)
class Exposure:
    """How light becomes a frame: everything but the light itself and the noise.

    Attributes
    ----------
    sensor: the camera's sensor. camera: its intrinsics at mosaic size.
    binning: mosaic pixels per side of a network pixel.
    scale: counts per unit of radiance; zero asks for `snr_db` in every frame.
    snr_db: target per frame when `scale` is zero.
    clean: no noise. full: radiance has one value per mosaic site instead of one per 2x2 quad.

    """

    sensor: RawSensor
    camera: Camera
    binning: int
    scale: float
    snr_db: float
    clean: bool = False
    full: bool = False
    frame_id: str = FRAME_ID

    def photograph(
        self,
        light: NDArray[np.float32],
        stamp_ns: int,
        rng: np.random.Generator,
        *,
        world_from_camera: NDArray[np.float64] | None,
        depth: NDArray[np.float32] | None,
        name: str = '',
    ) -> SimulatedFrame:
        """Photograph clean light (3, H, W)."""
        sensor, statistics = self.sensor, SignalStatistics()
        # `planes` counts two mosaic pixels per value of radiance; a full rendering has one.
        statistics.add(sensor.planes(light, self.binning * (2 if self.full else 1)))
        samples = sensor.samples(self.binning)
        target = math.inf if self.clean else self.snr_db
        scale = self.scale or statistics.exposure(sensor.noise, target, samples)
        signal = sensor.mosaic(light, scale, full=self.full)
        mosaic = sensor.expose_clean(signal) if self.clean else sensor.expose(signal, rng)
        black, white = sensor.noise.black_level, sensor.noise.white_level
        frame = Frame(
            stamp_ns=stamp_ns,
            mosaic=mosaic,
            cfa=sensor.cfa,
            black_level=(black, black, black),
            white_level=white,
            camera=self.camera,
            frame_id=self.frame_id,
            name=name,
        )
        power, variance = statistics.powers(sensor.noise, scale, samples)
        saturated = float((mosaic >= math.floor(white)).mean())
        variance = 0.0 if self.clean else variance
        return SimulatedFrame(frame, world_from_camera, depth, None, power, variance, saturated)


def in_order(make: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """Results of make(0), make(1), ... in order, at most `workers` made ahead, each in a thread of one core."""
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[T]] = deque()
    try:
        for index in range(count):
            waiting.append(pool.submit(make, index))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def spread_indices(count: int, most: int) -> list[int]:
    """At most `most` indices spread evenly over range(count), first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})
