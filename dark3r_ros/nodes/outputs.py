# SPDX-License-Identifier: Apache-2.0
"""Everything the mapping node publishes about poses and the map.

All outputs carry the stamp of the image they belong to. Submaps other than 0 are told in the status only: they lie
anywhere until they are joined, and their frames and keyframes then come again, in the map.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.events import (
    Event,
    FramePosed,
    KeyframeAdded,
    KeyframesMoved,
    KeyframeState,
    MapDiscarded,
)
from dark3r_ros.nodes import convert, interface, qos
from dark3r_ros.nodes.grid import Grid
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.nodes.node_config import NodeConfig
from dark3r_ros.nodes.path import PathKeeper
from dark3r_ros.nodes.transforms import TransformBuffer, TransformError
from dark3r_ros.nodes.voxels import voxelise
from dark3r_ros.storage.result import empty_cloud
from dark3r_ros.types import Float64Array, PointCloud, Reconstruction

# A message that took long to build is not published more often than this many times its own cost.
_COST_FACTOR = 20.0
_MAX_WAITING = 200


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A pose that waits for odom -> base at its stamp."""

    stamp_ns: int
    map_from_base: Float64Array
    deadline: float


class Throttle:
    """Whether it is time again, given a period and what the last time cost."""

    def __init__(self) -> None:
        self._next = 0.0

    def ready(self, now: float) -> bool:
        """Whether the next one may go."""
        return now >= self._next

    def done(self, started: float, finished: float, period: float) -> None:
        """Note that one was made between two moments."""
        self._next = finished + max(period, _COST_FACTOR * (finished - started))


