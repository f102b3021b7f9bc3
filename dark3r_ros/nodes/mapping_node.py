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
from dark3r_ros.mapping.advice import AdviceConfig, Advisor
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.metric import MetricConfig
from dark3r_ros.nodes import map_files, parameters, runtime
from dark3r_ros.nodes.build import build_noise, build_pipeline
from dark3r_ros.nodes.calibration import CameraCache, FrameReader
from dark3r_ros.nodes.inputs import Inputs
from dark3r_ros.nodes.map_frame import MapFrame
from dark3r_ros.nodes.node_config import GROUPS, NodeConfig
from dark3r_ros.nodes.outputs import Outputs
from dark3r_ros.nodes.report import Reporter
from dark3r_ros.nodes.results import Results
from dark3r_ros.nodes.scale import ScaleKeeper
from dark3r_ros.nodes.services import Services
from dark3r_ros.nodes.statistics import Complaints
from dark3r_ros.nodes.status import UNSTARTED, Health
from dark3r_ros.nodes.transforms import TransformBuffer
from dark3r_ros.nodes.worker import Pipeline, PipelineWorker
from dark3r_ros.raw.decode import DecodeOptions

# How long a frame in work is waited for: when the node is deactivated, and when its map would be lost otherwise.
STOP_SECONDS = 1.5
SAVE_SECONDS = 60.0
_TICK_SECONDS = 0.1


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
        self.warn = Complaints(self.log_warning).add
        self.buffer = TransformBuffer()
        self.health = Health()
        self.pipeline: Pipeline | None = None
        self.outputs: Outputs | None = None
        self.frame = MapFrame()
        self.cameras = CameraCache()
        self.reader: FrameReader | None = None
        self._guard = self.create_guard_condition(self._drain)
        self._prepare_results()
        self._reporter = Reporter(self)
        self._services_held = Services(self)

    def _prepare_results(self) -> None:
        metric = parameters.read(self, 'metric', MetricConfig)
        height = parameters.read(self, 'mapping', MappingConfig).camera_height
        self.scale = ScaleKeeper(self.config, metric, self.buffer, self.frame, self._complain, height)
        self.scale.also = getattr(self.pipeline, 'add_odometry', None)
        self.scale.mounted = getattr(self.pipeline, 'mount', None)
        self.results = Results(self, Advisor(parameters.read(self, 'advice', AdviceConfig)))

    def _complain(self, text: str) -> None:
        # Looked up at the time of the complaint: `warn` may be replaced.
        self.warn(text)

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
        self.outputs = Outputs(self, self.config, self.buffer, self.frame, self._complain)
        self._prepare_results()
        options = parameters.read(self, 'decode', DecodeOptions)
        self.cameras = CameraCache(options.sensor_binning)
        advice = parameters.read(self, 'advice', AdviceConfig)
        self.reader = FrameReader(options, build_noise(self.config), self.cameras, advice)
        if self.config.load_on_start:
            try:
                self._load(self.config.load_on_start)
            except Exception:
                self._cleanup()
                raise

    def _load(self, path: str) -> None:
        assert self.pipeline is not None
        folder = map_files.absolute(path)
        notes, frame = map_files.load_map(self.pipeline, folder, self.cameras.cameras)
        for note in notes:
            self.warn(note)
        self.loaded(frame)
        self.get_logger().info(f'the map {folder} was loaded: looking for the camera in it')

    def _activate(self) -> None:
        assert self.pipeline is not None and self.reader is not None
        self.worker = PipelineWorker(
            self.pipeline,
            self.reader.read,
            self.config.queue_length,
            self.results.take,
            self._guard.trigger,
            self.scale.distance,
        )
        self.worker.start()
        self.inputs = Inputs(self, self.config, self.cameras, self.worker, self.buffer)
        self._tick_timer = self.create_timer(_TICK_SECONDS, self._tick, clock=runtime.STEADY)
        self.get_logger().info(f'active: waiting for images on {self.inputs.image_topic}')
        if self.frame.known:  # there is a map already
            self.results.republish()

    def _deactivate(self) -> None:
        if self.inputs is not None:
            self.inputs.destroy()
            self.inputs = None
        if self._tick_timer is not None:
            self.destroy_timer(self._tick_timer)
            self._tick_timer = None
        if self.worker is not None:
            self._stop_worker(self.worker)

    def _stop_worker(self, worker: PipelineWorker) -> None:
        stopped = worker.stop(STOP_SECONDS)
        if not stopped and self.config.save_on_shutdown:
            self.get_logger().warning('waiting for the frame in work, so that the map can be saved')
            stopped = worker.stop(SAVE_SECONDS)
        self.health.dropped += worker.dropped
        self.health.failed += worker.failed
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
        self.reader = None
        self.frame.reset()
        self.health = Health()

    def _save_on_shutdown(self) -> None:
        if self.config.save_on_shutdown and self.pipeline is not None and self.health.pipeline.frames:
            folder = map_files.absolute(self.config.save_on_shutdown)
            snapshot = map_files.take_snapshot(self.pipeline, folder, overwrite=True)
            self.get_logger().info(self._services_held.write(snapshot, folder, overwrite=True))

    # ------------------------------------------------------------------ time

    def log_warning(self, text: str) -> None:
        """Log a warning."""
        self.get_logger().warning(text)

    def _drain(self) -> None:
        if self.worker is not None:
            self.worker.drain()

    def _tick(self) -> None:
        now = time.monotonic()
        assert self.worker is not None and self.outputs is not None and self.inputs is not None
        if self.worker.revive():
            self.warn('the thread of the mapping ended by itself: it was started again with the same map')
        self.worker.drain()
        self.inputs.release_held(now)
        if self.outputs.waiting:
            self.outputs.send_transforms(now)
        self.outputs.publish_changed_path(now)
        self.results.request_map(now)
        if self.inputs.idle(now):
            self.worker.flush()

    def publish_status(self) -> None:
        """Publish ~/status now."""
        if self.outputs is not None:
            self.outputs.publish_status(self._reporter.status())

    # ------------------------------------------------------------------ for services and parameters

    def forget(self) -> None:
        """Forget what outputs and inputs remember of a map that was reset."""
        self.health.pipeline, self.health.problem, self.health.failures = UNSTARTED, '', 0
        if self.outputs is not None:
            self.outputs.withdraw()
            self.outputs.reset()
        self.scale.reset()
        if self.inputs is not None:
            self.inputs.stamps.reset()

    def loaded(self, saved: map_files.SavedFrame | None) -> None:
        """Go on with a map that has just replaced the present one."""
        self.forget()
        if saved is not None:
            self.frame.map_from_world = saved.map_from_world
            self.scale.restore(saved.scale)
        self.results.republish()

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
