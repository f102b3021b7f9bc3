# SPDX-License-Identifier: Apache-2.0
"""Depths that the views agree on.

In the dark the depth of a single view is noisy and has holes, while its neighbours have looked at the same surface.
Their depths are carried over, each place votes for the depth that most of the confidence stands around, and
the votes around it are averaged. What stands alone against others loses its confidence.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.views import Views

_PARTNERS = 40
_WIDEST = 160  # places along a row; more would cost more than they tell
_PROBES = 256  # points of a view by which its partners are chosen
_WIDTH = 0.06  # relative difference at which two depths hardly support each other
_ENOUGH = 4.0  # confidence that stands around a depth which nobody need doubt
_LEAST = 0.05  # share of known depths below which they are single points, whose surroundings nobody has seen
_LEAST_CONFIDENCE = 0.1
_NEAREST = 1e-6

Images = NDArray[np.float32]


def agreed_depths(views: Views) -> tuple[Images, Images]:
    """Depth and confidence (V, h, w) of all views after the vote, at most 160 places wide; held-out views do not vote.

    Views must have depths. Sparse ones come back as they are. 38 views of 160x120 take 4 s of one core; a view has 40
    partners at most; more views cost in proportion.
    """
    depth, confidence = views.depth, views.confidence
    if depth is None or confidence is None:
        raise ValueError('views without depths have nothing to agree on')
    if (confidence > 0).mean() < _LEAST:
        return depth, confidence
    step = -(-depth.shape[2] // _WIDEST)
    vote = _Vote(
        views, depth[:, step // 2 :: step, step // 2 :: step], confidence[:, step // 2 :: step, step // 2 :: step]
    )
    found = [vote(number) for number in range(len(views))]
    return np.stack([part[0] for part in found]), np.stack([part[1] for part in found])


class _Vote:
    """The points that every view contributes, and the vote in one of them."""

    def __init__(self, views: Views, depth: Images, confidence: Images) -> None:
        self.camera, self.poses = views.camera, views.world_from_camera
        self.depth, self.confidence = depth, confidence
        self.height, self.width = depth.shape[1:]
        rays = self.rays = _rays(views.camera, self.width, self.height)
        radius2 = (rays[:, :2] ** 2).sum(axis=1)
        usable = np.isfinite(radius2)
        # Beyond its field of view a lens model may fold back into the picture.
        self.widest = 1.01 * float(radius2[usable].max())
        self.points: list[NDArray[np.float64]] = []
        self.trust: list[NDArray[np.float32]] = []
        for number in range(len(views)):
            z, sure = depth[number].ravel(), confidence[number].ravel()
            keep = usable & (z > 0) & (sure > _LEAST_CONFIDENCE) & (not views.held_out[number])
            local = rays[keep] * z[keep, None].astype(np.float64)
            self.points.append(local @ self.poses[number, :3, :3].T + self.poses[number, :3, 3])
            self.trust.append(sure[keep])

    def __call__(self, number: int) -> tuple[Images, Images]:
        """Depth and confidence (h, w) of a view."""
        own, sure = self.depth[number].ravel(), self.confidence[number].ravel()
        carried = [self._carried(number, other) for other in self._partners(number)]
        depths = np.stack([own, *(part[0] for part in carried)])
        trust = np.stack([sure, *(part[1] for part in carried)])
        places = np.log(np.maximum(depths, _NEAREST))
        best, most = places[0].copy(), np.zeros_like(sure)
        for candidate, weight in zip(places, trust, strict=True):
            support = (trust * _kernel(places - candidate)).sum(axis=0) * (weight > 0)
            best = np.where(support > most, candidate, best)
            most = np.maximum(support, most)
        weights = trust * _kernel(places - best)
        support, seen = weights.sum(axis=0), trust.sum(axis=0)
        mean = (weights * places).sum(axis=0) / np.maximum(support, _NEAREST)
        # A depth that no other view could see keeps the confidence that it had.
        level = np.maximum(support / _ENOUGH, weights[0])
        share = support / np.maximum(seen, _NEAREST)
        shape = self.height, self.width
        known = support > 0
        depth = np.where(known, np.exp(mean), 0.0).astype(np.float32).reshape(shape)
        return depth, np.where(known, np.clip(level * share, 0.0, 1.0), 0.0).astype(np.float32).reshape(shape)

    def _partners(self, number: int) -> list[int]:
        """The views that most of what this one sees is seen by."""
        probes = self._points_seen(number)
        shares = [
            (len(self._inside(probes, other)[0]), other)
            for other in range(len(self.points))
            if other != number and len(self.trust[other])
        ]
        return [other for count, other in sorted(shares, key=lambda item: -item[0])[:_PARTNERS] if count]

    def _points_seen(self, number: int) -> NDArray[np.float64]:
        z = self.depth[number].ravel()
        known = np.flatnonzero(z > 0)
        known = known[np.linspace(0, len(known) - 1, min(_PROBES, len(known))).astype(int)] if len(known) else known
        local = self.rays[known] * z[known, None].astype(np.float64)
        local = local[np.isfinite(local).all(axis=1)]
        return np.asarray(local @ self.poses[number, :3, :3].T + self.poses[number, :3, 3])

    def _inside(self, points: NDArray[np.float64], number: int) -> tuple[NDArray[np.int64], ...]:
        """Which points (M, 3) a view has in its picture, at which place (h * w), and their depths."""
        local = (points - self.poses[number, :3, 3]) @ self.poses[number, :3, :3]
        z = local[:, 2]
        front = np.flatnonzero((z > _NEAREST) & ((local[:, :2] ** 2).sum(axis=1) < self.widest * z**2))
        pixels = self.camera.project(local[front])
        column = np.floor((pixels[:, 0] + 0.5) * self.width / self.camera.width).astype(np.int64)
        row = np.floor((pixels[:, 1] + 0.5) * self.height / self.camera.height).astype(np.int64)
        keep = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
        return front[keep], row[keep] * self.width + column[keep], z[front[keep]]

    def _carried(self, number: int, other: int) -> tuple[Images, Images]:
        """Depth and confidence (h * w) that another view gives this one; of two at one place the nearer."""
        index, place, z = self._inside(self.points[other], number)
        order = np.argsort(-z, kind='stable')
        depth = np.zeros(self.height * self.width, dtype=np.float32)
        trust = np.zeros_like(depth)
        depth[place[order]], trust[place[order]] = z[order], self.trust[other][index[order]]
        return depth, trust


def _kernel(difference: Images) -> Images:
    return np.asarray(np.exp(-0.5 * (difference / np.float32(_WIDTH)) ** 2))


def _rays(camera: Camera, width: int, height: int) -> NDArray[np.float64]:
    """Directions (h * w, 3) of depth 1 of the places of a depth image of the camera's picture."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.column_stack([(columns.ravel() + 0.5) * camera.width / width - 0.5,
                              (rows.ravel() + 0.5) * camera.height / height - 0.5])  # fmt: skip
    ideal = camera.unproject(pixels)
    return np.column_stack([ideal, np.ones(len(ideal))])
