# SPDX-License-Identifier: Apache-2.0
"""The two cameras of a stereo rig: their frames in one order of time, and the distance between them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.geometry import se3
from dark3r_ros.storage.bag_reader import BagReader, is_bag
from dark3r_ros.storage.ros_messages import deserialize
from dark3r_ros.types import Frame, FrameRecord, FrameSource, Reconstruction

Array = NDArray[np.float64]

SECOND = 'second_'
# Frames of a rig are exposed together; a camera at 1 m/s moves 5 mm in this time.
_TOGETHER_NS = 5_000_000
_TF_STATIC, _TF_TYPE = '/tf_static', 'tf2_msgs/msg/TFMessage'


class RigSource:
    """Frames of two sources by their stamps, the first camera's before the second's of the same time.

    Names of the second's frames begin with `second_`.
    """

    def __init__(self, first: FrameSource, second: FrameSource) -> None:
        self._first, self._second = first, second

    def __iter__(self) -> Iterator[Frame]:
        second = (replace(one, name=f'{SECOND}{one.name or f"{one.stamp_ns}.png"}') for one in self._second)
        yield from heapq.merge(self._first, second, key=lambda frame: frame.stamp_ns)

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @property
    def frame_ids(self) -> tuple[str, str]:
        """Coordinate frames of the two cameras, by their first images."""
        first, second = next(iter(self._first)), next(iter(self._second))
        return first.frame_id, second.frame_id

    @property
    def warnings(self) -> Iterable[str]:
        """Those of the first source, and those of the second named as such."""
        return [*self._first.warnings, *(f'second camera: {warning}' for warning in self._second.warnings)]


@dataclass(frozen=True)
class BaselineScale:
    """Metres per unit, its relative deviation over the pairs of frames (robust), and the number of these."""

    scale: float
    deviation: float
    pairs: int


def scale_from_baseline(reconstruction: Reconstruction, metres: float) -> BaselineScale:
    """Metres per unit from the distance of the two cameras of a `RigSource`, as the median over frames taken together.

    Raises DataError for a distance that is not positive, ReconstructionError where no two such frames have poses.
    """
    if not (np.isfinite(metres) and metres > 0):
        raise DataError(f'the baseline must be a positive number of metres, not {metres}')
    first, second = _posed(reconstruction.frames, second=False), _posed(reconstruction.frames, second=True)
    lengths = [
        float(np.linalg.norm(own - other))
        for stamp, own in first
        for other_stamp, other in _near(second, stamp)
        if abs(stamp - other_stamp) <= _TOGETHER_NS
    ]
    ratios = metres / np.array([length for length in lengths if length > 0])
    if not len(ratios):
        raise ReconstructionError(
            f'no frames of both cameras within {_TOGETHER_NS // 1_000_000} ms have poses: no scale follows from the '
            'baseline; check that the cameras are triggered together'
        )
    scale = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios - scale)))
    return BaselineScale(scale, spread / scale, len(ratios))


def _posed(frames: tuple[FrameRecord, ...], *, second: bool) -> list[tuple[int, Array]]:
    """Stamps and positions of the posed frames of one camera, in order of time."""
    found = [
        (frame.stamp_ns, np.asarray(frame.world_from_camera[:3, 3]))
        for frame in frames
        if frame.world_from_camera is not None and frame.name.startswith(SECOND) == second
    ]
    return sorted(found, key=lambda item: item[0])


def _near(frames: list[tuple[int, Array]], stamp_ns: int) -> list[tuple[int, Array]]:
    """The frame nearest in time, or none."""
    return [min(frames, key=lambda item: abs(item[0] - stamp_ns))] if frames else []


def static_baseline(path: Path | str, first: str, second: str) -> float:
    """Distance in metres of two coordinate frames, by /tf_static of a bag; DataError where it does not join them."""
    if not is_bag(Path(path)):
        raise DataError(f'{path} is no bag and holds no /tf_static: state the baseline in metres')
    edges: dict[str, dict[str, Array]] = {}
    with BagReader(path) as reader:
        for raw in reader.messages([_TF_STATIC]):
            for item in deserialize(raw.data, _TF_TYPE).transforms:
                shift, turn = item.transform.translation, item.transform.rotation
                parent_from_child = se3.from_quaternion(
                    np.array([turn.x, turn.y, turn.z, turn.w]), (shift.x, shift.y, shift.z)
                )
                parent, child = item.header.frame_id.lstrip('/'), item.child_frame_id.lstrip('/')
                edges.setdefault(child, {})[parent] = parent_from_child
                edges.setdefault(parent, {})[child] = se3.inverse(parent_from_child)
    first, second = first.lstrip('/'), second.lstrip('/')
    reached = {first: np.eye(4)}
    waiting = [first]
    while waiting:
        here = waiting.pop()
        for there, there_from_here in edges.get(here, {}).items():
            if there not in reached:
                reached[there] = there_from_here @ reached[here]
                waiting.append(there)
    if second not in reached or first == second:
        raise DataError(
            f'{path}: /tf_static does not join the camera frames {first!r} and {second!r}: state the baseline in metres'
        )
    return float(np.linalg.norm(reached[second][:3, 3]))
