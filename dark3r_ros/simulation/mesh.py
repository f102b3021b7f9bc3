# SPDX-License-Identifier: Apache-2.0
"""Textured meshes (.glb) photographed through Open3D's ray casting, z up and metres as in robot simulators.

Open3D is an optional package. Depth, light and textures are those of the analytic scenes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.errors import DataError
from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.simulation.build import make_light
from dark3r_ros.simulation.gltf import TexturedMesh, read_glb
from dark3r_ros.simulation.paths import Path
from dark3r_ros.simulation.render import Rendering, irradiance
from dark3r_ros.simulation.scene import Light
from dark3r_ros.simulation.texture import TextureBank, bank_from_textures, srgb_to_linear
from dark3r_ros.simulation.views import Views

_TEXTURE_SIZE = 512


@dataclass(frozen=True, eq=False)
class MeshWorld:
    """A mesh that is rendered by casting rays, with the path of a camera.

    Attributes
    ----------
    rays: Open3D's RaycastingScene. mesh: the triangles. bank: one texture per material.
    density: (T,) tiles of texture per metre, for the choice of the mip level.
    light: lights of the one scene. path: poses over time.

    """

    rays: Any
    mesh: TexturedMesh
    bank: TextureBank
    density: NDArray[np.float32]
    light: Light
    path: Path

    def depth(self, views: Views) -> Tensor:
        """Depth (I, H, W), infinity where nothing is hit."""
        return torch.stack([torch.from_numpy(self._cast(views, i)['t_hit'].numpy()) for i in range(len(views))])

    def render(self, views: Views) -> Rendering:
        """Radiance, depth and normals of views; materials are double-sided."""
        parts = [self._render(views[i : i + 1]) for i in range(len(views))]
        return Rendering(*(torch.cat([getattr(p, name) for p in parts]) for name in ('radiance', 'depth', 'normal')))

    def _cast(self, views: Views, number: int) -> Any:
        x, y = (axis[0].numpy() for axis in views[number : number + 1].axes(torch.float64))
        pose = views.world_from_camera[number].numpy()
        plane = np.stack([*np.meshgrid(x, y), np.ones((views.height, views.width))], axis=-1)
        direction = plane @ pose[:3, :3].T
        origin = np.broadcast_to(pose[:3, 3], direction.shape)
        core = import_open3d().core
        return self.rays.cast_rays(core.Tensor(np.concatenate([origin, direction], -1).astype(np.float32)), 1)

    def _render(self, view: Views) -> Rendering:
        answer = {key: value.numpy() for key, value in self._cast(view, 0).items()}
        depth = answer['t_hit']
        found = np.isfinite(depth)
        triangle = answer['primitive_ids'][found].astype(np.int64)
        normal = np.zeros((*depth.shape, 3), dtype=np.float32)
        x, y = view.axes(torch.float32)
        rotation = view.world_from_camera[0, :3, :3].numpy()
        normal[found] = answer['primitive_normals'][found] @ rotation
        ray = np.stack([*np.meshgrid(x[0].numpy(), y[0].numpy()), np.ones_like(depth)], axis=-1)
        away = (normal * ray).sum(-1)
        normal[away > 0] *= -1.0
        facing = np.abs(away) / np.linalg.norm(ray, axis=-1)
        footprint = depth / float(view.intrinsics[0, 0]) / np.maximum(facing, 0.05) ** 0.7
        albedo = torch.zeros((3, *depth.shape))
        albedo[:, torch.from_numpy(found)] = self._albedo(triangle, answer['primitive_uvs'][found], footprint[found])
        normals = torch.from_numpy(normal).permute(2, 0, 1)[None]
        near = torch.from_numpy(np.where(found, depth, 1.0))[None]
        shade = irradiance(self.light, view, normals, near, x, y) * torch.from_numpy(found)
        return Rendering(albedo[None] * shade[:, None] / math.pi, torch.from_numpy(depth)[None], normals)

    def _albedo(
        self, triangle: NDArray[np.int64], barycentric: NDArray[np.float32], size: NDArray[np.float32]
    ) -> Tensor:
        """Reflectance (3, N) at barycentric coordinates (N, 2) of triangles, for pixels of `size` metres."""
        corners = self.mesh.uv[self.mesh.triangles[triangle]]
        b, c = barycentric[:, :1], barycentric[:, 1:]
        uv = torch.from_numpy(corners[:, 0] * (1 - b - c) + corners[:, 1] * b + corners[:, 2] * c)
        material = self.mesh.material[triangle]
        texels = torch.from_numpy(np.maximum(size * self.density[triangle] * self.bank.size, 1e-3))
        colour = self.bank.sample(torch.from_numpy(material), uv[:, 0], uv[:, 1], torch.log2(texels))
        return colour * torch.from_numpy(self.mesh.colours[material].T.astype(np.float32))


def load_mesh(path: FilePath | str, light: Light, route: Path | None = None) -> MeshWorld:
    """Read a .glb; without a route the camera stands still in the middle of the bounds."""
    mesh = read_glb(path)
    o3d = import_open3d()
    rays = o3d.t.geometry.RaycastingScene()
    rays.add_triangles(
        o3d.core.Tensor(mesh.vertices.astype(np.float32)), o3d.core.Tensor(mesh.triangles.astype(np.uint32))
    )
    textures = [_texture(image) for image in mesh.images]
    still = np.eye(4)
    still[:3, 3] = 0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0))
    standing = route or (lambda time: np.repeat(still[None], len(time), axis=0))
    return MeshWorld(rays, mesh, bank_from_textures(textures), _density(mesh), light, standing)


def _texture(image: NDArray[np.uint8] | None) -> Tensor:
    if image is None:
        return torch.ones(3, _TEXTURE_SIZE, _TEXTURE_SIZE)
    linear = srgb_to_linear(image)
    shrinks = min(image.shape[:2]) > _TEXTURE_SIZE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return torch.from_numpy(cv2.resize(linear, (_TEXTURE_SIZE, _TEXTURE_SIZE), interpolation=method)).permute(2, 0, 1)


def _density(mesh: TexturedMesh) -> NDArray[np.float32]:
    """Square root of texture area over surface area of each triangle (T,), tiles per metre."""
    a, b, c = (mesh.vertices[mesh.triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    u, v, w = (mesh.uv[mesh.triangles[:, k]].astype(np.float64) for k in range(3))
    first, second = v - u, w - u
    tiles = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])
    return np.sqrt(tiles / np.maximum(area, 1e-12)).astype(np.float32)


def mesh_world(path: FilePath | str, seed: int, *, light: str, speed: float, seconds: float) -> MeshWorld:
    """World of a .glb with a hand-held path through its free space; DataError where there is no room for one."""
    from dark3r_ros.simulation.free_path import FreeSpace

    world = load_mesh(path, make_light(light))
    space = FreeSpace(world.rays, world.mesh.vertices.min(0), world.mesh.vertices.max(0))
    route = space.route(seed, speed=speed, seconds=seconds)
    if route is None:
        raise DataError(f'{path}: no free path of half a metre clearance was found inside the mesh (z up, metres?)')
    return MeshWorld(world.rays, world.mesh, world.bank, world.density, world.light, route)
