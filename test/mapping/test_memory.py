# SPDX-License-Identifier: Apache-2.0
"""The ceiling of memory holds, whatever the length of the run, and what went to disk is still a place to be found."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from drive import CONFIG, Route, World, along, descriptors
from synthetic_world import index_of

from dark3r_ros.mapping import memory, places
from dark3r_ros.types import MappingState

CEILING_MB = 16
HEAVY = 1_000_000  # bytes of features of one frame
SMALL = replace(
    CONFIG, memory_ceiling_mb=CEILING_MB, keyframe_flow=0.02, window=5, window_fixed=3, neighbours=3, retry_frames=5
)
OUT = np.arange(0.0, 22.0, 0.2)
DARK = 8


@dataclass
class HeavySeen:
    ids: np.ndarray
    pixels: np.ndarray
    ballast: np.ndarray

    @property
    def nbytes(self):
        return self.ids.nbytes + self.pixels.nbytes + self.ballast.nbytes


def drive(world, config):
    """Out along the corridor, some dark frames, and then the start once more."""
    poses = along(world, [*OUT, *[22.0] * DARK, *OUT[5:12]])
    route = Route(world, poses, dark=range(len(OUT), len(OUT) + DARK), config=config)
    encode = route.predictor.encode

    def encode_heavy(planes):
        seen = encode(planes)
        return HeavySeen(seen.ids, seen.pixels, np.zeros(HEAVY, np.uint8))

    route.predictor.encode = encode_heavy
    sizes = []
    for number in range(len(poses)):
        route.run(number, number + 1)
        sizes.append(route.pipeline.status().map_bytes)
    return route, np.array(sizes)


@pytest.fixture
def world(monkeypatch):
    world = World(length=22.0)
    monkeypatch.setattr(places, 'local_descriptors', descriptors(world))
    return world


def test_the_ceiling_holds_and_a_place_on_disk_is_found_again(world, tmp_path):
    route, sizes = drive(world, replace(SMALL, spill_folder=str(tmp_path)))
    keyframes = route.pipeline.status().keyframes
    assert keyframes * HEAVY > 2 * CEILING_MB * 1e6  # without a ceiling there would be twice as much
    # What is read back while looking for a place counts until the next frame is through.
    assert sizes.max() < CEILING_MB * 1e6 + 4 * HEAVY
    full = np.flatnonzero(sizes > 0.8 * CEILING_MB * 1e6)[0]
    assert full < len(OUT) // 2
    assert sizes[full:].min() > 0.5 * CEILING_MB * 1e6
    early = route.pipeline._atlas.submaps[0].map.keyframes[:5]
    assert any(keyframe.stored is not None for keyframe in early)
    found = [index_of(event.stamp_ns) for event in route.posed()]
    assert max(found) == len(route.poses) - 1
    assert route.error()[0] < 0.2
    assert not any(tmp_path.iterdir())  # the file has no name: nothing is left behind, however the process ends


def test_where_the_disk_takes_nothing_features_are_forgotten_and_mapping_goes_on(world, tmp_path):
    route, sizes = drive(world, replace(SMALL, spill_folder=str(tmp_path / 'nowhere')))
    assert sizes.max() < CEILING_MB * 1e6 + 14 * HEAVY  # the newest keyframes are always kept
    assert {index_of(event.stamp_ns) for event in route.posed()} >= set(range(len(OUT)))
    assert route.pipeline._memory.problem
    assert route.pipeline.status().state in (MappingState.TRACKING, MappingState.LOST, MappingState.RELOCALISING)


def test_spilled_keyframes_give_the_same_map(world):
    unbounded, _ = drive(world, replace(SMALL, memory_ceiling_mb=10_000))
    bounded, _ = drive(world, SMALL)
    a, b = (route.pipeline.reconstruction().trajectory() for route in (unbounded, bounded))
    np.testing.assert_array_equal(a.world_from_camera, b.world_from_camera)


FRAGMENTED = """
import numpy as np
from pathlib import Path
from dark3r_ros.mapping.memory import give_back

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096

blocks, pins = [], []
for _ in range(1000):
    blocks.append(np.ones(100_000, np.uint8))  # below the size that gets pages of its own
    pins.append(bytes(2000))
blocks.clear()
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='the system does not say what a process takes')
def test_freed_memory_goes_back_to_the_system_though_blocks_lie_between():
    # In a process of its own: what other tests have freed would take the blocks that are to lie between.
    command = [sys.executable, '-c', FRAGMENTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 50_000_000


def test_memory_goes_back_once_a_lot_has_gone_to_disk(world, monkeypatch):
    calls = []
    monkeypatch.setattr(memory, 'give_back', lambda: calls.append(0))
    route, _ = drive(world, SMALL)
    assert 0 < len(calls) <= route.pipeline._memory.spilled
    calls.clear()
    drive(world, replace(SMALL, memory_ceiling_mb=10_000))
    assert not calls
