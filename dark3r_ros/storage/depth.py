# SPDX-License-Identifier: Apache-2.0
"""Depth maps of a reconstruction: `depth/NAME.npz` with depth and confidence, `depth/NAME.png` with 16-bit counts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from dark3r_ros.storage.colmap import frame_name
from dark3r_ros.storage.files import replacing
from dark3r_ros.types import DepthMap, Reconstruction

FOLDER = 'depth'


def depth_unit(maps: Mapping[int, DepthMap]) -> float:
    """Counts per unit of the poses: 5000, as usual for metres, or what the largest depth leaves room for."""
    largest = max((float(one.depth.max(initial=0.0)) for one in maps.values()), default=0.0)
    return 5000.0 if largest * 5000.0 < 65535.0 else 65535.0 / largest


def write_depths(folder: Path, reconstruction: Reconstruction, maps: Mapping[int, DepthMap]) -> dict[int, str]:
    """Write the maps by number of their frame; returns their PNG files relative to the result folder.

    PNG counts are depth times `depth_unit`, 0 where it is unknown. Raises OutputError (unwritable, full disk).
    """
    unit = depth_unit(maps)
    files = {}
    if maps:
        (folder / FOLDER).mkdir(exist_ok=True)
    for number, one in sorted(maps.items()):
        stem = Path(frame_name(reconstruction.frames[number])).stem
        buffer = io.BytesIO()
        np.savez_compressed(buffer, depth=one.depth.astype(np.float32), confidence=one.confidence.astype(np.float16))
        with replacing(folder / FOLDER / f'{stem}.npz') as stream:
            stream.write(buffer.getvalue())
        counts = np.clip(np.rint(one.depth * unit), 0, 65535).astype(np.uint16)
        _, encoded = cv2.imencode('.png', counts)
        with replacing(folder / FOLDER / f'{stem}.png') as stream:
            stream.write(encoded.tobytes())
        files[number] = f'{FOLDER}/{stem}.png'
    return files
