# SPDX-License-Identifier: Apache-2.0
"""Pictures that methods without a notion of raw are given: what a person would hand them, from the same dark frames.

All are binned as for a network, so that every method sees the same light.

* `stretched`: white balance, brightest percentile to white, sRGB curve: a night photograph as it would be developed.
* `linear`: the same brightness range without a tone curve.
* `denoised`: the stretched picture after OpenCV's non-local means, as strong as the noise that the picture shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import ConfigError, ReconstructionError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.raw.planes import choose_binning, decode_srgb, display_image, to_planes
from dark3r_ros.storage.result import empty_cloud, no_observations
from dark3r_ros.types import Float64Array, Frame, FrameRecord, Planes, Reconstruction

KINDS = ('stretched', 'linear', 'denoised')
NETWORK_WIDTH = 320
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, eq=False)
class Pictures:
    """Developed frames: RGB (h, w, 3) uint8 without distortion, their pinhole camera, and the frames they come from."""

    images: tuple[NDArray[np.uint8], ...]
    camera: Camera
    frames: tuple[FrameRecord, ...]
    mosaic_camera: Camera

    def reconstruction(self, poses: dict[int, Float64Array], missing: str) -> Reconstruction:
        """Result with world_from_camera (4, 4) by number of the picture; `missing` says why the others have none."""
        records = tuple(
            FrameRecord(
                record.stamp_ns,
                poses.get(number),
                number in poses,
                reason='' if number in poses else missing,
                name=record.name,
            )
            for number, record in enumerate(self.frames)
        )
        return Reconstruction(self.mosaic_camera, records, empty_cloud(), no_observations())


def noise_of_picture(image: NDArray[np.uint8]) -> float:
    """Standard deviation of the noise of a picture (h, w, 3) in counts: median of a horizontal second difference.

    Edges are few beside flat places, so the median sees noise alone; the difference of three neighbours has 6 times
    their variance.
    """
    values = image.astype(np.float32)
    second = values[:, 2:] - 2.0 * values[:, 1:-1] + values[:, :-2]
    return float(_MAD_TO_SIGMA * np.median(np.abs(second)) / np.sqrt(6.0))


def develop(planes: Planes, kind: str) -> NDArray[np.uint8]:
    """Picture (h, w, 3) uint8 RGB of binned planes; ConfigError for an unknown kind."""
    if kind not in KINDS:
        raise ConfigError(f'pictures {kind!r} are not one of {", ".join(KINDS)}')
    picture = display_image(planes)
    if kind == 'linear':
        linear = decode_srgb(picture.astype(np.float32) / np.float32(255.0))
        return np.rint(linear * 255.0).astype(np.uint8)
    if kind == 'denoised':
        # As strong as the noise: OpenCV's advice for its parameter h.
        strength = max(noise_of_picture(picture), 1.0)
        return np.asarray(cv2.fastNlMeansDenoisingColored(picture, None, strength, strength, 5, 15), dtype=np.uint8)
    return picture


def without_distortion(image: NDArray[np.uint8], camera: Camera) -> tuple[NDArray[np.uint8], Camera]:
    """The picture as a pinhole camera of the same intrinsics sees it, and that camera."""
    if not camera.distorted:
        return image, camera
    across, down = cv2.split(camera.pinhole_map())
    straight = cv2.remap(image, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(straight, dtype=np.uint8), camera.pinhole()


def develop_all(frames: Iterable[Frame], kind: str = 'stretched', width: int = NETWORK_WIDTH) -> Pictures:
    """Develop raw frames; ReconstructionError without a frame or without calibration."""
    images, records, camera, mosaic_camera = [], [], None, None
    for frame in frames:
        planes = to_planes(frame, choose_binning(frame.size[0], width))
        picture = develop(planes, kind)
        if planes.camera is not None:
            picture, camera = without_distortion(picture, planes.camera)
            mosaic_camera = frame.camera
        images.append(picture)
        records.append(FrameRecord(frame.stamp_ns, None, False, name=frame.name))
    if not images or camera is None or mosaic_camera is None:
        raise ReconstructionError('no frame with calibration was seen, so there is nothing to map')
    return Pictures(tuple(images), camera, tuple(records), mosaic_camera)


def write_pictures(pictures: Pictures, folder: Path) -> None:
    """Write the pictures as PNG, numbered from zero with six digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(pictures.images):
        cv2.imwrite(str(folder / f'{number:06d}.png'), image[:, :, ::-1])
