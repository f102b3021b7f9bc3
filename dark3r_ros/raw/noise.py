# SPDX-License-Identifier: Apache-2.0
"""Noise of a raw sensor: what one exposure adds to the clean signal, and how large it is after binning.

Model, in counts (DN) of the raw file, after Wei et al., CVPR 2020 (ELD):

    raw = clip(round(black + gain * Poisson(signal / gain) + read + row + offset), 0, white)

`read` is drawn per pixel (Gaussian, or Tukey-lambda for heavier tails), `row` once per sensor row, `offset` once per
frame and colour. The pedestal `black` stays in, so that noise below black survives as long as it stays above zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from dark3r_ros.config import Config, from_mapping, setting, to_mapping
from dark3r_ros.errors import ConfigError, DataError, DependencyError, OutputError
from dark3r_ros.raw.cfa import MONO, sites
from dark3r_ros.raw.eld import CAMERAS, eld_camera
from dark3r_ros.types import Planes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseModel(Config):
    """Noise of one camera at one gain setting. All sigmas are standard deviations in counts of the raw file."""

    gain: float = setting(1.0, 'counts per electron', unit='DN/e-', minimum=1e-6)
    read_sigma: float = setting(0.0, 'read noise of a pixel', unit='DN', minimum=0.0)
    row_sigma: float = setting(0.0, 'noise common to all pixels of a row', unit='DN', minimum=0.0)
    offset_sigma: float = setting(0.0, 'change of the black level per frame and colour', unit='DN', minimum=0.0)
    tukey_lambda: float = setting(math.nan, 'shape of the read noise (Tukey lambda), NaN for Gaussian')
    black_level: float = setting(0.0, 'counts of a black pixel', unit='DN', minimum=0.0, maximum=65535.0)
    white_level: float = setting(65535.0, 'counts at saturation', unit='DN', minimum=1.0, maximum=65535.0)
    quantisation_step: float = setting(1.0, 'step between neighbouring codes', unit='DN', minimum=1e-6)
    name: str = setting('', 'camera and gain setting')
    source: str = setting('', 'where the numbers come from')

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.white_level <= self.black_level:
            raise ConfigError(f'white level {self.white_level} is not above the black level {self.black_level}')
        if self.tukey_lambda <= -0.45:
            raise ConfigError(f'Tukey lambda {self.tukey_lambda} has no usable variance: it must be above -0.45')

    @property
    def dark_variance(self) -> float:
        """Variance of a raw pixel in darkness that is independent from pixel to pixel: read and quantisation, DN^2."""
        return self.read_sigma**2 + self.quantisation_step**2 / 12.0

    @property
    def pedestal_sigmas(self) -> float:
        """How many standard deviations of the dark noise fit between black and code zero; infinite without noise."""
        sigma = math.sqrt(self.read_sigma**2 + self.row_sigma**2 + self.offset_sigma**2)
        return self.black_level / sigma if sigma else math.inf

    def variance(self, signal_dn: ArrayLike) -> Array:
        """Variance of one raw pixel, DN^2, for a signal in counts above black (any shape, negative counts as dark).

        Shot + read + row + quantisation; the offset of a frame is a common shift, not part of it.
        """
        shot = self.gain * np.maximum(np.asarray(signal_dn, dtype=np.float64), 0.0)
        return shot + self.dark_variance + self.row_sigma**2

    def planes_variance(self, signal: ArrayLike, samples: Sequence[int]) -> Array:
        """Variance of binned planes, DN^2.

        Parameters
        ----------
        signal: (3, ...) counts above black of R, G, B; negative counts as dark.
        samples: raw pixels averaged per plane, `Planes.samples`.

        Returns
        -------
        Array of the shape of `signal`. Pixel noise falls with the samples; row noise only with the rows that a block
        covers, as all pixels of a row share it.

        """
        light = np.maximum(np.asarray(signal, dtype=np.float64), 0.0)
        shape = (3,) + (1,) * (light.ndim - 1)
        count = np.array(samples, dtype=np.float64).reshape(shape)
        rows = np.array(rows_per_block(samples), dtype=np.float64).reshape(shape)
        return (self.gain * light + self.dark_variance) / count + self.row_sigma**2 / rows

    def mean_planes_variance(self, planes: Planes) -> Array:
        """Mean variance of each plane (3,), DN^2, from the mean signal of a noisy frame.

        The variance is linear in the signal, so that the mean of the noisy values serves without bias.
        """
        return self.planes_variance(planes.signal().mean(axis=(1, 2), dtype=np.float64), planes.samples)

    def sample(self, clean_signal: ArrayLike, rng: np.random.Generator, cfa: str = 'rggb') -> NDArray[np.uint16]:
        """Photograph a clean mosaic: (H, W) counts above black in, (H, W) uint16 counts with pedestal out.

        The same generator state gives the same frame. `cfa` places the offsets of R, G and B; negative signal counts
        as dark.
        """
        signal = np.maximum(np.asarray(clean_signal, dtype=np.float32), np.float32(0.0))
        if signal.ndim != 2 or not np.isfinite(signal).all():
            raise DataError(f'a clean mosaic is a finite (H, W) array, got shape {signal.shape}')
        height = len(signal)
        raw = rng.poisson(signal / np.float32(self.gain)).astype(np.float32)
        raw *= np.float32(self.gain)
        if self.read_sigma:
            raw += self._read_noise(signal.shape, rng)
        rows = np.full(height, self.black_level)
        if self.row_sigma:
            rows += rng.normal(0.0, self.row_sigma, height)
        raw += rows.astype(np.float32)[:, None]
        if self.offset_sigma:
            offsets = dict(zip('rgb', rng.normal(0.0, self.offset_sigma, 3), strict=True))
            if cfa == MONO:
                raw += np.float32(offsets['g'])
            else:
                for colour, places in sites(cfa).items():
                    for y, x in places:
                        raw[y::2, x::2] += np.float32(offsets[colour])
        return self._digitise(raw)

    def _read_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
        if math.isnan(self.tukey_lambda):
            return rng.standard_normal(shape, dtype=np.float32) * np.float32(self.read_sigma)
        # A float32 uniform is a multiple of 2^-24: zero is moved inside, one never occurs.
        below = np.maximum(rng.random(shape, dtype=np.float32), np.float32(2.0**-25))
        above = np.float32(1.0) - below
        shape_parameter = np.float32(self.tukey_lambda)
        scale = self.read_sigma / math.sqrt(tukey_lambda_variance(self.tukey_lambda))
        if abs(self.tukey_lambda) < 1e-3:
            return (np.log(below) - np.log(above)) * np.float32(scale)
        return (below**shape_parameter - above**shape_parameter) * np.float32(scale / self.tukey_lambda)

    def _digitise(self, raw: NDArray[np.float32]) -> NDArray[np.uint16]:
        if self.quantisation_step != 1.0:
            raw = np.rint(raw / np.float32(self.quantisation_step)) * np.float32(self.quantisation_step)
        np.rint(raw, out=raw)
        np.clip(raw, 0.0, np.float32(math.floor(self.white_level)), out=raw)
        return raw.astype(np.uint16)


def rows_per_block(samples: Sequence[int]) -> tuple[float, float, float]:
    """Sensor rows over which one value of R, G, B is averaged, from the number of its raw pixels.

    In a Bayer block of n x n pixels red and blue lie in n/2 rows, green in all n; a mono block has n rows.
    """
    red, green, blue = samples
    if red == green == blue:
        return (math.sqrt(red),) * 3
    if green != 2 * red or blue != red:
        raise ConfigError(f'{tuple(samples)} are not the samples of a binned Bayer or mono mosaic')
    return math.sqrt(red), math.sqrt(2 * green), math.sqrt(blue)


def tukey_lambda_variance(shape: float) -> float:
    """Variance of the standard Tukey-lambda distribution, finite for shape > -1/2.

    2/shape^2 * (1/(1+2*shape) - Gamma(shape+1)^2 / Gamma(2*shape+2)); pi^2/3 (the logistic one) at zero.
    """
    if abs(shape) < 1e-5:
        return math.pi**2 / 3.0
    beta = math.exp(2 * gammaln(shape + 1) - gammaln(2 * shape + 2))
    return 2.0 / shape**2 * (1.0 / (1.0 + 2.0 * shape) - beta)


def eld_model(camera: str, gain: float, *, heavy_tails: bool = True) -> NoiseModel:
    """Noise model of a camera of `eld.CAMERAS` at any gain of its calibrated range (DN per electron, 14 bit)."""
    facts = eld_camera(camera)
    low, high = facts.gain_range
    if not low <= gain <= high:
        raise ConfigError(f'gain {gain} is outside the calibrated range {low}..{high} DN/e- of {camera}')
    return NoiseModel(
        gain=gain,
        read_sigma=facts.read.at(gain),
        row_sigma=facts.row.at(gain),
        offset_sigma=facts.offset_sigma,
        tukey_lambda=facts.tukey_lambda if heavy_tails else math.nan,
        black_level=facts.black_level,
        white_level=facts.white_level,
        name=camera,
        source='Wei et al., CVPR 2020 (ELD calibration); black and white level typical of the camera',
    )


def _presets() -> dict[str, NoiseModel]:
    # About two thirds of the top gain: the dark end of each camera.
    high_gain = {'canon_5d4': 8.0, 'canon_700d': 16.0, 'canon_70d': 16.0, 'nikon_d850': 16.0, 'sony_a7s2': 4.0}
    presets = {name: eld_model(name, gain) for name, gain in high_gain.items() if name in CAMERAS}
    presets['alpha1_iso102400'] = NoiseModel(
        gain=400.0,
        read_sigma=400.0,
        row_sigma=20.0,
        offset_sigma=4.0,
        black_level=1024.0,
        white_level=16383.0,
        name='alpha1_iso102400',
        source='worked out from published variance lines of area-averaged 14-bit data: 400 DN/e-, 1.0 e- read noise; '
        'row and offset noise assumed',
    )
    presets['oppo_reno_10x_iso3200'] = NoiseModel(
        gain=0.0005995267 * 3200 + 0.00868861,
        read_sigma=math.sqrt(7.11772e-7 * 3200**2 + 6.514934e-4 * 3200 + 0.11492713),
        black_level=64.0,
        white_level=1023.0,
        name='oppo_reno_10x_iso3200',
        source='Wang et al., ECCV 2020 (PMRID), polynomials in ISO; 10 bit',
    )
    presets['pregius'] = NoiseModel(
        gain=6.2,
        read_sigma=15.0,
        row_sigma=0.8,
        offset_sigma=0.3,
        black_level=240.0,
        white_level=4095.0,
        name='pregius',
        source='typical values of a 3.45 um global-shutter machine-vision sensor at 24 dB, 12 bit: 2.4 e- read noise',
    )
    presets['starvis'] = NoiseModel(
        gain=10.0,
        read_sigma=8.0,
        row_sigma=0.6,
        offset_sigma=0.3,
        black_level=240.0,
        white_level=4095.0,
        name='starvis',
        source='typical values of a back-illuminated security-camera sensor at 30 dB, 12 bit: 0.8 e- read noise',
    )
    return presets


PRESETS: dict[str, NoiseModel] = _presets()


def preset(name: str) -> NoiseModel:
    """Noise model by name; raises ConfigError that lists the known names."""
    model = PRESETS.get(name)
    if model is None:
        raise ConfigError(f'unknown noise preset {name!r}; known: {", ".join(PRESETS)}')
    return model


def save_yaml(model: NoiseModel, path: Path | str, extra: dict[str, Any] | None = None) -> None:
    """Write the model as YAML under `noise`, with `extra` (goodness of fit, provenance) beside it."""
    content: dict[str, Any] = {'noise': to_mapping(model)}
    content.update(extra or {})
    try:
        Path(path).write_text(_yaml().safe_dump(content, sort_keys=False, allow_unicode=True), encoding='utf-8')
    except OSError as error:
        raise OutputError(f'cannot write the noise model to {path}: {error.strerror}') from error


def load_yaml(path: Path | str) -> NoiseModel:
    """Read a model written by `save_yaml`; raises DataError or ConfigError naming the file."""
    try:
        content = _yaml().safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'cannot read the noise model {path}: {error.strerror}') from error
    except (_yaml().YAMLError, UnicodeDecodeError) as error:
        raise DataError(f'{path} is not a YAML file: {str(error).splitlines()[0]}') from error
    if not isinstance(content, dict) or not isinstance(content.get('noise'), dict):
        raise DataError(f'{path} holds no noise model: make one with `dark3r calibrate-noise`')
    try:
        return from_mapping(NoiseModel, content['noise'])
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error


def resolve_noise(text: str) -> NoiseModel:
    """Noise model from the name of a preset or the path of a YAML file."""
    if text in PRESETS:
        return PRESETS[text]
    if Path(text).suffix.lower() in ('.yaml', '.yml'):
        return load_yaml(text)
    raise ConfigError(f'{text!r} is neither a YAML file nor a noise preset; presets: {", ".join(PRESETS)}')


def at_levels(model: NoiseModel, black_level: float, white_level: float) -> NoiseModel:
    """Return the same noise on another pedestal and saturation level, in the same counts."""
    return replace(model, black_level=black_level, white_level=white_level)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise DependencyError('noise models are YAML files: install PyYAML (pip install pyyaml)') from error
    return yaml
