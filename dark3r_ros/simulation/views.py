# SPDX-License-Identifier: Apache-2.0
"""Pinhole views of a batch of scenes and what their rays meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dark3r_ros.errors import CalibrationError
from dark3r_ros.geometry.camera import Camera


@dataclass(frozen=True, eq=False)
class Views:
    """I images of one size.

    Attributes
    ----------
    world_from_camera: (I, 4, 4) float64, optical axes.
    intrinsics: (I, 4) float64 fx, fy, cx, cy in pixels, the centre of the top-left pixel being (0, 0).
    scene: (I,) int64, which scene of the batch each image looks at.
    width, height: pixels.

    """

    world_from_camera: Tensor
    intrinsics: Tensor
    scene: Tensor
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, index: slice) -> Views:
        return Views(self.world_from_camera[index], self.intrinsics[index], self.scene[index], self.width, self.height)

    def binned(self, factor: int) -> Views:
        """Views whose pixels are blocks of these: c' = (c + 0.5)/n - 0.5, f' = f/n."""
        focal, centre = self.intrinsics[:, :2] / factor, (self.intrinsics[:, 2:] + 0.5) / factor - 0.5
        return Views(
            self.world_from_camera,
            torch.cat([focal, centre], dim=1),
            self.scene,
            self.width // factor,
            self.height // factor,
        )

    def axes(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised coordinates x/z of the columns (I, W) and y/z of the rows (I, H)."""
        fx, fy, cx, cy = self.intrinsics.T[:, :, None]
        x = torch.arange(self.width, dtype=torch.float64, device=cx.device)
        y = torch.arange(self.height, dtype=torch.float64, device=cx.device)
        return ((x - cx) / fx).to(dtype), ((y - cy) / fy).to(dtype)


def views_of(
    camera: Camera,
    world_from_camera: ArrayLike,
    scene: ArrayLike | None = None,
    device: torch.device | str = 'cpu',
) -> Views:
    """Views of one undistorted camera at poses (I, 4, 4) or (4, 4); `scene` (I,) defaults to the first scene.

    Raises CalibrationError for a camera with lens distortion: the rays are those of a pinhole.
    """
    if camera.distorted:
        raise CalibrationError('the simulation renders pinhole cameras only: leave out the distortion coefficients')
    poses = torch.as_tensor(np.array(world_from_camera, dtype=np.float64).reshape(-1, 4, 4), device=device)
    count = len(poses)
    intrinsics = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], dtype=torch.float64, device=device)
    index = torch.zeros(count, dtype=torch.int64) if scene is None else torch.as_tensor(np.asarray(scene)).long()
    return Views(poses, intrinsics.repeat(count, 1), index.to(device), camera.width, camera.height)


@dataclass(eq=False)
class Hits:
    """What every pixel sees; filled in by the tracers, nearest surface last.

    Attributes
    ----------
    depth: (I, H, W) distance along the optical axis in metres, infinity where nothing is hit.
    normal: (I, 3, H, W) unit normal towards free space in the optical frame.
    uv: (I, 2, H, W) metres along the surface, in object coordinates.
    material: (I, H, W) int64 row of the scene's Materials.

    """

    depth: Tensor
    normal: Tensor
    uv: Tensor
    material: Tensor


def empty_hits(views: Views, dtype: torch.dtype) -> Hits:
    """Buffers in which nothing has been hit yet."""
    shape, device = (len(views), views.height, views.width), views.intrinsics.device
    return Hits(
        depth=torch.full(shape, torch.inf, dtype=dtype, device=device),
        normal=torch.zeros((shape[0], 3, *shape[1:]), dtype=dtype, device=device),
        uv=torch.zeros((shape[0], 2, *shape[1:]), dtype=dtype, device=device),
        material=torch.zeros(shape, dtype=torch.int64, device=device),
    )
