# SPDX-License-Identifier: Apache-2.0
"""A world of known points and a predictor that sees them, so that mapping is tested against exact truth."""

from dataclasses import dataclass

import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.types import Correspondences, Frame

CAMERA = Camera(320, 240, 250.0, 250.0, 159.5, 119.5)
RATE_NS = 100_000_000
EPOCH_NS = 1_700_000_000_000_000_000


@dataclass
class Seen:
    ids: np.ndarray
    pixels: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.pixels.nbytes


class World:
    """Points along a corridor in z; `pose(i)` drives through it with gentle curves."""

    def __init__(self, length=60.0, density=40, seed=0, step=0.12):
        rng = np.random.default_rng(seed)
        count = int(length * density)
        angle = rng.uniform(0, 2 * np.pi, count)
        radius = rng.uniform(1.5, 2.2, count)
        along = rng.uniform(0, length + 8, count)
        self.points = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), along])
        self.step = step

    def looks(self, ids):
        """Which points look the same: here none."""
        return ids

    def pose(self, index):
        """world_from_camera of frame `index`."""
        z = index * self.step
        yaw = 0.1 * np.sin(0.3 * z)
        return se3.make(se3.exp_so3([0.02 * np.sin(z), yaw, 0.0]), [0.2 * np.sin(0.5 * z), 0.1 * np.cos(z), z])

    def view(self, world_from_camera, limit=12.0):
        local = se3.transform_points(se3.inverse(world_from_camera), self.points)
        near = (local[:, 2] > 0.3) & (local[:, 2] < limit)
        ids = np.flatnonzero(near)
        pixels = CAMERA.project(local[ids])
        inside = (pixels > 0).all(axis=1) & (pixels < [319, 239]).all(axis=1)
        return ids[inside], pixels[inside]


class WorldPredictor:
    """Sees the points of the world with noise; a share of the matches is wrong.

    `indexed=False` hides the identities, as a dense network would.
    """

    name = 'world'
    fingerprint = 'world'

    def __init__(self, world, pose_of_stamp, noise_px=0.3, wrong=0.1, indexed=True, blind=()):
        self.world, self.pose_of_stamp = world, pose_of_stamp
        self.noise_px, self.wrong, self.indexed, self.blind = noise_px, wrong, indexed, set(blind)
        self.encoded = 0

    def encode(self, planes):
        self.encoded += 1
        rng = np.random.default_rng(planes.stamp_ns % (2**32))
        if (planes.stamp_ns - EPOCH_NS) // RATE_NS in self.blind:
            return Seen(np.zeros(0, np.int64), np.zeros((0, 2)))
        ids, pixels = self.world.view(self.pose_of_stamp(planes.stamp_ns))
        return Seen(ids, pixels + rng.normal(0, self.noise_px, pixels.shape))

    def match(self, pairs):
        return [self._match(a, b) for a, b in pairs]

    def _match(self, a, b):
        _, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
        rng = np.random.default_rng(len(in_a))
        in_b = in_b.copy()
        wrong = np.flatnonzero(rng.random(len(in_b)) < self.wrong)
        in_b[wrong] = np.roll(in_b[wrong], 1)
        return Correspondences(
            a.pixels[in_a],
            b.pixels[in_b],
            np.full(len(in_a), 0.5),
            in_a.astype(np.int64) if self.indexed else None,
            in_b.astype(np.int64) if self.indexed else None,
        )


def stamp(index):
    return EPOCH_NS + index * RATE_NS


def index_of(stamp_ns):
    return (stamp_ns - EPOCH_NS) // RATE_NS


def frame(index, camera=CAMERA, mosaic=None, stamp_ns=None):
    """A frame with enough texture to pass for a picture; what the predictor sees comes from its stamp."""
    if mosaic is None:
        rng = np.random.default_rng(index)
        mosaic = rng.integers(200, 1200, (camera.height if camera else 240, camera.width if camera else 320))
    return Frame(
        stamp(index) if stamp_ns is None else stamp_ns,
        mosaic.astype(np.uint16),
        'rggb',
        (64.0, 64.0, 64.0),
        4095.0,
        camera,
        'camera_optical',
    )
