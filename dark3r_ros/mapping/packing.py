# SPDX-License-Identifier: Apache-2.0
"""Features of any predictor as bytes and back: a line of JSON, then the arrays, one after the other.

Features are dataclasses of tensors, arrays, numbers and tuples of numbers. Nothing that is read is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch

from dark3r_ros.errors import DataError
from dark3r_ros.matching.classical import ClassicalFeatures
from dark3r_ros.matching.learned import EncodedFrame
from dark3r_ros.matching.mini import MiniFeatures
from dark3r_ros.model.predictor import Features

FeatureTypes = Mapping[str, Callable[..., Any]]

FEATURE_TYPES: FeatureTypes = {kind.__name__: kind for kind in (MiniFeatures, ClassicalFeatures, EncodedFrame)}


def pack(features: Features) -> bytes:
    """Bytes that `unpack` makes the same features of."""
    head: dict[str, Any] = {'type': type(features).__name__, 'fields': []}
    parts: list[bytes] = []
    for item in fields(cast(Any, features)):
        value = getattr(features, item.name)
        if isinstance(value, torch.Tensor):
            array, kind = value.detach().cpu().contiguous().numpy(), 'tensor'
        elif isinstance(value, np.ndarray):
            array, kind = np.ascontiguousarray(value), 'array'
        else:
            head['fields'].append({'name': item.name, 'kind': 'plain', 'value': value})
            continue
        head['fields'].append({'name': item.name, 'kind': kind, 'dtype': array.dtype.str, 'shape': array.shape})
        parts.append(array.tobytes())
    return json.dumps(head).encode() + b'\n' + b''.join(parts)


def unpack(data: bytes, device: torch.device | str = 'cpu', types: FeatureTypes = FEATURE_TYPES) -> Features:
    """Features from bytes; tensors go to `device`. Raises DataError for bytes that `pack` did not make."""
    try:
        line, _, body = data.partition(b'\n')
        head = json.loads(line)
        values, offset = {}, 0
        for item in head['fields']:
            if item['kind'] == 'plain':
                value = item['value']
                values[item['name']] = tuple(value) if isinstance(value, list) else value
                continue
            dtype, shape = np.dtype(item['dtype']), tuple(item['shape'])
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(body, dtype, count, offset).reshape(shape).copy()
            offset += array.nbytes
            values[item['name']] = torch.from_numpy(array).to(device) if item['kind'] == 'tensor' else array
        return cast(Features, types[head['type']](**values))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'features cannot be read: {error}') from error
