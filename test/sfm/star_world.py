# SPDX-License-Identifier: Apache-2.0
"""A wavy wall seen by cameras with exact poses, and a predictor that matches it with known noise and outliers."""

from __future__ import annotations

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.types import Correspondences, Frame

WIDTH, HEIGHT = 320, 240
CAMERA = Camera(WIDTH, HEIGHT, 280.0, 280.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
STEP_NS = 10**8


def wall(x, y):
    """Depth of the wall (in the world) over x and y."""
    return 4.0 + 0.5 * np.sin(1.7 * x) + 0.4 * np.cos(2.3 * y)


def camera_path(count: int) -> np.ndarray:
    """Poses world_from_camera along an arc, turned a little towards the wall's middle."""
    poses = []
    for number in range(count):
        s = number / max(count - 1, 1) - 0.5
        centre = np.array([1.6 * s, 0.3 * np.sin(5 * s), 0.4 * s**2])
        poses.append(se3.make(se3.exp_so3([0.05 * s, -0.25 * s, 0.02 * s]), centre))
    return np.stack(poses)


def hit(pose: np.ndarray, normalised: np.ndarray) -> np.ndarray:
    """World points (N, 3) where rays meet the wall."""
    rays = np.column_stack([normalised, np.ones(len(normalised))]) @ pose[:3, :3].T
    depth = np.full(len(rays), 4.0)
    for _ in range(60):
        points = pose[:3, 3] + depth[:, None] * rays
        depth = 0.5 * depth + 0.5 * (wall(points[:, 0], points[:, 1]) - pose[2, 3]) / rays[:, 2]
    return pose[:3, 3] + depth[:, None] * rays


class StarPredictor:
    """Anchors on a grid, found in the other view with noise in pixels; a share of the finds is anywhere."""

    name = 'star'
    fingerprint = 'star'

    def __init__(self, poses: np.ndarray, noise: float = 0.5, outliers: float = 0.15, camera: Camera = CAMERA) -> None:
        self.poses, self.noise, self.outliers = poses, noise, outliers
        self.camera = camera.binned(2)
        columns, rows = np.meshgrid(np.arange(4, camera.width // 2 - 4, 8), np.arange(4, camera.height // 2 - 4, 8))
        self.anchors = np.column_stack([columns.ravel(), rows.ravel()]).astype(np.float64)
        self.calls = 0

    def encode(self, planes):
        return planes.stamp_ns // STEP_NS - 1

    def _find(self, a: int, b: int, rng) -> tuple[np.ndarray, np.ndarray]:
        points = hit(self.poses[a], self.camera.unproject(self.anchors))
        local = se3.transform_points(se3.inverse(self.poses[b]), points)
        front = (local[:, 2] > 0.1) & ((points - self.poses[a][:3, 3]) @ self.poses[a][:3, 2] > 0.1)
        pixels = self.camera.project(np.where(front[:, None], local, (0.0, 0.0, 1.0)))
        limit = (self.camera.width - 1, self.camera.height - 1)
        seen = np.flatnonzero(front & (pixels >= 0).all(axis=1) & (pixels <= limit).all(axis=1))
        found = pixels[seen] + self.noise * rng.normal(size=(len(seen), 2))
        wild = rng.random(len(seen)) < self.outliers
        found[wild] = rng.random((int(wild.sum()), 2)) * limit
        return seen, found

    def match(self, pairs):
        return [self._match(a, b) for a, b in pairs]

    def _match(self, a: int, b: int) -> Correspondences:
        self.calls += 1
        rng = np.random.default_rng([a, b])
        (seen_a, in_b), (seen_b, in_a) = self._find(a, b, rng), self._find(b, a, rng)
        nothing_a, nothing_b = np.full(len(seen_b), -1), np.full(len(seen_a), -1)
        return Correspondences(
            np.concatenate([self.anchors[seen_a], in_a]),
            np.concatenate([in_b, self.anchors[seen_b]]),
            np.ones(len(seen_a) + len(seen_b)),
            anchor_a=np.concatenate([seen_a, nothing_a]),
            anchor_b=np.concatenate([nothing_b, seen_b]),
        )


class MisledPredictor(StarPredictor):
    """Finds the anchors of one view, a stranger, anywhere in the others, and theirs anywhere in it."""

    def __init__(self, poses: np.ndarray, stranger: int) -> None:
        super().__init__(poses)
        self.stranger = stranger

    def _find(self, a: int, b: int, rng) -> tuple[np.ndarray, np.ndarray]:
        if self.stranger not in (a, b):
            return super()._find(a, b, rng)
        limit = (self.camera.width - 1, self.camera.height - 1)
        return np.arange(len(self.anchors)), rng.random((len(self.anchors), 2)) * limit


class WallPredictor(StarPredictor):
    """Matches at whole pixels on both sides, and noisy point maps, as a two-view network gives them."""

    class config:
        pointmaps = True

    def _match(self, a: int, b: int) -> Correspondences:
        found = super()._match(a, b)
        size = (self.camera.height, self.camera.width)
        rng = np.random.default_rng([a, b, 1])
        columns, rows = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
        pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(np.float64)
        points = se3.transform_points(se3.inverse(self.poses[a]), hit(self.poses[a], self.camera.unproject(pixels)))
        # Every decoding has a scale of its own and is wrong by one per cent everywhere.
        points *= (1.0 + 0.05 * rng.normal()) * (1.0 + 0.01 * rng.normal(size=(len(points), 1)))
        return Correspondences(
            np.rint(found.points_a),
            np.rint(found.points_b),
            found.confidence,
            pointmap_a=points.reshape(*size, 3).astype(np.float32),
            pointmap_confidence_a=np.full(size, 3.0, np.float32),
        )


def frames(count: int, camera: Camera = CAMERA) -> list[Frame]:
    """Frames of noise, known to the predictor by their stamps."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        mosaic = rng.integers(200, 900, (camera.height, camera.width)).astype(np.uint16)
        stamp = (number + 1) * STEP_NS
        made.append(Frame(stamp, mosaic, 'rggb', (64.0, 64.0, 64.0), 1023.0, camera, name=f'{number:03d}.png'))
    return made


def centre_error(estimated: np.ndarray, true: np.ndarray) -> float:
    """RMSE of camera centres after a similarity, over the largest distance of two true ones."""
    from dark3r_ros.geometry.align import umeyama

    scale, rotation, shift = umeyama(estimated[:, :3, 3], true[:, :3, 3])
    moved = scale * estimated[:, :3, 3] @ rotation.T + shift
    extent = np.linalg.norm(true[:, None, :3, 3] - true[None, :, :3, 3], axis=2).max()
    return float(np.sqrt(((moved - true[:, :3, 3]) ** 2).sum(axis=1).mean()) / extent)
