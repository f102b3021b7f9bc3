# SPDX-License-Identifier: Apache-2.0
"""Lifecycle node that maps raw camera images while they arrive.

Callbacks only take references and queue; one worker thread owns the pipeline; results are published from the
executor's thread. Start it with `python -m dark3r_ros.nodes.mapping_node --ros-args --params-file config/online.yaml`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dark3r_ros.errors import ConfigError, Dark3rError
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import FrameUnposed, StateChanged
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.classical import ClassicalConfig
from dark3r_ros.matching.learned import LearnedConfig
from dark3r_ros.matching.mini import MiniMatchConfig
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.nodes import interface, parameters, runtime
from dark3r_ros.nodes.calibration import CameraCache, FrameReader
from dark3r_ros.nodes.diagnostics import diagnostics, state_name
from dark3r_ros.nodes.inputs import Inputs
from dark3r_ros.nodes.node_config import GROUPS, NodeConfig
from dark3r_ros.nodes.outputs import Outputs
from dark3r_ros.nodes.services import Services
from dark3r_ros.nodes.statistics import Complaints, Once
from dark3r_ros.nodes.status import UNSTARTED, Health
from dark3r_ros.nodes.transforms import TransformBuffer
from dark3r_ros.nodes.worker import Pipeline, PipelineWorker, Result
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.raw.noise import NoiseModel, load_yaml, preset
from dark3r_ros.types import MappingState, PointCloud

STOP_SECONDS = 1.5
_TICK_SECONDS = 0.1
_REPORT_SECONDS = 1.0


def build_noise(config: NodeConfig) -> NoiseModel | None:
    """Noise model named by the parameters, or None."""
    if config.noise_preset:
        return preset(config.noise_preset)
    return load_yaml(config.noise_file) if config.noise_file else None


def build_pipeline(node: MappingNode) -> Pipeline:
    """Build the pipeline that the parameters of the node describe."""
    noise = build_noise(node.config)
    predictor = make_predictor(
        node.config.predictor,
        noise=noise,
        classical=parameters.read(node, 'matcher', ClassicalConfig),
        learned=parameters.read(node, 'learned', LearnedConfig),
        mini=parameters.read(node, 'mini', MiniMatchConfig),
        device=node.config.device,
    )
    return MappingPipeline(parameters.read(node, 'mapping', MappingConfig), predictor, noise)


class MappingNode(LifecycleNode):
    """See docs/ros.md for topics, services and parameters.

    Parameters
    ----------
    make_pipeline: builds the pipeline on configure; tests replace it.
    kwargs: of rclpy's LifecycleNode.

    Raises ConfigError when a given parameter is unknown, of the wrong type or out of its range.

    """

    # What `destroy_node` looks at, which rclpy also calls for a node whose construction failed.
    worker: PipelineWorker | None = None
    inputs: Inputs | None = None
    _tick_timer: Any = None

    def __init__(self, make_pipeline: Callable[[MappingNode], Pipeline] = build_pipeline, **kwargs: Any) -> None:
        super().__init__('dark3r_mapping', **kwargs)
        parameters.declare(self, GROUPS)
        parameters.refuse_unknown(parameters.given_names(self), GROUPS)
        self.config = parameters.read(self, '', NodeConfig)
        parameters.accept_changes(self, '', NodeConfig, self._reconfigure)
        self._make_pipeline = make_pipeline
        self.warn = Complaints(self._log_warning).add
        self._once = Once(self._log_warning)
        self.buffer = TransformBuffer()
        self.health = Health()
        self.pipeline: Pipeline | None = None
        self.outputs: Outputs | None = None
        self._cameras = CameraCache()
        self._reader: FrameReader | None = None
        self._guard = self.create_guard_condition(self._drain)
        self._diagnostics = self.create_publisher(interface.load(interface.DIAGNOSTICS.type), '/diagnostics', 10)
        self._report_timer = self.create_timer(_REPORT_SECONDS, self._report, clock=runtime.STEADY)
        self._map_requested = False
        self._reported_drops = 0
        self._services_held = Services(self)

    # ------------------------------------------------------------------ lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Build pipeline and publishers."""
        return self._transition(lambda: self._configure(), lambda: super(MappingNode, self).on_configure(state))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker and the subscriptions."""
        return self._transition(lambda: super(MappingNode, self).on_activate(state), lambda: self._activate())

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop both; the map stays."""
        return self._transition(lambda: self._deactivate(), lambda: super(MappingNode, self).on_deactivate(state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free pipeline and publishers."""
        return self._transition(lambda: super(MappingNode, self).on_cleanup(state), lambda: self._cleanup())

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop, save the map when asked to, and free everything."""
        return self._transition(
            lambda: self._deactivate(),
            lambda: self._save_on_shutdown(),
            lambda: super(MappingNode, self).on_shutdown(state),
            lambda: self._cleanup(),
        )

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured."""
        return self._transition(lambda: self._deactivate(), lambda: self._cleanup())

    def _transition(self, *steps: Callable[[], TransitionCallbackReturn | None]) -> TransitionCallbackReturn:
        """Run the steps of a transition; rclpy itself would swallow their exceptions without a word."""
        try:
            for step in steps:
                result = step()
                if result not in (None, TransitionCallbackReturn.SUCCESS):
                    return result
        except Dark3rError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            runtime.log_trace(self.get_logger(), error)
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self.config = parameters.read(self, '', NodeConfig)
        self.pipeline = self._make_pipeline(self)
        self.health = Health()
        self.outputs = Outputs(self, self.config, self.buffer, self.warn)
        options = parameters.read(self, 'decode', DecodeOptions)
        self._cameras = CameraCache(options.sensor_binning)
        self._reader = FrameReader(options, build_noise(self.config), self._cameras)

    def _activate(self) -> None:
        assert self.pipeline is not None and self._reader is not None
        self.worker = PipelineWorker(
            self.pipeline, self._reader.read, self.config.queue_length, self._on_result, self._guard.trigger
        )
        self.worker.start()
        self.inputs = Inputs(self, self.config, self._cameras, self.worker, self.buffer)
        self._tick_timer = self.create_timer(_TICK_SECONDS, self._tick, clock=runtime.STEADY)
        self.get_logger().info(f'active: waiting for images on {self.inputs.image_topic}')

    def _deactivate(self) -> None:
        if self.inputs is not None:
            self.inputs.destroy()
            self.inputs = None
        if self._tick_timer is not None:
            self.destroy_timer(self._tick_timer)
            self._tick_timer = None
        if self.worker is not None:
            stopped = self.worker.stop(STOP_SECONDS)
            self.health.dropped += self.worker.dropped
            self.worker = None
            if not stopped:
                # The thread still uses the pipeline; nobody else may.
                self.pipeline = None
                raise ConfigError(f'the frame in work did not end within {STOP_SECONDS} s: the map is given up')

    def _cleanup(self) -> None:
        self.pipeline = None
        if self.outputs is not None:
            self.outputs.destroy()
            self.outputs = None
        self.health = Health()

    def _save_on_shutdown(self) -> None:
        if self.config.save_on_shutdown and self.pipeline is not None and self.health.pipeline.frames:
            message = self._services_held.write(
                self.pipeline.reconstruction(), self.config.save_on_shutdown, overwrite=True
            )
            self.get_logger().info(message)

    # ------------------------------------------------------------------ results

    def _log_warning(self, text: str) -> None:
        self.get_logger().warning(text)

    def _drain(self) -> None:
        if self.worker is not None:
            self.worker.drain()

    def _on_result(self, result: Result) -> None:
        self.health.take(result)
        for note in result.notes:
            self._once.add(note)
        if result.trace:
            self.get_logger().error(f'{result.problem}\n{result.trace.rstrip()}')
        elif result.problem:
            self.warn(result.problem)
        for event in result.events:
            if isinstance(event, StateChanged):
                text = f'{state_name(event.old)} -> {state_name(event.new)}: {event.message}'
                if event.new in (MappingState.INITIALISING, MappingState.TRACKING):
                    self.get_logger().info(text)
                else:
                    self.get_logger().warning(text)
            elif isinstance(event, FrameUnposed) and result.status.state != MappingState.INITIALISING:
                self.warn(f'no pose: {event.reason}')
        if self.outputs is not None:
            self.outputs.handle(result.events, time.monotonic())
            self.publish_status()
            if result.received is None and self.worker is not None:
                self.worker.call(lambda pipeline: pipeline.reconstruction(), self._on_reconstruction)

    def _on_reconstruction(self, value: Any, error: BaseException | None) -> None:
        if error is not None:
            self.warn(f'the refined map is not available: {error}')
        elif self.outputs is not None:
            self.outputs.take(value)
            self.publish_status()

    def _on_map(self, cloud: PointCloud | None, error: BaseException | None) -> None:
        self._map_requested = False
        if error is not None:
            self.warn(f'~/map is not available: {error}')
        elif self.outputs is not None and cloud is not None:
            self.outputs.publish_map(cloud)

    # ------------------------------------------------------------------ time

    def _tick(self) -> None:
        now = time.monotonic()
        assert self.worker is not None and self.outputs is not None and self.inputs is not None
        self.worker.drain()
        self.inputs.release_held(now)
        if self.outputs.waiting:
            self.outputs.send_transforms(now)
        self.outputs.publish_changed_path(now)
        wanted = self.config.publish_map and self.outputs.map_changed and not self._map_requested
        if wanted and self.outputs.map_throttle.ready(now):
            self._map_requested = True
            self.worker.call(lambda pipeline: pipeline.reconstruction().cloud, self._on_map)
        if self.inputs.idle(now):
            self.worker.flush()

    def _report(self) -> None:
        """Once a second: status, diagnostics, and why there are no images."""
        silence: list[str] = []
        if self.inputs is not None:
            self.inputs.look_for_latched_calibration()
            silence = self.inputs.explain_silence(time.monotonic(), self.health.problem)
            self.health.note = self.inputs.note
            if silence:
                self.warn('; '.join(silence))
                self.health.note = self.health.note or silence[0] + ': ' + silence[1]
            self.publish_status()
        dropped = self._dropped
        message = diagnostics(
            self.get_fully_qualified_name().lstrip('/'),
            self.health.frame_id,
            self._status(),
            self.get_clock().now().nanoseconds,
            '; '.join(silence),
            dropped > self._reported_drops,
        )
        self._reported_drops = dropped
        self._diagnostics.publish(message)

    @property
    def _dropped(self) -> int:
        return self.health.dropped + (self.worker.dropped if self.worker is not None else 0)

    def _status(self) -> Any:
        inputs, worker = self.inputs, self.worker
        return self.health.status(
            dropped=self._dropped,
            missing=inputs.stamps.missing if inputs is not None else 0,
            queue_length=worker.pending if worker is not None else 0,
        )

    def publish_status(self) -> None:
        """Publish ~/status now."""
        if self.outputs is not None:
            self.outputs.publish_status(self._status())

    # ------------------------------------------------------------------ for services and parameters

    def forget(self) -> None:
        """Forget what outputs and inputs remember of a map that was reset."""
        self.health.pipeline, self.health.problem = UNSTARTED, ''
        if self.outputs is not None:
            self.outputs.withdraw()
            self.outputs.reset()
        if self.inputs is not None:
            self.inputs.stamps.reset()

    def _reconfigure(self, config: NodeConfig) -> None:
        self.config = config
        if self.outputs is not None:
            self.outputs.config = config

    # ------------------------------------------------------------------ program

    def destroy_node(self) -> None:
        """Stop the worker, which would trigger what is destroyed here."""
        with suppress(ConfigError):
            self._deactivate()
        super().destroy_node()

    @property
    def finished(self) -> bool:
        """Whether the program may end: after a shutdown transition."""
        return self._state_machine.current_state[1] == 'finalized'

    def autostart(self) -> None:
        """Configure and activate; ConfigError when that is refused (the reason is logged)."""
        for trigger, word in ((self.trigger_configure, 'configured'), (self.trigger_activate, 'activated')):
            if trigger() != TransitionCallbackReturn.SUCCESS:
                raise ConfigError(f'the node could not be {word}: see the message above')

    def close(self) -> int:
        """Shut down from whatever state; exit status 0 unless that failed."""
        if self.finished:
            return 0
        return 0 if self.trigger_shutdown() == TransitionCallbackReturn.SUCCESS else 1


def make_node() -> MappingNode:
    """Build the node and start it where autostart says so."""
    node = MappingNode()
    if node.config.autostart:
        try:
            node.autostart()
        except ConfigError:
            node.destroy_node()
            raise
    return node


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the program."""
    return runtime.run(make_node, arguments)


if __name__ == '__main__':
    sys.exit(main())
