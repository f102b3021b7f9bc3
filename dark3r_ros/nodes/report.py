# SPDX-License-Identifier: Apache-2.0
"""Once a second: status, diagnostics, the scale, and why there are no images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dark3r_ros.nodes import interface, runtime
from dark3r_ros.nodes.diagnostics import diagnostics
from dark3r_ros.nodes.falling_behind import FallingBehind

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode

_PERIOD_SECONDS = 1.0


class Reporter:
    """Timer and /diagnostics of the node, from its construction to its end."""

    def __init__(self, node: MappingNode) -> None:
        self._node = node
        self._publisher = node.create_publisher(interface.load(interface.DIAGNOSTICS.type), '/diagnostics', 10)
        self._timer = node.create_timer(_PERIOD_SECONDS, self._report, clock=runtime.STEADY)
        self._reported_drops = 0
        self._behind, self._warned = FallingBehind(), False

    def _report(self) -> None:
        node = self._node
        silence: list[str] = []
        if node.inputs is not None:
            node.inputs.look_for_latched_calibration()
            silence = node.inputs.explain_silence(time.monotonic(), node.health.problem)
            node.health.note = node.inputs.note
            if silence:
                node.warn('; '.join(silence))
                node.health.note = node.health.note or silence[0] + ': ' + silence[1]
            node.health.behind = self._behind.advice(time.monotonic(), node.health.received, self._dropped)
            if node.health.behind and not self._warned:
                self._warned = True
                node.log_warning(node.health.behind)
            node.results.update_scale()
            node.publish_status()
        dropped = self._dropped
        message = diagnostics(
            node.get_fully_qualified_name().lstrip('/'),
            node.health.frame_id,
            self.status(),
            node.get_clock().now().nanoseconds,
            '; '.join(silence),
            dropped > self._reported_drops,
            node.health.pipeline.spilled,
            node.health.pipeline.averaged,
        )
        self._reported_drops = dropped
        self._publisher.publish(message)

    @property
    def _dropped(self) -> int:
        worker = self._node.worker
        return self._node.health.dropped + (worker.dropped if worker is not None else 0)

    def status(self) -> Any:
        """MappingStatus of this moment."""
        node = self._node
        inputs, worker = node.inputs, node.worker
        return node.health.status(
            error_after=node.config.error_after,
            dropped=self._dropped,
            failed=node.health.failed + (worker.failed if worker is not None else 0),
            missing=inputs.stamps.missing if inputs is not None else 0,
            queue_length=worker.pending if worker is not None else 0,
        )
