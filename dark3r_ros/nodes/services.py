# SPDX-License-Identifier: Apache-2.0
"""Services of the mapping node. They answer in every lifecycle state, and say so where they cannot act."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import Dark3rError
from dark3r_ros.nodes import interface, map_files, parameters, runtime
from dark3r_ros.nodes.node_config import GROUPS
from dark3r_ros.nodes.worker import Pipeline

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode

_NAP_SECONDS = 0.002


class Services:
    """~/reset, ~/pause, ~/save_map and ~/load_map."""

    def __init__(self, node: MappingNode) -> None:
        self._node = node
        # A group of its own: what the services wait for is delivered by callbacks of the node's default group.
        group = MutuallyExclusiveCallbackGroup()
        handlers = {
            interface.RESET: self._reset,
            interface.PAUSE: self._pause,
            interface.SAVE_MAP: self._save_map,
            interface.LOAD_MAP: self._load_map,
        }
        for service, handler in handlers.items():
            node.create_service(interface.load(service.type), service.name, handler, callback_group=group)

    async def _reset(self, _: Any, response: Any) -> Any:
        node = self._node
        if node.pipeline is None:
            return _answer(response, False, 'there is no map to reset: the node is not configured')
        if node.worker is None:
            node.pipeline.reset()
        else:
            node.worker.clear()
            try:
                await self._in_worker(lambda pipeline: pipeline.reset())
            except Exception as error:
                return _answer(response, False, f'the map could not be reset: {error}')
        node.forget()
        return _answer(response, True, 'the map was reset')

    def _pause(self, request: Any, response: Any) -> Any:
        inputs = self._node.inputs
        if inputs is None:
            return _answer(response, False, 'the node is not active')
        inputs.pause(bool(request.data))
        self._node.health.note = inputs.note
        self._node.publish_status()
        return _answer(response, True, inputs.note or 'images are processed again')

    async def _save_map(self, request: Any, response: Any) -> Any:
        node = self._node
        if node.pipeline is None:
            return _answer(response, False, 'there is no map to save: the node is not configured')
        if not request.path:
            return _answer(response, False, 'path is empty: name a folder')
        folder = map_files.absolute(request.path)
        try:
            snapshot: map_files.Snapshot = await self._between_frames(
                lambda pipeline: map_files.take_snapshot(pipeline, folder, request.overwrite)
            )
            # Writing takes a while; neither the mapping nor the callbacks wait for it.
            message = await self._in_thread(lambda: self.write(snapshot, folder, request.overwrite))
        except Exception as error:
            return _answer(response, False, self._sentence(error))
        frames = snapshot.reconstruction.frames
        response.frames = sum(frame.world_from_camera is not None for frame in frames)
        response.keyframes = sum(frame.keyframe for frame in frames)
        return _answer(response, True, message)

    async def _load_map(self, request: Any, response: Any) -> Any:
        node = self._node
        if node.pipeline is None:
            return _answer(response, False, 'there is nothing to load a map into: the node is not configured')
        if not request.path:
            return _answer(response, False, 'path is empty: name a folder')
        folder, cameras = map_files.absolute(request.path), node.cameras.cameras
        try:
            notes, frame = await self._between_frames(lambda pipeline: map_files.load_map(pipeline, folder, cameras))
            status = await self._between_frames(lambda pipeline: pipeline.status())
        except Exception as error:
            return _answer(response, False, self._sentence(error))
        node.loaded(frame)
        response.keyframes = int(status.keyframes)
        scale = (
            '' if frame is None or not frame.scale.known else f', in metres (+- {100.0 * frame.scale.deviation:.2g} %)'
        )
        text = f'the map {folder} was loaded{scale}: looking for the camera in it'
        text = '; '.join([text, *notes])
        node.get_logger().info(text)
        return _answer(response, True, text)

    def write(self, snapshot: map_files.Snapshot, folder: Path, overwrite: bool) -> str:
        """Write a saved map; return a sentence for people. Raises OutputError."""
        node = self._node
        health = node.health
        report = {
            'source': 'ros',
            'predictor': node.config.predictor,
            'node': node.get_fully_qualified_name(),
            'latency_p95_s': health.latency.p95,
            'frames_received': health.received,
            'config': {
                prefix or 'node': to_mapping(parameters.read(node, prefix, kind)) for prefix, kind in GROUPS.items()
            },
        }
        return map_files.write_map(snapshot, folder, node.frame, node.scale.estimate, report, overwrite)

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, Dark3rError):
            return str(error)
        runtime.log_trace(self._node.get_logger(), error)
        return f'{type(error).__name__}: {error}'

    async def _between_frames(self, function: Callable[[Pipeline], Any]) -> Any:
        """Value of `function(pipeline)`, run in the worker where it is there, else at once."""
        assert self._node.pipeline is not None
        if self._node.worker is None:
            return function(self._node.pipeline)
        return await self._in_worker(function)

    async def _in_worker(self, function: Callable[[Pipeline], Any]) -> Any:
        """Value of `function(pipeline)`, run between two frames."""
        worker = self._node.worker
        assert worker is not None
        answer = _Answer()
        worker.call(function, answer.set)
        return await answer

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        """Value of `function()`, run in a thread of its own."""
        answer = _Answer()

        def work() -> None:
            try:
                answer.set(function(), None)
            except Exception as error:
                answer.set(None, error)

        threading.Thread(target=work, name='dark3r_save', daemon=True).start()
        return await answer


class _Answer:
    """A value that another thread gives; awaiting it raises the error that came instead.

    rclpy's executor asks a waiting coroutine again and again without a pause, which would take the interpreter away
    from the mapping; a nap between two askings keeps that cheap while other callbacks go on.
    """

    def __init__(self) -> None:
        self._outcome: tuple[Any, BaseException | None] | None = None

    def set(self, value: Any, error: BaseException | None) -> None:
        """Give the value or the error."""
        self._outcome = (value, error)

    def __await__(self) -> Generator[None, None, Any]:
        while self._outcome is None:
            time.sleep(_NAP_SECONDS)
            yield
        value, error = self._outcome
        if error is not None:
            raise error
        return value


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
    return response
