# SPDX-License-Identifier: Apache-2.0
"""Published noise calibrations of five cameras, as facts.

Numbers: Wei et al., A Physics-based Noise Formation Model for Extreme Low-light Raw Denoising, CVPR 2020, calibration
files of the authors' repository (Vandermode/ELD, MIT). Unit: counts of a 14-bit file. The logarithm of a noise scale
is a straight line over the logarithm of the gain K (counts per electron): ln(scale) = slope * ln(K) + bias, with a
Gaussian scatter between repeated calibrations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dark3r_ros.errors import ConfigError


@dataclass(frozen=True)
class LogLine:
    """Line ln(scale) = slope * ln(gain) + bias with standard deviation `scatter` about it."""

    slope: float
    bias: float
    scatter: float

    def at(self, gain: float) -> float:
        """Median scale in counts at a gain in counts per electron."""
        return math.exp(self.slope * math.log(gain) + self.bias)


@dataclass(frozen=True)
class EldCamera:
    """One calibrated camera.

    Attributes
    ----------
    gain_range: lowest and highest gain, counts per electron.
    read, row: standard deviation of the read noise of a pixel and of the noise common to a row.
    tukey_lambda: median shape of the read noise over the upper half of the calibrated sensitivities.
    offset_sigma: counts; median spread of the dark offset between two calibrations at the same sensitivity.
    black_level, white_level: counts, typical of the files of this camera (not part of the calibration).

    """

    gain_range: tuple[float, float]
    read: LogLine
    row: LogLine
    tukey_lambda: float
    offset_sigma: float
    black_level: float
    white_level: float


CAMERAS: dict[str, EldCamera] = {
    'canon_5d4': EldCamera(
        (0.2182, 13.964),
        LogLine(0.677127, 1.512188, 0.246411),
        LogLine(0.47128, -0.807896, 0.243618),
        0.0714,
        0.038,
        512.0,
        16383.0,
    ),
    'canon_700d': EldCamera(
        (0.4476, 28.648),
        LogLine(0.652459, 2.079864, 0.257816),
        LogLine(0.622059, -0.775647, 0.248481),
        -0.0786,
        0.173,
        2048.0,
        15000.0,
    ),
    'canon_70d': EldCamera(
        (0.4075, 26.08),
        LogLine(0.568118, 1.998266, 0.248702),
        LogLine(0.729222, -0.937057, 0.250216),
        -0.1214,
        0.112,
        2048.0,
        15000.0,
    ),
    'nikon_d850': EldCamera(
        (0.415, 26.563),
        LogLine(0.563461, 0.79941, 0.214082),
        LogLine(0.448292, -1.79771, 0.23218),
        -0.1571,
        0.010,
        400.0,
        16383.0,
    ),
    'sony_a7s2': EldCamera(
        (0.0939, 6.0106),
        LogLine(0.54075, 1.218237, 0.267512),
        LogLine(0.527536, -0.5917, 0.294288),
        -0.1143,
        0.0086,
        512.0,
        16383.0,
    ),
}


def eld_camera(name: str) -> EldCamera:
    """Look a camera up; raises ConfigError that lists the known names."""
    camera = CAMERAS.get(name)
    if camera is None:
        raise ConfigError(f'unknown calibrated camera {name!r}; known: {", ".join(CAMERAS)}')
    return camera
