# SPDX-License-Identifier: Apache-2.0
"""Action server `~/build_nerf`: a radiance field from a bag or a reconstruction, trained in a process of its own.

A build goes on when its client leaves, stops at a checkpoint when it is cancelled or the node is stopped, and the same
goal goes on from there. One build at a time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import Image

from dark3r_ros.action import BuildNerf
from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError, Dark3rError
from dark3r_ros.nerf.config import PROFILES
from dark3r_ros.nodes import parameters, qos, runtime
from dark3r_ros.nodes.nerf_job import Job, JobResult, plan

ACTION = '~/build_nerf'
PREVIEW = '~/preview'
_POLL = 0.2


@dataclass(frozen=True)
class NerfNodeConfig(Config):
    """Settings of the NeRF node. With `input` it builds that at once and ends; without it waits for goals."""

    input: str = setting('', 'Bag, folder of raws or reconstruction folder to build from at once; empty: wait.')
    output: str = setting('', 'Folder for the result of `input`; holds sfm/ and field/.')
    profile: str = setting('preview', 'Effort where a goal names none.', choices=tuple(PROFILES))
    predictor: str = setting('mini', 'Matcher of the reconstruction: mini, classical, or a weight file.')
    noise: str = setting('', 'Noise preset or YAML of calibrate-noise; empty: measured in the frames.')
    device: str = setting('auto', 'cpu, cuda or auto.')
    feedback_period: float = setting(1.0, 'Time between two feedback messages.', unit='s', minimum=0.1, maximum=60.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input and not self.output:
            raise ConfigError('parameter output is empty: name a folder for the field, as in -p output:=out/field')


class NerfNode(Node):
    """The action server; everything it does is start, watch and stop a `Job`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('dark3r_nerf', **kwargs)
        groups: dict[str, type[Config]] = {'': NerfNodeConfig}
        parameters.declare(self, groups)
        parameters.refuse_unknown(parameters.given_names(self), groups)
        self.config = parameters.read(self, '', NerfNodeConfig)
        # Replaced by tests; empty means this installation's own commands.
        self.command: tuple[str, ...] = ()
        self.job: Job | None = None
        self._goal: Any = None
        self._ended: Future | None = None
        self._failed = False
        self._stage = ''
        self._preview = self.create_publisher(Image, PREVIEW, qos.latched())
        self._server = ActionServer(
            self, BuildNerf, ACTION, self._execute, goal_callback=self._accept, cancel_callback=self._cancel
        )
        self._feedback_at = 0.0
        self.create_timer(_POLL, self._poll, clock=runtime.STEADY)
        if self.config.input:
            self._begin(self.config.input, self.config.output, self.config.profile)

    @property
    def finished(self) -> bool:
        """With `input` set, whether that build has ended."""
        return bool(self.config.input) and self.job is None

    def close(self) -> int:
        """Stop a build under way at its next step."""
        if self.job is not None:
            self.get_logger().info('stopping the build at its next step')
            self.job.close()
            self._poll()
        return 1 if self._failed else 0

    def destroy_node(self) -> None:
        """Take the action server down before the node."""
        self._server.destroy()
        super().destroy_node()

    def _begin(self, source: str, output: str, profile: str) -> None:
        """Start a build; Dark3rError when the request cannot be right."""
        profile = profile or self.config.profile
        if profile not in PROFILES:
            raise ConfigError(f'unknown profile {profile!r}; known: {", ".join(PROFILES)}')
        place = Path(source).expanduser().absolute()
        if not source or not place.exists():
            raise ConfigError(f'input {source!r} does not exist on the machine of this node')
        if not output:
            raise ConfigError('output_path is empty: name a folder for the field')
        folder = Path(output).expanduser().absolute()
        config = self.config
        stages = plan(
            place, folder, profile, predictor=config.predictor, noise=config.noise, device=config.device
        )  # fmt: skip
        self.job = Job(stages, folder / 'field', self.command)
        self.get_logger().info(f'building a field of {place} in {folder}, profile {profile}')

    def _accept(self, request: BuildNerf.Goal) -> GoalResponse:
        if self.job is not None:
            self.get_logger().warning('a goal was rejected: another build is under way')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _cancel(self, goal: Any) -> CancelResponse:
        return CancelResponse.ACCEPT

    async def _execute(self, goal: Any) -> BuildNerf.Result:
        request = goal.request
        try:
            if self.job is not None:
                raise ConfigError('another build is under way')
            self._begin(request.input_path, request.output_path, request.profile)
        except Dark3rError as error:
            self.get_logger().error(str(error))
            goal.abort()
            return BuildNerf.Result(success=False, message=str(error), psnr_db=float('nan'))
        self._goal, self._ended = goal, Future()
        ended: JobResult = await self._ended  # type: ignore[assignment]
        result = BuildNerf.Result(
            success=ended.success, message=ended.message, field_path=ended.field_path, psnr_db=ended.psnr_db
        )
        if ended.cancelled and goal.is_cancel_requested:
            goal.canceled()
        elif ended.success:
            goal.succeed()
        else:
            goal.abort()
        return result

    def _poll(self) -> None:
        """Watch the job; called by a timer."""
        job = self.job
        if job is None:
            return
        if self._goal is not None and self._goal.is_cancel_requested:
            job.cancel()
        result = job.poll()
        if job.state.stage != self._stage:
            self._stage = job.state.stage
            self.get_logger().info(f'stage: {self._stage}')
        while job.state.previews:
            self._publish_preview(job.state.previews.popleft())
        self._give_feedback(job, ended=result is not None)
        if result is not None:
            self._end(result)

    def _give_feedback(self, job: Job, *, ended: bool) -> None:
        now = runtime.STEADY.now().nanoseconds * 1e-9
        if self._goal is None or (now - self._feedback_at < self.config.feedback_period and not ended):
            return
        self._feedback_at = now
        state = job.state
        self._goal.publish_feedback(
            BuildNerf.Feedback(
                stage=state.stage, progress=state.progress, seconds_left=state.seconds_left, loss=state.loss
            )
        )

    def _publish_preview(self, file: Path) -> None:
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if picture is None:  # replaced or deleted meanwhile
            return
        message = Image(height=picture.shape[0], width=picture.shape[1], encoding='bgr8', step=3 * picture.shape[1])
        message.header.stamp = self.get_clock().now().to_msg()
        message.data.frombytes(picture.tobytes())
        self._preview.publish(message)

    def _end(self, result: JobResult) -> None:
        self.job, self._stage = None, ''
        if result.success:
            self.get_logger().info(f'field written to {result.field_path}')
        elif result.cancelled:
            self.get_logger().info(result.message)
        else:
            self._failed = True
            self.get_logger().error(result.message)
        goal, ended = self._goal, self._ended
        self._goal = self._ended = None
        if goal is not None and ended is not None:
            ended.set_result(result)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the program."""
    return runtime.run(NerfNode, arguments)


if __name__ == '__main__':
    sys.exit(main())
