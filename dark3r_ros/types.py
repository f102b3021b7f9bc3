# SPDX-License-Identifier: Apache-2.0
"""Small result types that the rooms share.

Arrays inside are treated as read-only: whoever needs to change one copies it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.geometry.camera import Camera

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]

CFA_PATTERNS = ('rggb', 'bggr', 'gbrg', 'grbg', 'mono')


@dataclass(frozen=True, eq=False)
class Frame:
    """One raw exposure, values as the sensor gave them.

    Attributes
    ----------
    stamp_ns: time of exposure from the message header, integer nanoseconds.
    mosaic: (H, W) uint16 counts of the colour filter array, right-aligned, black level still in.
    cfa: colours of the top-left 2x2 sites, row by row (`rggb`, `bggr`, `gbrg`, `grbg`), or `mono`.
    black_level: counts of a black pixel for R, G, B.
    white_level: counts at which a pixel is saturated.
    camera: intrinsics at the size of the mosaic, or None while unknown.
    frame_id: ROS frame of the optical axes.
    gain: camera gain as the driver states it (ISO or linear), or None.
    exposure_s: exposure time in seconds, or None.
    processed: True when the values were reconstructed from an 8-bit picture, so that the noise model is void.
    name: file name where the frame came from a folder.

    """

    stamp_ns: int
    mosaic: NDArray[np.uint16]
    cfa: str
    black_level: tuple[float, float, float]
    white_level: float
    camera: Camera | None = None
    frame_id: str = ''
    gain: float | None = None
    exposure_s: float | None = None
    processed: bool = False
    name: str = ''

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the mosaic."""
        return self.mosaic.shape[1], self.mosaic.shape[0]


