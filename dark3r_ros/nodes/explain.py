# SPDX-License-Identifier: Apache-2.0
"""Why no image arrives: what is subscribed, who publishes it, and what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from dark3r_ros.nodes import qos


@dataclass(frozen=True)
class Endpoint:
    """One publisher of a topic."""

    node: str
    type: str
    profile: QoSProfile


@dataclass(frozen=True)
class Subscribed:
    """One of our subscriptions and who publishes it."""

    topic: str
    type: str
    profile: QoSProfile
    received: int
    publishers: tuple[Endpoint, ...]


def inspect(node: Node, topic: str, type_name: str, profile: QoSProfile, received: int) -> Subscribed:
    """Look up who publishes a topic right now."""
    publishers = tuple(
        Endpoint(f'{info.node_namespace.rstrip("/")}/{info.node_name}', info.topic_type, info.qos_profile)
        for info in node.get_publishers_info_by_topic(topic)
    )
    return Subscribed(topic, type_name, profile, received, publishers)


def incompatible(ours: QoSProfile, theirs: QoSProfile) -> str:
    """Name of the policy that keeps a subscription from a publisher, empty when they match."""
    if ours.reliability == ReliabilityPolicy.RELIABLE and theirs.reliability == ReliabilityPolicy.BEST_EFFORT:
        return 'reliability'
    if ours.durability == DurabilityPolicy.TRANSIENT_LOCAL and theirs.durability == DurabilityPolicy.VOLATILE:
        return 'durability'
    return ''


def _cause(item: Subscribed) -> str:
    if not item.publishers and item.received:
        return 'its publisher is gone'
    if not item.publishers:
        return 'nobody publishes it: start the camera, or remap the topic to its name'
    others = sorted({endpoint.type for endpoint in item.publishers} - {item.type})
    if others:
        return f'it is published as {", ".join(others)}: compressed or converted images cannot be used'
    for endpoint in item.publishers:
        policy = incompatible(item.profile, endpoint.profile)
        if policy:
            return (
                f'its {policy} does not match: {endpoint.node} offers {qos.describe(endpoint.profile)}; '
                'set image_reliability to best_effort'
            )
    if item.received == 0:
        return (
            'publishers match but nothing arrived: is the camera triggered, and is '
            'FASTDDS_BUILTIN_TRANSPORTS=LARGE_DATA set on both sides?'
        )
    return 'messages stopped'


def sentences(seconds: float, topics: Sequence[Subscribed], last_problem: str) -> list[str]:
    """Explain in sentences why there has been no image for `seconds`."""
    result = [f'no image for {seconds:.0f} s']
    for item in topics:
        names = ', '.join(sorted({endpoint.node for endpoint in item.publishers})) or 'none'
        text = (
            f'{item.topic} [{item.type}, {qos.describe(item.profile)}]: {item.received} received, '
            f'{len(item.publishers)} publishers ({names})'
        )
        result.append(f'{text}: {_cause(item)}')
    if last_problem:
        result.append(f'last problem: {last_problem}')
    return result
