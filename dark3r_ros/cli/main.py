# SPDX-License-Identifier: Apache-2.0
"""Entry point `dark3r COMMAND ...`.

Every module named in `COMMANDS` has `NAME`, `HELP` (one line), `EXAMPLE` (one command line), `add_arguments(parser)`
and `run(args) -> int`. A module is imported only when its command runs or the overview is shown, so that the commands
start fast and a missing optional package stops only the command that needs it.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

from dark3r_ros import __version__
from dark3r_ros.errors import ConfigError, Dark3rError

COMMANDS = (
    'demo',
    'simulate',
    'darken',
    'inspect',
    'map',
    'nerf',
    'sfm',
    'evaluate',
    'report',
    'bench',
    'distill',
    'train_depth',
    'calibrate_noise',
    'weights',
    'export_engine',
)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# Operating system errors that a user mends: disk, quota, permissions, missing paths.
_USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EFBIG}


def available_commands() -> tuple[str, ...]:
    """Names of the commands of this installation, as typed (`calibrate-noise`)."""
    found = (name for name in COMMANDS if importlib.util.find_spec(f'dark3r_ros.cli.{name}') is not None)
    return tuple(name.replace('_', '-') for name in found)


def load_command(name: str) -> ModuleType:
    """Import the module of a command given as typed."""
    return importlib.import_module(f'dark3r_ros.cli.{name.replace("-", "_")}')


def overview() -> str:
    """Text of `dark3r --help`."""
    lines = [
        'usage: dark3r [--version] [--help] COMMAND ...',
        '',
        'Poses, maps and radiance fields from raw camera images taken in the dark.',
        '',
        'commands:',
    ]
    lines += [f'  {name:<16} {load_command(name).HELP}' for name in available_commands()]
    return '\n'.join([*lines, '', '`dark3r COMMAND --help` shows the options and an example.'])


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option by one line, where argparse prints the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f'{message}; `{self.prog} --help` shows the options and an example')


def build_parser(name: str) -> argparse.ArgumentParser:
    """Parser of one command."""
    module = load_command(name)
    parser = _Parser(
        prog=f'dark3r {name}',
        description=module.HELP,
        epilog=f'example:\n  {module.EXAMPLE}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _fail(message: str) -> int:
    print(f'dark3r: error: {" ".join(message.split())}', file=sys.stderr)
    return EXIT_USER_ERROR


def _unknown(name: str) -> int:
    names = available_commands()
    near = difflib.get_close_matches(name, names, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(names)}'
    return _fail(f'unknown command {name!r}; {hint}')


def _run(name: str, arguments: Sequence[str]) -> int:
    try:
        args = build_parser(name).parse_args(arguments)
        with _terminable():  # not before: compiled modules abort when an exception meets their import
            status = int(load_command(name).run(args))
        sys.stdout.flush()
        return status
    except Dark3rError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print('dark3r: interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`| head`); the interpreter's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno in _USER_ERRNOS:
            return _fail(f'{error.strerror}: {error.filename}' if error.filename else str(error.strerror))
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let a plain `kill` unwind like Ctrl-C, so that temporary files go and child processes end."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for a user's mistake, 130 when interrupted or terminated.

    Unexpected exceptions pass through, so that their traceback is seen.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ('-h', '--help', 'help'):
        print(overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] in ('-V', '--version'):
        print(f'dark3r {__version__}')
        return 0
    name = arguments[0].replace('_', '-')
    if name not in available_commands():
        return _unknown(arguments[0])
    try:
        return _run(name, arguments[1:])
    except SystemExit as stop:  # argparse: 0 after --help
        return stop.code if isinstance(stop.code, int) else EXIT_USER_ERROR


if __name__ == '__main__':
    sys.exit(main())
