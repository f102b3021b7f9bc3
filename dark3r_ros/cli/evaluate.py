# SPDX-License-Identifier: Apache-2.0
"""`dark3r evaluate`: score a result against the truth."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from dark3r_ros.cli.common import print_json
from dark3r_ros.evaluation.evaluate import (
    DEFAULT_TOLERANCE_S,
    Evaluation,
    evaluate_result,
    table,
    write_evaluation,
)
from dark3r_ros.storage.result import REPORT_FILE, read_result
from dark3r_ros.types import Trajectory

NAME = 'evaluate'
HELP = 'score a result folder or trajectory against the truth'
EXAMPLE = 'dark3r evaluate out/fox --truth sequences/fox/cameras.json'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument('result', type=Path, help='result folder, or a TUM file')
    parser.add_argument('--truth', type=Path, required=True, help='TUM file, cameras.json or its folder')
    parser.add_argument(
        '--tolerance',
        type=float,
        default=DEFAULT_TOLERANCE_S,
        metavar='S',
        help='largest difference of associated stamps in seconds (default: %(default)s)',
    )
    parser.add_argument(
        '--metric', action='store_true', default=None, help='both are in metres: give the ATE after SE(3) as well'
    )
    parser.add_argument('--json', action='store_true', help='print the figures as JSON')
    parser.add_argument('--no-report', action='store_true', help='leave report.html as it is')


def truth_in_map(evaluation: Evaluation) -> Trajectory | None:
    """True poses in the frame and scale of the estimate, for drawing; None when they cannot be aligned."""
    alignment, truth = evaluation.trajectory.alignment, evaluation.truth.trajectory
    return None if alignment is None else Trajectory(truth.stamps_ns, alignment.apply_inverse(truth.world_from_camera))


def _refresh_report(folder: Path, evaluation: Evaluation) -> None:
    from dark3r_ros.evaluation.report import write_report

    saved = read_result(folder)
    write_report(folder, saved.reconstruction, saved.report, truth=truth_in_map(evaluation), truth_aligned=True)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    evaluation = evaluate_result(args.result, args.truth, tolerance_s=args.tolerance, metric=args.metric)
    figures = evaluation.figures()
    if (args.result / REPORT_FILE).is_file():
        path = write_evaluation(args.result, evaluation, args.truth)
        if not args.no_report:
            _refresh_report(args.result, evaluation)
        print(f'written: {path}', file=sys.stderr)
    if args.json:
        print_json(figures)
    else:
        rows = table(evaluation)
        width = int(np.max([len(name) for name, _ in rows]))
        print('\n'.join(f'{name:<{width}}  {value}' for name, value in rows))
    return 0
