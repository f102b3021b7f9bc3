# SPDX-License-Identifier: Apache-2.0
"""Rendered views as files: tone-mapped and linear pictures, depth, video, point cloud, camera path of nerfstudio."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import OutputError
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nerf.fieldfile import FieldInfo
from dark3r_ros.nerf.model import RadianceModel
from dark3r_ros.nerf.rays import lens_of
from dark3r_ros.nerf.render import Picture, ToneMap, depth_picture, render_view, tone_map_for
from dark3r_ros.storage.files import output_error, replacing, write_text
from dark3r_ros.storage.nerfstudio import OPTICAL_FROM_OPENGL
from dark3r_ros.storage.selection import spread
from dark3r_ros.storage.sequence import SequenceImage, default_stamp_ns, write_cameras_json
from dark3r_ros.types import PointCloud

LINEAR_HEADROOM = 8.0  # full scale of the linear pictures, in units of what the tone map shows as white
_DEPTH_FULL = 60_000


def scaled(camera: Camera, factor: float) -> Camera:
    """Camera of the same picture with another number of pixels."""
    width, height = max(1, round(camera.width * factor)), max(1, round(camera.height * factor))
    sx, sy = width / camera.width, height / camera.height
    return replace(
        camera, width=width, height=height, fx=camera.fx * sx, fy=camera.fy * sy,
        cx=(camera.cx + 0.5) * sx - 0.5, cy=(camera.cy + 0.5) * sy - 0.5,
    )  # fmt: skip


def common_tone_map(
    model: RadianceModel, info: FieldInfo, *, white_balance: str = 'auto', exposure: float = 0.0
) -> ToneMap:
    """One tone map for all pictures of a field, from a few small renders of its training views."""
    small = scaled(info.camera, min(1.0, 80 / info.camera.width))
    chosen = [info.world_from_camera[index] for index in spread(len(info.world_from_camera), 5)]
    light = np.stack([render_view(model, small, pose).radiance for pose in chosen])
    return tone_map_for(light, white_balance=white_balance, exposure=exposure)


def write_png(path: Path, image: NDArray[Any]) -> None:
    """Write a picture, RGB where it has three channels; OutputError when that fails."""
    done, data = cv2.imencode('.png', image[..., ::-1] if image.ndim == 3 else image)
    if not done:
        raise OutputError(f'cannot encode {path.name} as PNG')
    with replacing(path) as stream:
        stream.write(data.tobytes())


class ViewWriter:
    """Writes rendered views into a folder, which is a sequence folder with depth in the end.

    `images/` 8-bit tone-mapped, `linear/` 16-bit linear light (`render.json` states the scale), `depth/` 16-bit depth
    along the axis, `video.mp4` where asked for.
    """

    def __init__(self, folder: Path, camera: Camera, info: FieldInfo, tone: ToneMap, *, fps: float = 0.0) -> None:
        self.folder, self.camera, self.info, self.tone = folder, camera, info, tone
        self.images: list[SequenceImage] = []
        # Counts per world unit: a power of two that keeps everything within eight boxes below 16 bits.
        reach = max(info.box.half) * 8.0
        self.depth_unit = 2.0 ** math.floor(math.log2(_DEPTH_FULL / reach))
        self.linear_white = LINEAR_HEADROOM / min(tone.gains)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error
        self._video = self._open_video(fps) if fps > 0 else None

    def _open_video(self, fps: float) -> cv2.VideoWriter:
        size = self.camera.width // 2 * 2, self.camera.height // 2 * 2
        path = self.folder / 'video.mp4'
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), fps, size)  # type: ignore[attr-defined]
        if not writer.isOpened():
            raise OutputError(f'cannot write {path}: this OpenCV has no encoder for mp4, or the place is not writable')
        return writer

    def add(self, pose: NDArray[np.float64], picture: Picture, stamp_ns: int | None = None) -> None:
        """Write one view."""
        number = len(self.images)
        name = f'{number:06d}.png'
        shown = self.tone(picture.radiance)
        write_png(self.folder / 'images' / name, shown)
        steps = picture.radiance * (65535.0 / self.linear_white)
        write_png(self.folder / 'linear' / name, np.clip(np.rint(steps), 0, 65535).astype(np.uint16).transpose(1, 2, 0))
        counts = np.rint(np.where(picture.opacity > 0.5, picture.depth, 0.0) * self.depth_unit)
        write_png(self.folder / 'depth' / name, np.where(counts > 65535, 0, counts).astype(np.uint16))
        stamp = default_stamp_ns(number) if stamp_ns is None else stamp_ns
        self.images.append(SequenceImage(f'images/{name}', stamp, pose, f'depth/{name}'))
        if self._video is not None:
            even = shown[: shown.shape[0] // 2 * 2, : shown.shape[1] // 2 * 2]
            self._video.write(np.ascontiguousarray(even[:, :, ::-1]))

    def close(self) -> None:
        """Finish the video and write cameras.json and render.json."""
        if self._video is not None:
            self._video.release()
            if not (self.folder / 'video.mp4').stat().st_size:
                raise OutputError(f'cannot write {self.folder / "video.mp4"}: the disk may be full')
        extra = {'depth_unit': self.depth_unit, 'gt': 'none: rendered from a radiance field'}
        write_cameras_json(self.folder / 'cameras.json', self.camera, self.images, metric=self.info.metric, extra=extra)
        facts = {
            'views': len(self.images),
            'tone_gains': list(self.tone.gains),
            'linear_counts_per_step': self.linear_white * self.info.unit / 65535.0,
            'linear_zero_is': 'black: values are counts of the raw file above its black level, at the median exposure',
            'depth_steps_per_unit': self.depth_unit,
        }
        write_text(self.folder / 'render.json', json.dumps(facts, indent=1) + '\n')


def fused_cloud(
    model: RadianceModel, info: FieldInfo, tone: ToneMap, poses: Iterable[NDArray[np.float64]], cells: int = 256
) -> PointCloud:
    """Coloured points of the depths seen from poses, one per cell of `cells` along the longest side of the box.

    Only what stops the ray and has been seen from two places counts; confidence is the number of pixels behind a point.
    """
    small = scaled(info.camera, min(1.0, 160 / info.camera.width))
    lens = lens_of(small).to(model.frames.offset.device)
    local = lens.directions.cpu().numpy() / lens.directions.cpu().numpy()[:, 2:]
    points, colours, views = [], [], []
    for number, pose in enumerate(poses):
        picture = render_view(model, small, pose, lens)
        keep = (picture.opacity.ravel() > 0.8) & (picture.depth.ravel() > 0)
        world = (local[keep] * picture.depth.ravel()[keep, None]) @ pose[:3, :3].T + pose[:3, 3]
        points.append(world)
        colours.append(tone(picture.radiance).reshape(-1, 3)[keep])
        views.append(np.full(len(world), number))
    if not points:
        return PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    return _voxels(np.concatenate(points), np.concatenate(colours), np.concatenate(views), info.box.scale * 2 / cells)


def _voxels(
    points: NDArray[np.float64], colours: NDArray[np.uint8], views: NDArray[np.int64], size: float
) -> PointCloud:
    """Mean point and colour of each occupied cell that two views agree on; all cells where there is one view only."""
    cells = np.floor(points / size).astype(np.int64)
    _, index, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    index = index.ravel()
    seen = np.unique(np.column_stack([index, views]), axis=0)
    support = np.bincount(seen[:, 0], minlength=len(counts))
    mean = np.stack([np.bincount(index, points[:, axis]) for axis in range(3)], axis=1) / counts[:, None]
    colour = np.stack([np.bincount(index, colours[:, axis]) for axis in range(3)], axis=1) / counts[:, None]
    keep = support >= min(2, len(np.unique(views)))
    return PointCloud(
        mean[keep].astype(np.float32), np.rint(colour[keep]).astype(np.uint8), counts[keep].astype(np.float32)
    )


def camera_path(info: FieldInfo, poses: NDArray[np.float64], fps: float) -> dict[str, Any]:
    """Camera path file of nerfstudio's viewer: OpenGL axes, vertical field of view in degrees."""
    camera = info.camera
    fov = math.degrees(2.0 * math.atan(camera.height / (2.0 * camera.fy)))
    frames = [
        {
            'camera_to_world': (pose @ OPTICAL_FROM_OPENGL).ravel().tolist(),
            'fov': fov,
            'aspect': camera.width / camera.height,
        }
        for pose in poses
    ]
    return {
        'camera_type': 'perspective',
        'render_height': camera.height,
        'render_width': camera.width,
        'fps': fps,
        'seconds': len(poses) / fps,
        'camera_path': frames,
    }


def side_by_side(
    noisy: NDArray[np.float32] | None, picture: Picture, tone: ToneMap, truth: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Noisy frame, render, truth where known, and depth, next to each other (H, n * W, 3) uint8 RGB."""
    shown = [tone(picture.radiance), *([tone(truth)] if truth is not None else []), depth_picture(picture.depth)]
    if noisy is not None:
        shown.insert(0, tone(noisy))
    return np.concatenate(shown, axis=1)
