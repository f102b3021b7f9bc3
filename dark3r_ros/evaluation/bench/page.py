# SPDX-License-Identifier: Apache-2.0
"""What a benchmark leaves for people: Markdown, PNG plots and one HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dark3r_ros.evaluation.bench.cells import Measured
from dark3r_ros.evaluation.bench.layout import Table
from dark3r_ros.evaluation.figures import new_figure, to_png
from dark3r_ros.storage.files import replacing, write_text
from dark3r_ros.storage.page import html_page, image_tag, table_tag

# Told apart also by who does not see red from green: colours of Okabe and Ito, and a mark each.
COLOURS = ('#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9', '#000000', '#999999')
MARKS = 'os^Dv<>PX*'
_CLEAN_DB = 25.0  # where the noiseless frames are drawn


def _snr(cell: Measured) -> float:
    snr = cell.settings['snr_db']
    return _CLEAN_DB if snr is None else float(snr)


def ladder_plot(cells: Sequence[Measured]) -> bytes | None:
    """Relative ATE and posed share against SNR, a column a scene, a line a method; None without cells."""
    usable = [cell for cell in cells if not cell.failure]
    if not usable:
        return None
    scenes = list(dict.fromkeys(cell.figures['sequence'] for cell in usable))
    methods = list(dict.fromkeys(cell.settings['method'] for cell in usable))
    figure = new_figure(max(3.0 * len(scenes), 5.0), 5.4)
    grid = figure.subplots(2, len(scenes), sharex=True, squeeze=False)
    for column, scene in enumerate(scenes):
        for number, method in enumerate(methods):
            line = sorted(
                (c for c in usable if c.figures['sequence'] == scene and c.settings['method'] == method), key=_snr
            )
            if not line:
                continue
            style = {
                'color': COLOURS[number % len(COLOURS)],
                'marker': MARKS[number % len(MARKS)],
                'markersize': 4,
                'linewidth': 1.3,
            }
            shares = [100.0 * cell.figures['posed'] / max(cell.figures['frames'], 1) for cell in line]
            grid[1][column].plot([_snr(cell) for cell in line], shares, label=method, **style)
            scored = [cell for cell in line if cell.figures.get('ate_relative')]
            errors = [100.0 * cell.figures['ate_relative'] for cell in scored]
            grid[0][column].plot([_snr(cell) for cell in scored], errors, **style)
        grid[0][column].set_yscale('log')
        grid[0][column].set_title(scene, fontsize=9)
        grid[1][column].set_ylim(-4, 104)
        grid[1][column].set_xlabel(f'SNR [dB], clean at {_CLEAN_DB:g}', fontsize=8)
        for axes in grid[:, column]:
            axes.grid(color='#e6e8eb', linewidth=0.6)
            axes.tick_params(labelsize=8)
    grid[0][0].set_ylabel('relative ATE [%]', fontsize=8)
    grid[1][0].set_ylabel('frames posed [%]', fontsize=8)
    handles, labels = grid[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=5, fontsize=8, frameon=False)
    return to_png(figure)


def bars(rows: Sequence[tuple[str, float, float | None]], title: str) -> bytes | None:
    """Horizontal bars of (label, value, limit or None); None without rows."""
    if not rows:
        return None
    figure = new_figure(7.0, 0.32 * len(rows) + 1.0)
    axes = figure.add_subplot()
    places = list(range(len(rows)))[::-1]
    axes.barh(places, [value for _, value, _ in rows], color=COLOURS[0], height=0.62)
    for place, (_, value, limit) in zip(places, rows, strict=True):
        axes.text(value, place, f' {value:.3g}', va='center', fontsize=8)
        if limit is not None:
            axes.plot([limit, limit], [place - 0.36, place + 0.36], color=COLOURS[3], linewidth=2.5)
    axes.set_yticks(places, [label for label, _, _ in rows], fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9, loc='left')
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)
    return to_png(figure)


def _speed_bars(cells: Sequence[Measured]) -> bytes | None:
    rows = [
        (f'{cell.label}, {part}', cell.figures[f'{part}_ms'], cell.figures[f'{part}_limit_ms'])
        for cell in cells
        if not cell.failure
        for part in ('encode', 'pair')
    ]
    return bars(rows, 'milliseconds, and the limit of the arithmetic')


def _field_bars(cells: Sequence[Measured]) -> bytes | None:
    rows = [
        (name, figures['psnr_linear_db'], None)
        for cell in cells
        for name, figures in (cell.figures.get('rows') or {}).items()
    ]
    return bars(rows, 'PSNR against the clean light, linear [dB]')


def _memory_bars(cells: Sequence[Measured]) -> bytes | None:
    rows = [(cell.label, cell.figures['memory_mb'], None) for cell in cells if cell.figures.get('memory_mb')]
    return bars(rows, 'peak memory of the process [MB]')


_PLOTS = {'ladder': ladder_plot, 'online': _memory_bars, 'speed': _speed_bars, 'field': _field_bars}


def origin(cells: Sequence[Measured]) -> str:
    """Where the figures of a table come from, in one line for each code and machine."""
    kinds: dict[tuple[str, ...], int] = {}
    for cell in cells:
        facts = cell.provenance
        weights = ' '.join(f'{name} {digest[:8]}' for name, digest in (facts.get('weights') or {}).items())
        machine = f'{facts.get("processor")}, {facts.get("cores")} cores, {facts.get("memory_gb")} GB'
        code = f'commit {facts.get("commit") or "unknown"}, code {facts.get("code", "")[:8]}'
        kind = (machine, f'torch {facts.get("torch")}', code, weights, f'seed {facts.get("seed")}')
        kinds[kind] = kinds.get(kind, 0) + 1
    return '; '.join(f'{count} cells: {", ".join(kind)}' for kind, count in kinds.items())


def stage_rows(cells: Sequence[Measured]) -> list[list[str]]:
    """Where the time of each reconstruction went, the largest stage first."""
    rows = []
    for cell in cells:
        stages = sorted((cell.figures.get('stages_s') or {}).items(), key=lambda item: -item[1])
        if stages:
            rows.append([cell.label, ', '.join(f'{name} {seconds:.1f} s' for name, seconds in stages)])
    return rows


def write_pages(folder: Path, measured: Mapping[str, Sequence[Measured]], tables: Mapping[str, Table]) -> Path:
    """Write `benchmarks.md`, `benchmarks.json`, `plots/*.png` and `index.html`; returns the page."""
    text, body = ['# Benchmark', ''], ['<h1>Benchmark</h1>']
    for name, cells in measured.items():
        table = tables[name]
        if not cells:
            continue
        markdown = table.markdown(cells)
        text += [f'## {table.title}', '', f'Goal: {table.goal}.', '', markdown, '', f'*{origin(cells)}*', '']
        head, *rows = [[part.strip() for part in line.strip('|').split(' | ')] for line in markdown.splitlines()]
        body += [f'<h2>{html.escape(table.title)}</h2><p class="sub">Goal: {html.escape(table.goal)}.</p>']
        body.append(table_tag(head, rows[1:]))
        plot = _PLOTS[name](cells) if name in _PLOTS else None
        if plot is not None:
            with replacing(folder / 'plots' / f'{name}.png') as stream:
                stream.write(plot)
            body.append(image_tag(plot, table.title))
        stages = stage_rows(cells)
        if stages:
            body.append(f'<h2>Where the time went</h2>{table_tag((), stages)}')
        failures = [[cell.label, cell.failure] for cell in cells if cell.failure]
        if failures:
            body.append(f'<h2>Not measured</h2>{table_tag((), failures)}')
        body.append(f'<p class="sub">{html.escape(origin(cells))}</p>')
    write_text(folder / 'benchmarks.md', '\n'.join(text))
    facts: dict[str, Any] = {name: [vars(cell) for cell in cells] for name, cells in measured.items()}
    write_text(folder / 'benchmarks.json', json.dumps(facts, indent=1) + '\n')
    page = folder / 'index.html'
    write_text(page, html_page('Benchmark of dark3r_ros', ''.join(body)))
    return page
