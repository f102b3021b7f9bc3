# SPDX-License-Identifier: Apache-2.0
"""The surface of a field as a triangle mesh: depths rendered from many places, fused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.surface import DepthView, Mesh, fuse_surface
from dark3r_ros.nerf.fieldfile import FieldInfo
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.output import scaled
from dark3r_ros.nerf.rays import lens_of
from dark3r_ros.nerf.render import ToneMap, render_view

_WIDTH = 320  # of the depths that are fused
_OPAQUE = 0.8
_BEYOND = 0.1  # of the box: what lies farther out is contracted and known coarsely


def fused_mesh(
    model: RadianceModel, info: FieldInfo, tone: ToneMap, poses: Iterable[NDArray[np.float64]], cells: int = 256
) -> Mesh:
    """Mesh of the depths seen from poses, with voxels of which `cells` go along the longest side of the box.

    Only what stops the ray inside the box counts. Raises DependencyError without Open3D and ReconstructionError where
    nothing does.
    """
    camera = scaled(info.camera.pinhole(), min(1.0, _WIDTH / info.camera.width))
    lens = lens_of(camera).to(model.frames.offset.device)
    local = (lens.directions / lens.directions[:, 2:]).cpu().numpy().astype(np.float64)
    reach = (1.0 + _BEYOND) * np.array(info.box.half)

    def seen() -> Iterator[DepthView]:
        for pose in poses:
            picture = render_view(model, camera, pose, lens)
            depth = picture.depth.ravel()
            world = (local * depth[:, None]) @ pose[:3, :3].T + pose[:3, 3]
            inside = (np.abs(world - info.box.centre) <= reach).all(axis=1)
            sure = inside & (picture.opacity.ravel() > _OPAQUE)
            known = np.where(sure, depth, 0.0).astype(np.float32).reshape(picture.depth.shape)
            yield DepthView(known, tone(picture.radiance), camera.matrix, pose)

    return fuse_surface(seen(), info.box.scale * 2.0 / cells)
