# SPDX-License-Identifier: Apache-2.0
"""How good a field is: on held-out views, against their noisy raws or against a clean recording of the same views.

PSNR and SSIM are taken in linear light (peak: the 99.5th percentile of the truth over all views) and after one common
tone map. RawNeRF's protocol fits each render to its reference by gain and offset per channel first. That fit also
shrinks noise, so figures of noisy input gain most from it; both kinds are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.nerf.fieldfile import FieldInfo
from dark3r_ros.nerf.metrics import affine_fit, psnr, ssim
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.perceptual import Distance
from dark3r_ros.nerf.rays import lens_of
from dark3r_ros.nerf.render import Picture, render_view, tone_map_for
from dark3r_ros.nerf.views import Views, frame_values
from dark3r_ros.raw.planes import choose_binning
from dark3r_ros.types import FrameSource

PEAK_PERCENTILE = 99.5

Planes3 = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Mean scores over views; `fitted` are those after the affine fit per channel and view, `lpips` where asked for."""

    psnr: float
    psnr_fitted: float
    psnr_tone: float
    ssim_tone: float
    ssim_fitted: float
    views: int
    lpips: float | None = None

    def as_mapping(self, prefix: str) -> dict[str, float]:
        """Named figures."""
        figures = {} if self.lpips is None else {f'{prefix}lpips_tone': self.lpips}
        return figures | {
            f'{prefix}psnr_linear_db': self.psnr,
            f'{prefix}psnr_linear_fitted_db': self.psnr_fitted,
            f'{prefix}psnr_tone_db': self.psnr_tone,
            f'{prefix}ssim_tone': self.ssim_tone,
            f'{prefix}ssim_linear_fitted': self.ssim_fitted,
        }


def render_views(model: RadianceModel, info: FieldInfo, indices: Sequence[int]) -> list[Picture]:
    """Render training or held-out views by number."""
    lens = lens_of(info.camera).to(model.frames.offset.device)
    return [render_view(model, info.camera, info.world_from_camera[index], lens) for index in indices]


def score(images: Sequence[Planes3], truths: Sequence[Planes3], lpips: Distance | None = None) -> Scores:
    """Score images (3, H, W) in linear light against truths of the same unit; by LPIPS too where it is given."""
    if not images:
        raise DataError('there is no view to score: train with held-out views (--holdout)')
    reference = np.stack(truths)
    peak = max(float(np.percentile(reference, PEAK_PERCENTILE)), 1e-9)
    tone = tone_map_for(reference)
    rows, distances = [], []
    for image, truth in zip(images, truths, strict=True):
        fitted = affine_fit(image, truth)
        shown, expected = tone.encoded(image), tone.encoded(truth)
        rows.append(
            (
                psnr(image, truth, peak), psnr(fitted, truth, peak), psnr(shown, expected, 1.0),
                ssim(shown, expected, 1.0), ssim(fitted, truth, peak),
            )
        )  # fmt: skip
        if lpips is not None:
            distances.append(lpips(shown, expected))
    mean = [float(value) for value in np.mean(np.array(rows), axis=0)]
    perceived = float(np.mean(distances)) if distances else None
    return Scores(mean[0], mean[1], mean[2], mean[3], mean[4], len(rows), perceived)


def against_noise(model: RadianceModel, info: FieldInfo, views: Views) -> dict[str, Any]:
    """Figures on held-out views without any truth; empty without held-out views.

    The noise of a held-out frame is independent of the render, so that the expected squared difference is the error of
    the render plus the noise variance: taking the latter off gives the PSNR against the unseen clean view
    (`psnr_corrected_db`, null where the noise leaves nothing to measure). Black shifts of the frames are fitted first.
    """
    held = np.flatnonzero(views.held_out)
    if not len(held):
        return {}
    pictures = render_views(model, info, [int(index) for index in held])
    noisy_error, noise, light = [], [], []
    for index, picture in zip(held, pictures, strict=True):
        render = picture.radiance * views.exposure[index]
        plane = np.arange(3) if views.colour is None else views.colour
        for channel in range(3):
            mask = np.ones(render.shape[1:], bool) if views.colour is None else plane == channel
            observed = views.values[index, 0 if views.colour is not None else channel][mask]
            residual = observed - render[channel][mask]
            residual = residual - residual.mean()
            noisy_error.append(float(np.mean(residual**2)))
            expected = views.read_variance[channel] + views.shot_gain[channel] * np.maximum(render[channel][mask], 0)
            noise.append(float(expected.mean()))
        light.append(render)
    peak = max(float(np.percentile(np.stack(light), PEAK_PERCENTILE)), 1e-9)
    error, variance = float(np.mean(noisy_error)), float(np.mean(noise))
    left = error - variance
    # Below this the difference of two noisy means says nothing.
    count = sum(picture.opacity.size for picture in pictures) * 3
    trust = 2.0 * math.sqrt(2.0 / count) * variance
    return {
        'views': len(held),
        'residual_over_noise': error / variance,
        'psnr_noisy_db': 10.0 * math.log10(peak**2 / error),
        'psnr_corrected_db': 10.0 * math.log10(peak**2 / left) if left > trust else None,
    }


def clean_values(source: FrameSource, info: FieldInfo, indices: Sequence[int]) -> dict[int, Planes3]:
    """Clean counts above black (3, H, W) of the wanted views, found in a clean recording by their times."""
    wanted = {int(info.stamps_ns[index]): index for index in indices}
    found: dict[int, Planes3] = {}
    for frame in source:
        index = wanted.get(frame.stamp_ns)
        if index is None:
            continue
        if info.config.mosaic:
            raise DataError('a field of single mosaic sites has no planes to compare: train one without --mosaic')
        binning = choose_binning(frame.size[0], info.camera.width)
        values = frame_values(frame, binning, mosaic=False)
        if values.shape[1:] != (info.camera.height, info.camera.width):
            raise DataError(
                f'the clean views have {values.shape[2]}x{values.shape[1]} planes, the field '
                f'{info.camera.width}x{info.camera.height}: they are not of the same recording'
            )
        found[index] = values
    if not found:
        raise DataError('no held-out view of the field has a frame of the same time in the clean recording')
    return found


def against_truth(
    model: RadianceModel,
    info: FieldInfo,
    clean: dict[int, Planes3],
    noisy: dict[int, Planes3] | None = None,
    lpips: Distance | None = None,
) -> dict[str, Any]:
    """Scores of renders, and of the noisy frames themselves, against clean views; by LPIPS too where it is given.

    Clean recordings have an exposure of their own: one factor for all views and channels brings them to the field's
    unit.
    """
    indices = sorted(clean)
    renders = [
        picture.radiance * float(info.exposure[index])
        for index, picture in zip(indices, render_views(model, info, indices), strict=True)
    ]
    truths = [clean[index] for index in indices]
    scale = _one_factor(renders, truths)
    truths = [(truth * scale).astype(np.float32) for truth in truths]
    result: dict[str, Any] = {'views': len(indices), **score(renders, truths, lpips).as_mapping('')}
    if noisy:
        result |= score([noisy[index] for index in indices], truths, lpips).as_mapping('noisy_')
    return result


def _one_factor(renders: Sequence[Planes3], truths: Sequence[Planes3]) -> float:
    """Factor on the truths of least squares."""
    mixed = sum(float(np.vdot(a, b)) for a, b in zip(renders, truths, strict=True))
    power = sum(float(np.vdot(b, b)) for b in truths)
    return mixed / power if power > 0 else 1.0
