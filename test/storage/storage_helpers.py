# SPDX-License-Identifier: Apache-2.0
"""Small frames and reconstructions whose values are known exactly."""

from __future__ import annotations

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.types import Frame, FrameRecord, Observations, PointCloud, Reconstruction

CAMERA = Camera(64, 48, 50.0, 51.0, 31.2, 23.7, 'plumb_bob', (0.1, -0.05, 0.001, -0.002, 0.0))
START_NS = 1_700_000_000_123_456_789
STEP_NS = 100_000_001


def make_frame(index: int, camera: Camera | None = CAMERA, size: tuple[int, int] = (64, 48)) -> Frame:
    rng = np.random.default_rng(index)
    mosaic = rng.integers(200, 4095, size[::-1], dtype=np.uint16)
    return Frame(START_NS + index * STEP_NS, mosaic, 'grbg', (256.0, 256.0, 256.0), 4095.0, camera, 'camera_optical')


def make_pose(index: int) -> np.ndarray:
    return se3.make(se3.exp_so3([0.02 * index, -0.05 * index, 0.01 * index]), [0.1 * index, 0.02 * index**2, -0.03])


def make_reconstruction(camera: Camera = CAMERA, frames: int = 6, points: int = 40) -> Reconstruction:
    """Points seen exactly where the camera model puts them; frame 2 has no pose."""
    rng = np.random.default_rng(1)
    world = np.column_stack([rng.uniform(-0.8, 0.8, points), rng.uniform(-0.5, 0.5, points), rng.uniform(2, 4, points)])
    records, point_index, frame_index, pixels = [], [], [], []
    for index in range(frames):
        posed = index != 2
        pose = make_pose(index) if posed else None
        records.append(
            FrameRecord(
                START_NS + index * STEP_NS, pose, index % 2 == 0 and posed, -4.0 + index, 30 * posed, 40,
                '' if posed else 'too dark', f'images/{index:03d}.png',
            )
        )  # fmt: skip
        if pose is None:
            continue
        seen = rng.permutation(points)[: points // 2 + index]
        point_index.append(seen)
        frame_index.append(np.full(len(seen), index))
        pixels.append(camera.project(se3.transform_points(se3.inverse(pose), world[seen])))
    colors = rng.integers(0, 256, (points, 3)).astype(np.uint8)
    observations = Observations(
        world, colors, np.concatenate(point_index), np.concatenate(frame_index), np.concatenate(pixels)
    )
    cloud = PointCloud(world.astype(np.float32), colors, rng.uniform(0, 5, points).astype(np.float32))
    return Reconstruction(camera, tuple(records), cloud, observations, metric_scale=True)
