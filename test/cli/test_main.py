# SPDX-License-Identifier: Apache-2.0
"""The entry point: exit statuses, one line for a user's mistake, tracebacks for ours."""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dark3r_ros import __version__
from dark3r_ros.cli import common
from dark3r_ros.cli import main as entry
from dark3r_ros.errors import ConfigError, DataError
from dark3r_ros.raw.decode import DecodeOptions


def run_module(*arguments, **options):
    command = [sys.executable, '-m', 'dark3r_ros.cli.main', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture
def command(monkeypatch):
    """Replace `inspect` by a command that runs the function it is given."""

    def install(function):
        module = SimpleNamespace(
            NAME='inspect', HELP='help text', EXAMPLE='dark3r inspect x',
            add_arguments=lambda parser: parser.add_argument('--number', type=int), run=function,
        )  # fmt: skip
        monkeypatch.setattr(entry, 'load_command', lambda name: module)

    return install


def raiser(error):
    def run(args):
        raise error

    return run


def test_version_and_help(capsys):
    assert entry.main(['--version']) == 0
    assert capsys.readouterr().out == f'dark3r {__version__}\n'
    assert entry.main(['--help']) == 0
    text = capsys.readouterr().out
    for name in entry.available_commands():
        assert f'  {name} ' in text
    assert entry.main([]) == 2
    assert 'usage: dark3r' in capsys.readouterr().err


@pytest.mark.parametrize('name', entry.available_commands())
def test_every_command_has_help_with_an_example(name, capsys):
    module = entry.load_command(name)
    assert module.NAME.replace('_', '-') == name
    assert entry.main([name, '--help']) == 0
    text = capsys.readouterr().out
    assert f'usage: dark3r {name}' in text
    assert module.EXAMPLE in text
    assert module.EXAMPLE.startswith(f'dark3r {name}')


def test_unknown_command_suggests(capsys):
    assert entry.main(['inspct']) == 2
    assert capsys.readouterr().err == "dark3r: error: unknown command 'inspct'; did you mean 'inspect'?\n"


def test_underscores_are_accepted(capsys):
    assert entry.main(['calibrate_noise', '--help']) == 0
    assert 'usage: dark3r calibrate-noise' in capsys.readouterr().out


def test_user_errors_are_one_line(command, capsys):
    command(raiser(DataError('the bag\n is bad')))
    assert entry.main(['inspect']) == 2
    assert capsys.readouterr().err == 'dark3r: error: the bag is bad\n'


def test_system_errors_are_one_line_but_bugs_are_not(command, capsys):
    command(raiser(OSError(errno.ENOSPC, 'No space left on device', '/data/x')))
    assert entry.main(['inspect']) == 2
    assert capsys.readouterr().err == 'dark3r: error: No space left on device: /data/x\n'
    command(raiser(OSError(errno.EBADF, 'Bad file descriptor')))
    with pytest.raises(OSError, match='Bad file'):
        entry.main(['inspect'])
    command(raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        entry.main(['inspect'])


def test_interrupt(command, capsys):
    command(raiser(KeyboardInterrupt()))
    assert entry.main(['inspect']) == 130


def test_kill_unwinds_like_an_interrupt(command):
    before = signal.getsignal(signal.SIGTERM)
    unwound = []

    def run(args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)
        finally:
            unwound.append(True)

    command(run)
    assert entry.main(['inspect']) == 130
    assert unwound and signal.getsignal(signal.SIGTERM) is before


def test_wrong_option_is_status_2(command, capsys):
    command(lambda args: 0)
    assert entry.main(['inspect', '--number', 'x']) == 2
    line = capsys.readouterr().err
    assert line.startswith("dark3r: error: argument --number: invalid int value: 'x'; `dark3r inspect --help`")
    assert line.count('\n') == 1


def test_status_of_the_command_is_passed_on(command):
    command(lambda args: args.number)
    assert entry.main(['inspect', '--number', '7']) == 7


def test_traceback_of_a_bug_is_kept_in_a_process():
    code = (
        'import sys, types\nfrom dark3r_ros.cli import main as m\n'
        'def run(args): raise ZeroDivisionError("ours")\n'
        'm.load_command = lambda n: types.SimpleNamespace(HELP="", EXAMPLE="", add_arguments=lambda p: 0, run=run)\n'
        'sys.exit(m.main(["inspect"]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert 'Traceback' in done.stderr
    assert 'ZeroDivisionError: ours' in done.stderr


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        'import sys, types\nfrom dark3r_ros.cli import main as m\n'
        'def run(args):\n  for _ in range(100000): print("x" * 100)\n  return 0\n'
        'm.load_command = lambda n: types.SimpleNamespace(HELP="", EXAMPLE="", add_arguments=lambda p: 0, run=run)\n'
        'sys.exit(m.main(["inspect"]))'
    )
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b''


def test_process_exit_status_and_stderr(tmp_path):
    done = run_module('inspect', str(tmp_path / 'no.mcap'))
    assert done.returncode == 2
    assert done.stderr.startswith('dark3r: error: ')
    assert done.stderr.count('\n') == 1


def test_starting_is_fast_because_nothing_heavy_is_imported():
    code = (
        'import sys; import dark3r_ros.cli.main as m; m.main(["--version"]); print([n for n in %r if n in sys.modules])'
    )
    heavy = ['torch', 'cv2', 'rosbags', 'matplotlib', 'numpy']
    done = subprocess.run([sys.executable, '-c', code % heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == '[]'


def test_size_parser():
    assert common.parse_size('1280x960') == (1280, 960)
    for text in ('1280', '1280x', 'axb', '0x5', '1x2x3', '-1x5'):
        with pytest.raises(argparse.ArgumentTypeError):
            common.parse_size(text)


def test_json_has_no_nan(capsys):
    common.print_json({'a': np.float32('nan'), 'b': (np.int64(3), np.array([1.5, np.inf])), 'c': None, 'd': True})
    assert json.loads(capsys.readouterr().out) == {'a': None, 'b': [3, [1.5, None]], 'c': None, 'd': True}


def decode(*arguments):
    parser = argparse.ArgumentParser()
    common.add_decode_arguments(parser)
    return common.decode_options(parser.parse_args(arguments))


def test_decode_options_come_from_the_configuration():
    assert decode() == DecodeOptions()
    options = decode('--black-level', '256', '--significant-bits', '12', '--alignment', 'msb')
    assert options == DecodeOptions(black_level=256.0, significant_bits=12, alignment='msb')
    with pytest.raises(ConfigError, match='significant_bits'):
        decode('--significant-bits', '40')


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(common.progress(range(3), 3, 'work')) == [0, 1, 2]
    assert capsys.readouterr().err == ''


def test_progress_shows_a_bar_on_a_terminal():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    code = 'from dark3r_ros.cli.common import progress\nfor _ in progress(range(3), 3, "work"): pass'
    subprocess.run([sys.executable, '-c', code], stderr=slave, check=True, timeout=60)
    text = os.read(master, 10_000).decode()
    os.close(slave)
    os.close(master)
    assert 'work' in text
    assert '3/3' in text
