# SPDX-License-Identifier: Apache-2.0
"""Subscriptions of the mapping node: callbacks check what costs nothing, queue, and return."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile

from dark3r_ros.errors import DataError
from dark3r_ros.nodes import convert, explain, interface, qos
from dark3r_ros.nodes.calibration import CameraCache
from dark3r_ros.nodes.node_config import NodeConfig
from dark3r_ros.nodes.statistics import StampMonitor
from dark3r_ros.nodes.transforms import TransformBuffer, TransformListener
from dark3r_ros.nodes.worker import Job, PipelineWorker

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode


class Inputs:
    """Images, calibration, odometry and transforms of an active node. Used by the executor thread only."""

    def __init__(
        self,
        node: MappingNode,
        config: NodeConfig,
        cameras: CameraCache,
        worker: PipelineWorker,
        buffer: TransformBuffer,
    ) -> None:
        self._node = node
        self._config = config
        self._cameras = cameras
        self._worker = worker
        self._buffer = buffer
        self.stamps = StampMonitor()
        self.note = ''
        self._paused = False
        self._held: list[Job] = []
        self._holding = True
        self._last_image = time.monotonic()
        self._explained = self._last_image
        self._flushed = True
        self._counts = {interface.IMAGE: 0, interface.CAMERA_INFO: 0}
        profile = qos.image(config.image_reliability, config.image_depth)
        self._profile = profile
        self._latched: Any = None
        self._subscriptions = [
            self._subscribe(interface.IMAGE, self._on_image, profile),
            self._subscribe(interface.CAMERA_INFO, self._on_camera_info, profile),
            self._subscribe(interface.ODOM, self._on_odometry, qos.sensor(50)),
        ]
        self._listener = TransformListener(node, buffer, node.warn)

    @property
    def image_topic(self) -> str:
        """Resolved name of the image topic."""
        return str(self._node.resolve_topic_name(interface.IMAGE.name))

    @property
    def paused(self) -> bool:
        """Whether images are ignored."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """Ignore images, or go on."""
        self._paused = paused
        self.note = 'paused: images are ignored until ~/pause is called with false' if paused else ''

    def destroy(self) -> None:
        """Remove the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._listener.destroy()

    def _subscribe(self, topic: interface.Topic, callback: Any, profile: QoSProfile) -> Any:
        name = self._node.resolve_topic_name(topic.name)
        advice = 'set image_reliability to best_effort' if topic.qos == 'image' else 'change the publisher'

        def incompatible(event: Any) -> None:
            self._node.warn(qos.mismatch_sentence(self._node, name, profile, event, advice))

        def wrong_type(_: Any) -> None:
            self._node.warn(f'{name} is published with another type than {topic.type}: remap the topic')

        events = SubscriptionEventCallbacks(incompatible_qos=incompatible, incompatible_type=wrong_type)
        return self._node.create_subscription(
            interface.load(topic.type), topic.name, callback, profile, event_callbacks=events
        )

    # ------------------------------------------------------------------ callbacks

    def _on_image(self, message: Any) -> None:
        now = time.monotonic()
        self._last_image, self._flushed = now, False
        self._counts[interface.IMAGE] += 1
        if self._paused:
            return
        self._node.health.received += 1
        stamp_ns = convert.stamp_to_ns(message.header.stamp)
        problem = self.stamps.add(stamp_ns)
        if problem:
            self._node.warn(problem)
        job = Job(message, stamp_ns, message.header.frame_id, now)
        if self._holding and not self._cameras.ready(job.frame_id, message.width, message.height):
            if len(self._held) < self._config.queue_length:
                self._held.append(job)
                return
            self._holding = False
        self.release_held(now, force=True)
        self._worker.submit(job)

    def _on_camera_info(self, message: Any) -> None:
        self._counts[interface.CAMERA_INFO] += 1
        self._on_latched_camera_info(message)

    def _on_latched_camera_info(self, message: Any) -> None:
        sentence = self._cameras.update(message)
        if sentence:
            self._node.warn(sentence)
        elif self._held:
            job = self._held[0]
            if self._cameras.ready(job.frame_id, job.message.width, job.message.height):
                self.release_held(time.monotonic(), force=True)

    def _on_odometry(self, message: Any) -> None:
        try:
            pose = convert.pose_from_message(message.pose.pose)
        except DataError as error:
            self._node.warn(f'an odometry message is refused: {error}; repair its source')
            return
        twist = message.twist.twist
        speeds = (twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z)
        if not all(map(math.isfinite, speeds)):
            self._node.warn('an odometry message is refused: its twist holds NaN or infinity; repair its source')
            return
        odom, base = self._config.odom_frame, self._config.base_frame
        # Only whoever publishes the transform owns it; the message adds samples between its samples.
        if self._buffer.parent(base) == odom and (message.header.frame_id, message.child_frame_id) == (odom, base):
            self._buffer.insert(odom, base, convert.stamp_to_ns(message.header.stamp), pose)
        self._node.scale.take_odometry(message, pose)

    # ------------------------------------------------------------------ time

    def look_for_latched_calibration(self) -> None:
        """Hear a camera_info that was published once, latched, before this node came up."""
        if len(self._cameras) or self._latched is not None:
            return
        topic = interface.CAMERA_INFO
        self._latched = qos.subscribe_if_latched(
            self._node, topic.name, interface.load(topic.type), self._on_latched_camera_info
        )
        if self._latched is not None:
            self._subscriptions.append(self._latched)

    def release_held(self, now: float, force: bool = False) -> None:
        """Hand on the first images, which waited for a camera_info, when it came or the wait is over."""
        if not self._held:
            return
        if not force and now - self._held[0].received < self._config.calibration_wait:
            return
        self._holding = False
        for job in self._held:
            self._worker.submit(job)
        self._held.clear()

    def idle(self, now: float) -> bool:
        """Whether the images have stopped for the time after which the map is refined; once per stop."""
        if self._flushed or self._worker.pending or now - self._last_image < self._config.idle_flush:
            return False
        self._flushed = True
        return True

    def explain_silence(self, now: float, last_problem: str) -> list[str]:
        """Explain why there are no images; empty while they arrive."""
        silent = now - self._last_image
        if silent < self._config.no_data_after or self._paused:
            return []
        topics = [
            explain.inspect(
                self._node, self._node.resolve_topic_name(topic.name), topic.type, self._profile, self._counts[topic]
            )
            for topic in (interface.IMAGE, interface.CAMERA_INFO)
        ]
        return explain.sentences(silent, topics, last_problem)
