# SPDX-License-Identifier: Apache-2.0
"""`report.html`: one self-contained page for people, its figures also as PNG files under `report/`."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.evaluation.evaluate import read_evaluation
from dark3r_ros.evaluation.figures import (
    SamplePicture,
    cloud_figure,
    health_figure,
    samples_figure,
    trajectory_figure,
)
from dark3r_ros.evaluation.sfm_figures import set_aside_table, sfm_rows
from dark3r_ros.evaluation.trajectory_metrics import associate, score_trajectory
from dark3r_ros.storage.files import replacing, write_text
from dark3r_ros.storage.page import html_page, image_tag, table_tag
from dark3r_ros.types import Reconstruction, Trajectory

__all__ = ['SamplePicture', 'write_report']

_MAX_SAMPLES = 9
_FURTHER = ('pairs', 'pair_matches')
_TOLERANCE_NS = 20_000_000


def _number(value: Any, pattern: str = '{:.3g}', missing: str = 'unknown') -> str:
    return missing if value is None or value != value else pattern.format(value)


def _cards(report: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    snr = report.get('snr_db') or {}
    cards = [
        (f'{report.get("posed", 0)} / {report.get("frames", 0)}', 'frames posed'),
        (str(report.get('keyframes', 0)), 'keyframes'),
        (_number(snr.get('median'), '{:.1f} dB'), 'median SNR'),
        (str(report.get('cloud_points', 0)), 'points'),
    ]
    if report.get('wall_s'):
        cards.append((_number(report.get('frames', 0) / report['wall_s'], '{:.1f}'), 'frames per second'))
    if evaluation:
        cards.append((_number(evaluation.get('ate_relative'), '{:.2%}', 'not defined'), 'ATE of the extent'))
    return ''.join(f'<div class="card"><b>{html.escape(value)}</b><span>{name}</span></div>' for value, name in cards)


def _statistics(values: dict[str, Any] | None, unit: str) -> str:
    values = values or {}
    parts = [f'{name} {_number(values.get(name))}{unit}' for name in ('rmse', 'median', 'maximum')]
    return ', '.join(parts)


def report_rows(report: dict[str, Any], evaluation: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Closing table of the page."""
    snr = report.get('snr_db') or {}
    spread = ' / '.join(_number(snr.get(key), '{:.1f}') for key in ('min', 'median', 'max'))
    stages = ', '.join(f'{name} {_number(time, "{:.2f} s")}' for name, time in (report.get('stages_s') or {}).items())
    rows = [
        ('Frames posed', f'{report.get("posed")} of {report.get("frames")} ({report.get("posed_share", 0):.1%})'),
        ('Keyframes, landmarks', f'{report.get("keyframes")}, {report.get("landmarks")}'),
        ('SNR min / median / max', f'{spread} dB'),
        ('Scale', 'metres' if report.get('metric_scale') else 'arbitrary'),
        ('Wall time', _number(report.get('wall_s'), '{:.1f} s')),
        ('Time by stage', stages),
        ('Peak memory', _number(report.get('peak_memory_mb'), '{:.0f} MB')),
        *sfm_rows(report.get('sfm') or {}),
        ('Matcher', str(report.get('predictor') or '')),
        ('Network weights', str(report.get('weights_sha256') or '')),
    ]
    if not evaluation:
        return [row for row in rows if row[1]]
    unit = ' m' if evaluation.get('unit') == 'm' else ''
    rows.append(('Truth', str(evaluation.get('truth'))))
    rows.append(
        (
            'True frames posed',
            f'{evaluation.get("posed")} of {evaluation.get("true_frames")} '
            f'({_number(evaluation.get("posed_share"), "{:.1%}")})',
        )
    )
    if evaluation.get('degenerate'):
        rows.append(('Position errors', f'not defined: {evaluation["degenerate"]}'))
    else:
        relative = _number(evaluation.get('ate_relative'), '{:.2%}')
        rows.append(('ATE after Sim(3)', f'{_statistics(evaluation.get("ate"), unit)}; {relative} of the extent'))
        rows.append(('RPE translation per step', _statistics(evaluation.get('rpe_translation'), unit)))
    rows.append(('RPE rotation per step', _statistics(evaluation.get('rpe_rotation_deg'), ' deg')))
    if evaluation.get('depth'):
        depth = evaluation['depth']
        rows.append(('Depth AbsRel, delta < 1.25', f'{_number(depth["abs_rel"])}, {_number(depth["delta"], "{:.1%}")}'))
    return [row for row in rows if row[1]]


