# SPDX-License-Identifier: Apache-2.0
"""A compact log of what became of every frame, and the bounded cloud of what the map has forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.sparse_map import Keyframe
from dark3r_ros.types import FrameRecord, PointCloud

Array = NDArray[np.float64]

_ROW = np.dtype(
    [
        ('stamp_ns', np.int64),
        ('keyframe', np.int32),  # reference keyframe, -1 without a pose
        ('is_keyframe', np.bool_),
        ('relative', np.float64, (7,)),  # reference_from_camera: translation, quaternion xyzw
        ('snr_db', np.float32),
        ('inliers', np.int32),
        ('matches', np.int32),
        ('reason', np.int32),
    ]
)


class PoseLog:
    """About a hundred bytes per frame; poses are kept relative to keyframes, so they follow bundle adjustment."""

    def __init__(self) -> None:
        self._rows = np.zeros(256, dtype=_ROW)
        self._count = 0
        self._posed = 0
        self._reasons: list[str] = ['']
        self._names: dict[int, str] = {}
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def posed(self) -> int:
        """Frames with a pose."""
        return self._posed

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._rows.nbytes + 100 * len(self._row_of)

    def add(self, stamp_ns: int, name: str, snr_db: float, reason: str) -> None:
        """Log a frame that has no pose yet."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(len(self._rows), dtype=_ROW)])
        row = self._rows[self._count]
        row['stamp_ns'], row['keyframe'], row['snr_db'] = stamp_ns, -1, snr_db
        self._row_of[stamp_ns] = self._count
        if name:
            self._names[self._count] = name
        self._count += 1
        self.explain(stamp_ns, reason)

    def explain(self, stamp_ns: int, reason: str) -> None:
        """State why a logged frame has no pose."""
        if reason not in self._reasons:
            if len(self._reasons) >= 1000:
                reason = 'no pose'
            if reason not in self._reasons:
                self._reasons.append(reason)
        self._rows[self._row_of[stamp_ns]]['reason'] = self._reasons.index(reason)

    def pose(
        self, stamp_ns: int, keyframe: Keyframe, camera_from_world: Array, inliers: int, matches: int, is_keyframe: bool
    ) -> None:
        """Give a logged frame its pose."""
        row = self._rows[self._row_of[stamp_ns]]
        self._posed += int(row['keyframe'] < 0)
        relative = keyframe.camera_from_world @ se3.inverse(camera_from_world)
        row['keyframe'], row['is_keyframe'] = keyframe.keyframe_id, is_keyframe
        row['relative'] = _packed(relative)
        row['inliers'], row['matches'], row['reason'] = inliers, matches, 0

    def hangs_on(self, stamp_ns: int) -> tuple[int, Array] | None:
        """Id of the keyframe that a frame hangs on, and keyframe_from_camera (4, 4); None without a pose."""
        row = self._rows[self._row_of[stamp_ns]]
        if row['keyframe'] < 0:
            return None
        return int(row['keyframe']), se3.from_quaternion(row['relative'][3:], row['relative'][:3])

    def hang(self, stamp_ns: int, keyframe_from_camera: Array) -> None:
        """Move a frame with regard to the keyframe that it hangs on."""
        row = self._rows[self._row_of[stamp_ns]]
        row['relative'] = _packed(keyframe_from_camera)

    def state(self) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
        """Arrays and texts of all frames, to be saved."""
        texts = {'reasons': self._reasons, 'names': {str(row): name for row, name in self._names.items()}}
        rows = self._rows[: self._count]
        return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}, texts

    def restore(self, arrays: Mapping[str, NDArray[Any]], texts: Mapping[str, Any]) -> None:
        """Take the frames of an earlier session; frames that are added may have the same stamps."""
        self._count = len(arrays['stamp_ns'])
        self._rows = np.zeros(max(256, 2 * self._count), dtype=_ROW)
        for name in _ROW.names or ():
            self._rows[name][: self._count] = arrays[name]
        self._posed = int((arrays['keyframe'] >= 0).sum())
        self._reasons = [str(reason) for reason in texts['reasons']]
        self._names = {int(row): str(name) for row, name in texts['names'].items()}

    def is_posed(self, stamp_ns: int) -> bool:
        """Whether a logged frame has a pose."""
        return bool(self._rows[self._row_of[stamp_ns]]['keyframe'] >= 0)

    def posed_by(self, keyframes: Iterable[Keyframe]) -> int:
        """How many frames hang on these keyframes."""
        return int(self._hanging_on(keyframes).sum())

    def around(self, stamp_ns: int, keyframes: Iterable[Keyframe], reach: int) -> dict[int, tuple[int, Array]]:
        """Stamps and camera_from_world (4, 4) of the frames up to `reach` before and after one, by how many.

        Only frames count that hang on the given keyframes.
        """
        known = {keyframe.keyframe_id: keyframe for keyframe in keyframes}
        own, found = self._row_of[stamp_ns], {}
        for number in range(max(own - reach, 0), min(own + reach + 1, self._count)):
            row = self._rows[number]
            keyframe = known.get(int(row['keyframe']))
            if keyframe is not None:
                relative = se3.from_quaternion(row['relative'][3:], row['relative'][:3])
                pose = keyframe.world_from_camera if row['is_keyframe'] else keyframe.world_from_camera @ relative
                found[number - own] = int(row['stamp_ns']), se3.inverse(pose)
        return found

    def discard_poses(self, reason: str, keyframes: Iterable[Keyframe]) -> None:
        """Take the poses that refer to these keyframes back."""
        discarded = self._hanging_on(keyframes)
        for stamp_ns, number in self._row_of.items():
            if discarded[number]:
                row = self._rows[number]
                row['keyframe'], row['is_keyframe'] = -1, False
                self.explain(stamp_ns, reason)
        self._posed -= int(discarded.sum())

    def rescale(self, keyframes: Sequence[Keyframe], scales: Sequence[float]) -> None:
        """Let frames follow keyframes whose surroundings have grown by a factor."""
        factor = {keyframe.keyframe_id: scale for keyframe, scale in zip(keyframes, scales, strict=True)}
        rows = self._rows[: self._count]
        rows['relative'][:, :3] *= np.array([factor.get(key, 1.0) for key in rows['keyframe'].tolist()])[:, None]

    def _hanging_on(self, keyframes: Iterable[Keyframe]) -> NDArray[np.bool_]:
        wanted = [keyframe.keyframe_id for keyframe in keyframes]
        return np.isin(self._rows[: self._count]['keyframe'], wanted)

    def _in_order(self) -> list[int]:
        """Rows by time; of a frame that two sessions saw the newest."""
        stamps = self._rows['stamp_ns'][: self._count]
        order = np.argsort(stamps, kind='stable')
        newest = np.append(np.diff(stamps[order]) != 0, True) if len(order) else np.zeros(0, bool)
        return [int(row) for row in order[newest]]

    def keyframe_places(self) -> dict[int, int]:
        """Where in `records` each keyframe stands."""
        rows = self._rows
        return {int(rows[row]['keyframe']): place for place, row in enumerate(self._in_order())
                if rows[row]['is_keyframe']}  # fmt: skip

    def records(self, keyframes: Sequence[Keyframe], elsewhere: str = 'no pose') -> list[FrameRecord]:
        """All frames by time, posed from the newest keyframe poses.

        `elsewhere` is the reason given for frames that hang on other keyframes than these.
        """
        rows = self._rows
        known = {keyframe.keyframe_id: keyframe for keyframe in keyframes}
        result = []
        for number in self._in_order():
            row = rows[number]
            keyframe, pose = known.get(int(row['keyframe'])), None
            lies_elsewhere = keyframe is None and row['keyframe'] >= 0
            if keyframe is not None:
                pose = keyframe.world_from_camera
                if not row['is_keyframe']:
                    pose = pose @ se3.from_quaternion(row['relative'][3:], row['relative'][:3])
            result.append(
                FrameRecord(
                    int(row['stamp_ns']),
                    pose,
                    bool(row['is_keyframe']) and not lies_elsewhere,
                    float(row['snr_db']),
                    int(row['inliers']),
                    int(row['matches']),
                    elsewhere if lies_elsewhere else self._reasons[row['reason']],
                    self._names.get(number, ''),
                )
            )
        return result


