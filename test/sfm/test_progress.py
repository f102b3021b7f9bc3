# SPDX-License-Identifier: Apache-2.0
"""Work that is spread over threads: order, errors, work that asks for more of it, threads that stay."""

import threading
import time

import pytest
import torch

from dark3r_ros.sfm import progress
from dark3r_ros.sfm.progress import side_by_side


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(progress, 'usable_cores', lambda: 2)


def test_results_keep_the_order_of_the_items():
    def slow_first(item):
        time.sleep(0.05 if item == 0 else 0.0)
        return item * item

    assert side_by_side(slow_first, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    assert side_by_side(slow_first, []) == []


def test_two_items_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=10.0)
    assert len(side_by_side(lambda _: both.wait(), [0, 1])) == 2


def test_work_may_ask_for_more_of_it():
    found = side_by_side(lambda row: side_by_side(lambda column: (row, column), range(3)), range(4))
    assert found == [[(row, column) for column in range(3)] for row in range(4)]


@pytest.mark.parametrize('wrong', [0, 2])
def test_an_error_is_raised_when_nothing_runs_any_more(wrong):
    running = []

    def work(item):
        running.append(item)
        time.sleep(0.02)
        running.remove(item)
        if item == wrong:
            raise ValueError(item)

    with pytest.raises(ValueError, match=str(wrong)):
        side_by_side(work, range(5))
    assert running == []


def test_threads_stay_and_torch_has_one_in_each_while_they_work():
    before = torch.get_num_threads()
    used = set()

    def work(_):
        time.sleep(0.01)
        used.add(threading.current_thread().name)
        return torch.get_num_threads()

    for _ in range(5):
        assert side_by_side(work, range(4)) == [1] * 4
    assert len(used) == 2
    assert torch.get_num_threads() == before
