# SPDX-License-Identifier: Apache-2.0
"""`dark3r weights`: fetch the weights that we may not ship, and say what a weight file holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dark3r_ros.cli.common import print_json
from dark3r_ros.config import to_mapping
from dark3r_ros.model.fetch import REMOTE, fetch, local_path
from dark3r_ros.model.weights import fingerprint, load_network

NAME = 'weights'
HELP = 'fetch public weights, or say what a weight file holds'
EXAMPLE = 'dark3r weights fetch mast3r-large --accept-noncommercial'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest='action', required=True, metavar='fetch|info|licence')
    fetching = actions.add_parser('fetch', help='download public weights; a broken download goes on where it stopped')
    fetching.add_argument('name', choices=sorted(REMOTE), help='which weights')
    fetching.add_argument('--accept-noncommercial', action='store_true', help='you accept non-commercial use only')
    fetching.add_argument('--folder', type=Path, help='where to put them (default: $DARK3R_WEIGHTS or the cache)')
    fetching.add_argument('--sha256', default='', help='expected hash (default: the one that the hub states)')
    info = actions.add_parser('info', help='architecture, origin and licence of a weight file; checks every key')
    info.add_argument('file', type=Path, help='.safetensors or .pth file')
    info.add_argument('--json', action='store_true', help='print JSON')
    licence = actions.add_parser('licence', help='what the licence of public weights allows')
    licence.add_argument('name', choices=sorted(REMOTE), help='which weights')


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    actions: dict[str, Callable[[argparse.Namespace], None]] = {'fetch': _fetch, 'info': _info, 'licence': _licence}
    actions[args.action](args)
    return 0


def _fetch(args: argparse.Namespace) -> None:
    if args.accept_noncommercial:
        print(REMOTE[args.name].licence, file=sys.stderr)
    known = local_path(args.name, args.folder).exists()
    with _Bar() as bar:
        path = fetch(
            args.name,
            args.folder,
            accept_noncommercial=args.accept_noncommercial,
            sha256=args.sha256,
            progress=bar.update,
        )
    print(f'{"already there" if known else "fetched"}: {path}')


class _Bar:
    """A progress bar on standard error when that is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are there."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total or None, unit='B', unit_scale=True, file=sys.stderr, initial=done)
        self._bar.update(done - self._bar.n)


def _info(args: argparse.Namespace) -> None:
    network, weights, report = load_network(args.file)
    header = weights.info
    facts: dict[str, Any] = {
        'file': str(args.file),
        'format': weights.format,
        'parameters': sum(parameter.numel() for parameter in network.parameters()),
        'fingerprint': fingerprint(network),
        'normalisation': weights.normalisation,
        'commit': header.commit if header else '',
        'data': header.data if header else '',
        'licence': header.licence if header else '',
        'extra': header.extra if header else {},
        'unexpected_keys': list(report.unexpected),
        'ignored_keys': len(report.ignored),
        'architecture': to_mapping(network.config),
    }
    if args.json:
        print_json(facts)
        return
    for key, value in facts.items():
        if key not in ('architecture', 'extra', 'unexpected_keys'):
            print(f'{key:<16} {value if value != "" else "not stated"}')
    print(f'{"unexpected_keys":<16} {", ".join(report.unexpected) or "none"}')
    for key, value in {**facts['extra'], **facts['architecture']}.items():
        print(f'  {key:<20} {value}')


def _licence(args: argparse.Namespace) -> None:
    print(REMOTE[args.name].licence, end='')
