# SPDX-License-Identifier: Apache-2.0
"""What several commands share: progress bar, JSON output, options made from configurations."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, get_type_hints

from dark3r_ros.config import from_mapping
from dark3r_ros.raw.decode import DecodeOptions
from dark3r_ros.storage.result import jsonable

T = TypeVar('T')


def progress(items: Iterable[T], total: int | None = None, label: str = '') -> Iterator[T]:
    """Pass items through, with a bar on standard error when that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=label or None, file=sys.stderr, dynamic_ncols=True)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    print(json.dumps(jsonable(value), indent=2))


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of a text like `1280x960`, for `argparse`."""
    parts = text.lower().split('x')
    try:
        width, height = (int(part) for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a size like 1280x960') from None
    if width <= 0 or height <= 0:
        raise argparse.ArgumentTypeError(f'{text!r}: width and height must be positive')
    return width, height


def _parse_bool(text: str) -> bool:
    if text.lower() in ('true', 'yes', 'on', '1'):
        return True
    if text.lower() in ('false', 'no', 'off', '0'):
        return False
    raise argparse.ArgumentTypeError(f'{text!r} is not true or false')


def _destination(prefix: str, field: str) -> str:
    return f'{prefix}_{field}' if prefix else field


def add_config_arguments(parser: argparse.ArgumentParser, config: type, title: str, prefix: str = '') -> None:
    """Add one option per plain field of a configuration; what is not given stays at the configuration's default."""
    group = parser.add_argument_group(title)
    hints = get_type_hints(config)
    for item in dataclasses.fields(config):
        kind = hints[item.name]
        if kind not in (int, float, bool, str):
            continue
        destination = _destination(prefix, item.name)
        unit = item.metadata.get('unit') or ''
        text = f'{item.metadata.get("doc", "")} (default: {item.default!r}{" " + unit if unit else ""})'
        group.add_argument(
            '--' + destination.replace('_', '-'),
            dest=destination,
            type=_parse_bool if kind is bool else kind,
            choices=item.metadata.get('choices') or None,
            default=None,
            metavar=None if item.metadata.get('choices') else kind.__name__.upper(),
            help=text.replace('%', '%%'),
        )


def config_from_arguments(args: argparse.Namespace, config: type[T], prefix: str = '') -> T:
    """Build the configuration whose options `add_config_arguments` added; ConfigError outside the ranges."""
    given = {item.name: getattr(args, _destination(prefix, item.name), None) for item in dataclasses.fields(config)}  # type: ignore[arg-type]
    return from_mapping(config, {name: value for name, value in given.items() if value is not None})


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the raw images are to be read."""
    add_config_arguments(parser, DecodeOptions, 'raw decoding')


def decode_options(args: argparse.Namespace) -> DecodeOptions:
    """Build the decoding options of a command line."""
    return config_from_arguments(args, DecodeOptions)


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the input path, the topics and the part of the input to read."""
    parser.add_argument('input', help='bag folder, .mcap or .db3 file, sequence folder or folder of raw files')
    group = parser.add_argument_group('input')
    group.add_argument('--image-topic', default='', help='image topic (default: the only one there is)')
    group.add_argument('--info-topic', default='', help='CameraInfo topic (default: the one beside the images)')
    group.add_argument('--start', type=float, default=0.0, metavar='S', help='skip so many seconds (default: 0)')
    group.add_argument('--duration', type=float, default=0.0, metavar='S', help='stop after so many seconds (0: all)')
    group.add_argument('--stride', type=int, default=1, metavar='N', help='take every N-th frame (default: 1)')
    group.add_argument('--camera', default='', metavar='FILE', help='cameras.json with the intrinsics to use')
