# SPDX-License-Identifier: Apache-2.0
"""A small transform tree fed by /tf and /tf_static, and publishers for both.

Own implementation on the plain messages, because tf2_ros is a C++ package that not every environment has. Lookups are
at an exact time with interpolation between two samples and never extrapolate. Frame names follow tf2: no leading '/'.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.nodes import convert, qos
from dark3r_ros.types import Float64Array

TF_TOPIC = '/tf'
TF_STATIC_TOPIC = '/tf_static'


class TransformError(DataError):
    """The tree has no such connection, or no data at that time."""


@dataclass
class _Edge:
    """Parent of a frame, with samples in order of time; a static edge has one sample without time."""

    parent: str
    static: bool
    stamps: deque[int] = field(default_factory=deque)
    poses: deque[Float64Array] = field(default_factory=deque)


class TransformBuffer:
    """History of parent_from_child transforms.

    Parameters
    ----------
    history_ns: older samples are forgotten, counted from the newest of the same edge.
    capacity: samples kept per edge at most.

    """

    def __init__(self, history_ns: int = 10 * convert.NANOSECONDS, capacity: int = 5000) -> None:
        self._edges: dict[str, _Edge] = {}
        self._history_ns = history_ns
        self._capacity = capacity

    def insert(
        self, parent: str, child: str, stamp_ns: int, parent_from_child: Float64Array, static: bool = False
    ) -> None:
        """Add one sample; a new parent for a known child replaces its history, as in tf2."""
        parent, child = parent.lstrip('/'), child.lstrip('/')
        if not parent or not child or parent == child:
            raise DataError(f'transform from {parent!r} to {child!r} does not connect two frames')
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.static != static:
            edge = self._edges[child] = _Edge(parent, static)
        if static:
            edge.poses.clear()
            edge.poses.append(parent_from_child)
            return
        # Time went back by more than the history: the clock or the bag was restarted.
        if edge.stamps and stamp_ns < edge.stamps[-1] - self._history_ns:
            edge.stamps.clear()
            edge.poses.clear()
        if not edge.stamps or stamp_ns > edge.stamps[-1]:
            edge.stamps.append(stamp_ns)
            edge.poses.append(parent_from_child)
        else:
            index = bisect_left(edge.stamps, stamp_ns)
            if edge.stamps[index] == stamp_ns:
                edge.poses[index] = parent_from_child
            else:
                edge.stamps.insert(index, stamp_ns)
                edge.poses.insert(index, parent_from_child)
        while len(edge.stamps) > self._capacity or edge.stamps[0] < edge.stamps[-1] - self._history_ns:
            edge.stamps.popleft()
            edge.poses.popleft()

    def parent(self, child: str) -> str | None:
        """Parent frame of a frame, or None."""
        edge = self._edges.get(child)
        return None if edge is None else edge.parent

    def connected(self, ancestor: str, frame: str) -> bool:
        """Whether `ancestor` lies above `frame`."""
        return ancestor != frame and ancestor in [name for name, _ in self._chain(frame)]

    def lookup(self, target: str, source: str, stamp_ns: int) -> Float64Array:
        """target_from_source (4, 4) at exactly `stamp_ns`; TransformError says what is missing."""
        up_target, up_source = self._chain(target), self._chain(source)
        above_target = {name: index for index, (name, _) in enumerate(up_target)}
        for index, (name, _) in enumerate(up_source):
            if name in above_target:
                common_from_source = self._compose(up_source[: index + 1], stamp_ns)
                common_from_target = self._compose(up_target[: above_target[name] + 1], stamp_ns)
                return se3.inverse(common_from_target) @ common_from_source
        raise TransformError(f'frames {target!r} and {source!r} are not connected in the transform tree')

    def newest_ns(self, child: str) -> int | None:
        """Stamp of the newest sample of a moving frame."""
        edge = self._edges.get(child)
        return edge.stamps[-1] if edge is not None and edge.stamps else None

    def _chain(self, frame: str) -> list[tuple[str, _Edge | None]]:
        """Frames from `frame` to its root, each with the edge that led to it."""
        chain: list[tuple[str, _Edge | None]] = [(frame, None)]
        seen = {frame}
        while (edge := self._edges.get(chain[-1][0])) is not None and edge.parent not in seen:
            chain.append((edge.parent, edge))
            seen.add(edge.parent)
        return chain

    def _compose(self, chain: list[tuple[str, _Edge | None]], stamp_ns: int) -> Float64Array:
        result: Float64Array = np.eye(4)
        for (child, _), (_, edge) in pairwise(chain):
            assert edge is not None  # only the first entry of a chain has no edge
            result = self._sample(edge, child, stamp_ns) @ result
        return result

    def _sample(self, edge: _Edge, child: str, stamp_ns: int) -> Float64Array:
        if edge.static:
            return edge.poses[0]
        first, last = edge.stamps[0], edge.stamps[-1]
        if not first <= stamp_ns <= last:
            early = stamp_ns < first
            gap, side = (first - stamp_ns, 'before the first') if early else (stamp_ns - last, 'after the last')
            raise TransformError(f'{edge.parent} -> {child}: asked for {gap / 1e6:.1f} ms {side} sample')
        index = bisect_left(edge.stamps, stamp_ns)
        if edge.stamps[index] == stamp_ns:
            return edge.poses[index]
        before, after = edge.stamps[index - 1], edge.stamps[index]
        return se3.interpolate(edge.poses[index - 1], edge.poses[index], (stamp_ns - before) / (after - before))


class TransformListener:
    """Feed a buffer from /tf and /tf_static; bad transforms go to `on_problem` and are left out."""

    def __init__(self, node: Node, buffer: TransformBuffer, on_problem: Callable[[str], None]) -> None:
        self._node = node
        self._buffer = buffer
        self._on_problem = on_problem
        self._subscriptions = [
            node.create_subscription(TFMessage, TF_TOPIC, lambda m: self._receive(m, False), qos.reliable(100)),
            node.create_subscription(TFMessage, TF_STATIC_TOPIC, lambda m: self._receive(m, True), qos.latched(100)),
        ]

    def destroy(self) -> None:
        """Remove the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _receive(self, message: Any, static: bool) -> None:
        for item in message.transforms:
            try:
                self._buffer.insert(
                    item.header.frame_id,
                    item.child_frame_id,
                    convert.stamp_to_ns(item.header.stamp),
                    convert.transform_from_message(item),
                    static,
                )
            except DataError as error:
                self._on_problem(str(error))


class TransformBroadcaster:
    """Publish transforms on /tf, or on /tf_static where all that were sent so far are repeated (latched)."""

    def __init__(self, node: Node, static: bool = False) -> None:
        self._static: dict[str, Any] | None = {} if static else None
        topic, profile = (TF_STATIC_TOPIC, qos.latched(1)) if static else (TF_TOPIC, qos.reliable(100))
        self._node = node
        self._publisher = node.create_publisher(TFMessage, topic, profile)

    def send(self, *transforms: Any) -> None:
        """Publish TransformStamped messages."""
        if self._static is not None:
            self._static.update({item.child_frame_id: item for item in transforms})
            transforms = tuple(self._static.values())
        self._publisher.publish(TFMessage(transforms=list(transforms)))

    def destroy(self) -> None:
        """Remove the publisher."""
        self._node.destroy_publisher(self._publisher)
