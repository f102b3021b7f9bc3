# SPDX-License-Identifier: Apache-2.0
"""Following a camera whose next pose is known about: landmarks are looked for where they should be.

No pair of frames goes through the network: fine descriptors of the keyframes are compared within small windows of the
new view, there and back. That takes about a tenth of the time of matching, and is tried first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.mapping.tracking import TrackResult, failed_track
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor, best_in_window
from dark3r_ros.model.mini import FINE
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.resection import resect

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_LEAST_CHANCE = 0.2  # of the place found, within its window
_RETURN_TOLERANCE = 2.0  # pixels that the way to the view and back may end from its start
_LEAST_SHARE = 0.4  # of the landmarks found that must agree with one pose; wrong ones lie anywhere in their windows


@dataclass(frozen=True, eq=False)
class _Found:
    """Landmark rows (N,) and where they are: in the reference and in the view, both (N, 2)."""

    landmark: Index
    reference_pixels: Array
    pixels: Array


def track_guided(
    view: View,
    references: Sequence[Keyframe],
    sparse_map: SparseMap,
    predictor: Predictor,
    config: MappingConfig,
    guess: Array | None,
    min_inliers: int,
) -> TrackResult | None:
    """Pose of a view near `guess` (camera_from_world); None where this way is not open for the predictor.

    The result counts landmarks looked for as matches. As in `track`, the first reference gives overlap and flow.
    """
    if config.guided_radius <= 0 or guess is None or not isinstance(predictor, MiniPredictor):
        return None
    taken = np.zeros(sparse_map.landmarks.capacity, dtype=bool)
    parts = []
    with torch.inference_mode():
        for reference in references:
            parts.append(_search(view, reference, sparse_map, predictor, config, guess, taken))
    if not parts:
        return None
    landmark = np.concatenate([part.landmark for part in parts])
    pixels = np.concatenate([part.pixels for part in parts])
    if len(landmark) < config.min_matches:
        return failed_track(len(landmark), f'{len(landmark)} landmarks found where they should be')
    points = sparse_map.landmarks.points[landmark]
    least = max(config.min_inliers, min_inliers, int(_LEAST_SHARE * len(landmark)))
    observed = view.camera.unproject(pixels)
    found = resect(points, observed, view.focal, config.max_error, guess=guess, min_inliers=least)
    if found is None:
        return failed_track(len(landmark), f'no pose explains {least} of {len(landmark)} landmarks found')
    own = found.inliers[: len(parts[0].landmark)]
    shift = np.linalg.norm(parts[0].pixels[own] - parts[0].reference_pixels[own], axis=1)
    return TrackResult(
        found.camera_from_world,
        found.covariance,
        landmark[found.inliers],
        int(found.inliers.sum()),
        len(landmark),
        float(own.sum()) / max(len(references[0].table.observing()), 1),
        float(np.median(shift)) / view.camera.width if own.any() else 1.0,
        guided=True,
    )


def _search(
    view: View,
    reference: Keyframe,
    sparse_map: SparseMap,
    predictor: MiniPredictor,
    config: MappingConfig,
    guess: Array,
    taken: NDArray[np.bool_],
) -> _Found:
    """Look for the landmarks of one reference that are not `taken` yet, and take them."""
    there, here = view.features, reference.features
    assert isinstance(there, MiniFeatures)
    assert isinstance(here, MiniFeatures)
    rows = reference.table.observing()
    rows = rows[~taken[reference.table.landmark[rows]]]
    local = se3.transform_points(guess, sparse_map.landmarks.points[reference.table.landmark[rows]])
    ahead = local[:, 2] > 1e-6
    rows, local = rows[ahead], local[ahead]
    expected = view.camera.project(local)
    inside = ((expected > -0.5) & (expected < np.array(there.size) - 0.5)).all(axis=1)
    rows, expected = rows[inside], expected[inside]
    landmark, home = reference.table.landmark[rows], reference.table.pixels[rows]
    taken[landmark] = True
    if len(rows) == 0:
        return _Found(landmark, home, expected)
    half = max(1, round(config.guided_radius / FINE))
    start, centre = _fine(home, here), _fine(expected, there)
    found, chance = best_in_window(_at(here, start), there, centre, half, predictor.fine_factor)
    place = found.round().long()
    back, _ = best_in_window(_at(there, place), here, start, half, predictor.fine_factor)
    error = ((back - start + found - place) * FINE).norm(dim=1)
    good = ((chance >= _LEAST_CHANCE) & (error <= _RETURN_TOLERANCE)).cpu().numpy()
    # The descriptor looked for is that of the nearest fine pixel: what was rounded off is given back.
    rounded = home - _pixels(start)
    pixels = _pixels(found) + rounded
    return _Found(landmark[good], home[good], pixels[good])


def _fine(pixels: Array, features: MiniFeatures) -> Tensor:
    """Nearest fine pixels (N, 2) int64 of pixels (N, 2)."""
    place = torch.from_numpy((pixels - (FINE - 1) / 2) / FINE).round().long().to(features.fine.device)
    limit = torch.tensor([features.shape[1] - 1, features.shape[0] - 1], device=place.device)
    return place.clamp(min=torch.zeros_like(limit), max=limit)


def _at(features: MiniFeatures, place: Tensor) -> Tensor:
    """Fine descriptors (N, F) at fine pixels (N, 2)."""
    height, width = features.shape
    return features.fine[place[:, 1].clamp(0, height - 1) * width + place[:, 0].clamp(0, width - 1)]


def _pixels(fine: Tensor) -> Array:
    return (fine.double() * FINE + (FINE - 1) / 2).cpu().numpy()
