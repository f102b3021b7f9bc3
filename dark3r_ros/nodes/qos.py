# SPDX-License-Identifier: Apache-2.0
"""Quality-of-service profiles by use, and sentences about profiles that do not meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription


def sensor(depth: int = 5) -> QoSProfile:
    """Live sensor data: best effort, only the newest."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def reliable(depth: int = 10) -> QoSProfile:
    """Everything arrives as long as the reader keeps up."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.VOLATILE,
    )


def latched(depth: int = 1) -> QoSProfile:
    """Late readers get the newest: maps, calibration, static transforms."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL,
    )


def image(reliability: str, depth: int) -> QoSProfile:
    """Profile of the image topic from the parameters `image_reliability` and `image_depth`."""
    return reliable(depth) if reliability == 'reliable' else sensor(depth)


def subscribe_if_latched(node: Node, topic: str, kind: type, callback: Callable[[Any], None]) -> Subscription | None:
    """Subscribe to what was published once, latched, before this node came up; None as long as nobody latches.

    Asking without looking would make every publisher that does not latch warn about a mismatch.
    """
    offers = node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    if any(info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in offers):
        return node.create_subscription(kind, topic, callback, latched(1))
    return None


def describe(profile: QoSProfile) -> str:
    """Reliability and durability in words."""
    reliability = ReliabilityPolicy(profile.reliability).name.lower().replace('_', ' ')
    durability = DurabilityPolicy(profile.durability).name.lower().replace('_', ' ')
    return f'{reliability}, {durability}'


def mismatch_sentence(node: Node, topic: str, ours: QoSProfile, event: Any, advice: str) -> str:
    """One sentence naming both sides of an incompatible subscription on `topic`."""
    policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
    offers = sorted(
        {
            f'{info.node_namespace.rstrip("/")}/{info.node_name} offers {describe(info.qos_profile)}'
            for info in node.get_publishers_info_by_topic(topic)
        }
    )
    theirs = '; '.join(offers) or 'a publisher that is already gone'
    return (
        f'no message will arrive on {topic}: its {policy} does not match, we ask for {describe(ours)} '
        f'and {theirs}; {advice}'
    )
