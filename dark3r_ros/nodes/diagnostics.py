# SPDX-License-Identifier: Apache-2.0
"""The node's /diagnostics message."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from dark3r_ros.nodes import convert
from dark3r_ros.types import MappingState

_LEVELS = {
    MappingState.WAITING_FOR_CALIBRATION: DiagnosticStatus.WARN,
    MappingState.INITIALISING: DiagnosticStatus.WARN,
    MappingState.TRACKING: DiagnosticStatus.OK,
    MappingState.DEGRADED: DiagnosticStatus.WARN,
    MappingState.LOST: DiagnosticStatus.ERROR,
    MappingState.RELOCALISING: DiagnosticStatus.ERROR,
    MappingState.ERROR: DiagnosticStatus.ERROR,
}


def state_name(state: MappingState) -> str:
    """State in words."""
    return state.name.lower().replace('_', ' ')


def diagnostics(
    name: str,
    hardware_id: str,
    status: Any,
    now_ns: int,
    stale: str,
    dropped_now: bool,
    spilled: int = 0,
    averaged: int = 0,
) -> Any:
    """DiagnosticArray from a MappingStatus.

    `stale` is the sentence about missing input, empty while images arrive; `dropped_now`: frames were dropped since
    the last report. `spilled`: keyframes whose features went to disk. `averaged`: frames that the newest picture is the
    average of.
    """
    state = MappingState(status.state)
    level, message = _LEVELS[state], f'{state_name(state)}: {status.message}'
    if dropped_now and level == DiagnosticStatus.OK:
        level, message = DiagnosticStatus.WARN, f'{message}; frames are dropped: the mapping is slower than the camera'
    if status.advice:
        level, message = max(level, DiagnosticStatus.WARN), '; '.join([message, *status.advice])
    if stale:
        level, message = DiagnosticStatus.STALE, stale
    values = {
        'state': state_name(state),
        'SNR [dB]': f'{status.snr_db:.1f}',
        'raw pixels per value': str(status.samples_per_value),
        'frames averaged at rest': str(averaged),
        'inliers': f'{status.inliers} of {status.matches}',
        'reprojection error [px]': f'{status.reprojection:.2f}',
        'landmarks found again [%]': f'{100.0 * status.found_again:.0f}',
        'latency [ms]': f'{1e3 * status.latency:.0f}',
        'latency, 95th percentile [ms]': f'{1e3 * status.latency_p95:.0f}',
        'frames received': str(status.frames_received),
        'frames posed': str(status.frames_posed),
        'frames dropped by the queue': str(status.frames_dropped),
        'frames missing before the node': str(status.frames_missing),
        'keyframes': str(status.keyframes),
        'landmarks': str(status.landmarks),
        'memory [MiB]': f'{status.memory_mib:.0f}',
        'map [MiB]': f'{status.map_mib:.1f}',
        'keyframes on disk': str(spilled),
        'frames failed': str(status.frames_failed),
        'scale': status.scale_text,
        'scale drift [% per 100 m]': f'{1e4 * status.scale_drift:.1f}',
        'advice': '; '.join(status.advice) or 'none',
        'submap': f'{status.submap} of {status.submaps}',
        'loops': f'{status.loops_accepted} closed of {status.loops_verified} verified, {status.loops_proposed} '
        f'proposed, {status.loops_refused} refused',
    }
    item = DiagnosticStatus(
        level=level,
        name=name,
        hardware_id=hardware_id,
        message=message,
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )
    return DiagnosticArray(header=convert.header(now_ns, ''), status=[item])