class Outputs:
    """Publishers of the mapping node and what they remember. Used by the executor thread only.

    Parameters
    ----------
    node: owner of the publishers.
    config: frames and toggles; may be replaced at run time.
    buffer: transforms of the robot.
    frame: mounting and unit of all outputs; the mounting is looked up here at the first pose.
    say: logs a warning once per kind.

    """

    def __init__(
        self,
        node: LifecycleNode,
        config: NodeConfig,
        buffer: TransformBuffer,
        frame: MapFrame,
        say: Callable[[str], None],
    ) -> None:
        self.config = config
        # Whether map -> odom must wait, because it would mix metres with another unit.
        self.scale_awaited = False
        self._frame = frame
        self._node = node
        self._buffer = buffer
        self._say = say
        self._publishers = {
            topic.name: node.create_lifecycle_publisher(interface.load(topic.type), topic.name, _profile(topic))
            for topic in interface.OUTPUTS
            if topic is not interface.DIAGNOSTICS
        }
        self._path = PathKeeper(config.path_length)
        self.path_throttle, self.map_throttle = Throttle(), Throttle()
        self.reset()

    def reset(self) -> None:
        """Forget the map, and look for the extrinsics again."""
        self._frame.reset()
        self._keyframes: dict[int, KeyframeState] = {}
        self._map_from_odom_owner: bool | None = None
        self._waiting: deque[_Waiting] = deque()
        self._path.clear()
        self.map_changed = False
        self.newest_ns = 0

    def withdraw(self) -> None:
        """Replace the latched path and map of a forgotten map by empty ones."""
        self._publish(interface.PATH, convert.path_message([], self.newest_ns, self.config.map_frame))
        self._publish(interface.MAP, convert.cloud_message(empty_cloud(), self.newest_ns, self.config.map_frame))

    def destroy(self) -> None:
        """Remove the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    @property
    def waiting(self) -> bool:
        """Whether poses wait for odom -> base."""
        return bool(self._waiting)

    # ------------------------------------------------------------------ events

    def handle(self, events: Sequence[Event], now: float) -> None:
        """Publish what the events ask for, in order."""
        moved: dict[int, KeyframeState] = {}
        for event in events:
            if isinstance(event, FramePosed | KeyframeAdded) and event.submap != 0:
                continue
            if isinstance(event, FramePosed):
                self._posed(event, now)
            elif isinstance(event, KeyframeAdded):
                self._path.keyframe_added(event)
                self.map_changed = True
                moved[event.keyframe_id] = KeyframeState(
                    event.keyframe_id, event.stamp_ns, event.world_from_camera, event.snr_db, event.landmarks
                )
                if self.config.publish_cloud:
                    self._publish(interface.CLOUD, self._cloud(event.cloud, event.stamp_ns))
            elif isinstance(event, KeyframesMoved):
                own = [keyframe for keyframe in event.keyframes if keyframe.submap == 0]
                self._path.keyframes_moved(own)
                self.map_changed = True
                moved.update({keyframe.keyframe_id: keyframe for keyframe in own})
            elif isinstance(event, MapDiscarded):
                # Ids begin anew: what was said of the old map must not be mixed with the new one.
                moved.clear()
                self._keyframes.clear()
                self._path.clear()
                self._waiting.clear()
                self.withdraw()
        self._keyframes.update(moved)
        self._publish_keyframes(moved.values())
        self.publish_changed_path(now)

    def _posed(self, event: FramePosed, now: float) -> None:
        if self._frame.base_from_camera is None:
            self._find_extrinsics(self.config.camera_frame or event.frame_id, event.stamp_ns)
        self._path.posed(event)
        # Poses found later than newer ones belong into the path; a filter or tf would take them for a jump back.
        if event.late:
            return
        self.newest_ns = max(self.newest_ns, event.stamp_ns)
        map_from_base = self._frame.base(event.world_from_camera)
        if self.config.publish_odometry:
            covariance = self._frame.covariance(event.covariance, event.world_from_camera)
            self._publish(
                interface.ODOMETRY,
                convert.odometry_message(
                    map_from_base, covariance, event.stamp_ns, self.config.map_frame, self.config.base_frame
                ),
            )
        if self.config.publish_tf:
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.popleft()
            self._waiting.append(_Waiting(event.stamp_ns, map_from_base, now + self.config.tf_wait))
            self.send_transforms(now)

    def _find_extrinsics(self, camera_frame: str, stamp_ns: int) -> None:
        base = self.config.base_frame
        try:
            if camera_frame == base:
                raise TransformError(f'the images carry the frame of the base {base!r} instead of an optical frame')
            mounting = self._buffer.lookup(base, camera_frame, stamp_ns)
        except TransformError as error:
            mounting = se3.BODY_FROM_OPTICAL
            self._say(
                f'{base} -> {camera_frame or "camera"} is unknown ({error}): the camera is taken to sit in the origin '
                f'of {base} and to look along its x axis; publish the transform on /tf_static and call ~/reset'
            )
        self._frame.mount(mounting)
        message = convert.transform_to_message(mounting, stamp_ns, base, camera_frame or 'camera')
        self._publish(interface.EXTRINSICS, message)

    # ------------------------------------------------------------------ transforms

    def send_transforms(self, now: float) -> None:
        """Publish waiting poses on /tf, in order; drop those whose odom -> base did not come in time."""
        while self._waiting:
            item = self._waiting[0]
            message = self._transform(item, now)
            if message is None:
                return
            self._waiting.popleft()
            if message is not False:
                self._publish(interface.TF, interface.load(interface.TF.type)(transforms=[message]))

    def _transform(self, item: _Waiting, now: float) -> Any:
        """Build the TransformStamped; None while it must wait, False when it cannot be made."""
        config = self.config
        owned = self._buffer.connected(config.odom_frame, config.base_frame)
        if owned and self._map_from_odom_owner is False:
            self._say(f'{config.odom_frame} -> {config.base_frame} has appeared: publishing map -> odom from now on')
        self._map_from_odom_owner = owned
        if not owned:
            return convert.transform_to_message(item.map_from_base, item.stamp_ns, config.map_frame, config.base_frame)
        if self.scale_awaited:
            self._say(
                f'no {config.map_frame} -> {config.odom_frame} until the scale is known, by odometry or the height of '
                'the camera; with use_odometry false and no height it is published in arbitrary units'
            )
            return False
        try:
            odom_from_base = self._buffer.lookup(config.odom_frame, config.base_frame, item.stamp_ns)
        except TransformError as error:
            if now < item.deadline:
                return None
            self._say(f'no map -> odom for an image: {error}; is the odometry late, or on another clock?')
            return False
        map_from_odom = item.map_from_base @ se3.inverse(odom_from_base)
        return convert.transform_to_message(map_from_odom, item.stamp_ns, config.map_frame, config.odom_frame)

    # ------------------------------------------------------------------ path, map, keyframes

    def take(self, result: Reconstruction) -> None:
        """Publish path and map of a refined reconstruction."""
        trajectory = result.trajectory()
        if len(trajectory) and self._frame.known:
            self._path.replace(trajectory.stamps_ns.tolist(), trajectory.world_from_camera)
            if self.config.publish_path:
                self.publish_path()
            if self.config.publish_map:
                self.publish_map(result.cloud)

    def rescaled(self) -> None:
        """Move all that was published to the new scale of the frame: path and keyframes now, the map as it comes."""
        self._waiting.clear()  # poses in the old unit
        self._path.rescaled()
        if self.config.publish_path:
            self.publish_path()
        self._publish_keyframes(self._keyframes.values())
        self.map_changed = True
        self.map_throttle = Throttle()

    def world_from_camera(self, stamp_ns: int) -> Float64Array | None:
        """Newest estimate of a posed frame, in units of the world."""
        return self._path.world_from_camera(stamp_ns)

    def publish_changed_path(self, now: float) -> None:
        """Publish the path if it changed and its period is over; also called while no frame arrives."""
        if self.config.publish_path and self._path.changed and self.path_throttle.ready(now):
            self.publish_path()

    def publish_path(self) -> None:
        """Publish the path now."""
        if not self._frame.known:
            return
        started = time.monotonic()
        poses = self._path.messages(self._frame.base, self.config.map_frame)
        self._publish(interface.PATH, convert.path_message(poses, self.newest_ns, self.config.map_frame))
        self.path_throttle.done(started, time.monotonic(), self.config.path_period)

    def publish_map(self, cloud: PointCloud) -> None:
        """Publish a whole cloud, voxelised; one of a map that was reset meanwhile is dropped."""
        if not self._frame.known:
            return
        started = time.monotonic()
        self._publish(interface.MAP, self._cloud(voxelise(cloud, self.config.map_voxels), self.newest_ns))
        self.map_throttle.done(started, time.monotonic(), self.config.map_period)
        self.map_changed = False

    def publish_grid(self, grid: Grid) -> None:
        """Publish a grid."""
        self._publish(interface.GRID, convert.grid_message(grid, self.newest_ns, self.config.map_frame))

    def publish_status(self, status: Any) -> None:
        """Publish a MappingStatus."""
        self._publish(interface.STATUS, status)

    def _cloud(self, cloud: PointCloud, stamp_ns: int) -> Any:
        return convert.cloud_message(self._frame.cloud(cloud), stamp_ns, self.config.map_frame)

    def _publish_keyframes(self, states: Iterable[KeyframeState]) -> None:
        keyframes = sorted(states, key=lambda keyframe: keyframe.stamp_ns)
        if not keyframes or not self._frame.known or not self.config.publish_keyframes:
            return
        array_type = interface.load(interface.KEYFRAMES.type)
        keyframe_type = interface.load('dark3r_ros/msg/Keyframe')
        message = array_type(header=convert.header(keyframes[-1].stamp_ns, self.config.map_frame))
        message.keyframes = [
            keyframe_type(
                header=convert.header(keyframe.stamp_ns, self.config.map_frame),
                id=keyframe.keyframe_id,
                pose=convert.pose_to_message(self._frame.camera(keyframe.world_from_camera)),
                snr_db=float(keyframe.snr_db),
                landmarks=int(keyframe.landmarks),
            )
            for keyframe in keyframes
        ]
        self._publish(interface.KEYFRAMES, message)

    def _publish(self, topic: interface.Topic, message: Any) -> None:
        publisher = self._publishers.get(topic.name)
        if publisher is None:
            return
        try:
            publisher.publish(message)
        except Exception as error:  # rclpy raises RCLError, a private class, when the middleware is out of room
            self._say(f'{topic.name} could not be published: {error}')


def _profile(topic: interface.Topic) -> QoSProfile:
    if topic.qos == 'latched':
        return qos.latched()
    return qos.reliable(100)
