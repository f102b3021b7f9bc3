# SPDX-License-Identifier: Apache-2.0
"""Features of large sets on disk: tensors in a mapped file, which the system loads and drops as memory allows."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TypeVar

import torch

from dark3r_ros.storage.files import output_error

T = TypeVar('T')

_ALIGNMENT = 64


def spilled(features: T, folder: Path) -> T:
    """The same dataclass with its tensors in a file of a folder; the file has no name and goes with the last of them.

    Only tensors on the processor move. OutputError where the disk is full.
    """
    tensors = {
        item.name: value
        for item in dataclasses.fields(features)  # type: ignore[arg-type]
        if isinstance(value := getattr(features, item.name), torch.Tensor) and value.device.type == 'cpu'
    }
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = end
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    if not end:
        return features
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written, not filled through the mapping: a full disk is then an error and not the end of the process.
        with tempfile.NamedTemporaryFile(dir=folder, prefix='features-') as file:
            for name, tensor in tensors.items():
                file.seek(offsets[name])
                file.write(tensor.contiguous().numpy().tobytes())
            file.truncate(end)
            file.flush()
            storage = torch.UntypedStorage.from_file(file.name, True, end)
    except OSError as error:
        raise output_error(folder, error) from error
    moved = {}
    for name, tensor in tensors.items():
        empty = torch.empty(0, dtype=tensor.dtype)
        moved[name] = empty.set_(storage, offsets[name] // tensor.element_size(), tensor.shape)  # type: ignore[call-overload]
    return dataclasses.replace(features, **moved)  # type: ignore[type-var]
