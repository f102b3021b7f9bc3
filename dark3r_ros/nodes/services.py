# SPDX-License-Identifier: Apache-2.0
"""Services of the mapping node. They answer in every lifecycle state, and say so where they cannot act."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.task import Future

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import Dark3rError
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.nodes import interface, parameters, runtime
from dark3r_ros.storage.result import write_result
from dark3r_ros.types import Reconstruction

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode


class Services:
    """~/reset, ~/pause, ~/save_map and ~/load_map."""

    def __init__(self, node: MappingNode) -> None:
        self._node = node
        handlers = {
            interface.RESET: self._reset,
            interface.PAUSE: self._pause,
            interface.SAVE_MAP: self._save_map,
            interface.LOAD_MAP: self._load_map,
        }
        for service, handler in handlers.items():
            node.create_service(interface.load(service.type), service.name, handler)

    async def _reset(self, _: Any, response: Any) -> Any:
        node = self._node
        if node.pipeline is None:
            return _answer(response, False, 'there is no map to reset: the node is not configured')
        if node.worker is None:
            node.pipeline.reset()
        else:
            node.worker.clear()
            _, error = await self._in_worker(lambda pipeline: pipeline.reset())
            if error is not None:
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
        try:
            if node.worker is None:
                result: Reconstruction = node.pipeline.reconstruction()
            else:
                result, error = await self._in_worker(lambda pipeline: pipeline.reconstruction())
                if error is not None:
                    raise error
            # Writing takes a while; neither the mapping nor the callbacks wait for it.
            message = await self._in_thread(lambda: self.write(result, request.path, request.overwrite))
        except Dark3rError as error:
            return _answer(response, False, str(error))
        except Exception as error:
            runtime.log_trace(node.get_logger(), error)
            return _answer(response, False, f'{type(error).__name__}: {error}')
        response.frames = sum(frame.world_from_camera is not None for frame in result.frames)
        response.keyframes = sum(frame.keyframe for frame in result.frames)
        return _answer(response, True, message)

    def _load_map(self, _: Any, response: Any) -> Any:
        return _answer(
            response, False, 'loading a map is not possible yet: start the node anew and map the place again'
        )

    def write(self, result: Reconstruction, path: str, overwrite: bool) -> str:
        """Write a reconstruction folder; return a sentence for people. Raises OutputError."""
        folder = Path(path).expanduser().absolute()
        health = self._node.health
        report = {
            'source': 'ros',
            'node': self._node.get_fully_qualified_name(),
            'latency_p95_s': health.latency.p95,
            'frames_received': health.received,
            'config': {
                'node': to_mapping(self._node.config),
                'mapping': to_mapping(parameters.read(self._node, 'mapping', MappingConfig)),
            },
        }
        write_result(folder, result, report, overwrite=overwrite)
        return f'the map was written to {folder}'

    async def _in_worker(self, function: Any) -> tuple[Any, BaseException | None]:
        worker = self._node.worker
        assert worker is not None
        future: Future[Any] = Future(executor=self._node.executor)
        worker.call(function, lambda value, error: future.set_result((value, error)))
        outcome: tuple[Any, BaseException | None] | None = await future
        assert outcome is not None
        return outcome

    async def _in_thread(self, function: Any) -> Any:
        future: Future[Any] = Future(executor=self._node.executor)

        def work() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = (function(), None)
            except Exception as error:
                outcome = (None, error)
            self._node.post(lambda: future.set_result(outcome))

        threading.Thread(target=work, name='dark3r_save', daemon=True).start()
        answer: tuple[Any, BaseException | None] | None = await future
        assert answer is not None
        value, error = answer
        if error is not None:
            raise error
        return value


def _answer(response: Any, success: bool, message: str) -> Any:
    response.success, response.message = success, message
    return response
