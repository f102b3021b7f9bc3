# SPDX-License-Identifier: Apache-2.0
"""Rays of pixels, lens distortion included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.geometry.camera import Camera


@dataclass(frozen=True, eq=False)
class Lens:
    """What every pixel of a camera looks at, row by row.

    Attributes
    ----------
    directions: (H * W, 3) float32 unit vectors in the optical frame.
    radius2: (H * W,) float32 squared tangent of the angle to the optical axis, at most 4.
    usable: (H * W,) bool, False where the lens model folds over and no direction belongs to the pixel.
    width, height: pixels.

    """

    directions: Tensor
    radius2: Tensor
    usable: Tensor
    width: int
    height: int

    def to(self, device: torch.device | str) -> Lens:
        """Copy on another device."""
        parts = (self.directions.to(device), self.radius2.to(device), self.usable.to(device))
        return Lens(*parts, self.width, self.height)


@dataclass(frozen=True, eq=False)
class Rays:
    """R rays in normalised coordinates.

    Attributes
    ----------
    origins, directions: (R, 3); directions have unit length.
    local: (R, 3) the same directions in the optical frame of their camera.
    radius2: (R,) squared tangent of the angle to the optical axis.

    """

    origins: Tensor
    directions: Tensor
    local: Tensor
    radius2: Tensor

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, part: slice) -> Rays:
        return Rays(self.origins[part], self.directions[part], self.local[part], self.radius2[part])


def lens_of(camera: Camera) -> Lens:
    """Directions of all pixels of a camera; pixels that do not project back onto themselves are not usable."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    pixels = np.column_stack([columns.ravel(), rows.ravel()]).astype(np.float64)
    ideal = camera.unproject(pixels)
    usable = np.isfinite(ideal).all(axis=1)
    ideal[~usable] = 0.0
    if camera.distorted:
        back = camera.project(np.column_stack([ideal, np.ones(len(ideal))]))
        usable &= np.abs(back - pixels).max(axis=1) < 0.1
    directions = np.column_stack([ideal, np.ones(len(ideal))])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radius2 = np.minimum((ideal**2).sum(axis=1), 4.0)
    return Lens(
        torch.from_numpy(directions.astype(np.float32)),
        torch.from_numpy(radius2.astype(np.float32)),
        torch.from_numpy(usable),
        camera.width,
        camera.height,
    )


def make_rays(lens: Lens, poses: Tensor, pixels: Tensor) -> Rays:
    """Rays of pixels (R,), numbered row by row, seen from poses (R, 4, 4) or one pose (4, 4)."""
    local = lens.directions[pixels]
    rotation, origin = poses[..., :3, :3], poses[..., :3, 3]
    directions = (rotation @ local[..., None])[..., 0]
    return Rays(origin.expand(len(pixels), 3), directions, local, lens.radius2[pixels])
