# SPDX-License-Identifier: Apache-2.0
"""From the state of the map to what its driver is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.mapping.events import Event, KeyframesMoved, KeyframeState
from dark3r_ros.mapping.sparse_map import Keyframe

Array = NDArray[np.float64]


def keyframes_moved(keyframes: Sequence[Keyframe]) -> KeyframesMoved:
    """Newest estimates of the keyframes as an event."""
    return KeyframesMoved(
        tuple(
            KeyframeState(
                keyframe.keyframe_id,
                keyframe.stamp_ns,
                keyframe.world_from_camera,
                keyframe.snr_db,
                len(keyframe.table.observing()),
            )
            for keyframe in keyframes
        )
    )


def in_time_order(events: Sequence[Event]) -> list[Event]:
    """Order posed frames by their stamps; what belongs to a frame stays behind it, the last move goes to the end."""
    moved = [event for event in events if isinstance(event, KeyframesMoved)]
    others = [event for event in events if not isinstance(event, KeyframesMoved)]
    return sorted(others, key=lambda event: event.stamp_ns) + moved[-1:]


def world_covariance(world_from_camera: Array, left_twist: Array) -> Array:
    """Covariance (6, 6) of small motions of the camera, seen in the world: translation, then rotation.

    A left twist of camera_from_world moves the world in the camera's axes. Turned into the world frame, the camera
    moves the opposite way, which leaves the covariance as it is.
    """
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = world_from_camera[:3, :3]
    return turn @ left_twist @ turn.T
