# SPDX-License-Identifier: Apache-2.0
"""Raw planes into network input and back: one affine map an image, in float32, without loss.

A dark signal is a few thousandths of the white level on a pedestal of several hundredths. `signed` takes the pedestal
away and divides by the spread of the image itself, so that the signal and its noise fill the range that a network
works in; nothing is clipped, values below black stay negative. `paper` is raw over white with the black level left in,
moved to [-1, 1], which the public weights were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.types import Float32Array, Float64Array, Planes

MODES = ('signed', 'paper')
# Share of the values of a normal distribution within one standard deviation of its mean lies between these quantiles.
_QUANTILES = (0.158655, 0.841345)


@dataclass(frozen=True, eq=False)
class NormalisedImage:
    """Network input and the affine map that made it: values = (counts - offset) / scale.

    Attributes
    ----------
    values: (3, h, w) float32, dimensionless, unclipped.
    offset: (3,) float64 counts per plane. scale: counts per unit, the same for all planes.

    """

    values: Float32Array
    offset: Float64Array
    scale: float

    def counts(self) -> Float64Array:
        """The planes again, (3, h, w) counts with the black level in."""
        return self.values.astype(np.float64) * self.scale + self.offset[:, None, None]


def check_planes(planes: Planes) -> None:
    """Raise DataError for planes that are not three, are empty, or hold values that are not finite."""
    values = planes.values
    if not values.size:
        raise DataError(f'the frame at {planes.stamp_ns} ns is empty: its planes have the shape {tuple(values.shape)}')
    if values.ndim != 3 or values.shape[0] != 3:
        raise DataError(
            f'the frame at {planes.stamp_ns} ns has planes of shape {tuple(values.shape)}; the network takes three '
            '(3, height, width): repeat a grey plane three times'
        )
    if not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise DataError(f'the frame at {planes.stamp_ns} ns holds {bad} values that are not finite: check its decoding')


def normalise(planes: Planes, mode: str = 'signed') -> NormalisedImage:
    """Map the planes of a frame to network input.

    `signed`: the offset is the mean of each plane (which takes away the black level, and with it its drift from frame
    to frame), the scale half the distance of the 16 % and 84 % quantiles of all planes together: the standard deviation
    of a normal distribution, which a lamp in the image does not change. Independent of black level and gain. A
    constant image becomes zeros.

    `paper`: values over white level, then 2 v - 1.

    Raises DataError for planes that are not usable, ConfigError for an unknown mode.
    """
    check_planes(planes)
    if mode == 'paper':
        half = planes.white_level / 2
        return _apply(planes.values, np.full(3, half), half)
    if mode != 'signed':
        raise ConfigError(f'unknown normalisation {mode!r}; known: {", ".join(MODES)}')
    offset = planes.values.mean(axis=(1, 2), dtype=np.float64)
    centred = planes.values.astype(np.float64) - offset[:, None, None]
    low, high = np.quantile(centred, _QUANTILES)
    scale = float(high - low) / 2
    if scale <= 0:
        scale = float(centred.std())
    return _apply(planes.values, offset, scale if scale > 0 else 1.0)


def _apply(values: Float32Array, offset: Float64Array, scale: float) -> NormalisedImage:
    # The difference of large numbers is taken in float64; only the result is rounded.
    result = (values.astype(np.float64) - offset[:, None, None]) / scale
    return NormalisedImage(result.astype(np.float32), offset, scale)


def normalise_batch(values: Tensor, white_level: float, mode: str = 'signed') -> Tensor:
    """`normalise` for training: planes (B, 3, h, w) float32 in counts, on any device -> network input of that shape.

    Each image has its own affine map. Not differentiable in its statistics, which are constants of an image.
    """
    if mode == 'paper':
        return ((values.double() - white_level / 2) / (white_level / 2)).float()
    if mode != 'signed':
        raise ConfigError(f'unknown normalisation {mode!r}; known: {", ".join(MODES)}')
    counts = values.detach().double()
    centred = counts - counts.mean(dim=(2, 3), keepdim=True)
    ordered = centred.flatten(1).sort(dim=1).values
    low, high = (_interpolated(ordered, quantile) for quantile in _QUANTILES)
    scale = (high - low) / 2
    scale = torch.where(scale > 0, scale, centred.flatten(1).std(dim=1, correction=0))
    scale = torch.where(scale > 0, scale, 1.0)
    return (centred / scale[:, None, None, None]).float()


def _interpolated(ordered: Tensor, quantile: float) -> Tensor:
    """Quantile (B,) of sorted values (B, n), linear between neighbours, as NumPy has it."""
    place = quantile * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)
