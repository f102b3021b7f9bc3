# SPDX-License-Identifier: Apache-2.0
"""How well each place of a window fits an anchor, as a surface of likelihood; in a picture or a rectified one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

from dark3r_ros.geometry import se3
from dark3r_ros.matching.guided import anchor_pixels
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor, likelihoods
from dark3r_ros.model.mini import FINE
from dark3r_ros.sfm.rectify import Relief, believable, rectified, transfer
from dark3r_ros.sfm.rematch import project
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_MIDDLE = (FINE - 1) / 2  # of a fine pixel, in pixels
_ASTRAY = 16.0  # pixels: farther from an anchor its surroundings no longer say how a rectified picture is bent


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Log-likelihoods of places around projections, K of them, as splines.

    Attributes
    ----------
    coefficients: (K, n, n) of cubic B-splines, rows first, one value a fine pixel of the picture that was searched.
    origin: (K, 2) pixels of the view where the middle of each window lies. shape: (K, 2, 2) fine pixels of the window
    per pixel of the view. nothing: (K,) the value where the window says nothing.

    """

    coefficients: NDArray[np.float32]
    origin: Array
    shape: Array
    nothing: NDArray[np.float32]

    @classmethod
    def joined(cls, parts: Sequence[Surfaces]) -> Surfaces:
        """All of several, in their order."""
        names = ('coefficients', 'origin', 'shape', 'nothing')
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def look(self, pixels: Array) -> tuple[Array, Array, Array]:
        """Value (K,), gradient (K, 2) and curvature (K, 2, 2), by pixels, at pixels (K, 2) of the planes."""
        side = self.coefficients.shape[1]
        place = np.einsum('kij,kj->ki', self.shape, pixels - self.origin) + side // 2
        inside = ((place >= 1) & (place <= side - 2)).all(axis=1)
        place = np.where(inside[:, None], place, 1.0)
        start = np.minimum(np.floor(place).astype(np.int64), side - 3)
        rest = place - start
        row = np.arange(len(place))[:, None, None]
        near = np.arange(-1, 3)
        four = self.coefficients[row, (start[:, 1:] + near)[:, :, None], (start[:, :1] + near)[:, None, :]]
        x, y = (_basis(rest[:, axis]) for axis in (0, 1))
        rows = np.einsum('kij,dkj->dki', four, x)  # value and derivatives along x, by row
        value = np.einsum('ki,ki->k', rows[0], y[0])
        gradient = np.stack([np.einsum('ki,ki->k', rows[1], y[0]), np.einsum('ki,ki->k', rows[0], y[1])], axis=1)
        xy = np.einsum('ki,ki->k', rows[1], y[1])
        xx, yy = np.einsum('ki,ki->k', rows[2], y[0]), np.einsum('ki,ki->k', rows[0], y[2])
        curvature = np.stack([np.stack([xx, xy], axis=1), np.stack([xy, yy], axis=1)], axis=1)
        by_pixel = self.shape * inside[:, None, None]
        across = by_pixel.transpose(0, 2, 1)
        return (
            np.where(inside, value, self.nothing),
            np.einsum('kij,kj->ki', across, gradient),
            across @ curvature @ by_pixel,
        )


def _basis(t: Array) -> Array:
    """Weights (3, K, 4) of the four nearest coefficients at t in [0, 1]: value, first and second derivative."""
    one = 1.0 - t
    value = [one**3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * one**3 - 6 * one**2 + 4) / 6, t**3 / 6]
    first = [-(one**2) / 2, (3 * t**2 - 4 * t) / 2, -(3 * one**2 - 4 * one) / 2, t**2 / 2]
    second = [one, 3 * t - 2, 3 * one - 2, t]
    return np.stack([np.stack(part, axis=1) for part in (value, first, second)])


