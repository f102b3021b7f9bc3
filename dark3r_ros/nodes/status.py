# SPDX-License-Identifier: Apache-2.0
"""Counts of the mapping node and the messages made of them: status, diagnostics, explanations of silence."""

from __future__ import annotations

import math
from typing import Any

from dark3r_ros.mapping.events import PipelineStatus
from dark3r_ros.mapping.metric import ScaleEstimate
from dark3r_ros.nodes import convert, interface
from dark3r_ros.nodes.statistics import LatencyWindow, resident_mib
from dark3r_ros.nodes.worker import Result
from dark3r_ros.types import MappingState

UNSTARTED = PipelineStatus(MappingState.WAITING_FOR_CALIBRATION, 'waiting for images', math.nan, 0, 0, 0, 0, 0, 0, 0, 0)


class Health:
    """What has happened so far, for MappingStatus and /diagnostics."""

    def __init__(self) -> None:
        self.received = 0
        self.dropped = 0
        self.failed = 0
        self.latency = LatencyWindow()
        self.pipeline = UNSTARTED
        self.problem = ''
        self.note = ''
        self.failures = 0
        self.advice: tuple[str, ...] = ()
        self.behind = ''  # advice where images are dropped
        self.scale = ScaleEstimate()
        self.stamp_ns = 0
        self.frame_id = ''

    def take(self, result: Result) -> None:
        """Count one result of the worker."""
        self.pipeline = result.status
        if result.received is None:
            return
        self.stamp_ns, self.frame_id = result.stamp_ns, result.frame_id
        self.problem, self.failures = result.problem, result.failures
        self.latency.add(result.finished - result.received)

    @property
    def message(self) -> str:
        """One sentence for people: what keeps the mapping from working comes first."""
        return self.note or self.problem or self.pipeline.message

    def status(self, *, error_after: int, dropped: int, failed: int, missing: int, queue_length: int) -> Any:
        """Build the MappingStatus of this moment."""
        pipeline = self.pipeline
        state, message = pipeline.state, self.message
        if self.failures >= error_after:
            state = MappingState.ERROR
            message = f'{self.failures} frames in a row failed, the map is kept: {message}; call ~/reset or report it'
        return interface.load(interface.STATUS.type)(
            header=convert.header(self.stamp_ns, self.frame_id),
            state=int(state),
            message=message,
            snr_db=float(pipeline.snr_db),
            samples_per_value=int(pipeline.samples_per_value),
            inliers=int(pipeline.inliers),
            matches=int(pipeline.matches),
            reprojection=float(pipeline.reprojection),
            found_again=float(pipeline.found_again),
            latency=self.latency.newest,
            latency_p95=self.latency.p95,
            frames_received=self.received,
            frames_posed=int(pipeline.posed),
            frames_dropped=dropped,
            frames_missing=missing,
            queue_length=queue_length,
            keyframes=int(pipeline.keyframes),
            landmarks=int(pipeline.landmarks),
            memory_mib=resident_mib(),
            map_mib=pipeline.map_bytes / 2**20,
            frames_failed=failed,
            metric_scale=self.scale.known,
            scale=self.scale.scale,
            scale_deviation=self.scale.deviation,
            scale_drift=self.scale.drift,
            scale_text=str(self.scale),
            advice=[*self.advice, *(text for text in (self.behind, pipeline.memory_problem) if text)],
            submap=int(pipeline.submap),
            submaps=int(pipeline.submaps),
            loops_proposed=int(pipeline.loops_proposed),
            loops_verified=int(pipeline.loops_verified),
            loops_accepted=int(pipeline.loops_accepted),
            loops_refused=sum(pipeline.loops_refused.values()),
        )
