# SPDX-License-Identifier: Apache-2.0
"""Keyframes, their observations and the landmarks they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.geometry.two_view import reprojection_errors
from dark3r_ros.mapping.landmarks import KeypointTable, LandmarkTable
from dark3r_ros.model.predictor import Features
from dark3r_ros.types import PointCloud

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(eq=False)
class View:
    """One encoded frame on its way through the pipeline.

    `colors` (h, w, 3) uint8 is the picture for people, from which landmarks take their colour.
    """

    stamp_ns: int
    frame_id: str
    name: str
    camera: Camera
    features: Features
    colors: NDArray[np.uint8]
    snr_db: float

    @property
    def focal(self) -> float:
        """Mean focal length in pixels of the planes."""
        return 0.5 * (self.camera.fx + self.camera.fy)

    def color_at(self, pixels: Array) -> NDArray[np.uint8]:
        """Colours (N, 3) of pixels (N, 2)."""
        height, width = self.colors.shape[:2]
        xy = np.rint(pixels).astype(np.int64)
        return self.colors[np.clip(xy[:, 1], 0, height - 1), np.clip(xy[:, 0], 0, width - 1)]


@dataclass(eq=False)
class Keyframe:
    """A view that stays in the map; `features` is dropped once nobody will match it again."""

    keyframe_id: int
    stamp_ns: int
    frame_id: str
    camera: Camera
    camera_from_world: Array
    snr_db: float
    features: Features | None
    table: KeypointTable = field(default_factory=KeypointTable)

    @property
    def focal(self) -> float:
        """Mean focal length in pixels of the planes."""
        return 0.5 * (self.camera.fx + self.camera.fy)

    @property
    def centre(self) -> Array:
        """Position (3,) of the camera in the world."""
        return -self.camera_from_world[:3, :3].T @ self.camera_from_world[:3, 3]

    @property
    def world_from_camera(self) -> Array:
        """Pose (4, 4) of the camera in the world."""
        return se3.inverse(self.camera_from_world)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        features = self.features.nbytes if self.features is not None else 0
        return self.table.nbytes + features

    def normalised(self, rows: Index) -> Array:
        """Undistorted normalised coordinates (N, 2) of keypoint rows."""
        return self.camera.unproject(self.table.pixels[rows])


@dataclass(frozen=True, eq=False)
class ObservationSet:
    """Observations of a group of keyframes, one row each: which keyframe, which keypoint row, which landmark."""

    keyframe: Index
    row: Index
    landmark: Index
    normalised: Array


class SparseMap:
    """All keyframes in the order they were made, and the landmarks."""

    def __init__(self) -> None:
        self.keyframes: list[Keyframe] = []
        self.landmarks = LandmarkTable()
        self._retired = 0
        self._retired_counts: Index = np.zeros(0, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.landmarks.nbytes + sum(keyframe.nbytes + 400 for keyframe in self.keyframes)

    def observations(self, keyframes: Sequence[Keyframe]) -> ObservationSet:
        """Every observation by the given keyframes; `keyframe` indexes into the sequence."""
        rows = [keyframe.table.observing() for keyframe in keyframes]
        counts = [len(part) for part in rows]
        landmark = [keyframe.table.landmark[part] for keyframe, part in zip(keyframes, rows, strict=True)]
        normalised = [keyframe.normalised(part) for keyframe, part in zip(keyframes, rows, strict=True)]
        return ObservationSet(
            np.repeat(np.arange(len(keyframes)), counts),
            np.concatenate([*rows, np.zeros(0, np.int64)]),
            np.concatenate([*landmark, np.zeros(0, np.int64)]),
            np.concatenate([*normalised, np.zeros((0, 2))]),
        )

    def observation_counts(self, keyframes: Iterable[Keyframe]) -> Index:
        """How many of the keyframes see each landmark row (capacity,)."""
        counts = np.zeros(self.landmarks.capacity, dtype=np.int64)
        for keyframe in keyframes:
            seen = keyframe.table.landmark
            counts[seen[seen >= 0]] += 1
        return counts

    def retire(self, count: int) -> None:
        """Count the observations of the first `count` keyframes once and for all: they no longer change.

        What is asked of every landmark at every keyframe then costs the same however long the run is. A smaller
        `count` than before starts counting anew.
        """
        if count < self._retired:
            self._retired, self._retired_counts = 0, np.zeros(0, dtype=np.int64)
        self._retired_counts = self._padded_counts()
        for keyframe in self.keyframes[self._retired : count]:
            seen = keyframe.table.landmark
            self._retired_counts[seen[seen >= 0]] += 1
        self._retired = count

    def _padded_counts(self) -> Index:
        missing = self.landmarks.capacity - len(self._retired_counts)
        return np.pad(self._retired_counts, (0, missing)) if missing > 0 else self._retired_counts

    def support(self) -> Index:
        """How many keyframes of the whole map see each landmark row (capacity,)."""
        return self._padded_counts() + self.observation_counts(self.keyframes[self._retired :])

    def covisible(self, landmarks: Index, candidates: Sequence[Keyframe]) -> list[Keyframe]:
        """Candidates that see any of the landmarks, most shared first, newer first among equals."""
        wanted = np.zeros(self.landmarks.capacity + 1, dtype=bool)
        wanted[landmarks] = True
        shared = [int(wanted[keyframe.table.landmark].sum()) for keyframe in candidates]
        order = sorted(range(len(candidates)), key=lambda number: (-shared[number], -number))
        return [candidates[number] for number in order if shared[number] > 0]

    def merge(self, kept: Index, removed: Index) -> None:
        """Let landmarks `removed` become `kept` wherever they are seen.

        A keyframe that sees both keeps its observation of the first one and loses the other.
        """
        target = np.arange(self.landmarks.capacity + 1)  # the last entry stands for "no landmark", index -1
        target[-1] = -1
        target[removed] = kept
        for _ in range(8):  # chains a -> b -> c
            target = np.where(target >= 0, target[target], -1)
        gone = np.unique(removed[target[removed] != removed])
        retired = self._retired_counts = self._padded_counts()
        first = 0 if retired[gone].any() else self._retired
        for keyframe in self.keyframes[first:]:
            _relabel(keyframe, target)
        np.add.at(retired, target[gone], retired[gone])
        retired[gone] = 0
        self.landmarks.remove(gone)

    def cull(self, keyframes: Sequence[Keyframe], max_error_px: float) -> None:
        """Drop observations that reproject badly, then landmarks seen by fewer than two keyframes of the whole map."""
        for keyframe in keyframes:
            rows = keyframe.table.observing()
            points = self.landmarks.points[keyframe.table.landmark[rows]]
            errors = reprojection_errors(keyframe.camera_from_world, points, keyframe.normalised(rows))
            keyframe.table.landmark[rows[errors * keyframe.focal > max_error_px]] = -1
        self.remove_unsupported()

    def remove_unsupported(self) -> None:
        """Remove landmarks that fewer than two keyframes see; those seen by a retired keyframe stay with it."""
        weak = np.flatnonzero(self.landmarks.alive & (self._padded_counts() == 0) & (self.support() < 2))
        if len(weak) == 0:
            return
        unsupported = np.zeros(self.landmarks.capacity + 1, dtype=bool)
        unsupported[weak] = True
        for keyframe in self.keyframes[self._retired :]:
            seen = keyframe.table.landmark
            seen[unsupported[seen] & (seen >= 0)] = -1
        self.landmarks.remove(weak)

    def cloud(self, landmarks: Index) -> PointCloud:
        """Landmark rows as a cloud; confidence is the number of keyframes that see each."""
        counts = self.support()
        return PointCloud(
            self.landmarks.points[landmarks].astype(np.float32),
            self.landmarks.colors[landmarks].copy(),
            counts[landmarks].astype(np.float32),
        )


def _relabel(keyframe: Keyframe, target: Index) -> None:
    """Let a keyframe see `target[landmark]` in place of each landmark, none of them twice."""
    old = keyframe.table.landmark
    new = target[old]
    changed = np.flatnonzero(new != old)
    if len(changed) == 0:
        return
    taken = set(new[new == old].tolist())
    for row in changed.tolist():
        new[row] = -1 if new[row] in taken else new[row]
        taken.add(int(new[row]))
    keyframe.table.landmark = new
