# SPDX-License-Identifier: Apache-2.0
"""What follows from each result of the worker: log lines, outputs, scale and advice."""

from __future__ import annotations

import time
from copy import copy
from typing import TYPE_CHECKING, Any

from dark3r_ros.errors import Dark3rError
from dark3r_ros.mapping.advice import Advisor
from dark3r_ros.mapping.events import FrameUnposed, StateChanged
from dark3r_ros.nodes.diagnostics import state_name
from dark3r_ros.nodes.grid import Grid, GridRules, grid_of
from dark3r_ros.nodes.statistics import Once
from dark3r_ros.nodes.worker import Pipeline, Result
from dark3r_ros.types import MappingState, PointCloud

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode


class Results:
    """Used by the executor thread only."""

    def __init__(self, node: MappingNode, advisor: Advisor) -> None:
        self._node = node
        self._advisor = advisor
        self._once = Once(node.log_warning)
        self._map_requested = False
        self._loops = 0

    def take(self, result: Result) -> None:
        """Log, publish and remember a result."""
        node = self._node
        node.health.take(result)
        self._log(result)
        if node.outputs is None:
            return
        node.scale.take(result.events)
        node.outputs.scale_awaited = node.scale.awaited
        node.outputs.handle(result.events, time.monotonic())
        if result.received is not None and node.reader is not None:
            self._advisor.take(node.reader.observer.newest, result.status.snr_db)
            node.health.advice = tuple(self._advisor.sentences())
        if result.status.loops_accepted != self._loops:
            self._loops = result.status.loops_accepted
            node.scale.refine(node.outputs.world_from_camera)
        node.publish_status()
        if result.whole:
            self.republish()

    def update_scale(self) -> None:
        """Take the newest scale into account, once in a while."""
        node = self._node
        if node.outputs is None:
            return
        sentence = node.scale.update()
        node.health.scale = node.scale.estimate
        node.outputs.scale_awaited = node.scale.awaited
        if sentence:
            node.get_logger().info(sentence)
            node.outputs.rescaled()

    def request_map(self, now: float) -> None:
        """Ask the worker for the whole cloud where ~/map is due."""
        node = self._node
        assert node.worker is not None and node.outputs is not None
        due = node.config.publish_map and node.outputs.map_changed and node.outputs.map_throttle.ready(now)
        if due and not self._map_requested:
            self._map_requested = True
            frame, rules = copy(node.frame), self._grid_rules()

            def work(pipeline: Pipeline) -> tuple[PointCloud, Grid | None]:
                result = pipeline.reconstruction()
                return result.cloud, None if rules is None else grid_of(result, frame, rules)

            node.worker.call(work, self._on_map)

    def _grid_rules(self) -> GridRules | None:
        """How the grid is made; None where none is wanted, or where lengths are not in metres."""
        config = self._node.config
        if not config.publish_grid or not self._node.scale.estimate.known:
            return None
        return GridRules(
            config.grid_resolution,
            config.grid_low,
            config.grid_high,
            config.grid_points,
            config.grid_radius,
            config.grid_reach,
        )

    def republish(self) -> None:
        """Ask the worker for path and cloud of a map that came or was refined as a whole."""
        if self._node.worker is not None:
            self._node.worker.call(lambda pipeline: pipeline.reconstruction(), self._on_reconstruction)

    def _log(self, result: Result) -> None:
        node = self._node
        for note in result.notes:
            self._once.add(note)
        if result.trace:
            self._once.add(result.trace.rstrip())
        if result.problem:
            node.warn(result.problem)
        for event in result.events:
            if isinstance(event, StateChanged):
                text = f'{state_name(event.old)} -> {state_name(event.new)}: {event.message}'
                if event.new in (MappingState.INITIALISING, MappingState.TRACKING):
                    node.get_logger().info(text)
                else:
                    node.get_logger().warning(text)
            elif isinstance(event, FrameUnposed) and result.status.state != MappingState.INITIALISING:
                node.warn(f'no pose: {event.reason}')

    def _on_reconstruction(self, value: Any, error: BaseException | None) -> None:
        node = self._node
        if error is not None:
            node.warn(f'the refined map is not available: {error}')
        elif node.outputs is not None:
            node.outputs.take(value)
            node.scale.refine(node.outputs.world_from_camera)
            node.publish_status()

    def _on_map(self, made: tuple[PointCloud, Grid | None] | None, error: BaseException | None) -> None:
        self._map_requested = False
        if isinstance(error, Dark3rError):
            self._node.warn(f'~/map is not available: {error}')
        elif error is not None:
            self._node.warn(f'~/map is not available: {type(error).__name__}: {error}')
        elif self._node.outputs is not None and made is not None:
            cloud, grid = made
            self._node.outputs.publish_map(cloud)
            if grid is not None:
                self._node.outputs.publish_grid(grid)
