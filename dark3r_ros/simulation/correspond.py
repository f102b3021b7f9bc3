# SPDX-License-Identifier: Apache-2.0
"""True correspondence between views: where a pixel of one image lies in another, and whether it is seen there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from dark3r_ros.simulation.views import Views


@dataclass(frozen=True, eq=False)
class Flow:
    """Correspondence from image a to image b.

    Attributes
    ----------
    pixels: (I, H, W, 2) place x, y in b of every pixel of a; NaN where a sees nothing or the point is behind b.
    depth: (I, H, W) distance of the point along b's optical axis in metres.
    visible: (I, H, W) whether b sees the same point: inside the image and not occluded.

    """

    pixels: Tensor
    depth: Tensor
    visible: Tensor


def true_flow(depth_a: Tensor, views_a: Views, depth_b: Tensor, views_b: Views, tolerance: float = 0.02) -> Flow:
    """Project the true depth (I, H, W) of a into b and compare with the true depth of b there.

    `tolerance` is the relative difference of depth up to which it is the same surface. Depth is compared by its
    inverse, bilinear between pixels, which is exact on planes; at silhouettes pixels count as hidden.
    """
    dtype = depth_a.dtype
    x, y = views_a.axes(torch.float64)
    b_from_a = torch.linalg.inv(views_b.world_from_camera) @ views_a.world_from_camera
    rotation, shift = b_from_a[:, :3, :3], b_from_a[:, :3, 3]
    z = torch.where(torch.isfinite(depth_a), depth_a.to(torch.float64), torch.nan)
    points = torch.stack([x[:, None, :] * z, y[:, :, None] * z, z], dim=-1)
    moved = torch.einsum('ikl,ihwl->ihwk', rotation, points) + shift[:, None, None]
    ahead = moved[..., 2]
    fx, fy, cx, cy = views_b.intrinsics.T[:, :, None, None]
    pixels = torch.stack([moved[..., 0] / ahead * fx + cx, moved[..., 1] / ahead * fy + cy], dim=-1)
    pixels = torch.where((ahead > 1e-6)[..., None], pixels, torch.nan)
    size = torch.tensor([views_b.width - 1, views_b.height - 1], dtype=torch.float64, device=z.device)
    grid = (2.0 * pixels / size - 1.0).nan_to_num(2.0)
    inverse = depth_b.to(torch.float64).reciprocal()[:, None]
    seen = functional.grid_sample(inverse, grid, align_corners=True, padding_mode='border')[:, 0]
    visible = (grid.abs() <= 1.0).all(-1) & ((seen * ahead - 1.0).abs() < tolerance)
    return Flow(pixels.to(dtype), ahead.to(dtype), visible)
