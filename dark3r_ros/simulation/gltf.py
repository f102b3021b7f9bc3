# SPDX-License-Identifier: Apache-2.0
"""Reader of binary glTF 2.0 (.glb) files: triangles, node transforms and base-colour textures.

Source: Khronos glTF 2.0 specification. Read are static triangle meshes with float or normalised texture coordinates
and images inside the file; skins, animations, Draco compression and sparse accessors are refused or ignored.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from dark3r_ros.errors import DataError

_TYPES = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_WIDTHS = {'SCALAR': 1, 'VEC2': 2, 'VEC3': 3, 'VEC4': 4}
_TRIANGLES = 4


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """Triangles of a whole scene.

    Attributes
    ----------
    vertices: (V, 3) float64 world coordinates in the axes of the file.
    uv: (V, 2) float32 texture coordinates, (0, 0) the top-left corner of the image.
    triangles: (T, 3) int64 rows of vertices.
    material: (T,) int64 row of `images` and `colours`.
    images: 8-bit sRGB pictures (h, w, 3), or None for a plain colour.
    colours: (M, 3) linear factors.

    """

    vertices: NDArray[np.float64]
    uv: NDArray[np.float32]
    triangles: NDArray[np.int64]
    material: NDArray[np.int64]
    images: tuple[NDArray[np.uint8] | None, ...]
    colours: NDArray[np.float64]


def read_glb(path: Path | str) -> TexturedMesh:
    """Read all meshes of the default scene; raises DataError when the file is no usable .glb."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'cannot read the mesh {path}: {error.strerror}') from error
    try:
        return _Reader(*_chunks(data)).scene()
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise DataError(f'{path} is damaged or not a binary glTF 2.0 file ({error})') from error


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    magic, version, _ = struct.unpack_from('<4sII', data)
    if magic != b'glTF' or version != 2:
        raise DataError('not a binary glTF 2.0 file')
    offset, document, binary = 12, b'', b''
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from('<I4s', data, offset)
        content = data[offset + 8 : offset + 8 + length]
        if kind == b'JSON':
            document = content
        elif kind == b'BIN\0' and not binary:
            binary = content
        offset += 8 + length
    return json.loads(document), binary


class _Reader:
    def __init__(self, document: dict[str, Any], binary: bytes) -> None:
        self.document = document
        self.binary = binary
        needed = set(document.get('extensionsRequired', ())) - {'KHR_materials_unlit', 'KHR_texture_transform'}
        if needed:
            raise DataError(f'it needs the extension {sorted(needed)[0]}, which is not supported')

    def scene(self) -> TexturedMesh:
        scenes = self.document.get('scenes')
        nodes = self.document.get('nodes', [])
        roots = scenes[self.document.get('scene', 0)]['nodes'] if scenes else range(len(nodes))
        parts: list[tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64], int]] = []
        stack = [(root, np.eye(4)) for root in roots]
        while stack:
            number, world_from_parent = stack.pop()
            node = nodes[number]
            world_from_node = world_from_parent @ _transform(node)
            stack += [(child, world_from_node) for child in node.get('children', ())]
            if 'mesh' in node:
                for primitive in self.document['meshes'][node['mesh']]['primitives']:
                    if primitive.get('mode', _TRIANGLES) == _TRIANGLES:
                        parts.append(self._primitive(primitive, world_from_node))
        if not parts:
            raise DataError('it holds no triangles')
        counts = np.cumsum([0] + [len(part[0]) for part in parts])
        images, colours = self._materials()
        return TexturedMesh(
            vertices=np.concatenate([part[0] for part in parts]),
            uv=np.concatenate([part[1] for part in parts]),
            triangles=np.concatenate([part[2] + start for part, start in zip(parts, counts, strict=False)]),
            material=np.concatenate([np.full(len(part[2]), part[3]) for part in parts]),
            images=images,
            colours=colours,
        )

    def _primitive(
        self, primitive: dict[str, Any], world_from_node: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.int64], int]:
        attributes = primitive['attributes']
        position = self._accessor(attributes['POSITION']).astype(np.float64)
        world = position @ world_from_node[:3, :3].T + world_from_node[:3, 3]
        if 'TEXCOORD_0' in attributes:
            uv = self._accessor(attributes['TEXCOORD_0']).astype(np.float32)
        else:
            uv = np.zeros((len(position), 2), dtype=np.float32)
        if 'indices' in primitive:
            index = self._accessor(primitive['indices']).reshape(-1).astype(np.int64)
        else:
            index = np.arange(len(position), dtype=np.int64)
        # The last material is the plain one of primitives that name none.
        material = primitive.get('material', len(self.document.get('materials', ())))
        return world, uv, index[: len(index) // 3 * 3].reshape(-1, 3), int(material)

    def _accessor(self, number: int) -> NDArray[Any]:
        accessor = self.document['accessors'][number]
        if 'sparse' in accessor or 'bufferView' not in accessor:
            raise DataError('it uses sparse accessors, which are not supported')
        view = self.document['bufferViews'][accessor['bufferView']]
        kind = np.dtype(_TYPES[accessor['componentType']]).newbyteorder('<')
        width, count = _WIDTHS[accessor['type']], accessor['count']
        start = view.get('byteOffset', 0) + accessor.get('byteOffset', 0)
        stride = view.get('byteStride') or width * kind.itemsize
        if start + (count - 1) * stride + width * kind.itemsize > len(self.binary):
            raise DataError('its data is cut off')
        values = np.ndarray((count, width), kind, self.binary, start, (stride, kind.itemsize))
        if accessor.get('normalized'):  # texture coordinates may be unsigned only
            return values.astype(np.float32) / (2.0 ** (8 * kind.itemsize) - 1.0)
        return values

    def _materials(self) -> tuple[tuple[NDArray[np.uint8] | None, ...], NDArray[np.float64]]:
        images: list[NDArray[np.uint8] | None] = []
        colours = []
        for material in [*self.document.get('materials', ()), {}]:
            surface = material.get('pbrMetallicRoughness', {})
            colours.append(surface.get('baseColorFactor', (1.0, 1.0, 1.0, 1.0))[:3])
            texture = surface.get('baseColorTexture')
            images.append(None if texture is None else self._image(texture['index']))
        return tuple(images), np.array(colours, dtype=np.float64)

    def _image(self, texture: int) -> NDArray[np.uint8]:
        image = self.document['images'][self.document['textures'][texture]['source']]
        if 'bufferView' not in image:
            raise DataError('its images lie outside the file, which is not supported')
        view = self.document['bufferViews'][image['bufferView']]
        start = view.get('byteOffset', 0)
        content = np.frombuffer(self.binary, np.uint8, view['byteLength'], start)
        picture = cv2.imdecode(content, cv2.IMREAD_COLOR)
        if picture is None:
            raise DataError('one of its images cannot be decoded')
        return np.ascontiguousarray(picture[:, :, ::-1])


def _transform(node: dict[str, Any]) -> NDArray[np.float64]:
    """Matrix (4, 4) parent_from_node."""
    if 'matrix' in node:
        return np.array(node['matrix'], dtype=np.float64).reshape(4, 4).T
    result = np.eye(4)
    rotation = Rotation.from_quat(node.get('rotation', (0.0, 0.0, 0.0, 1.0))).as_matrix()
    result[:3, :3] = rotation * np.asarray(node.get('scale', (1.0, 1.0, 1.0)), dtype=np.float64)
    result[:3, 3] = node.get('translation', (0.0, 0.0, 0.0))
    return result
