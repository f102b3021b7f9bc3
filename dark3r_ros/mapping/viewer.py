# SPDX-License-Identifier: Apache-2.0
"""What the mapping sees and knows, live or as a recording, by rerun (extra `viewer`).

Poses and points are those of the pipeline's world, in its own unit. Nothing here may disturb the mapping: the first
failure switches the viewer off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dark3r_ros.errors import ConfigError, DependencyError
from dark3r_ros.mapping.events import Event, FramePosed, KeyframeAdded, KeyframesMoved, MapDiscarded, PipelineStatus
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.types import Float64Array, Frame

WINDOW = 'window'

_PICTURE_WIDTH = 320
_TIMELINE = 'stamp'


def check_target(target: str) -> None:
    """Raise ConfigError unless a viewer can be opened there, DependencyError where rerun is missing."""
    if target != WINDOW and not target.endswith('.rrd'):
        raise ConfigError(f'a viewer is either {WINDOW!r} or a file that ends in .rrd, not {target!r}')
    try:
        import rerun  # noqa: F401
    except ImportError as error:
        raise DependencyError('the live viewer needs rerun: pip install "dark3r_ros[viewer]"') from error


class LiveViewer:
    """Shows each frame with what came of it.

    Parameters
    ----------
    target: `window` opens rerun's viewer, FILE.rrd records for it.
    say: hears why the viewer was switched off.

    Raises ConfigError or DependencyError.

    """

    def __init__(self, target: str, say: Callable[[str], None]) -> None:
        check_target(target)
        import rerun

        self._rerun: Any = rerun
        self._say = say
        self._path: list[Float64Array] = []
        self._keyframes: dict[int, Float64Array] = {}
        self._failed = False
        rerun.init('dark3r')
        if target == WINDOW:
            rerun.spawn()
        else:
            rerun.save(target)
        rerun.log('world', rerun.ViewCoordinates.RIGHT_HAND_Y_DOWN, static=True)

    def show(self, frame: Frame | None, events: Sequence[Event], status: PipelineStatus) -> None:
        """Show one frame, or with None what came of finishing the map."""
        if self._failed:
            return
        try:
            if frame is not None:
                self._rerun.set_time(_TIMELINE, timestamp=np.datetime64(frame.stamp_ns, 'ns'))
                self._show_picture(frame)
                self._show_numbers(status)
            self._show_events(events)
        except Exception as error:  # whatever rerun raises, the mapping goes on
            self._failed = True
            self._say(f'the viewer failed and is switched off: {type(error).__name__}: {error}')

    def _show_picture(self, frame: Frame) -> None:
        planes = to_planes(frame, choose_binning(frame.size[0], _PICTURE_WIDTH))
        picture = display_image(planes)
        self._rerun.log('world/camera', self._rerun.Image(picture).compress(jpeg_quality=80))
        if planes.camera is not None:
            height, width = picture.shape[:2]
            self._rerun.log(
                'world/camera',
                self._rerun.Pinhole(image_from_camera=planes.camera.matrix, resolution=[width, height]),
            )

    def _show_numbers(self, status: PipelineStatus) -> None:
        numbers = {'snr_db': status.snr_db, 'matches': status.matches, 'inliers': status.inliers}
        for name, value in numbers.items():
            if math.isfinite(value):
                self._rerun.log(f'numbers/{name}', self._rerun.Scalars(float(value)))
        self._rerun.log('state', self._rerun.TextLog(f'{status.state.name.lower()}: {status.message}'))

    def _show_events(self, events: Sequence[Event]) -> None:
        rerun = self._rerun
        for event in events:
            if isinstance(event, MapDiscarded):
                self._path.clear()
                self._keyframes.clear()
                rerun.log('world', rerun.Clear(recursive=True))
            elif isinstance(event, FramePosed | KeyframeAdded) and event.submap != 0:
                continue
            elif isinstance(event, FramePosed) and not event.late:
                pose = event.world_from_camera
                self._path.append(pose[:3, 3])
                rerun.log('world/camera', rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            elif isinstance(event, KeyframeAdded):
                self._keyframes[event.keyframe_id] = event.world_from_camera[:3, 3]
                points = rerun.Points3D(event.cloud.points, colors=event.cloud.colors)
                rerun.log(f'world/points/{event.keyframe_id}', points)
            elif isinstance(event, KeyframesMoved):
                self._keyframes |= {
                    item.keyframe_id: item.world_from_camera[:3, 3] for item in event.keyframes if item.submap == 0
                }
        if events and self._path:
            rerun.log('world/path', rerun.LineStrips3D([np.stack(self._path)]))
        if events and self._keyframes:
            rerun.log('world/keyframes', rerun.Points3D(np.stack(list(self._keyframes.values())), radii=0.02))
