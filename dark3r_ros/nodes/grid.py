# SPDX-License-Identifier: Apache-2.0
"""A 2-D grid for navigation from the sparse structure: what lies between floor and head, and where one can see through.

Heights are taken relative to the nearest place of the base, so that ramps are no walls. Between the camera and what
it saw there is nothing; the ground that the base drove over is free as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.types import Float64Array, Reconstruction

FREE, OCCUPIED, UNKNOWN = 0, 100, -1

# Sight lines that are drawn at most; more of the same frames add little.
_MAX_RAYS = 10_000
_MAX_CELLS = 4_000_000
# Sight lines end before the point that they reach.
_MARGIN_CELLS = 1.5


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells (rows, columns) int8 of `resolution` metres; the corner of cell (0, 0) is at `origin` (x, y) of the map."""

    cells: NDArray[np.int8]
    origin: tuple[float, float]
    resolution: float


@dataclass(frozen=True)
class GridRules:
    """Side of a cell, heights above the base between which points are obstacles, and how many of them in a cell.

    `radius` is that of the robot, `reach` the longest sight line that is believed. All lengths in metres.
    """

    resolution: float
    low: float
    high: float
    points: int
    radius: float
    reach: float


def grid_of(result: Reconstruction, frame: MapFrame, rules: GridRules) -> Grid | None:
    """Grid of a reconstruction in the units of the world; None while nothing is posed."""
    numbers = [number for number, record in enumerate(result.frames) if record.world_from_camera is not None]
    if not numbers or not frame.known:
        return None
    poses = [np.asarray(result.frames[number].world_from_camera) for number in numbers]
    bases = np.stack([frame.base(pose) for pose in poses])
    eyes = np.stack([frame.camera(pose)[:3, 3] for pose in poses])
    place = np.full(len(result.frames), -1)
    place[numbers] = np.arange(len(numbers))
    seen = result.observations
    by = place[seen.frame_index]
    structure = frame.points(seen.points)[seen.point_index[by >= 0]]
    cloud = frame.cloud(result.cloud).points.astype(np.float64)
    return build_grid(bases, eyes, structure, by[by >= 0], cloud[np.isfinite(cloud).all(axis=1)], rules)


def build_grid(
    bases: Float64Array,
    eyes: Float64Array,
    seen: Float64Array,
    seen_by: NDArray[np.int64],
    cloud: Float64Array,
    rules: GridRules,
) -> Grid:
    """Grid in the map frame. A map too large for the memory gets larger cells.

    Parameters
    ----------
    bases: (F, 4, 4) map_from_base. eyes: (F, 3) positions of the camera.
    seen, seen_by: (N, 3) points of sight lines and the number of the frame of each.
    cloud: (M, 3) points that may be obstacles.
    rules: what counts.

    """
    ground = bases[:, :3, 3]
    below, nearest = cKDTree(ground[:, :2]).query(cloud[:, :2]) if len(cloud) else (np.zeros(0), np.zeros(0, int))
    heights = cloud[:, 2] - ground[nearest, 2]
    obstacles = cloud[(below <= rules.reach) & (heights > rules.low) & (heights < rules.high), :2]

    start, line = eyes[seen_by, :2], seen[:, :2] - eyes[seen_by, :2]
    length = np.linalg.norm(line, axis=1)
    # What hangs above one's head says nothing about the way to it.
    clear = (length <= rules.reach) & (seen[:, 2] - ground[seen_by, 2] < rules.high)
    rows = np.flatnonzero(clear)
    rows = rows[:: max(1, -(-len(rows) // _MAX_RAYS))]

    corners = np.concatenate([ground[:, :2] - rules.radius, ground[:, :2] + rules.radius, obstacles, seen[rows, :2]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    resolution = rules.resolution
    while np.prod(np.floor((high - low) / resolution) + 1.0) > _MAX_CELLS:
        resolution *= 2.0
    size = (np.floor((high - low) / resolution) + 1.0).astype(np.int64)
    cells = np.full((size[1], size[0]), UNKNOWN, dtype=np.int8)

    def cell(places: Float64Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = np.clip(np.floor((places - low) / resolution).astype(np.int64), 0, size - 1)
        return index[:, 1], index[:, 0]

    cells[cell(_along(start[rows], line[rows], length[rows], resolution))] = FREE
    count = np.zeros(cells.shape, dtype=np.int64)
    np.add.at(count, cell(obstacles), 1)
    cells[count >= rules.points] = OCCUPIED
    cells[cell(_footprints(ground[:, :2], rules.radius, resolution))] = FREE
    return Grid(cells, (float(low[0]), float(low[1])), resolution)


def _along(start: Float64Array, line: Float64Array, length: Float64Array, resolution: float) -> Float64Array:
    """Points every half cell on sight lines (N, 2), up to a margin before their ends."""
    step = 0.5 * resolution
    counts = np.maximum((length - _MARGIN_CELLS * resolution) / step, 0.0).astype(np.int64)
    ray = np.repeat(np.arange(len(length)), counts)
    number = np.arange(len(ray)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(start[ray] + (number * step / length[ray])[:, None] * line[ray])


def _footprints(places: Float64Array, radius: float, resolution: float) -> Float64Array:
    """Points that cover a disc around every place; places within half a cell of the one before are left out."""
    kept = [places[0]]
    for place in places[1:]:
        if np.abs(place - kept[-1]).max() > 0.5 * resolution:
            kept.append(place)
    side = np.arange(-radius, radius + resolution, 0.5 * resolution)
    disc = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    disc = disc[np.linalg.norm(disc, axis=1) <= radius]
    return np.asarray((np.stack(kept)[:, None] + disc[None]).reshape(-1, 2))
