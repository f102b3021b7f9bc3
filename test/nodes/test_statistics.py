# SPDX-License-Identifier: Apache-2.0
import math
import mmap

import numpy as np
import pytest

from dark3r_ros.nodes.statistics import Complaints, LatencyWindow, Once, StampMonitor, resident_mib
from dark3r_ros.nodes.voxels import voxelise
from dark3r_ros.types import PointCloud

PERIOD = 100_000_000


def test_p95_is_the_smallest_value_that_95_percent_do_not_exceed():
    window = LatencyWindow(100)
    assert math.isnan(window.p95) and math.isnan(window.newest)
    for value in range(1, 101):
        window.add(float(value))
    assert (window.p95, window.newest) == (95.0, 100.0)
    for _ in range(100):
        window.add(1.0)
    assert window.p95 == 1.0  # only the last 100 count


def monitor(stamps) -> tuple[StampMonitor, list[str]]:
    made = StampMonitor()
    return made, [sentence for sentence in map(made.add, stamps) if sentence]


def test_missing_frames_are_counted_from_gaps_despite_jitter():
    rng = np.random.default_rng(0)
    stamps = [10**18 + index * PERIOD + int(rng.normal(0, 3e6)) for index in range(60)]
    lost = {20, 30, 31, 32, 45}
    made, sentences = monitor(stamp for index, stamp in enumerate(stamps) if index not in lost)
    assert (made.missing, sentences) == (len(lost), [])


def test_a_pause_of_the_source_is_no_loss():
    stamps = [index * PERIOD for index in range(1, 21)]
    made, _ = monitor([*stamps, *(stamp + 600 * 10**9 for stamp in stamps)])
    assert made.missing == 0


@pytest.mark.parametrize(
    ('stamps', 'words'),
    [([5, 6, 6], 'repeats'), ([5 * PERIOD, 2 * PERIOD], 'went back by 0.300 s'), ([0, 0], 'no stamp')],
)
def test_wrong_stamps_are_told(stamps, words):
    _, sentences = monitor(stamps)
    assert any(words in sentence for sentence in sentences)


def test_stamps_are_compared_with_the_newest_good_one_until_a_reset():
    made = StampMonitor()
    assert made.add(1000) == ''
    assert 'back' in made.add(500)
    assert 'back' in made.add(600)
    made.reset()
    assert made.add(600) == ''


def test_the_same_complaint_is_said_once_in_a_while_with_its_count():
    said, now = [], [0.0]
    complaints = Complaints(said.append, again_after=10.0, clock=lambda: now[0])
    for step in range(5):
        complaints.add(f'the stamp {step} repeats')
    complaints.add('another one')
    assert said == ['the stamp 0 repeats', 'another one']
    now[0] = 11.0
    complaints.add('the stamp 9 repeats')
    assert said[2:] == ['the stamp 9 repeats (4 more times since)']
    once = Once(said.append)
    once.add('a')
    once.add('a')
    assert said[3:] == ['a']


def test_memory_grows_with_what_is_held():
    # Fresh pages from the system: the allocator may hold freed ones of earlier tests.
    before = resident_mib()
    with mmap.mmap(-1, 40 * 2**20) as block:
        block.write(b'x' * len(block))
        assert 30 < resident_mib() - before < 130


def test_voxels_keep_the_most_certain_point_each():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 10, (20000, 3)).astype(np.float32)
    points[0] = np.nan
    confidence = rng.uniform(0, 1, 20000).astype(np.float32)
    colors = rng.integers(0, 256, (20000, 3)).astype(np.uint8)
    thin = voxelise(PointCloud(points, colors, confidence), 10)
    assert len(thin) <= 12**3 and np.isfinite(thin.points).all()
    low, high = np.percentile(points[1:], (1, 99), axis=0)
    edge = (high - low).max() / 10
    cells = np.floor((thin.points - low) / edge).astype(int)
    assert len(np.unique(cells, axis=0)) == len(thin)
    everything = np.floor((points[1:] - low) / edge).astype(int)
    for index in (0, len(thin) // 2):
        same = (everything == cells[index]).all(axis=1)
        assert thin.confidence[index] == confidence[1:][same].max()


def test_voxels_of_nothing_and_of_one_point():
    empty = PointCloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
    assert len(voxelise(empty, 10)) == 0
    one = PointCloud(np.ones((5, 3), np.float32), np.zeros((5, 3), np.uint8), np.arange(5, dtype=np.float32))
    assert voxelise(one, 10).confidence.tolist() == [4.0]
