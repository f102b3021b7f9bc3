# SPDX-License-Identifier: Apache-2.0
"""Sample pictures of a result: what the camera saw, and what was matched in it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dark3r_ros.evaluation.figures import SamplePicture, matches_picture
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.matching.verify import estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.types import Frame, Planes, Reconstruction


def _chosen(reconstruction: Reconstruction, count: int) -> list[int]:
    """Stamps of pairs of neighbouring keyframes spread over the result, two for each picture."""
    stamps = reconstruction.trajectory(keyframes_only=True).stamps_ns.tolist()
    if len(stamps) < 2:
        stamps = reconstruction.trajectory().stamps_ns.tolist()
    if len(stamps) < 2:
        return []
    starts = np.unique(np.linspace(0, len(stamps) - 2, count).round().astype(int))
    return [stamps[index + offset] for index in starts for offset in (0, 1)]


def _pair_picture(first: Planes, second: Planes, predictor: Predictor, max_error: float) -> SamplePicture:
    matches = predictor.match([(predictor.encode(first), predictor.encode(second))])[0]
    inliers = np.zeros(len(matches), dtype=bool)
    if first.camera is not None and second.camera is not None:
        geometry = estimate_two_view(
            first.camera.unproject(matches.points_a),
            second.camera.unproject(matches.points_b),
            max_error / first.camera.fx,
        )
        inliers = inliers if geometry is None else np.asarray(geometry.inliers, dtype=bool)
    image = matches_picture(display_image(first), display_image(second), matches.points_a, matches.points_b, inliers)
    apart = (second.stamp_ns - first.stamp_ns) / 1e9
    return SamplePicture(
        first.stamp_ns, image, f'{int(inliers.sum())} of {len(matches)} matches agree, {apart:.1f} s apart'
    )


def sample_pictures(
    frames: Iterable[Frame],
    reconstruction: Reconstruction,
    predictor: Predictor,
    config: MappingConfig | None = None,
    count: int = 6,
) -> list[SamplePicture]:
    """Pairs of neighbouring keyframes with their matches; `frames` is gone through once.

    The matches are made anew for the picture: those of the mapping are not kept.
    """
    config = MappingConfig() if config is None else config
    wanted = _chosen(reconstruction, count)
    planes: dict[int, Planes] = {}
    for frame in frames:
        if frame.stamp_ns in wanted and frame.stamp_ns not in planes:
            binning = config.binning or choose_binning(frame.size[0], config.network_width)
            planes[frame.stamp_ns] = to_planes(frame, binning)
    pairs = zip(wanted[0::2], wanted[1::2], strict=True)
    return [
        _pair_picture(planes[first], planes[second], predictor, config.max_error)
        for first, second in pairs
        if first in planes and second in planes
    ]