@dataclass(frozen=True, eq=False)
class Planes:
    """Binned colour planes of a frame: what every predictor sees.

    Attributes
    ----------
    values: (3, h, w) float32, R, mean G, B in counts with the black level still in, signed and never clipped.
    black_level: (3,) counts of black per plane.
    white_level: counts at saturation.
    samples: raw pixels averaged into one value of R, G, B.
    binning: side of the block of mosaic pixels behind one value.
    stamp_ns: time of the exposure.
    camera: intrinsics at the size of the planes, or None.
    processed: True for a picture that was no raw.
    noise_variance: mean noise variance of R, G, B in counts squared where it was measured or modelled, else None.

    """

    values: Float32Array
    black_level: tuple[float, float, float]
    white_level: float
    samples: tuple[int, int, int]
    binning: int
    stamp_ns: int
    camera: Camera | None = None
    processed: bool = False
    noise_variance: tuple[float, float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a plane."""
        return self.values.shape[2], self.values.shape[1]

    def signal(self) -> Float32Array:
        """Counts above black, (3, h, w) float32, negative where noise pulled below it."""
        return self.values - np.array(self.black_level, dtype=np.float32)[:, None, None]


@dataclass(frozen=True, eq=False)
class Correspondences:
    """Matches between the planes of two frames a and b.

    Attributes
    ----------
    points_a, points_b: (N, 2) float64 pixels (x, y) at the size of the planes.
    confidence: (N,) float64, larger is better; comparable within one predictor only.
    index_a, index_b: (N,) int64 identities of the points within their frame when the predictor works on repeatable
        keypoints (the same index in two matches of one frame is the same point), else None.
    anchor_a, anchor_b: (N,) int64 numbers of the fixed keypoints of a frame, -1 where this side was measured between
        them; None for a predictor without such keypoints. The same number in two pairs is the same place.
    pointmap_a, pointmap_b: (h, w, 3) float32 points of both frames in the optical frame of a, up to scale, or None.
    pointmap_confidence_a, pointmap_confidence_b: (h, w) float32 or None.

    """

    points_a: Float64Array
    points_b: Float64Array
    confidence: Float64Array
    index_a: NDArray[np.int64] | None = None
    index_b: NDArray[np.int64] | None = None
    pointmap_a: Float32Array | None = None
    pointmap_b: Float32Array | None = None
    pointmap_confidence_a: Float32Array | None = None
    pointmap_confidence_b: Float32Array | None = None
    anchor_a: NDArray[np.int64] | None = None
    anchor_b: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.points_a)

    def select(self, mask: NDArray[Any]) -> Correspondences:
        """Keep the matches of a boolean mask or index array; point maps stay whole."""
        return Correspondences(
            self.points_a[mask],
            self.points_b[mask],
            self.confidence[mask],
            None if self.index_a is None else self.index_a[mask],
            None if self.index_b is None else self.index_b[mask],
            self.pointmap_a,
            self.pointmap_b,
            self.pointmap_confidence_a,
            self.pointmap_confidence_b,
            None if self.anchor_a is None else self.anchor_a[mask],
            None if self.anchor_b is None else self.anchor_b[mask],
        )


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points.

    Attributes
    ----------
    points: (N, 3) float32 in the frame the owner states.
    colors: (N, 3) uint8 sRGB for display.
    confidence: (N,) float32, larger is better.

    """

    points: Float32Array
    colors: NDArray[np.uint8]
    confidence: Float32Array

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True, eq=False)
class DepthMap:
    """Depth of one view: depth (h, w) float32 along the optical axis in the unit of the poses, 0 where it is unknown.

    `confidence` (h, w) float32 lies in 0..1.
    """

    depth: Float32Array
    confidence: Float32Array


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Camera poses over time: stamps (N,) int64 nanoseconds and world_from_camera (N, 4, 4) float64."""

    stamps_ns: NDArray[np.int64]
    world_from_camera: Float64Array

    def __len__(self) -> int:
        return len(self.stamps_ns)


class MappingState(IntEnum):
    """State of the online mapping; the numbers are those of msg/MappingStatus."""

    WAITING_FOR_CALIBRATION = 0
    INITIALISING = 1
    TRACKING = 2
    DEGRADED = 3
    LOST = 4
    RELOCALISING = 5
    ERROR = 6


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """What became of one input frame.

    Attributes
    ----------
    stamp_ns: its time. name: its file name, or empty.
    world_from_camera: (4, 4) float64 or None when it could not be posed.
    keyframe: whether it is a keyframe.
    snr_db: estimated signal-to-noise ratio at network resolution, NaN when unknown.
    inliers, matches: correspondences that agree with the pose, and those tried.
    reason: why there is no pose, empty when there is one.

    """

    stamp_ns: int
    world_from_camera: Float64Array | None
    keyframe: bool = False
    snr_db: float = float('nan')
    inliers: int = 0
    matches: int = 0
    reason: str = ''
    name: str = ''


@dataclass(frozen=True, eq=False)
class Observations:
    """Sparse structure: which 3-D point is seen where.

    Attributes
    ----------
    points: (M, 3) float64 in the world frame. colors: (M, 3) uint8.
    point_index: (K,) int64 into points. frame_index: (K,) int64 into `Reconstruction.frames`.
    pixels: (K, 2) float64 pixels of the full-size camera of the reconstruction.

    """

    points: Float64Array
    colors: NDArray[np.uint8]
    point_index: NDArray[np.int64]
    frame_index: NDArray[np.int64]
    pixels: Float64Array


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Result of `map` or `sfm`: camera, frames in time order, cloud and sparse structure."""

    camera: Camera
    frames: tuple[FrameRecord, ...]
    cloud: PointCloud
    observations: Observations
    metric_scale: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def trajectory(self, keyframes_only: bool = False) -> Trajectory:
        """Poses of all posed frames, or of the keyframes."""
        posed = [
            frame
            for frame in self.frames
            if frame.world_from_camera is not None and (frame.keyframe or not keyframes_only)
        ]
        stamps = np.array([frame.stamp_ns for frame in posed], dtype=np.int64)
        poses = [frame.world_from_camera for frame in posed if frame.world_from_camera is not None]
        return Trajectory(stamps, np.stack(poses) if poses else np.zeros((0, 4, 4)))


@runtime_checkable
class FrameSource(Protocol):
    """Frames in order of their stamps, from a bag, a folder or memory."""

    def __iter__(self) -> Iterator[Frame]: ...

    def __len__(self) -> int:
        """Expected number of frames."""
        ...

    @property
    def warnings(self) -> Iterable[str]:
        """What was lost, mislabelled or assumed so far, one sentence each."""
        ...
