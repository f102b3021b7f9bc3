# SPDX-License-Identifier: Apache-2.0
"""`mini`: a small convolutional network that describes one dark image at two scales.

Descriptors at 1/8 of the image say what is where; descriptors at 1/2 say exactly where. Both come from one U-shaped
pyramid down to 1/32, so that even the fine ones have seen enough of the image to look through its noise. A third
output is the chance that a match of a fine pixel will be right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dark3r_ros.config import Config, from_mapping, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError

HEADER_KEY = 'dark3r_mini'
BUNDLED = Path(__file__).parent / 'weights_mini' / 'mini.safetensors'
COARSE, FINE, SMALLEST = 8, 2, 32  # pixels per coarse and per fine descriptor; image sides are padded to SMALLEST


@dataclass(frozen=True)
class MiniConfig(Config):
    """Sizes of the network."""

    stem: int = setting(24, 'Channels at 1/2.', minimum=4, maximum=256)
    quarter: int = setting(48, 'Channels at 1/4.', minimum=4, maximum=512)
    eighth: int = setting(80, 'Channels at 1/8.', minimum=4, maximum=512)
    sixteenth: int = setting(112, 'Channels at 1/16.', minimum=4, maximum=512)
    thirtysecond: int = setting(160, 'Channels at 1/32.', minimum=4, maximum=512)
    coarse_dim: int = setting(64, 'Length of a coarse descriptor.', minimum=4, maximum=512)
    fine_dim: int = setting(24, 'Length of a fine descriptor.', minimum=4, maximum=256)


@dataclass(frozen=True, eq=False)
class MiniOutput:
    """What the network says of a batch of images.

    Attributes
    ----------
    coarse: (B, C, H/8, W/8) descriptors of unit length. fine: (B, F, H/2, W/2) the same.
    reliability: (B, H/2, W/2) logit of the chance that a match of this pixel is right.

    """

    coarse: Tensor
    fine: Tensor
    reliability: Tensor


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


class _Up(nn.Module):
    """Add what a coarser level knows to a finer one."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(coarse, fine, 1, bias=False)
        self.merge = _conv(fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        raised = functional.interpolate(self.project(coarse), scale_factor=2, mode='bilinear', align_corners=False)
        return self.merge(fine + raised)


class MiniNetwork(nn.Module):
    """Normalised planes (B, 3, H, W), both sides multiples of 32, to `MiniOutput`."""

    def __init__(self, config: MiniConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MiniConfig()
        self.stage2 = _conv(3, c.stem, 5, 2)
        self.stage4 = nn.Sequential(_conv(c.stem, c.quarter, 3, 2), _Residual(c.quarter))
        self.stage8 = nn.Sequential(_conv(c.quarter, c.eighth, 3, 2), _Residual(c.eighth), _Residual(c.eighth))
        self.stage16 = nn.Sequential(_conv(c.eighth, c.sixteenth, 3, 2), _Residual(c.sixteenth), _Residual(c.sixteenth))
        self.stage32 = nn.Sequential(_conv(c.sixteenth, c.thirtysecond, 3, 2), _Residual(c.thirtysecond))
        self.up16 = _Up(c.thirtysecond, c.sixteenth)
        self.up8 = _Up(c.sixteenth, c.eighth)
        self.up4 = _Up(c.eighth, c.quarter)
        self.up2 = _Up(c.quarter, c.stem)
        self.coarse_head = nn.Conv2d(c.eighth, c.coarse_dim, 1)
        self.fine_head = nn.Sequential(_conv(c.stem, c.fine_dim), nn.Conv2d(c.fine_dim, c.fine_dim + 1, 1))
        # Logarithms of the inverse temperatures of the two similarities.
        self.coarse_scale = nn.Parameter(torch.tensor(2.66))
        self.fine_scale = nn.Parameter(torch.tensor(2.3))
        # A quarter faster on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> MiniOutput:
        """Describe normalised planes (B, 3, H, W)."""
        # Lamps and reflections lie many spreads from the mean; the logarithmic flanks keep their detail in range.
        half = self.stage2(torch.asinh(image).contiguous(memory_format=torch.channels_last))
        quarter = self.stage4(half)
        eighth = self.stage8(quarter)
        sixteenth = self.stage16(eighth)
        sixteenth = self.up16(self.stage32(sixteenth), sixteenth)
        eighth = self.up8(sixteenth, eighth)
        quarter = self.up4(eighth, quarter)
        fine = self.fine_head(self.up2(quarter, half))
        coarse = functional.normalize(self.coarse_head(eighth), dim=1)
        return MiniOutput(coarse, functional.normalize(fine[:, :-1], dim=1), fine[:, -1])

    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.parameters())


def pad_image(image: Tensor) -> Tensor:
    """Mirror images (B, 3, h, w) at their right and lower borders up to multiples of 32.

    Raises DataError for images too small to mirror.
    """
    height, width = image.shape[2:]
    if min(height, width) < SMALLEST:
        raise DataError(f'the planes are {width}x{height}; `mini` needs {SMALLEST} pixels a side: use less binning')
    padding = (0, -width % SMALLEST, 0, -height % SMALLEST)
    return functional.pad(image, padding, mode='reflect') if any(padding) else image


def save_mini(path: Path, network: MiniNetwork, header: Mapping[str, Any]) -> None:
    """Write a network in half precision as safetensors; the header says where it comes from.

    `header` holds at least commit, data and licence; the architecture is added.
    """
    state = {
        name: value.detach().cpu().to(torch.float16).contiguous() if value.is_floating_point() else value.cpu()
        for name, value in network.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    content = {**header, 'architecture': {'name': 'mini', **to_mapping(network.config)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={HEADER_KEY: json.dumps(content, sort_keys=True)})


def read_mini_header(path: Path) -> dict[str, Any]:
    """Header of a weight file of `mini`; DataError where it is not one."""
    try:
        with safe_open(path, framework='pt') as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
    except (OSError, SafetensorError) as error:
        raise DataError(f'cannot read the weights {path}: {error}') from error
    if text is None:
        raise DataError(f'{path} holds no weights of `mini`: its header lacks {HEADER_KEY!r}')
    return dict(json.loads(text))


def load_mini(path: Path = BUNDLED) -> tuple[MiniNetwork, str]:
    """Network in evaluation mode, in float32, and the hash of its file.

    Raises DataError for a file that is missing, damaged, or of another architecture.
    """
    header = read_mini_header(path)
    architecture = {key: value for key, value in header['architecture'].items() if key != 'name'}
    try:
        network = MiniNetwork(from_mapping(MiniConfig, architecture))
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (ConfigError, SafetensorError) as error:
        raise DataError(f'cannot use the weights {path}: {error}') from error
    counters = {key for key in network.state_dict() if key.endswith('num_batches_tracked')}
    wrong = (set(network.state_dict()) - counters) ^ set(state)
    if wrong:
        raise DataError(f'the weights {path} do not fit their architecture: {sorted(wrong)[0]}')
    network.load_state_dict(state, strict=False)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return network.eval().requires_grad_(False), digest
