# SPDX-License-Identifier: Apache-2.0
"""Files of a field folder: `field.safetensors` to render from, `checkpoint.safetensors` to go on training from.

Both are written as a whole or not at all, and hold plain tensors with a JSON header; nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dark3r_ros.config import from_mapping, to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.box import SceneBox
from dark3r_ros.nerf.config import NerfConfig
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.views import Views
from dark3r_ros.storage.files import replacing

FIELD_FILE = 'field.safetensors'
CHECKPOINT_FILE = 'checkpoint.safetensors'
FORMAT = 2


@dataclass(frozen=True, eq=False)
class FieldInfo:
    """What a field was made from.

    Attributes
    ----------
    config, box: of the field. camera: intrinsics of the training views.
    world_from_camera: (V, 4, 4) float64, refined where that was asked for. stamps_ns: (V,). names: of the frames.
    held_out: (V,) bool. exposure: (V,) brightness relative to the median frame.
    unit: counts per unit of radiance. white: saturation in units. black_level: counts of R, G, B. metric: metres.

    """

    config: NerfConfig
    box: SceneBox
    camera: Camera
    world_from_camera: NDArray[np.float64]
    stamps_ns: NDArray[np.int64]
    names: tuple[str, ...]
    held_out: NDArray[np.bool_]
    exposure: NDArray[np.float32]
    unit: float
    white: float
    black_level: tuple[float, float, float]
    metric: bool


def info_of(views: Views, config: NerfConfig, box: SceneBox, world_from_camera: NDArray[np.float64]) -> FieldInfo:
    """Description of a field made from these views."""
    return FieldInfo(
        config, box, views.camera, world_from_camera, views.stamps_ns, views.names, views.held_out, views.exposure,
        views.unit, views.white, views.black_level, views.metric,
    )  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors with a JSON header; OutputError when that fails, the old file then stays."""
    data = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {'dark3r': json.dumps(header)}
    )
    with replacing(path) as stream:
        stream.write(data)


def read_tensors(path: Path, device: str = 'cpu') -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `write_tensors` wrote; DataError when the file is missing, foreign or broken."""
    try:
        with safe_open(str(path), framework='pt', device=device) as file:
            header = json.loads((file.metadata() or {})['dark3r'])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f'{path} does not exist: make a field with `dark3r nerf train`') from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f'{path} is no readable field ({str(error) or type(error).__name__})') from error


def write_field(folder: Path, state: Mapping[str, Tensor], info: FieldInfo, extra: dict[str, Any]) -> None:
    """Write `field.safetensors`: the weights to render with and all that a renderer needs to know."""
    tensors = {f'model.{name}': value for name, value in state.items()}
    tensors['views.world_from_camera'] = torch.from_numpy(info.world_from_camera)
    tensors['views.stamps_ns'] = torch.from_numpy(info.stamps_ns)
    tensors['views.held_out'] = torch.from_numpy(info.held_out)
    tensors['views.exposure'] = torch.from_numpy(info.exposure)
    header = {
        'format': FORMAT,
        'config': to_mapping(info.config),
        'box': dataclasses.asdict(info.box),
        'camera': dataclasses.asdict(info.camera),
        'names': list(info.names),
        'unit': info.unit,
        'white': info.white,
        'black_level': list(info.black_level),
        'metric': info.metric,
        **extra,
    }
    write_tensors(folder / FIELD_FILE, tensors, header)


def read_field(folder: Path | str, device: str = 'cpu') -> tuple[RadianceModel, FieldInfo, dict[str, Any]]:
    """Model ready to render, what it was made from, and the rest of the header; DataError when that fails."""
    path = Path(folder) / FIELD_FILE
    tensors, header = read_tensors(path, device)
    if header.get('format') != FORMAT:
        raise DataError(f'{path} has format {header.get("format")}, this version reads {FORMAT}')
    try:
        views = {name[6:]: value.cpu().numpy() for name, value in tensors.items() if name.startswith('views.')}
        box = SceneBox(tuple(header['box']['centre']), tuple(header['box']['half']), header['box']['margin'])
        camera = Camera(**{**header['camera'], 'distortion': tuple(header['camera']['distortion'])})
        info = FieldInfo(
            from_mapping(NerfConfig, header['config']), box, camera, views['world_from_camera'], views['stamps_ns'],
            tuple(header['names']), views['held_out'], views['exposure'], header['unit'], header['white'],
            tuple(header['black_level']), header['metric'],
        )  # fmt: skip
        model = RadianceModel(info.config, box, len(info.stamps_ns)).to(device)
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith('model.')})
    except (KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise DataError(f'{path} does not fit this version: {" ".join(str(error).split())[:200]}') from error
    model.eval()
    return model, info, header
