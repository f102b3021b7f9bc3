# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time

import pytest

from dark3r_ros.cli.processes import ChildError, Children, unused_domain

SLEEPER = [sys.executable, '-c', 'import time; print("up", flush=True); time.sleep(60)']
# Ignores the polite signal and has a child of its own.
STUBBORN = [
    sys.executable,
    '-c',
    'import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n'
    'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
    'print(child.pid, flush=True); time.sleep(60)',
]


def alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as stream:
            return stream.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def wait_for_end(pid: int, timeout: float = 5.0) -> None:
    """A signal that was sent is not yet delivered on a busy machine."""
    end = time.monotonic() + timeout
    while alive(pid):
        assert time.monotonic() < end, f'{pid} is left behind'
        time.sleep(0.02)


def wait_for_log(child, timeout: float = 10.0) -> str:
    end = time.monotonic() + timeout
    while not child.tail():
        assert time.monotonic() < end
        time.sleep(0.02)
    return child.tail()


def test_a_child_that_dies_is_reported_with_the_end_of_its_log(tmp_path):
    code = 'import sys; [print("line", n) for n in range(50)]; sys.exit(3)'
    with Children(tmp_path, os.environ) as children:
        child = children.start('doomed', [sys.executable, '-c', code])
        child.wait(10)
        with pytest.raises(ChildError, match=r'(?s)doomed ended with status 3.*doomed\.log.*line 49') as caught:
            children.check()
        assert 'line 10' not in str(caught.value)


def test_an_early_end_is_an_error_unless_it_is_expected(tmp_path):
    with Children(tmp_path, os.environ) as children:
        child = children.start('short', [sys.executable, '-c', 'pass'])
        children.wait_for(child, 10)
        children.check(may_end=[child])
        with pytest.raises(ChildError, match='ended with status 0'):
            children.check()


def test_another_child_that_dies_ends_the_waiting(tmp_path):
    with Children(tmp_path, os.environ) as children:
        sleeper = children.start('sleeper', SLEEPER)
        children.start('doomed', [sys.executable, '-c', 'raise SystemExit(4)'])
        started = time.monotonic()
        with pytest.raises(ChildError, match='doomed'):
            children.wait_for(sleeper, 30)
        assert time.monotonic() - started < 10
    assert sleeper.status is not None


def test_a_child_that_does_not_end_is_an_error(tmp_path):
    with Children(tmp_path, os.environ) as children:
        sleeper = children.start('sleeper', SLEEPER)
        with pytest.raises(ChildError, match='did not end within 1 s'):
            children.wait_for(sleeper, 1)


def test_no_process_is_left_behind_even_a_stubborn_one(tmp_path, monkeypatch):
    monkeypatch.setattr('dark3r_ros.cli.processes._POLITE_SECONDS', 0.3)
    with pytest.raises(KeyboardInterrupt), Children(tmp_path, os.environ) as children:
        child = children.start('stubborn', STUBBORN)
        grandchild = int(wait_for_log(child))
        assert alive(grandchild)
        raise KeyboardInterrupt
    assert child.status is not None
    wait_for_end(grandchild)


def test_terminating_the_command_stops_its_children(tmp_path):
    code = (
        'import os, sys, time; from pathlib import Path; from dark3r_ros.cli.processes import Children\n'
        f'with Children(Path({str(tmp_path)!r}), os.environ) as children:\n'
        f'    child = children.start("sleeper", {SLEEPER!r})\n'
        '    print(child._process.pid, flush=True); time.sleep(60)'
    )
    command = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid = int(command.stdout.readline())
    assert alive(pid)
    command.send_signal(signal.SIGTERM)
    command.wait(15)
    command.stdout.close()
    wait_for_end(pid)


def test_waiting_for_a_line_ends_with_it_or_with_a_reason(tmp_path):
    with Children(tmp_path, os.environ) as children:
        child = children.start('sleeper', SLEEPER)
        children.wait_for_line(child, 'up', 10)
        with pytest.raises(ChildError, match='not ready within 0 s'):
            children.wait_for_line(child, 'never', 0.3)
        children.start('doomed', [sys.executable, '-c', 'raise SystemExit(4)'])
        with pytest.raises(ChildError, match='doomed ended with status 4'):
            children.wait_for_line(child, 'never', 10)


def test_domains_with_shared_memory_of_others_are_left_alone(tmp_path):
    for domain in range(1, 102):
        if domain != 42:
            (tmp_path / f'fastdds_port{7400 + 250 * domain + 11}').touch()
    assert {unused_domain(tmp_path) for _ in range(20)} == {42}
    (tmp_path / 'fastdds_port17910_el').touch()  # 42 as well: none is free, any will do
    assert unused_domain(tmp_path) in range(1, 102)
