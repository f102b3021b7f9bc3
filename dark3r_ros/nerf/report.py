# SPDX-License-Identifier: Apache-2.0
"""`report.html` of a field: how the training went, previews, figures. One self-contained page."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.storage.files import write_text

_PREVIEWS = 6
_STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#24292f;background:#fff;margin:0}
main{max-width:1080px;margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 10px}
p.sub{color:#57606a;margin:0 0 20px;overflow-wrap:anywhere}
.cards{display:flex;flex-wrap:wrap;gap:12px}
.card{border:1px solid #d8dee4;border-radius:8px;padding:10px 16px;min-width:120px}
.card b{display:block;font-size:22px}.card span{color:#57606a;font-size:13px}
img{width:100%;image-rendering:pixelated;border:1px solid #d8dee4;border-radius:8px}
figure{margin:0 0 16px}figcaption{color:#57606a;font-size:13px}
table{border-collapse:collapse;width:100%}td,th{border-top:1px solid #d8dee4;padding:6px 8px;text-align:left}
pre{background:#f6f8fa;padding:12px;border-radius:8px;overflow:auto;font-size:12px}
"""


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
        data = base64.b64encode(file.read_bytes()).decode()
        shown.append(
            f'<figure><img alt="{file.stem}" src="data:image/png;base64,{data}">'
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
    write_text(
        page,
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(folder.resolve().name)}</title><style>{_STYLE}</style></head>'
        f'<body><main>{"".join(parts)}</main></body></html>\n',
    )
    return page
