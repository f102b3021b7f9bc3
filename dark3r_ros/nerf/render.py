# SPDX-License-Identifier: Apache-2.0
"""Whole pictures from a field, and their tone-mapped form for people."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.box import normalised_poses
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.rays import Lens, lens_of, make_rays
from dark3r_ros.raw.planes import encode_srgb

_CHUNK = {'cpu': 4096, 'cuda': 32768}


@dataclass(frozen=True, eq=False)
class Picture:
    """One rendered view.

    Attributes
    ----------
    radiance: (3, H, W) float32, in units of the field (mean training signal = 1), never negative.
    depth: (H, W) float32 along the optical axis in world units. opacity: (H, W) in 0..1.

    """

    radiance: NDArray[np.float32]
    depth: NDArray[np.float32]
    opacity: NDArray[np.float32]


@torch.no_grad()
def render_view(
    model: RadianceModel, camera: Camera, world_from_camera: ArrayLike, lens: Lens | None = None
) -> Picture:
    """Render what a camera sees from a pose (4, 4); `lens` saves finding the rays again."""
    device = model.frames.offset.device
    lens = lens_of(camera).to(device) if lens is None else lens
    pose = normalised_poses(model.box, world_from_camera)[0].to(device)
    pixels = torch.arange(lens.width * lens.height, device=device)
    colours, depths, opacities = [], [], []
    for part in pixels.split(_CHUNK.get(device.type, 4096)):
        rays = make_rays(lens, pose, part)
        seen = model(rays)
        colours.append(seen.radiance)
        depths.append(seen.distance * rays.local[:, 2] * model.box.scale)
        opacities.append(seen.opacity)
    size = lens.height, lens.width
    return Picture(
        torch.cat(colours).T.reshape(3, *size).cpu().numpy(),
        torch.cat(depths).reshape(size).cpu().numpy(),
        torch.cat(opacities).reshape(size).cpu().numpy(),
    )


@dataclass(frozen=True)
class ToneMap:
    """How linear light becomes a picture: gain per channel, then the sRGB curve with 1 as white."""

    gains: tuple[float, float, float]

    def __call__(self, light: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Picture (H, W, 3) uint8 RGB of linear light (3, H, W); black and white are clipped here and only here."""
        return np.asarray(np.rint(self.encoded(light) * 255.0).transpose(1, 2, 0), dtype=np.uint8)

    def encoded(self, light: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values in 0..1 (3, H, W) after gains, clipping and the sRGB curve."""
        gains = np.array(self.gains, dtype=np.float32)[:, None, None]
        return encode_srgb(np.clip(np.asarray(light, np.float32) * gains, 0.0, 1.0))


def tone_map_for(
    light: NDArray[np.floating], *, white_balance: str = 'auto', exposure: float = 0.0, percentile: float = 98.0
) -> ToneMap:
    """Tone map in which a percentile of linear light (..., 3, H, W) becomes white.

    `white_balance` is `auto` (the three means become equal) or `none`; `exposure` brightens by so many stops.
    """
    planes = np.moveaxis(np.asarray(light, np.float64).reshape(-1, 3, *light.shape[-2:]), 1, 0).reshape(3, -1)
    means = np.maximum(planes.mean(axis=1), 1e-6)
    gains = np.clip(means.max() / means, 0.1, 10.0) if white_balance == 'auto' else np.ones(3)
    white = max(float(np.percentile((planes * gains[:, None]).max(axis=0), percentile)), 1e-6)
    red, green, blue = (float(value) for value in gains / white * 2.0**exposure)
    return ToneMap((red, green, blue))


def depth_picture(
    depth: NDArray[np.floating], low: float | None = None, high: float | None = None
) -> NDArray[np.uint8]:
    """Depth (H, W) as colours (H, W, 3) uint8 RGB, near bright, by inverse depth; unknown (<= 0) black."""
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    inverse = np.where(known, 1.0 / np.where(known, depth, 1.0), 0.0)
    least = 1.0 / high if high else float(np.percentile(inverse[known], 2))
    most = 1.0 / low if low else float(np.percentile(inverse[known], 98))
    scaled = np.clip((inverse - least) / max(most - least, 1e-9), 0.0, 1.0)
    colours = cv2.applyColorMap(np.rint(scaled * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    return np.asarray(np.where(known[..., None], colours, 0), dtype=np.uint8)
