# SPDX-License-Identifier: Apache-2.0
"""The ceiling of the map's memory, and what gives way when it is reached."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator

from dark3r_ros.mapping.atlas import Atlas
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.scratch import ScratchFeatures, ScratchFile
from dark3r_ros.mapping.sparse_map import Keyframe, View
from dark3r_ros.mapping.submap import Submap

_TARGET = 0.9  # of the ceiling, so that not every frame has to look for room
_WORTH_GIVING_BACK = 0.05  # of the ceiling, that has been let go of at once
_LOT = 50  # keyframes forgotten at a time


def view_bytes(view: View) -> int:
    """Memory of a view that waits, in bytes."""
    return view.features.nbytes + view.colors.nbytes


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can: glibc keeps what lies between blocks in use."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


class MemoryKeeper:
    """Keeps the map under its ceiling.

    In this order: features of older keyframes go to disk, or are forgotten where the disk takes no more; views that
    wait to be tried again are dropped; the oldest keyframes keep no more than their poses.
    """

    def __init__(self, config: MappingConfig) -> None:
        self._config = config
        self._scratch = ScratchFile(config.spill_folder)
        self._disk_works = True
        self.spilled = 0  # keyframes whose features went to disk

    @property
    def problem(self) -> str:
        """Why nothing goes to disk any more, empty while it does."""
        return '' if self._disk_works else 'features of old keyframes cannot be written to disk: they are forgotten'

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk."""
        return self._scratch.size

    def close(self) -> None:
        """Remove what lies on disk."""
        self._scratch.close()

    def enforce(self, atlas: Atlas, waiting: deque[View], other_bytes: int) -> None:
        """Bring everything under the ceiling; `other_bytes` are those that cannot give way."""
        ceiling = self._config.memory_ceiling_mb * 1_000_000
        waiting_bytes = sum(map(view_bytes, waiting))
        excess = atlas.nbytes + waiting_bytes + other_bytes - ceiling
        if excess <= 0:
            return
        wanted = excess + int((1.0 - _TARGET) * ceiling)
        # Not for the little that goes frame after frame where nothing else may go.
        if wanted - self._make_room(atlas, waiting, wanted) > _WORTH_GIVING_BACK * ceiling:
            give_back()

    def _make_room(self, atlas: Atlas, waiting: deque[View], excess: int) -> int:
        """Let go of so many bytes, or of all that may go; returns how many are still too many."""
        for submap, keyframe in self._cold(atlas):
            if excess <= 0:
                return excess
            excess -= self._unload(submap, keyframe)
        while excess > 0 and waiting:
            excess -= view_bytes(waiting.popleft())
        while excess > 0:
            before = atlas.nbytes
            forgotten = any(submap.archive.forget(submap.map, _LOT) for submap in atlas.submaps)
            if not forgotten and not self._drop_some(atlas):
                return excess
            excess -= before - atlas.nbytes
        return excess

    def _cold(self, atlas: Atlas) -> Iterator[tuple[Submap, Keyframe]]:
        """Keyframes with features in memory that tracking does not need, least needed first."""
        for submap in [*atlas.resting, atlas.active]:
            keyframes = submap.map.keyframes
            hot = self._config.window if submap is atlas.active else 0
            for keyframe in keyframes[: max(len(keyframes) - hot, 0)]:
                if keyframe.loaded is not None:
                    yield submap, keyframe

    def _unload(self, submap: Submap, keyframe: Keyframe) -> int:
        """Take the features of a keyframe out of memory; returns the bytes gained."""
        assert keyframe.loaded is not None
        size = keyframe.loaded.nbytes
        if keyframe.stored is None and self._disk_works:
            try:
                keyframe.stored = ScratchFeatures.write(self._scratch, keyframe.loaded)
                self.spilled += 1
            except OSError:
                self._disk_works = False
        if keyframe.stored is not None:
            keyframe.loaded = None
            return size
        if keyframe not in submap.archive.remembered:
            return 0
        submap.archive.drop(keyframe)
        return size

    @staticmethod
    def _drop_some(atlas: Atlas) -> bool:
        """Forget the features of some keyframes, so that their landmarks can be forgotten next."""
        dropped = [submap.archive.drop_most_redundant() for submap in atlas.submaps for _ in range(_LOT)]
        return any(keyframe is not None for keyframe in dropped)