@dataclass(frozen=True, eq=False)
class _Windows:
    """Where M places are looked for.

    Attributes
    ----------
    features: of the picture that is searched. middle: (M, 2) whole fine pixels of it. origin, shape: as of `Surfaces`.
    usable: (M,) which of them can be looked for at all.

    """

    features: MiniFeatures
    middle: Array
    origin: Array
    shape: Array
    usable: NDArray[np.bool_]


def looked_for(
    views: Sequence[View],
    poses: Mapping[int, Array],
    pair: tuple[int, int],
    anchor: Index,
    points: Array,
    predictor: MiniPredictor,
    radius: int,
    relief: Relief | None = None,
) -> tuple[Index, Surfaces]:
    """Which anchors (M,) of the first view of a pair fall into the second, and their surfaces around points (M, 3).

    `radius` is the half side of a window in fine pixels. With the relief of the first view, and the planes of
    the second, the second is searched as the first would see it.
    """
    predicted = project(views[pair[1]], poses[pair[1]], points)
    if relief is None or views[pair[1]].planes is None:
        windows = _plain(views[pair[1]], predicted)
    else:
        windows = _rectified(views, poses, pair, anchor, predicted, predictor, relief)
    limit = (np.array(windows.features.size) - 1) // FINE
    inside = (windows.middle >= 0).all(axis=1) & (windows.middle <= limit).all(axis=1)
    seen = np.flatnonzero(windows.usable & inside)
    own = cast(MiniFeatures, views[pair[0]].features)
    with torch.inference_mode():
        rows, centre = (torch.from_numpy(part).to(predictor.device) for part in (anchor[seen], windows.middle[seen]))
        found, nothing = likelihoods(own, rows, windows.features, centre, radius, predictor.fine_factor)
    coefficients = found.cpu().numpy()
    for axis in (1, 2):
        coefficients = spline_filter1d(coefficients, axis=axis, mode='mirror', output=np.float32)
    return seen, Surfaces(coefficients, windows.origin[seen], windows.shape[seen], nothing.cpu().numpy())


def _plain(view: View, predicted: Array) -> _Windows:
    """Windows in the picture itself around predicted pixels (M, 2)."""
    middle = np.rint((predicted - _MIDDLE) / FINE)
    shape = np.broadcast_to(np.eye(2) / FINE, (len(middle), 2, 2))
    features = cast(MiniFeatures, view.features)
    return _Windows(features, middle, middle * FINE + _MIDDLE, shape, np.asarray(np.isfinite(middle).all(axis=1)))


def _rectified(
    views: Sequence[View],
    poses: Mapping[int, Array],
    pair: tuple[int, int],
    anchor: Index,
    predicted: Array,
    predictor: MiniPredictor,
    relief: Relief,
) -> _Windows:
    """Windows in the second picture as the first view would see it; the transfer is taken to be affine in each."""
    view = views[pair[1]]
    assert view.planes is not None and view.camera is not None
    found = transfer(relief, view, poses[pair[1]] @ se3.inverse(poses[pair[0]]))
    home = anchor_pixels(cast(MiniFeatures, views[pair[0]].features))[anchor]
    place, slope = found.at(home), found.slope(home)
    usable = believable(slope) & np.isfinite(predicted).all(axis=1)
    usable &= (place >= 0).all(axis=1) & (place <= np.array([view.camera.width, view.camera.height]) - 1.0).all(axis=1)
    back = np.linalg.inv(np.where(usable[:, None, None], slope, np.eye(2)))
    wanted = home + np.einsum('mij,mj->mi', back, np.where(usable[:, None], predicted - place, 0.0))
    middle = np.rint((wanted - _MIDDLE) / FINE)
    aside = middle * FINE + _MIDDLE - home
    usable &= (np.abs(aside) < _ASTRAY).all(axis=1)
    origin = place + np.einsum('mij,mj->mi', slope, aside)
    return _Windows(predictor.encode(rectified(view.planes, found)), middle, origin, back / FINE, usable)
