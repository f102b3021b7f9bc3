# SPDX-License-Identifier: Apache-2.0
"""All views of a short recording, beside the map: those that passed between keyframes, and those without a pose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.memory import view_bytes
from dark3r_ros.mapping.records import PoseLog
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Passing:
    """A view by the keyframe that it hangs on: keyframe_from_camera (4, 4)."""

    view: View
    keyframe: Keyframe
    relative: Array

    @property
    def camera_from_world(self) -> Array:
        """Pose (4, 4)."""
        return se3.inverse(self.relative) @ self.keyframe.camera_from_world


def hanging(views: Iterable[View], submap: Submap, log: PoseLog) -> list[Passing]:
    """Those of the views that hang on keyframes of a map, in their order; a keyframe hangs on itself."""
    known = {keyframe.keyframe_id: keyframe for keyframe in submap.map.keyframes}
    found = []
    for view in views:
        hangs = log.hangs_on(view.stamp_ns)
        if hangs is not None and hangs[0] in known:
            found.append(Passing(view, known[hangs[0]], hangs[1]))
    return found


class HeldViews:
    """Views of a recording, beside its keyframes, as long as it is short: at most `most` frames, else none.

    Of keyframes only name and picture are kept: the map holds their features.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._views: dict[int, View] = {}
        self._pictures: dict[int, tuple[str, NDArray[np.uint8]]] = {}

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(map(view_bytes, self._views.values())) + sum(one.nbytes for _, one in self._pictures.values())

    def add(self, view: View, *, keyframe: bool = False) -> None:
        """Keep a view, in place of what was known of it."""
        if not self._most:
            return
        self._views.pop(view.stamp_ns, None)
        self._pictures.pop(view.stamp_ns, None)
        if keyframe:
            self._pictures[view.stamp_ns] = view.name, view.colors
        else:
            self._views[view.stamp_ns] = view
        if len(self._views) > self._most:
            self._most = 0
            self._views.clear()
            self._pictures.clear()

    def of(self, submap: Submap, log: PoseLog) -> list[Passing]:
        """Those that hang on keyframes of a map without being one."""
        stamps = {keyframe.stamp_ns for keyframe in submap.map.keyframes}
        views = [view for stamp_ns, view in sorted(self._views.items()) if stamp_ns not in stamps]
        return hanging(views, submap, log)

    def whole(self, atlas: Atlas, most_keyframes: int) -> list[View] | None:
        """All views in order of time, those of all keyframes, too; None where some are not at hand or too many."""
        if not self._most or atlas.keyframes > most_keyframes:
            return None
        views = dict(self._views)
        for submap in atlas.submaps:
            for keyframe in submap.map.keyframes:
                features, picture = keyframe.features, self._pictures.get(keyframe.stamp_ns)
                if features is None or picture is None:
                    return None
                views[keyframe.stamp_ns] = _view_of(keyframe, *picture)
        return [views[stamp_ns] for stamp_ns in sorted(views)]


def _view_of(keyframe: Keyframe, name: str, colors: NDArray[np.uint8]) -> View:
    features = keyframe.features
    assert features is not None
    return View(
        keyframe.stamp_ns,
        keyframe.frame_id,
        name,
        keyframe.camera,
        features,
        colors,
        keyframe.snr_db,
        keyframe.averaged,
    )
