# SPDX-License-Identifier: Apache-2.0
"""`report.html` of a field: how the training went, previews, figures. One self-contained page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.page import html_page, image_tag

_PREVIEWS = 6


def seconds_text(seconds: float) -> str:
    """Duration for people."""
    if not math.isfinite(seconds):
        return 'unknown'
    if seconds < 90:
        return f'{seconds:.0f} s'
    if seconds < 5400:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'


def loss_curve(history: Sequence[Sequence[float]], width: int = 1000, height: int = 260) -> str:
    """SVG of the photometric term over the steps, with the level of pure noise where it is in sight."""
    rows = [(float(row[0]), float(row[2])) for row in history if math.isfinite(row[2]) and row[2] > 0]
    if len(rows) < 2:
        return '<p class="sub">no steps yet</p>'
    steps, values = [row[0] for row in rows], [row[1] for row in rows]
    # The first values are those of an empty field and would flatten everything else.
    ordered = sorted(values)
    low, high = ordered[0], max(ordered[int(0.97 * (len(ordered) - 1))], ordered[0] * 1.02)
    low = min(low, 0.995 * high)
    left, right, top, bottom = 60, width - 10, 10, height - 30

    def x(step: float) -> float:
        return left + (right - left) * (step - steps[0]) / max(steps[-1] - steps[0], 1.0)

    def y(value: float) -> float:
        share = (math.log(min(max(value, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
        return bottom - (bottom - top) * share

    line = ' '.join(f'{x(step):.1f},{y(value):.1f}' for step, value in rows)
    parts = [f'<polyline fill="none" stroke="#1f6feb" stroke-width="1.5" points="{line}"/>']
    if low < 1.0 < high:
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{y(1):.1f}" y2="{y(1):.1f}" stroke="#1a7f37" stroke-dasharray="4"/>'
            f'<text x="{right}" y="{y(1) - 4:.1f}" text-anchor="end" fill="#1a7f37">noise alone</text>'
        )
    for value in (low, math.sqrt(low * high), high):
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step in (steps[0], steps[-1]):
        anchor = 'start' if step == steps[0] else 'end'
        parts.append(f'<text x="{x(step):.1f}" y="{height - 8}" text-anchor="{anchor}">step {step:.0f}</text>')
    return (
        f'<svg viewBox="0 0 {width} {height}" style="width:100%;font:12px system-ui;fill:#57606a">'
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="#f6f8fa"/>'
        f'{"".join(parts)}</svg>'
    )


def _cards(facts: dict[str, Any]) -> str:
    held = facts.get('held_out') or {}
    cards = [(f'{facts.get("step", 0)} / {facts.get("steps", 0)}', 'steps')]
    if facts.get('state') == 'training':
        cards.append((seconds_text(float(facts.get('seconds_left') or math.inf)), 'left'))
    cards.append((seconds_text(float(facts.get('wall_s') or 0.0)), 'so far'))
    if facts.get('photometric') is not None:
        cards.append((f'{facts["photometric"]:.3f}', 'residual (1 = noise alone)'))
    if facts.get('rays_per_second'):
        cards.append((f'{facts["rays_per_second"]:.0f}', 'rays per second'))
    if held.get('psnr_corrected_db') is not None:
        cards.append((f'{held["psnr_corrected_db"]:.1f} dB', 'PSNR, noise taken off'))
    return ''.join(f'<div class="card"><b>{html.escape(value)}</b><span>{name}</span></div>' for value, name in cards)


def _previews(folder: Path) -> str:
    files = sorted((folder / 'previews').glob('step_*.png'))
    if len(files) > _PREVIEWS:
        files = [files[index * (len(files) - 1) // (_PREVIEWS - 1)] for index in range(_PREVIEWS)]
    shown = []
    for file in reversed(files):
        shown.append(
            f'<figure>{image_tag(file.read_bytes(), file.stem)}'
            f'<figcaption>{file.stem.replace("_", " ")}: noisy input, render, depth</figcaption></figure>'
        )
    return ''.join(shown)


def _table(rows: dict[str, Any]) -> str:
    cells = []
    for key, value in rows.items():
        text = f'{value:.4g}' if isinstance(value, float) else str(value)
        cells.append(f'<tr><td>{html.escape(str(key))}</td><td>{html.escape(text)}</td></tr>')
    return f'<table>{"".join(cells)}</table>'


def write_report(folder: Path, facts: dict[str, Any], history: Sequence[Sequence[float]]) -> Path:
    """Write the page from the facts of `nerf.json`; OutputError when that fails."""
    parts = [
        f'<h1>{html.escape(folder.resolve().name)}</h1>',
        f'<p class="sub">{html.escape(str(facts.get("input") or "radiance field"))}</p>',
        f'<div class="cards">{_cards(facts)}</div>',
        '<h2>Residual</h2>',
        loss_curve(history),
        '<h2>Previews</h2>',
        _previews(folder),
    ]
    if facts.get('held_out'):
        parts.append(f'<h2>Held-out views</h2>{_table(facts["held_out"])}')
    if facts.get('evaluation'):
        parts.append(f'<h2>Against the truth</h2>{_table(facts["evaluation"])}')
    if facts.get('warnings'):
        items = ''.join(f'<li>{html.escape(str(text))}</li>' for text in facts['warnings'])
        parts.append(f'<h2>Warnings</h2><ul>{items}</ul>')
    config = html.escape(json.dumps(facts.get('config') or {}, indent=1))
    parts.append(f'<h2>Configuration</h2><pre>{config}</pre>')
    page = folder / 'report.html'
    write_text(page, html_page(folder.resolve().name, ''.join(parts)))
    return page
