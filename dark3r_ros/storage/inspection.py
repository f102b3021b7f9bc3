# SPDX-License-Identifier: Apache-2.0
"""What a recording holds: timing of its frames, levels, signal-to-noise ratio, advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.raw.checks import check_frame
from dark3r_ros.raw.noise import NoiseModel
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.raw.snr import estimate_snr
from dark3r_ros.types import Frame

# An interval longer than so many median intervals is a gap.
GAP_FACTOR = 2.5


@dataclass(frozen=True)
class Timing:
    """Regularity of stamps.

    Attributes
    ----------
    rate_hz: one over the median interval, NaN for fewer than two. duration_s: first to last.
    gaps: (seconds after the first stamp, length in seconds) of intervals above 2.5 medians, longest first.
    repeated, backward: stamps equal to, or before, the one before them.

    """

    rate_hz: float
    duration_s: float
    gaps: tuple[tuple[float, float], ...]
    repeated: int
    backward: int


@dataclass(frozen=True, eq=False)
class FrameStatistics:
    """One sampled frame: percentiles of its counts, share of saturated sites, SNR in dB, picture, advice."""

    stamp_ns: int
    name: str
    size: tuple[int, int]
    percentiles: dict[str, float]
    saturated_share: float
    snr_db: float
    samples_per_value: tuple[int, int, int]
    picture: NDArray[np.uint8]
    advice: tuple[str, ...]


def timing(stamps_ns: NDArray[np.int64]) -> Timing:
    """Rate, gaps and disorder of stamps in the order in which they come."""
    if len(stamps_ns) < 2:
        return Timing(float('nan'), 0.0, (), 0, 0)
    intervals = np.diff(stamps_ns)
    forward = intervals[intervals > 0]
    median = float(np.median(forward)) if len(forward) else float('nan')
    places = np.flatnonzero(intervals > GAP_FACTOR * median)
    first = int(stamps_ns[0])
    gaps = [((int(stamps_ns[k]) - first) / 1e9, float(intervals[k]) / 1e9) for k in places]
    return Timing(
        rate_hz=1e9 / median,
        duration_s=float(stamps_ns.max() - stamps_ns.min()) / 1e9,
        gaps=tuple(sorted(gaps, key=lambda gap: -gap[1])),
        repeated=int((intervals == 0).sum()),
        backward=int((intervals < 0).sum()),
    )


def frame_statistics(frame: Frame, noise: NoiseModel | None = None) -> FrameStatistics:
    """Figures of one frame; its picture is at the resolution a network sees."""
    binning = choose_binning(frame.size[0])
    planes = to_planes(frame, binning)
    estimate = estimate_snr(planes, noise, frame)
    values = np.percentile(frame.mosaic, [0, 0.1, 1, 50, 99, 99.9, 100])
    names = ('min', 'p0.1', 'p1', 'p50', 'p99', 'p99.9', 'max')
    return FrameStatistics(
        stamp_ns=frame.stamp_ns,
        name=frame.name,
        size=frame.size,
        percentiles=dict(zip(names, (float(value) for value in values), strict=True)),
        saturated_share=float(np.mean(frame.mosaic >= frame.white_level)),
        snr_db=estimate.db,
        samples_per_value=estimate.samples,
        picture=display_image(planes),
        advice=tuple(check_frame(frame, noise)),
    )


def level_guesses(statistics: list[FrameStatistics]) -> dict[str, Any]:
    """Levels as the counts themselves suggest them, for a camera whose levels are not known.

    Black lies at or a little above the 0.1 percentile of the darkest frame; white at the top of the bits in use.
    """
    low = min(item.percentiles['p0.1'] for item in statistics)
    high = max(item.percentiles['max'] for item in statistics)
    return {'black_at_least': low, 'largest_count': high, 'bits_in_use': max(1, int(high).bit_length())}
