# SPDX-License-Identifier: Apache-2.0
"""Hand-held walk through the free space of a mesh, verified by ray casts and distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial.transform import Rotation

from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.simulation.paths import Path, Waves, look_along, poses_from

Array = NDArray[np.float64]

_EYE = 1.2  # metres above the floor
_CLEARANCE = 0.5
_MINIMUM = 0.25  # what a smoothed path must keep
_SPACING = 0.4
_ATTEMPTS = 20


class FreeSpace:
    """Free places at eye height above the floors of a mesh, and the ways between them.

    Parameters
    ----------
    rays: Open3D RaycastingScene. low, high: (3,) bounds of the mesh in metres.

    """

    def __init__(self, rays: Any, low: Array, high: Array) -> None:
        self.rays = rays
        x, y = (np.arange(low[k] + _SPACING, high[k], _SPACING) for k in range(2))
        grid = np.stack(np.meshgrid(x, y, indexing='ij'), axis=-1).reshape(-1, 2)
        self.places = self._standing(grid, float(low[2]), float(high[2]))

    def _numpy(self, values: Array) -> Any:
        return import_open3d().core.Tensor(np.ascontiguousarray(values, dtype=np.float32))

    def cast(self, origin: Array, direction: Array) -> Array:
        """Distance in lengths of `direction` (N, 3) to the first surface from `origin` (N, 3)."""
        answer = self.rays.cast_rays(self._numpy(np.concatenate([origin, direction], axis=-1)), 1)
        return np.asarray(answer['t_hit'].numpy(), dtype=np.float64)

    def clearance(self, points: Array) -> Array:
        """Distance (N,) in metres from the nearest surface."""
        return np.asarray(self.rays.compute_distance(self._numpy(points), 1).numpy(), dtype=np.float64)

    def _standing(self, grid: Array, bottom: float, top: float) -> Array:
        """Points (N, 3) at eye height over the lowest floor that have clearance and walls around them."""
        up = np.array([0.0, 0.0, 1.0])
        below = np.column_stack([grid, np.full(len(grid), bottom - 1.0)])
        height = self.cast(below, np.broadcast_to(up, below.shape)) + bottom - 1.0
        # The underside of a floor slab is met first: stand on its upper side.
        start = np.column_stack([grid, height + _EYE])
        start = start[np.isfinite(height) & (height + _EYE < top)]
        ground = self.cast(start, np.broadcast_to(-up, start.shape))
        start = start[np.isfinite(ground)]
        start[:, 2] += _EYE - ground[np.isfinite(ground)]
        start = start[self.clearance(start) > _CLEARANCE] if len(start) else start
        if not len(start):
            return start
        angle = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
        around = np.stack([np.cos(angle), np.sin(angle), 0.0 * angle], axis=1)
        origin = np.repeat(start, len(around), axis=0)
        walls = np.isfinite(self.cast(origin, np.tile(around, (len(start), 1)))).reshape(len(start), -1)
        return start[walls.mean(axis=1) > 0.6]

    def _graph(self) -> coo_matrix:
        """Lengths of the direct ways between neighbouring places that no surface crosses."""
        difference = self.places[:, None] - self.places[None]
        distance = np.linalg.norm(difference, axis=-1)
        first, second = np.nonzero((distance > 0) & (distance < 1.5 * _SPACING))
        way = self.places[second] - self.places[first]
        if len(first):
            free = self.cast(self.places[first], way) > 1.0
            first, second = first[free], second[free]
        count = len(self.places)
        return coo_matrix((distance[first, second], (first, second)), shape=(count, count)).tocsr()

    def route(self, seed: int, *, speed: float, seconds: float) -> Path | None:
        """Walk of `seconds` at up to `speed` m/s, back and forth where the way is short; None without room."""
        if len(self.places) < 2:
            return None
        graph = self._graph()
        _, label = connected_components(graph, directed=False)
        largest = np.flatnonzero(label == np.bincount(label).argmax())
        rng = np.random.default_rng([seed, 21])
        for _ in range(_ATTEMPTS):
            length, before = dijkstra(graph, indices=int(rng.choice(largest)), return_predecessors=True)
            reachable = np.flatnonzero(np.isfinite(length))
            goal = reachable[int(length[reachable].argmax())]
            if length[goal] < 2 * _SPACING:
                continue
            walk = [int(goal)]
            while before[walk[-1]] >= 0:
                walk.append(int(before[walk[-1]]))
            path = _walk(self.places[walk], rng, min(speed, 1.0))
            time = np.arange(0.0, seconds + 0.05, 0.05)
            centres = path(time)[:, :3, 3]
            steps = np.diff(centres, axis=0)
            blocked = (self.cast(centres[:-1], steps) <= 1.0) & (np.linalg.norm(steps, axis=1) > 1e-6)
            if float(self.clearance(centres).min()) > _MINIMUM and not blocked.any():
                return path
        return None


def _walk(points: Array, rng: np.random.Generator, speed: float) -> Path:
    """Path along points (N, 3), looking ahead; at its end the camera goes back without turning round."""
    dense = np.linspace(0.0, 1.0, 20 * len(points))
    knots = np.linspace(0.0, 1.0, len(points))
    line = PchipInterpolator(knots, points)(dense)
    line = gaussian_filter1d(line, 12.0, axis=0, mode='nearest')
    ahead = gaussian_filter1d(np.gradient(line, axis=0), 25.0, axis=0, mode='nearest')
    ahead[:, 2] = 0.0
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    keep = np.concatenate([[True], np.diff(arc) > 1e-9])
    place, heading = PchipInterpolator(arc[keep], line[keep]), PchipInterpolator(arc[keep], ahead[keep])
    total = float(arc[-1])
    steps = Waves(rng, [0.01, 0.01, 0.015], (0.5, 1.1))
    gaze = Waves(rng, np.radians([4.0, 9.0, 2.0]), (3.0, 8.0))

    def path(time: Array) -> Array:
        time = np.asarray(time, dtype=np.float64)
        # A cosine slows down at both ends instead of bouncing there.
        at = 0.5 * total * (1.0 - np.cos(2.0 * speed / total * time))
        rotation = look_along(heading(at) - (0.0, 0.0, 0.06) * np.linalg.norm(heading(at), axis=1, keepdims=True))
        return poses_from(rotation @ Rotation.from_euler('xyz', gaze(time)).as_matrix(), place(at) + steps(time))

    return path
