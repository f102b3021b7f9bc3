# SPDX-License-Identifier: Apache-2.0
"""`dark3r report`: the page for people of a result folder that has none, as the nodes leave it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dark3r_ros.storage.result import read_result

NAME = 'report'
HELP = 'make report.html and its pictures for a result folder of the nodes'
EXAMPLE = 'dark3r report saved_map'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('result', type=Path, help='result folder, as ~/save_map or the recorder wrote it')


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from dark3r_ros.evaluation.report import write_report

    saved = read_result(args.result)
    print(f'written: {write_report(args.result, saved.reconstruction, saved.report)}')
    return 0
