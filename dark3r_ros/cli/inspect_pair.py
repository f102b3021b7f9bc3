# SPDX-License-Identifier: Apache-2.0
"""`dark3r inspect --pair A B`: match two frames of a recording and draw what was found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.matching.draw import draw_matches
from dark3r_ros.matching.verify import estimate_two_view
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.storage.files import replacing
from dark3r_ros.types import Correspondences, FrameSource, Planes

# Largest epipolar error of a match that agrees, in pixels of the planes, as in the report of a reconstruction.
_TOLERANCE_PX = 2.0


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of two frames.

    Attributes
    ----------
    matches: between the planes of both. inliers: (N,) bool, those that agree with one relative pose.
    verified: False where the calibration is missing, so that nothing could be verified.
    picture: (h, w, 3) uint8, inliers green, others red.

    """

    matches: Correspondences
    inliers: NDArray[np.bool_]
    verified: bool
    picture: NDArray[np.uint8]


def read_pair(source: FrameSource, numbers: tuple[int, int], network_width: int = 320) -> tuple[Planes, Planes]:
    """Binned planes of two frames, counted from 0; DataError when the recording ends before them."""
    found: dict[int, Planes] = {}
    read = 0
    for number, frame in enumerate(islice(source, max(numbers) + 1)):
        read = number + 1
        if number in numbers:
            found[number] = to_planes(frame, choose_binning(frame.size[0], network_width))
    missing = [number for number in numbers if number not in found]
    if min(numbers) < 0 or missing:
        raise DataError(f'there is no frame {min([*missing, *numbers])}: the recording has frames 0 to {read - 1}')
    return found[numbers[0]], found[numbers[1]]


def match_pair(first: Planes, second: Planes, predictor: Predictor) -> PairMatches:
    """Match, verify and draw two frames."""
    (matches,) = predictor.match([(predictor.encode(first), predictor.encode(second))])
    inliers = np.zeros(len(matches), dtype=bool)
    verified = first.camera is not None and second.camera is not None
    if first.camera is not None and second.camera is not None:
        rays = first.camera.unproject(matches.points_a), second.camera.unproject(matches.points_b)
        geometry = estimate_two_view(*rays, _TOLERANCE_PX / first.camera.fx, min_inliers=8)
        if geometry is not None:
            inliers = geometry.inliers
    picture = draw_matches(display_image(first), display_image(second), matches, inliers)
    return PairMatches(matches, inliers, verified, picture)


def inspect_pair(
    source: FrameSource, numbers: tuple[int, int], predictor: Predictor, output: Path
) -> dict[str, object]:
    """Match two frames and write the picture as PNG; returns the figures for people and scripts."""
    result = match_pair(*read_pair(source, numbers), predictor)
    done, data = cv2.imencode('.png', result.picture[:, :, ::-1])
    if not done:
        raise OutputError(f'cannot encode the picture {output}')
    with replacing(output) as stream:
        stream.write(data.tobytes())
    confidence = result.matches.confidence
    return {
        'frames': list(numbers),
        'predictor': predictor.name,
        'matches': len(result.matches),
        'inliers': int(result.inliers.sum()) if result.verified else None,
        'median_confidence': float(np.median(confidence)) if len(confidence) else None,
        'picture': str(output),
    }


def pair_line(figures: dict[str, object]) -> str:
    """The figures as one sentence."""
    numbers = str(figures['frames']).strip('[]').replace(',', ' and')
    agree = 'not verified: no calibration' if figures['inliers'] is None else f'{figures["inliers"]} agree with a pose'
    return (
        f'frames {numbers}, {figures["predictor"]}: {figures["matches"]} matches, {agree}; '
        f'picture: {figures["picture"]}'
    )
