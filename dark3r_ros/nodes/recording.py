# SPDX-License-Identifier: Apache-2.0
"""What a recorder heard of a mapping node, turned into a result folder's content. No graph is needed here."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.nodes import convert, interface
from dark3r_ros.nodes.diagnostics import state_name
from dark3r_ros.raw.camera_info import camera_from_info
from dark3r_ros.storage.result import empty_cloud
from dark3r_ros.types import (
    Float64Array,
    FrameRecord,
    MappingState,
    Observations,
    PointCloud,
    Reconstruction,
    Trajectory,
)


class Arrivals:
    """How many messages of a topic came, and when."""

    def __init__(self) -> None:
        self.count = 0
        self._first = self._last = math.nan

    def add(self, now: float) -> None:
        """Count one."""
        self.count += 1
        self._first = now if self.count == 1 else self._first
        self._last = now

    @property
    def span(self) -> float:
        """Seconds from the first to the last."""
        return self._last - self._first

    def summary(self) -> dict[str, Any]:
        """Count and mean rate."""
        usable = self.count > 1 and self.span > 0
        return {'count': self.count, 'rate_hz': (self.count - 1) / self.span if usable else None}


class Recording:
    """Messages of one mapping node, by topic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.arrivals: dict[str, Arrivals] = {}
        self.last_activity = clock()
        self.busy = False
        self.frames_received = 0
        self._odometry: dict[int, Float64Array] = {}
        self._path: dict[int, Float64Array] = {}
        self._keyframes: dict[int, tuple[int, float]] = {}
        self._statuses: dict[int, Any] = {}
        self._processed = Arrivals()
        self._last_status: Any = None
        self._base_from_camera: Float64Array | None = None
        self._camera: Camera | None = None
        self._map: PointCloud | None = None
        self._clouds: list[PointCloud] = []
        self._edges: Counter[tuple[str, str]] = Counter()
        self.parameters: dict[str, Any] = {}

    def take(self, topic: interface.Topic, message: Any) -> None:
        """Store one message."""
        now = self._clock()
        self.arrivals.setdefault(topic.name, Arrivals()).add(now)
        handler = {
            interface.ODOMETRY: self._on_odometry,
            interface.PATH: self._on_path,
            interface.CLOUD: self._on_cloud,
            interface.MAP: self._on_map,
            interface.KEYFRAMES: self._on_keyframes,
            interface.STATUS: self._on_status,
            interface.EXTRINSICS: self._on_extrinsics,
            interface.TF: self._on_tf,
            interface.CAMERA_INFO: self._on_camera_info,
        }[topic]
        if handler(message) is not False:
            self.last_activity = now

    def idle_for(self) -> float:
        """Seconds since anything new came, while the node has nothing left to do."""
        return 0.0 if self.busy else self._clock() - self.last_activity

    @property
    def calibrated(self) -> bool:
        """Whether a calibration was heard."""
        return self._camera is not None

    @property
    def silent_for(self) -> float:
        """Seconds since any new message, whatever the node was doing."""
        return self._clock() - self.last_activity

    # ------------------------------------------------------------------ messages

    def _on_odometry(self, message: Any) -> None:
        self._odometry[convert.stamp_to_ns(message.header.stamp)] = convert.pose_from_message(message.pose.pose)

    def _on_path(self, message: Any) -> None:
        self._path = {
            convert.stamp_to_ns(item.header.stamp): convert.pose_from_message(item.pose) for item in message.poses
        }

    def _on_cloud(self, message: Any) -> None:
        self._clouds.append(convert.cloud_from_message(message))

    def _on_map(self, message: Any) -> None:
        self._map = convert.cloud_from_message(message)

    def _on_keyframes(self, message: Any) -> None:
        for keyframe in message.keyframes:
            self._keyframes[keyframe.id] = (convert.stamp_to_ns(keyframe.header.stamp), float(keyframe.snr_db))

    def _on_extrinsics(self, message: Any) -> None:
        self._base_from_camera = convert.transform_from_message(message)

    def _on_tf(self, message: Any) -> bool:
        for item in message.transforms:
            self._edges[item.header.frame_id, item.child_frame_id] += 1
        # Others publish transforms too, for ever.
        return False

    def _on_camera_info(self, message: Any) -> bool:
        if self._camera is None:
            self._camera = camera_from_info(message)
        return False

    def _on_status(self, message: Any) -> bool:
        self._last_status = message
        arrived, self.frames_received = message.frames_received > self.frames_received, message.frames_received
        was_busy, self.busy = self.busy, message.queue_length > 0
        stamp_ns = convert.stamp_to_ns(message.header.stamp)
        # A status without a new frame comes every second; only news counts as activity. Until the first frame is
        # through, the stamp is zero; that it arrived is news already, however long the wait for it was.
        new = stamp_ns > 0 and stamp_ns not in self._statuses
        if new:
            self._statuses[stamp_ns] = message
            self._processed.add(self._clock())
        return new or arrived or self.busy or was_busy

    # ------------------------------------------------------------------ results

    def _to_trajectory(self, poses: dict[int, Float64Array]) -> Trajectory:
        base_from_camera = se3.BODY_FROM_OPTICAL if self._base_from_camera is None else self._base_from_camera
        stamps = sorted(poses)
        matrices = [poses[stamp] @ base_from_camera for stamp in stamps]
        return Trajectory(np.array(stamps, dtype=np.int64), np.stack(matrices) if matrices else np.zeros((0, 4, 4)))

    def online(self) -> Trajectory:
        """Poses of the camera as ~/odometry gave them when they were new."""
        return self._to_trajectory(self._odometry)

    def refined(self) -> tuple[Trajectory, str]:
        """Newest poses of the camera, and where they come from: ~/path when it holds every frame, else ~/odometry."""
        if self._path and set(self._odometry) <= set(self._path):
            return self._to_trajectory(self._path), 'path'
        return self.online(), 'odometry'

    def _cloud(self) -> PointCloud:
        if self._map is not None:
            return self._map
        if not self._clouds:
            return empty_cloud()
        return PointCloud(
            np.concatenate([cloud.points for cloud in self._clouds]),
            np.concatenate([cloud.colors for cloud in self._clouds]),
            np.concatenate([cloud.confidence for cloud in self._clouds]),
        )

    def reconstruction(self) -> Reconstruction:
        """All that was heard, with poses of the camera's optical frame in the map frame. DataError without frames."""
        if self._camera is None:
            raise DataError('no camera_info was heard, so there is nothing to write: is the camera or replay running?')
        trajectory, _ = self.refined()
        posed = dict(zip(trajectory.stamps_ns.tolist(), trajectory.world_from_camera, strict=True))
        keyframes = {stamp for stamp, _ in self._keyframes.values()}
        frames = []
        for stamp in sorted({*posed, *self._statuses}):
            status, pose = self._statuses.get(stamp), posed.get(stamp)
            frames.append(
                FrameRecord(
                    stamp,
                    None if pose is None else se3.normalised(pose),
                    stamp in keyframes and pose is not None,
                    math.nan if status is None else float(status.snr_db),
                    0 if status is None else int(status.inliers),
                    0 if status is None else int(status.matches),
                    '' if pose is not None or status is None else str(status.message),
                )
            )
        cloud = self._cloud()
        nowhere = np.zeros(0, np.int64)
        points = Observations(cloud.points.astype(np.float64), cloud.colors, nowhere, nowhere, np.zeros((0, 2)))
        metric = bool(self._last_status.metric_scale) if self._last_status is not None else False
        return Reconstruction(self._camera, tuple(frames), cloud, points, metric)

    def report(self) -> dict[str, Any]:
        """What belongs into report.json besides the reconstruction."""
        latencies = [float(item.latency) for item in self._statuses.values() if math.isfinite(item.latency)]
        last = self._last_status
        report: dict[str, Any] = {
            'source': 'ros',
            'trajectory_source': self.refined()[1],
            'wall_s': self._processed.span if self._processed.count else None,
            'rate_hz': self._processed.summary()['rate_hz'],
            'latency_s': _quantiles(latencies),
            'topics': {name: arrivals.summary() for name, arrivals in sorted(self.arrivals.items())},
            'transforms': {f'{parent} -> {child}': count for (parent, child), count in sorted(self._edges.items())},
            'states': dict(Counter(state_name(MappingState(item.state)) for item in self._statuses.values())),
            'config': self.parameters,
        }
        if last is not None:
            report['counts'] = {
                'received': int(last.frames_received),
                'posed': int(last.frames_posed),
                'dropped': int(last.frames_dropped),
                'missing': int(last.frames_missing),
            }
            report['node_memory_mib'] = float(last.memory_mib)
        return report


def _quantiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {'median': None, 'p95': None, 'max': None}
    median, p95, largest = np.quantile(np.array(values), (0.5, 0.95, 1.0))
    return {'median': float(median), 'p95': float(p95), 'max': float(largest)}