def _packed(pose: Array) -> Array:
    """Translation and quaternion xyzw (7,) of a pose (4, 4)."""
    return np.concatenate([pose[:3, 3], se3.quaternion(pose[:3, :3])])


class BoundedCloud:
    """Points of forgotten keyframes; when there are too many, a coarser voxel grid keeps one of each cell."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._points: NDArray[np.float32] = np.zeros((0, 3), np.float32)
        self._colors: NDArray[np.uint8] = np.zeros((0, 3), np.uint8)
        self._voxel = 0.0

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._points.nbytes + self._colors.nbytes

    def add(self, points: Array, colors: NDArray[np.uint8]) -> None:
        """Append points (N, 3) in the world."""
        self._points = np.concatenate([self._points, points.astype(np.float32)])
        self._colors = np.concatenate([self._colors, colors])
        while len(self._points) > self._limit:
            if self._voxel == 0.0:
                extent = np.percentile(self._points, 95, axis=0) - np.percentile(self._points, 5, axis=0)
                self._voxel = max(float(np.max(extent)) / 2000.0, 1e-6)
            cells = np.floor(self._points / self._voxel).astype(np.int64)
            _, kept = np.unique(cells, axis=0, return_index=True)
            kept.sort()
            self._points, self._colors = self._points[kept], self._colors[kept]
            self._voxel *= 1.5

    def move(self, moved: Callable[[Array], Array]) -> None:
        """Put every point where `moved` says."""
        if len(self._points):
            self._points = moved(self._points.astype(np.float64)).astype(np.float32)

    def cloud(self) -> PointCloud:
        """Return the points; each was seen by at least two keyframes."""
        return PointCloud(self._points, self._colors, np.full(len(self._points), 2.0, np.float32))
