# SPDX-License-Identifier: Apache-2.0
"""Pictures of one view as they would look from another one, by poses and a smooth depth.

In the dark a descriptor leans on its surroundings: a place that moves otherwise than these is found where they moved,
the same way in every draw of the noise. Where the depth is already known roughly, the other picture can be brought
into the frame of this one before it is described. Then surroundings and place hardly move against each other, what
differs in perspective looks alike, and what is still found to move is what poses or depth are wrong by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from dark3r_ros.sfm.rematch import project
from dark3r_ros.sfm.triangulation import Structure
from dark3r_ros.sfm.views import View
from dark3r_ros.types import Planes

Array = NDArray[np.float64]

_STEP = 4  # pixels between the places that a smooth depth is worked out for
_NEAREST = 10  # points that make the depth of a place
_SPREAD = 10.0  # pixels over which they count, at least; more where points are rare
_OUTLYING = 4.0  # of their median deviations from their median, beyond which a point does not count
_ASIDE = 3.0  # pixels over which derivatives of a transfer are taken
_FAR = 1e4  # pixels: beyond every picture
_LEAST_AREA, _MOST_AREA = 0.1, 10.0  # of a pixel of one view in the other


@dataclass(frozen=True, eq=False)
class Relief:
    """What the pixels of a view look at: `rays` (h * w, 3) with z one, row by row, and `inverse` depths (h, w).

    Rays are made once for all views that it is brought into: to undistort a picture takes longer than to describe it.
    """

    rays: Array
    inverse: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Transfer:
    """Where the pixels of one view lie in another: `places` (h, w, 2) in pixels, far away where they are behind it."""

    places: NDArray[np.float32]

    def at(self, pixels: Array) -> Array:
        """Places (M, 2) of pixels (M, 2), bilinear."""
        if not len(pixels):
            return np.zeros((0, 2))
        across, down = (np.ascontiguousarray(pixels[None, :, axis], dtype=np.float32) for axis in (0, 1))
        found = cv2.remap(self.places, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(found[0], dtype=np.float64)

    def slope(self, pixels: Array) -> Array:
        """Derivatives (M, 2, 2) of the places of pixels (M, 2)."""
        aside = _ASIDE * np.eye(2)
        columns = [(self.at(pixels + aside[axis]) - self.at(pixels - aside[axis])) / (2 * _ASIDE) for axis in range(2)]
        return np.stack(columns, axis=2)


def smooth_inverse_depth(
    view: View, camera_from_world: Array, pixels: Array, points: Array
) -> NDArray[np.float32] | None:
    """Inverse depth (h, w) of a view, smooth between points (M, 3) of the world seen at pixels (M, 2).

    Each place has the mean of the nearest points, near ones counting more, without those that stand apart. None with
    too few points.
    """
    assert view.camera is not None
    depth = points @ camera_from_world[2, :3] + camera_from_world[2, 3]
    front = depth > 0
    if np.count_nonzero(front) < _NEAREST:
        return None
    seen, inverse = pixels[front], 1.0 / depth[front]
    width, height = view.camera.width, view.camera.height
    x, y = np.meshgrid(np.arange(0, width + _STEP, _STEP), np.arange(0, height + _STEP, _STEP))
    distance, nearest = cKDTree(seen).query(np.column_stack([x.ravel(), y.ravel()]), k=_NEAREST)
    spread = np.maximum(_SPREAD, distance[:, :3].mean(axis=1, keepdims=True))
    values = inverse[nearest]
    middle = np.median(values, axis=1, keepdims=True)
    deviation = np.median(np.abs(values - middle), axis=1, keepdims=True)
    # Half of them lie within the deviation, so that never all weights vanish.
    weights = np.exp(-0.5 * (distance / spread) ** 2) * (np.abs(values - middle) <= _OUTLYING * deviation)
    weights += np.finfo(float).tiny
    coarse = ((weights * values).sum(axis=1) / weights.sum(axis=1)).reshape(x.shape).astype(np.float32)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(cv2.remap(coarse, columns / _STEP, rows / _STEP, cv2.INTER_LINEAR))


def smooth_depths(
    views: Sequence[View], poses: Mapping[int, Array], structure: Structure
) -> dict[int, NDArray[np.float32]]:
    """Smooth inverse depth (h, w) of every posed view that sees enough points of the structure."""
    tracks = structure.tracks
    found = {}
    for number in sorted(poses):
        rows = tracks.view == number
        points = structure.points[tracks.point[rows]]
        inverse = smooth_inverse_depth(views[number], poses[number], tracks.pixels[rows], points)
        if inverse is not None:
            found[number] = inverse
    return found


def relief_of(view: View, inverse: NDArray[np.floating]) -> Relief:
    """Directions of all pixels of a view beside their inverse depths (h, w)."""
    height, width = inverse.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    normalised = view.normalised(np.column_stack([x.ravel(), y.ravel()]))
    return Relief(np.column_stack([normalised, np.ones(len(normalised))]), inverse)


def transfer(relief: Relief, view: View, view_from_relief: Array) -> Transfer:
    """Where the pixels of a relief lie in a view, by the motion (4, 4) between the two cameras."""
    # A point at infinity stays one: directions are scaled by the depth, not places divided by it.
    rotation, translation = view_from_relief[:3, :3], view_from_relief[:3, 3]
    local = relief.rays @ rotation.T + relief.inverse.reshape(-1, 1) * translation
    places = project(view, np.eye(4), local)
    places = np.nan_to_num(places, nan=-_FAR).clip(-_FAR, _FAR)
    return Transfer(places.reshape(*relief.inverse.shape, 2).astype(np.float32))


def rectified(planes: Planes, found: Transfer) -> Planes:
    """Planes of the second view at the pixels of the first; the mean of each plane where the second sees nothing."""
    values = np.ascontiguousarray(planes.values.transpose(1, 2, 0))
    blank = tuple(float(mean) for mean in values.mean(axis=(0, 1)))
    moved = cv2.remap(
        values,
        found.places[..., 0],
        found.places[..., 1],
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=blank,
    )
    return replace(planes, values=np.ascontiguousarray(moved.transpose(2, 0, 1)), camera=None)


def believable(slope: Array) -> NDArray[np.bool_]:
    """Which transfers with derivatives (M, 2, 2) neither fold nor stretch a picture too much to be compared."""
    area = np.linalg.det(slope)
    return np.asarray((area > _LEAST_AREA) & (area < _MOST_AREA))
