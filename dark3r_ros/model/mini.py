# SPDX-License-Identifier: Apache-2.0
"""`mini`: a small network that describes a dark image at two scales, and two images in the light of each other.

Descriptors at 1/8 of the image say what is where; descriptors at 1/2 say exactly where. Both come from one U-shaped
convolutional pyramid down to 1/32, so that even the fine ones have seen enough of the image to look through its noise.
A third output is the chance that a match of a fine pixel will be right.

For a pair, a few attention layers at 1/16 let the views look at each other (`model/cross_view.py`); what they find is
merged into the descriptors at 1/8, together with the chance that the other view sees a cell at all. The pyramid runs
once an image, the attention once a pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from dark3r_ros.config import Config, from_mapping, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.model.cross_view import CrossView
from dark3r_ros.model.half_file import fill_from_half, read_half_header, write_half

HEADER_KEY = 'dark3r_mini'
BUNDLED = Path(__file__).parent / 'weights_mini' / 'mini.safetensors'  # the student
BUNDLED_TEACHER = BUNDLED.with_name('mini_teacher.safetensors')
COARSE, FINE, SMALLEST = 8, 2, 32  # pixels per coarse and per fine descriptor; image sides are padded to SMALLEST
_LARGEST_SCALE = 4.0  # logarithm of the sharpest factor of similarities

N = TypeVar('N', bound=nn.Module)


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
    deep_blocks: int = setting(2, 'Further residual blocks at 1/16 and at 1/32.', minimum=0, maximum=16)
    pair_layers: int = setting(3, 'Cross-view layers at 1/16; 0 leaves every image to itself.', minimum=0, maximum=12)
    pair_width: int = setting(128, 'Length of a token of the cross-view layers.', minimum=16, maximum=512)
    pair_heads: int = setting(4, 'Attention heads.', minimum=1, maximum=16)


@dataclass(frozen=True, eq=False)
class MiniOutput:
    """What the network says of a batch of images.

    Attributes
    ----------
    coarse: (B, C, H/8, W/8) descriptors of unit length. fine: (B, F, H/2, W/2) the same.
    reliability: (B, H/2, W/2) logit of the chance that a match of this pixel is right.
    context: features that the cross-view layers start from; None where a part of an output was put together.

    """

    coarse: Tensor
    fine: Tensor
    reliability: Tensor
    context: MiniContext | None = None


@dataclass(frozen=True, eq=False)
class MiniContext:
    """Features of images at two scales: sixteenth (B, S, H/16, W/16) with all context, eighth (B, E, H/8, W/8)."""

    sixteenth: Tensor
    eighth: Tensor


@dataclass(frozen=True, eq=False)
class PairOutput:
    """What the network says of images, each looked at beside its partner.

    Attributes
    ----------
    coarse: (B, C, H/8, W/8) descriptors of unit length. seen: (B, H/8, W/8) logit of the chance that the partner
        sees the cell as well.

    """

    coarse: Tensor
    seen: Tensor


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, rectifier."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return functional.relu(x + self.norm(self.second(self.first(x))))


class Up(nn.Module):
    """Add what a coarser level knows to a finer one."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(coarse, fine, 1, bias=False)
        self.merge = conv(fine, fine)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, C, H, W) and (B, F, 2H, 2W) to the latter's shape."""
        raised = functional.interpolate(self.project(coarse), scale_factor=2, mode='bilinear', align_corners=False)
        return self.merge(fine + raised)


