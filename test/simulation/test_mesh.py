# SPDX-License-Identifier: Apache-2.0
"""A small .glb made here: a box room of 6 x 5 x 3 m under a node transform, with a picture on its walls."""

import importlib.util
import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from simulation_helpers import shared_data

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.simulation.gltf import read_glb
from dark3r_ros.simulation.paths import look_along
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.simulation.views import views_of

needs_open3d = pytest.mark.skipif(importlib.util.find_spec('open3d') is None, reason='needs open3d')
CAMERA = Camera(160, 120, 90.0, 90.0, 79.5, 59.5)
HALF = np.array([3.0, 2.5, 1.5])
ORIGIN = np.array([10.0, -4.0, 1.5])


def picture() -> np.ndarray:
    """64 x 64 sRGB: four plain quarters, red at the top left, green at the top right, blue below, white."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :32, 0], image[:32, 32:, 1], image[32:, :32, 2], image[32:, 32:] = 255, 255, 255, 255
    return image


def box_glb(path: Path) -> Path:
    """Unit cube [-1, 1]^3, each face with the whole picture, scaled and moved by two nested nodes."""
    positions, uvs, indices = [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                point = np.zeros(3)
                point[axis], point[u], point[v] = sign, a, b
                positions.append(point)
                uvs.append([(a + 1) / 2, (b + 1) / 2])
            start = len(positions) - 4
            indices += [start, start + 1, start + 2, start, start + 2, start + 3]
    png = cv2.imencode('.png', picture()[..., ::-1])[1].tobytes()
    blobs = [
        np.array(positions, '<f4').tobytes(),
        np.array(uvs, '<f4').tobytes(),
        np.array(indices, '<u2').tobytes(),
        png,
    ]
    views, binary = [], b''
    for blob in blobs:
        views.append({'buffer': 0, 'byteOffset': len(binary), 'byteLength': len(blob)})
        binary += blob + b'\0' * (-len(blob) % 4)
    document = {
        'asset': {'version': '2.0'},
        'scene': 0,
        'scenes': [{'nodes': [0]}],
        'nodes': [
            {'translation': ORIGIN.tolist(), 'rotation': [0, 0, np.sqrt(0.5), np.sqrt(0.5)], 'children': [1]},
            {'matrix': np.diag([HALF[1], HALF[0], HALF[2], 1.0]).T.ravel().tolist(), 'mesh': 0},
        ],
        'meshes': [{'primitives': [{'attributes': {'POSITION': 0, 'TEXCOORD_0': 1}, 'indices': 2, 'material': 0}]}],
        'materials': [
            {'pbrMetallicRoughness': {'baseColorTexture': {'index': 0}, 'baseColorFactor': [0.5, 0.5, 0.5, 1]}}
        ],
        'textures': [{'source': 0}],
        'images': [{'bufferView': 3, 'mimeType': 'image/png'}],
        'accessors': [
            {'bufferView': 0, 'componentType': 5126, 'count': 24, 'type': 'VEC3'},
            {'bufferView': 1, 'componentType': 5126, 'count': 24, 'type': 'VEC2'},
            {'bufferView': 2, 'componentType': 5123, 'count': 36, 'type': 'SCALAR'},
        ],
        'bufferViews': views,
        'buffers': [{'byteLength': len(binary)}],
    }
    text = json.dumps(document).encode()
    text += b' ' * (-len(text) % 4)
    chunks = struct.pack('<I4s', len(text), b'JSON') + text + struct.pack('<I4s', len(binary), b'BIN\0') + binary
    path.write_bytes(struct.pack('<4sII', b'glTF', 2, 12 + len(chunks)) + chunks)
    return path


def test_nodes_textures_and_factors_are_honoured(tmp_path: Path) -> None:
    mesh = read_glb(box_glb(tmp_path / 'box.glb'))
    np.testing.assert_allclose(mesh.vertices.min(0), ORIGIN - HALF, atol=1e-6)
    np.testing.assert_allclose(mesh.vertices.max(0), ORIGIN + HALF, atol=1e-6)
    assert len(mesh.triangles) == 12 and set(mesh.material) == {0}
    assert np.array_equal(mesh.images[0], picture())
    np.testing.assert_allclose(mesh.colours[0], 0.5)


def test_broken_meshes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='cannot read'):
        read_glb(tmp_path / 'none.glb')
    whole = box_glb(tmp_path / 'box.glb').read_bytes()
    for name, content in (
        ('text', b'hello world, this is no mesh'),
        ('short', whole[: len(whole) // 3]),
        ('cut', whole[:-200]),
    ):
        path = tmp_path / f'{name}.glb'
        path.write_bytes(content)
        with pytest.raises(DataError, match=f'{name}.glb'):
            read_glb(path)


@needs_open3d
def test_depth_colour_and_normals_of_a_mesh_are_exact(tmp_path: Path) -> None:
    from dark3r_ros.simulation.build import make_light
    from dark3r_ros.simulation.mesh import load_mesh

    world = load_mesh(box_glb(tmp_path / 'box.glb'), make_light('ambient', vignetting=0.0))
    pose = np.eye(4)
    pose[:3, :3] = look_along([1.0, 0.2, -0.1])[0]
    pose[:3, 3] = ORIGIN + (-1.0, 0.3, 0.2)
    image = world.render(views_of(CAMERA, pose))
    rays = np.stack(np.meshgrid((np.arange(160) - 79.5) / 90.0, (np.arange(120) - 59.5) / 90.0), -1)
    rays = np.concatenate([rays, np.ones((120, 160, 1))], -1) @ pose[:3, :3].T
    walls = (np.sign(rays) * HALF - (pose[:3, 3] - ORIGIN)) / rays
    np.testing.assert_allclose(image.depth[0].numpy(), walls.min(-1), rtol=1e-5)
    face = walls.argmin(-1)
    normal = image.normal[0].permute(1, 2, 0).numpy() @ pose[:3, :3].T
    expected = -np.sign(rays) * np.eye(3)[face]
    assert np.quantile((normal * expected).sum(-1), 0.01) > 0.999
    # Wall x = +3: the node's turn by 90 degrees brings the face y = -1 of the cube there; u runs along z, v along x.
    points = pose[:3, 3] + rays * walls.min(-1)[..., None] - ORIGIN
    wall = (face == 0) & (rays[..., 0] > 0)
    colour = image.radiance[0].permute(1, 2, 0).numpy()
    u, v = (points[..., 2] / HALF[2] + 1) / 2, (points[..., 1] / HALF[1] + 1) / 2
    for low_u, low_v, channels in ((True, True, (1, 0, 0)), (False, True, (0, 1, 0)), (True, False, (0, 0, 1))):
        quarter = wall & (np.abs(u - (0.25 if low_u else 0.75)) < 0.2) & (np.abs(v - (0.25 if low_v else 0.75)) < 0.2)
        assert quarter.sum() > 40
        seen = colour[quarter].mean(0)
        np.testing.assert_allclose(seen / seen.max(), channels, atol=0.05)


@needs_open3d
def test_a_walk_through_a_mesh_is_free_of_collisions(tmp_path: Path) -> None:
    path = box_glb(tmp_path / 'box.glb')
    config = SimulationConfig(scene=str(path), width=320, height=240, seconds=20.0, rate=1.0, light='both', clean=True)
    simulation = simulate(config)
    centres = simulation.world.path(np.linspace(0.0, 20.0, 200))[:, :3, 3]
    assert (np.abs(centres - ORIGIN) < HALF - 0.25).all()
    assert np.linalg.norm(centres - centres[0], axis=1).max() > 1.0
    speed = np.linalg.norm(np.diff(centres, axis=0), axis=1) / 0.1005
    assert speed.max() < 1.5
    made = simulation.photograph(5)
    assert made.depth is not None and made.depth.min() > 0.2 and made.frame.mosaic.std() > 10
    with pytest.raises(ConfigError, match='handheld'):
        simulate(SimulationConfig(scene=str(path), path='loop'))


@needs_open3d
def test_a_shared_mesh_can_be_walked_through() -> None:
    path = shared_data() / 'meshes' / 'aws_small_warehouse.glb'
    if not path.is_file():
        pytest.skip('the development data are not here')
    simulation = simulate(SimulationConfig(scene=str(path), width=320, height=240, seconds=4.0, rate=1.0, light='both'))
    made = simulation.photograph(2)
    assert made.depth is not None and np.isfinite(made.depth).mean() > 0.9 and made.depth.min() > 0.2
