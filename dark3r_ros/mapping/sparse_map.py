# SPDX-License-Identifier: Apache-2.0
"""Keyframes, their observations and the landmarks they share."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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

    `colors` (h, w, 3) uint8 is the picture for people, from which landmarks take their colour; of any size. `averaged`:
    how many frames of a camera at rest the view is the average of, and `since_ns` the stamp of the first of them.
    `motion`: of a rolling camera, stamps and camera_from_world of the two poses before.
    """

    stamp_ns: int
    frame_id: str
    name: str
    camera: Camera
    features: Features
    colors: NDArray[np.uint8]
    snr_db: float
    averaged: int = 1
    since_ns: int | None = None
    motion: tuple[tuple[int, Array], tuple[int, Array]] | None = None

    @property
    def focal(self) -> float:
        """Mean focal length in pixels of the planes."""
        return 0.5 * (self.camera.fx + self.camera.fy)

    def color_at(self, pixels: Array) -> NDArray[np.uint8]:
        """Colours (N, 3) of pixels (N, 2)."""
        height, width = self.colors.shape[:2]
        size = np.array([width / self.camera.width, height / self.camera.height])
        xy = np.floor((pixels + 0.5) * size).astype(np.int64)
        return self.colors[np.clip(xy[:, 1], 0, height - 1), np.clip(xy[:, 0], 0, width - 1)]


class StoredFeatures(Protocol):
    """Features that lie somewhere else than in memory."""

    def read(self) -> Features | None:
        """Read them back; None when that fails."""
        ...

    def release(self) -> None:
        """Give their place back."""
        ...


@dataclass(eq=False)
class Keyframe:
    """A view that stays in the map.

    Its features are in memory (`loaded`), on disk (`stored`) or in both, and nowhere once nobody will match it again.
    `parents` are the keyframes that it shared most with when it was made. `odometry` is the pose (4, 4) of the robot by
    its wheels at that time, and the number of the unbroken piece that it lies in. `way` is how far it lies from another
    keyframe, given by its id, in metres by the height of the camera above the ground. `averaged` as of the view.
    """

    keyframe_id: int
    stamp_ns: int
    frame_id: str
    camera: Camera
    camera_from_world: Array
    snr_db: float
    loaded: Features | None
    table: KeypointTable = field(default_factory=KeypointTable)
    stored: StoredFeatures | None = None
    parents: tuple[int, ...] = ()
    odometry: tuple[Array, int] | None = None
    way: tuple[int, float] | None = None
    averaged: int = 1

    @property
    def features(self) -> Features | None:
        """What the predictor remembers of the view, read from disk where it must be."""
        if self.loaded is None and self.stored is not None:
            self.loaded = self.stored.read()
            if self.loaded is None:
                self.stored = None
        return self.loaded

    @property
    def matchable(self) -> bool:
        """Whether it can be matched with another view."""
        return self.loaded is not None or self.stored is not None

    def drop_features(self) -> None:
        """Forget what is only needed for matches."""
        if self.stored is not None:
            self.stored.release()
        self.loaded = self.stored = None
        self.table.compact()

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
        return self.table.nbytes + (self.loaded.nbytes if self.loaded is not None else 0)

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

    def select(self, mask: NDArray[np.bool_]) -> ObservationSet:
        """Observations of a mask (K,)."""
        return ObservationSet(self.keyframe[mask], self.row[mask], self.landmark[mask], self.normalised[mask])


class SparseMap:
    """Keyframes in the order they were made (those of a map that joined come first), and the landmarks.

    `numbers` gives the next keyframe its id; maps that may be joined share it.
    """

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        self.keyframes: list[Keyframe] = []
        self.landmarks = LandmarkTable()
        self.numbers = numbers if numbers is not None else itertools.count()
        self._retired: set[int] = set()
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

    def retire(self, keyframes: Iterable[Keyframe]) -> None:
        """Count the observations of these keyframes once and for all: until they are revived they do not change.

        What is asked of every landmark at every keyframe then costs the same however long the run is.
        """
        self._retired_counts = self._padded_counts()
        for keyframe in keyframes:
            if keyframe.keyframe_id not in self._retired:
                self._retired.add(keyframe.keyframe_id)
                seen = keyframe.table.landmark
                self._retired_counts[seen[seen >= 0]] += 1

    def revive(self, keyframes: Iterable[Keyframe]) -> None:
        """Let the observations of retired keyframes change again."""
        self._retired_counts = self._padded_counts()
        for keyframe in keyframes:
            if keyframe.keyframe_id in self._retired:
                self._retired.remove(keyframe.keyframe_id)
                seen = keyframe.table.landmark
                self._retired_counts[seen[seen >= 0]] -= 1

    def is_retired(self, keyframe: Keyframe) -> bool:
        """Whether the observations of a keyframe are counted once and for all."""
        return keyframe.keyframe_id in self._retired

    def _active(self) -> list[Keyframe]:
        return [keyframe for keyframe in self.keyframes if keyframe.keyframe_id not in self._retired]

    def _padded_counts(self) -> Index:
        missing = self.landmarks.capacity - len(self._retired_counts)
        return np.pad(self._retired_counts, (0, missing)) if missing > 0 else self._retired_counts

    def support(self) -> Index:
        """How many keyframes of the whole map see each landmark row (capacity,)."""
        return self._padded_counts() + self.observation_counts(self._active())

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
        everywhere = bool(self._padded_counts()[gone].any())
        for keyframe in self.keyframes if everywhere else self._active():
            _relabel(keyframe, target)
        if everywhere:
            self._retired_counts = self.observation_counts(filter(self.is_retired, self.keyframes))
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
        for keyframe in self._active():
            seen = keyframe.table.landmark
            seen[unsupported[seen] & (seen >= 0)] = -1
        self.landmarks.remove(weak)

    def cloud(self, landmarks: Index) -> PointCloud:
        """Landmark rows as a cloud, without provisional ones; confidence is the number of keyframes that see each."""
        counts = self.support()
        landmarks = landmarks[~self.landmarks.provisional[landmarks]]
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
