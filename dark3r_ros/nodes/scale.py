# SPDX-License-Identifier: Apache-2.0
"""Metric scale inside the node: what it follows from, which scale is published, and when that one changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.events import Event, FramePosed, KeyframeAdded, MapDiscarded, StateChanged
from dark3r_ros.mapping.ground import GroundScale
from dark3r_ros.mapping.metric import MetricConfig, MetricScale, ScaleEstimate
from dark3r_ros.nodes import convert
from dark3r_ros.nodes.backlog import elapsed
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.nodes.node_config import NodeConfig
from dark3r_ros.nodes.transforms import TransformBuffer, TransformError
from dark3r_ros.types import Float64Array, MappingState

_SIGNIFICANT = 3.0
_NOT_USED = ScaleEstimate(reason='use_odometry is false')


class ScaleKeeper:
    """Feeds the estimator from the odometry topic, else from odom -> base on /tf, and keeps the published scale.

    Where neither tells it, the height of the camera above the ground does, if that is given.

    Poses are those of the map (submap 0); frames that are posed late are left out. Used by the executor thread only.
    """

    def __init__(
        self,
        config: NodeConfig,
        metric: MetricConfig,
        buffer: TransformBuffer,
        frame: MapFrame,
        say: Callable[[str], None],
        camera_height: float = 0.0,
    ) -> None:
        self._config, self._metric_config = config, metric
        self._buffer, self._frame, self._say = buffer, frame, say
        self._estimator = MetricScale(metric, se3.BODY_FROM_OPTICAL)
        self._ground = GroundScale(camera_height) if camera_height > 0.0 else None
        self._body = ''
        self._camera_frame = ''
        self._from_topic = False
        self._newest_tf_ns = -1
        # Who else hears of every odometry pose, and of how the camera sits on what it is about.
        self.also: Callable[[int, Float64Array], None] | None = None
        self.mounted: Callable[[Float64Array], None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the scale of a map that is gone."""
        self._estimator.reset()
        if self._ground is not None:
            self._ground.reset()
        self.applied: ScaleEstimate | None = None
        self._frame.scale, self._frame.deviation = 1.0, 0.0

    @property
    def estimate(self) -> ScaleEstimate:
        """The published scale with its newest deviation and drift, or why there is none."""
        now = self._now
        if self.applied is None:
            return now
        return replace(now, scale=self.applied.scale) if now.known else self.applied

    @property
    def _now(self) -> ScaleEstimate:
        """What is known now: by odometry, else by the height above the ground."""
        by_odometry = self._estimator.estimate if self._config.use_odometry else _NOT_USED
        if self._ground is None or by_odometry.known:
            return by_odometry
        by_height = self._ground.estimate
        return by_height if by_height.known or not by_odometry.steps else by_odometry

    @property
    def awaited(self) -> bool:
        """Whether there is something from which the scale will follow."""
        return self.applied is None and (self._config.use_odometry or self._ground is not None)

    # ------------------------------------------------------------------ input

    def take_odometry(self, message: Any, odom_from_body: Float64Array) -> None:
        """Take an odometry message that was checked."""
        if not self._config.use_odometry:
            return
        self._from_topic = True
        self._mount(message.child_frame_id.lstrip('/') or self._config.base_frame)
        self._add(convert.stamp_to_ns(message.header.stamp), odom_from_body)

    def take(self, events: Sequence[Event]) -> None:
        """Take what the pipeline said about one frame."""
        by_odometry, ground = self._config.use_odometry, self._ground
        if not by_odometry and ground is None:
            return
        if ground is not None:
            self._orient(ground)
        if by_odometry:
            self._poll_transforms()
        for event in events:
            if by_odometry and isinstance(event, FramePosed) and event.submap == 0 and not event.late:
                if not self._camera_frame:
                    self._camera_frame = self._config.camera_frame or event.frame_id
                    if not self._from_topic:
                        self._mount(self._config.base_frame)
                self._estimator.add_pose(event.stamp_ns, event.world_from_camera)
            elif ground is not None and isinstance(event, KeyframeAdded) and event.submap == 0:
                ground.add(event.world_from_camera, event.cloud.points)
            elif isinstance(event, MapDiscarded):
                self.reset()
            elif isinstance(event, StateChanged) and event.new in (MappingState.LOST, MappingState.RELOCALISING):
                self._estimator.interrupt()
                if ground is not None:
                    ground.interrupt()

    def _orient(self, ground: GroundScale) -> None:
        """Tell where up is in the camera, once its mounting is known."""
        mounting = self._frame.base_from_camera
        if mounting is not None:
            ground.up = mounting[2, :3]
            if not self._body and self.mounted is not None:  # no odometry says how its body carries the camera
                self.mounted(mounting)

    def _poll_transforms(self) -> None:
        """Take the newest odom -> base where nobody publishes odometry messages."""
        odom, base = self._config.odom_frame, self._config.base_frame
        if self._from_topic or not self._buffer.connected(odom, base):
            return
        newest = self._buffer.newest_ns(base)
        if newest is None or newest == self._newest_tf_ns:
            return
        try:
            pose = self._buffer.lookup(odom, base, newest)
        except TransformError:  # a longer chain of which another part is older
            return
        self._newest_tf_ns = newest
        self._add(newest, pose)

    def _add(self, stamp_ns: int, odom_from_body: Float64Array) -> None:
        self._estimator.add_odometry(stamp_ns, odom_from_body)
        if self.also is not None:
            self.also(stamp_ns, odom_from_body)

    def _mount(self, body: str) -> None:
        """Look up how the camera sits on the body that the odometry is about."""
        if not self._camera_frame or body == self._body:
            return
        self._body = body
        mounting = self._frame.base_from_camera
        if body != self._config.base_frame or mounting is None:
            try:
                mounting = self._buffer.lookup(body, self._camera_frame, 0)
            except TransformError as error:
                mounting = mounting if mounting is not None else se3.BODY_FROM_OPTICAL
                self._say(f'the odometry is taken to be about {self._config.base_frame}: {error}')
        self._estimator.body_from_camera = mounting
        if self.mounted is not None:
            self.mounted(mounting)

    # ------------------------------------------------------------------ output

    def distance(self, first_ns: int, second_ns: int) -> float:
        """How far the robot moved between two stamps: by odometry where there is one, else the time."""
        seconds = elapsed(first_ns, second_ns) / convert.NANOSECONDS
        moved = self._estimator.motion(first_ns, second_ns)
        # A little time lets frames of a standing robot go in turn.
        return seconds if math.isnan(moved) else moved + 1e-3 * seconds

    def refine(self, newest: Callable[[int], Float64Array | None]) -> None:
        """Take refined poses after the map as a whole moved."""
        self._estimator.refine(newest)

    def restore(self, estimate: ScaleEstimate) -> None:
        """Start with the scale of a map that was loaded."""
        self.reset()
        if estimate.known:
            self._apply(estimate)

    def update(self) -> str:
        """Put a new scale into the map frame where it is due; returns one sentence when that happened, else nothing."""
        now, before = self._now, self.applied
        if not now.known:
            return ''
        if before is None:
            self._apply(now)
            return f'the scale is known: {now}'
        change = math.log(now.scale / before.scale)
        limit = max(self._metric_config.change, _SIGNIFICANT * now.deviation)
        if abs(change) <= limit:
            self._frame.deviation = now.deviation
            return ''
        self._apply(now)
        return f'the scale changed by {100.0 * math.expm1(change):+.1f} % to {now}: all outputs move at once'

    def _apply(self, estimate: ScaleEstimate) -> None:
        self.applied = estimate
        self._frame.scale, self._frame.deviation = estimate.scale, estimate.deviation
