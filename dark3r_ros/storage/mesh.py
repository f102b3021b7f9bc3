# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes as PLY: binary little endian, coloured vertices and triangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.storage.files import replacing

_VERTEX = np.dtype([('position', '<f4', 3), ('color', 'u1', 3)])
_FACE = np.dtype([('count', 'u1'), ('corners', '<i4', 3)])


def write_mesh_ply(
    path: Path | str, vertices: NDArray[np.float32], colors: NDArray[np.uint8], triangles: NDArray[np.int32]
) -> None:
    """Write vertices (N, 3) with colours (N, 3) and triangles (M, 3); OutputError when the place cannot be written."""
    points = np.empty(len(vertices), _VERTEX)
    points['position'], points['color'] = vertices, colors
    faces = np.empty(len(triangles), _FACE)
    faces['count'], faces['corners'] = 3, triangles
    header = [
        'ply',
        'format binary_little_endian 1.0',
        f'element vertex {len(points)}',
        *(f'property float {axis}' for axis in 'xyz'),
        *(f'property uchar {color}' for color in ('red', 'green', 'blue')),
        f'element face {len(faces)}',
        'property list uchar int vertex_indices',
        'end_header',
    ]
    with replacing(path) as stream:
        stream.write('\n'.join([*header, '']).encode())
        stream.write(points.tobytes())
        stream.write(faces.tobytes())
