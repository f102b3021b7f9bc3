# SPDX-License-Identifier: Apache-2.0
"""LPIPS (Zhang et al., CVPR 2018) of tone-mapped pictures, by the package `lpips` where that is installed.

It is no dependency: the package fetches the weights of its backbone when it is first used, so that a robot without a
network has none. Without it results say so in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Picture = NDArray[np.floating]
Distance = Callable[[Picture, Picture], float]


def load_lpips(backbone: str = 'alex') -> tuple[Distance | None, str]:
    """Distance of two pictures (3, H, W) of 0..1, or None with the reason in one line."""
    try:
        import lpips
    except ImportError:
        return None, 'absent: the package lpips is not installed (pip install dark3r_ros[metrics])'
    try:
        network = lpips.LPIPS(net=backbone, verbose=False).eval()
    except Exception as error:  # no network, no space, a torchvision that does not fit: all leave the figure out
        return None, f'absent: weights of the backbone cannot be had ({type(error).__name__}: {error})'.splitlines()[0]

    def distance(image: Picture, truth: Picture) -> float:
        with torch.no_grad():
            return float(network(_batch(image), _batch(truth), normalize=True))

    return distance, ''


def _batch(picture: Picture) -> Any:
    return torch.from_numpy(np.ascontiguousarray(picture, dtype=np.float32))[None]
