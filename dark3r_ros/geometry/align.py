# SPDX-License-Identifier: Apache-2.0
"""Least-squares alignment of point sets by a similarity or rigid transform."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def umeyama(source: ArrayLike, target: ArrayLike, with_scale: bool = True) -> tuple[float, Array, Array]:
    """Find scale s, rotation R (3, 3) and translation t (3,) that minimise sum |target - (s R source + t)|^2.

    Source: Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991.
    Points are (N, 3), N >= 2; with coincident or collinear points the free rotation is left at its SVD choice.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) < 2:
        raise ValueError(f'need two equal sets of at least 2 points (N, 3), got {source.shape} and {target.shape}')
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    centred_source, centred_target = source - mean_source, target - mean_target
    u, singular, vt = np.linalg.svd(centred_target.T @ centred_source / len(source))
    signs = np.ones(3)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        signs[2] = -1.0
    rotation = u @ np.diag(signs) @ vt
    variance = float((centred_source**2).sum() / len(source))
    scale = float(singular @ signs / variance) if with_scale and variance > 0 else 1.0
    return scale, rotation, mean_target - scale * rotation @ mean_source