def truth_in_map(reconstruction: Reconstruction, truth: Trajectory) -> Trajectory | None:
    """Truth mapped into the frame and scale of the estimate; None when the two cannot be aligned."""
    estimate = reconstruction.trajectory()
    mine, theirs = associate(estimate.stamps_ns, truth.stamps_ns, _TOLERANCE_NS)
    if not len(mine):
        return None
    scores = score_trajectory(
        estimate.stamps_ns[mine], estimate.world_from_camera[mine], truth.world_from_camera[theirs]
    )
    if scores.alignment is None:
        return None
    return Trajectory(truth.stamps_ns, scores.alignment.apply_inverse(truth.world_from_camera))


def _figures(
    folder: Path, reconstruction: Reconstruction, samples: Sequence[SamplePicture], truth: Trajectory | None
) -> dict[str, bytes]:
    figures = {
        'trajectory': trajectory_figure(reconstruction, truth),
        'cloud': cloud_figure(reconstruction),
    }
    if reconstruction.frames:
        figures['health'] = health_figure(reconstruction.frames)
    if samples:
        figures['samples'] = samples_figure(samples[:_MAX_SAMPLES])
    else:
        figures |= _kept(folder, ('samples',))
    return figures


def _kept(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Figures that an earlier report left and that cannot be made from the result alone."""
    return {name: (folder / f'{name}.png').read_bytes() for name in names if (folder / f'{name}.png').is_file()}


def write_report(
    folder: Path | str,
    reconstruction: Reconstruction,
    report: dict[str, Any],
    *,
    samples: Sequence[SamplePicture] = (),
    truth: Trajectory | None = None,
    truth_aligned: bool = False,
    further: Mapping[str, bytes] | None = None,
) -> Path:
    """Write `report.html` and `report/*.png` into a result folder and return the path of the page.

    Parameters
    ----------
    folder: the result folder; figures of `evaluation.json` in it are shown, and earlier sample pictures kept.
    reconstruction, report: what `write_result` wrote (`report` as in report.json).
    samples: pictures to show, matches already drawn; at most nine.
    truth: true poses; aligned by stamp here, or already in the frame of the estimate with `truth_aligned`.
    further: figures of `sfm_figures`; earlier ones are kept.

    Raises OutputError when the place cannot be written, DependencyError without matplotlib.

    """
    folder = Path(folder)
    if truth is not None and not truth_aligned:
        truth = truth_in_map(reconstruction, truth)
    figures = _figures(folder / 'report', reconstruction, samples, truth)
    figures |= _kept(folder / 'report', _FURTHER) | dict(further or {})
    for name, data in figures.items():
        with replacing(folder / 'report' / f'{name}.png') as stream:
            stream.write(data)
    evaluation = read_evaluation(folder)
    page = folder / 'report.html'
    write_text(page, _page(folder.resolve().name, report, evaluation, figures))
    return page


def _page(name: str, report: dict[str, Any], evaluation: dict[str, Any] | None, figures: dict[str, bytes]) -> str:
    warnings = ''.join(f'<li>{html.escape(str(text))}</li>' for text in report.get('warnings') or ())
    parts = [
        f'<h1>{html.escape(name)}</h1>',
        f'<p class="sub">{html.escape(str(report.get("input") or "reconstruction from raw images"))}</p>',
        f'<div class="cards">{_cards(report, evaluation)}</div>',
        '<h2>Path, light and correspondences</h2><div class="grid">',
        *(image_tag(figures[key], key) for key in ('trajectory', 'health') if key in figures),
        '</div>',
    ]
    if 'samples' in figures:
        parts.append(f'<h2>Frames</h2>{image_tag(figures["samples"], "sample frames")}')
    if 'pairs' in figures:
        parts.append(f'<h2>Pairs</h2>{image_tag(figures["pairs"], "pair graph")}')
    if 'pair_matches' in figures:
        parts.append(f'<h2>Best and worst pairs</h2>{image_tag(figures["pair_matches"], "matches of pairs")}')
    parts.append(f'<h2>Cloud</h2>{image_tag(figures["cloud"], "cloud")}')
    if report.get('sfm'):
        parts.append(set_aside_table(report.get('per_frame') or ()))
    if warnings:
        parts.append(f'<h2>Warnings</h2><ul>{warnings}</ul>')
    parts.append(f'<h2>Figures</h2>{table_tag((), report_rows(report, evaluation))}')
    if report.get('config'):
        config = html.escape(json.dumps(report['config'], indent=1, default=str))
        parts.append(f'<h2>Configuration</h2><pre>{config}</pre>')
    return html_page(name, ''.join(parts))
