# SPDX-License-Identifier: Apache-2.0
"""Point clouds as PLY: binary little endian, `x y z` float, `red green blue` uchar, `confidence` float."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.storage.files import replacing
from dark3r_ros.types import PointCloud

_DTYPE = np.dtype(
    [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('red', 'u1'), ('green', 'u1'), ('blue', 'u1'), ('confidence', '<f4')]
)
_PLY_TYPES = {
    'char': 'i1', 'int8': 'i1', 'uchar': 'u1', 'uint8': 'u1', 'short': 'i2', 'int16': 'i2', 'ushort': 'u2',
    'uint16': 'u2', 'int': 'i4', 'int32': 'i4', 'uint': 'u4', 'uint32': 'u4', 'float': 'f4', 'float32': 'f4',
    'double': 'f8', 'float64': 'f8',
}  # fmt: skip
_ORDERS = {'binary_little_endian': '<', 'binary_big_endian': '>', 'ascii': '='}


def write_ply(path: Path | str, cloud: PointCloud, comment: str = '') -> None:
    """Write a cloud; OutputError when the place cannot be written."""
    table = np.empty(len(cloud), _DTYPE)
    for column, name in enumerate('xyz'):
        table[name] = cloud.points[:, column]
    for column, name in enumerate(('red', 'green', 'blue')):
        table[name] = cloud.colors[:, column]
    table['confidence'] = cloud.confidence
    names = {'f4': 'float', 'u1': 'uchar'}
    properties = [f'property {names[_DTYPE[name].str[1:]]} {name}' for name in _DTYPE.names or ()]
    comments = [f'comment {" ".join(comment.split())}'] if comment else []
    header = ['ply', 'format binary_little_endian 1.0', *comments, f'element vertex {len(cloud)}', *properties]
    with replacing(path) as stream:
        stream.write('\n'.join([*header, 'end_header', '']).encode())
        stream.write(table.tobytes())


def _read_header(stream: IO[bytes], path: Path) -> tuple[str, int, np.dtype]:
    if stream.readline().strip() != b'ply':
        raise DataError(f'{path} is not a PLY file')
    order, count, element, fields = '', -1, '', []
    for raw in iter(stream.readline, b''):
        words = raw.decode('ascii', errors='replace').split()
        if words[:1] == ['end_header']:
            break
        if words[:1] == ['format']:
            order = words[1]
        elif words[:1] == ['element']:
            element = words[1]
            if element == 'vertex':
                count = int(words[2])
            elif count < 0:
                raise DataError(f'{path}: element {element!r} comes before the vertices, which is not supported')
        elif words[:1] == ['property'] and element == 'vertex':
            if words[1] not in _PLY_TYPES:
                raise DataError(f'{path}: vertex property of type {words[1]!r} is not supported')
            fields.append((words[2], _PLY_TYPES[words[1]]))
    if order not in _ORDERS or count < 0 or not {'x', 'y', 'z'} <= {name for name, _ in fields}:
        raise DataError(f'{path}: the header names no vertices with x, y and z in a known format')
    return order, count, np.dtype([(name, _ORDERS[order] + kind) for name, kind in fields])


def read_ply(path: Path | str) -> PointCloud:
    """Read the vertices of a PLY file (binary or ASCII); colours default to grey, confidence to 1.

    DataError when the file is missing, no PLY, or shorter than its header says.
    """
    path = Path(path)
    try:
        with path.open('rb') as stream:
            order, count, dtype = _read_header(stream, path)
            if order == 'ascii':
                width = len(dtype.names or ())
                rows = [tuple(stream.readline().split()[:width]) for _ in range(count)]
                if any(len(row) < width for row in rows):
                    raise DataError(f'{path} ends before its {count} vertices')
                table = np.array(rows, dtype)
            else:
                data = stream.read(count * dtype.itemsize)
                if len(data) < count * dtype.itemsize:
                    raise DataError(f'{path} is truncated: {len(data) // dtype.itemsize} of {count} vertices are there')
                table = np.frombuffer(data, dtype)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f'cannot read the cloud {path}: {error}') from error
    names = table.dtype.names or ()
    points = np.stack([table[name] for name in 'xyz'], axis=1).astype(np.float32)
    colors = np.full((count, 3), 128, np.uint8)
    if {'red', 'green', 'blue'} <= set(names):
        colors = np.stack([table[name] for name in ('red', 'green', 'blue')], axis=1).astype(np.uint8)
    confidence = table['confidence'].astype(np.float32) if 'confidence' in names else np.ones(count, np.float32)
    return PointCloud(points, colors, confidence)