class MiniNetwork(nn.Module):
    """Normalised planes (B, 3, H, W), both sides multiples of 32, to `MiniOutput`."""

    def __init__(self, config: MiniConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or MiniConfig()
        self.stage2 = conv(3, c.stem, 5, 2)
        self.stage4 = nn.Sequential(conv(c.stem, c.quarter, 3, 2), Residual(c.quarter))
        self.stage8 = nn.Sequential(conv(c.quarter, c.eighth, 3, 2), Residual(c.eighth), Residual(c.eighth))
        self.stage16 = nn.Sequential(conv(c.eighth, c.sixteenth, 3, 2), Residual(c.sixteenth), Residual(c.sixteenth))
        self.stage32 = nn.Sequential(conv(c.sixteenth, c.thirtysecond, 3, 2), Residual(c.thirtysecond))
        self.deep16 = nn.Sequential(*(Residual(c.sixteenth) for _ in range(c.deep_blocks)))
        self.deep32 = nn.Sequential(*(Residual(c.thirtysecond) for _ in range(c.deep_blocks)))
        self.up16 = Up(c.thirtysecond, c.sixteenth)
        self.up8 = Up(c.sixteenth, c.eighth)
        self.up4 = Up(c.eighth, c.quarter)
        self.up2 = Up(c.quarter, c.stem)
        self.coarse_head = nn.Conv2d(c.eighth, c.coarse_dim, 1)
        self.fine_head = nn.Sequential(conv(c.stem, c.fine_dim), nn.Conv2d(c.fine_dim, c.fine_dim + 1, 1))
        self.cross_view = CrossView(c.sixteenth, c.pair_width, c.pair_heads, c.pair_layers) if c.pair_layers else None
        self.pair_up8 = Up(c.sixteenth, c.eighth) if c.pair_layers else None
        self.pair_head = nn.Conv2d(c.eighth, c.coarse_dim + 1, 1) if c.pair_layers else None
        # Logarithms of the inverse temperatures of the two similarities.
        self.coarse_scale = nn.Parameter(torch.tensor(2.66))
        self.fine_scale = nn.Parameter(torch.tensor(2.3))
        # A quarter faster on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> MiniOutput:
        """Describe normalised planes (B, 3, H, W)."""
        raw = self.describe(image)
        return MiniOutput(
            functional.normalize(raw.coarse, dim=1), functional.normalize(raw.fine, dim=1), raw.reliability, raw.context
        )

    def describe(self, image: Tensor) -> MiniOutput:
        """`forward` with descriptors of any length: training normalises only those that it looks at."""
        # Lamps and reflections lie many spreads from the mean; the logarithmic flanks keep their detail in range.
        half = self.stage2(asinh(image).contiguous(memory_format=torch.channels_last))
        quarter = self.stage4(half)
        skip = self.stage8(quarter)
        sixteenth = self.deep16(self.stage16(skip))
        sixteenth = self.up16(self.deep32(self.stage32(sixteenth)), sixteenth)
        eighth = self.up8(sixteenth, skip)
        fine = self.fine_head(self.up2(self.up4(eighth, quarter), half))
        return MiniOutput(self.coarse_head(eighth), fine[:, :-1], fine[:, -1], MiniContext(sixteenth, skip))

    def relate(self, a: MiniContext, b: MiniContext) -> tuple[PairOutput, PairOutput]:
        """Describe the images of pairs beside each other; a and b hold one entry a pair and may differ in size."""
        if self.cross_view is None or self.pair_up8 is None or self.pair_head is None:
            raise ConfigError('these weights of `mini` hold no cross-view layers')
        found = []
        for context, change in zip((a, b), self.cross_view(a.sixteenth, b.sixteenth), strict=True):
            result = self.pair_head(self.pair_up8(context.sixteenth + change, context.eighth))
            found.append(PairOutput(functional.normalize(result[:, :-1], dim=1), result[:, -1]))
        return found[0], found[1]

    @property
    def coarse_factor(self) -> Tensor:
        """Factor of coarse similarities before a softmax, one value."""
        return self.coarse_scale.clamp(max=_LARGEST_SCALE).exp()

    @property
    def fine_factor(self) -> Tensor:
        """Factor of fine similarities before a softmax, one value."""
        return self.fine_scale.clamp(max=_LARGEST_SCALE).exp()

    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(parameter.numel() for parameter in self.parameters())


def asinh(x: Tensor) -> Tensor:
    """`torch.asinh`, five times as fast on a CPU, where that is computed value by value."""
    size = x.abs()
    return (size + size * size / (1.0 + (1.0 + size * size).sqrt())).log1p().copysign(x)


def fold_norms(network: N) -> N:
    """Put every batch normalisation of a network that is not trained any more into the convolution before it."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for number in range(len(module) - 1):
                first, second = module[number], module[number + 1]
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    module[number], module[number + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
        elif isinstance(module, Residual) and isinstance(module.norm, nn.BatchNorm2d):
            module.second, module.norm = fuse_conv_bn_eval(module.second, module.norm), nn.Identity()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


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
    write_half(path, network, HEADER_KEY, {**header, 'architecture': {'name': 'mini', **to_mapping(network.config)}})


def read_mini_header(path: Path) -> dict[str, Any]:
    """Header of a weight file of `mini`; DataError where it is not one."""
    return read_half_header(path, HEADER_KEY, '`mini`')


def load_mini(path: Path = BUNDLED) -> tuple[MiniNetwork, str]:
    """Network in evaluation mode, in float32, and the hash of its file.

    Raises DataError for a file that is missing, damaged, or of another architecture.
    """
    header = read_mini_header(path)
    architecture = {key: value for key, value in header['architecture'].items() if key != 'name'}
    try:
        # Files that do not name these parts are older than they are.
        network = MiniNetwork(from_mapping(MiniConfig, {'deep_blocks': 0, 'pair_layers': 0, **architecture}))
    except ConfigError as error:
        raise DataError(f'cannot use the weights {path}: {error}') from error
    fill_from_half(network, path)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return network.eval().requires_grad_(False), digest
