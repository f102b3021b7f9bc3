# SPDX-License-Identifier: Apache-2.0
"""What a benchmark leaves for people: Markdown, PNG plots and one HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
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
_CLEAN_GAP_DB = 5.0  # the noiseless frames are drawn so far beyond the brightest level


def ladder_plot(cells: Sequence[Measured]) -> bytes | None:
    """Relative ATE and posed share against SNR, a column a scene, a line a method; None without cells."""
    usable = [cell for cell in cells if not cell.failure]
    if not usable:
        return None
    scenes = list(dict.fromkeys(cell.figures['sequence'] for cell in usable))
    methods = list(dict.fromkeys(cell.settings['method'] for cell in usable))
    places = _places([cell.settings['snr_db'] for cell in usable])
    width = max(3.0 * len(scenes), 5.0)
    figure = new_figure(width, 5.4)
    grid = figure.subplots(2, len(scenes), sharex=True, squeeze=False)
    for column, scene in enumerate(scenes):
        errors, shares = grid[0][column], grid[1][column]
        for number, method in enumerate(methods):
            mine = (c for c in usable if c.figures['sequence'] == scene and c.settings['method'] == method)
            line = sorted(mine, key=lambda c: places[c.settings['snr_db']])
            style = {
                'color': COLOURS[number % len(COLOURS)],
                'marker': MARKS[number % len(MARKS)],
                # Hollow and ever smaller: methods that score the same are all seen.
                'markersize': 4.0 + 0.8 * (len(methods) - number),
                'markerfacecolor': 'none',
            }
            _line(shares, line, places, _share, {**style, 'label': method})
            scored = [cell for cell in line if cell.figures.get('ate_relative')]
            _line(errors, scored, places, lambda c: 100.0 * c.figures['ate_relative'], style)
        errors.set_yscale('log')
        errors.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        errors.yaxis.set_major_formatter('{x:g}')
        errors.yaxis.set_minor_formatter('')
        errors.set_title(scene, fontsize=9)
        shares.set_ylim(-4, 104)
        shares.set_xticks(list(places.values()), ['clean' if snr is None else f'{snr:g}' for snr in places])
        shares.set_xlabel('SNR [dB]', fontsize=8)
        for axes in (errors, shares):
            axes.grid(color='#e6e8eb', linewidth=0.6)
            axes.tick_params(labelsize=8, which='both')
    grid[0][0].set_ylabel('relative ATE [%]', fontsize=8)
    grid[1][0].set_ylabel('frames posed [%]', fontsize=8)
    handles, labels = grid[1][0].get_legend_handles_labels()
    columns = max(2, int(width / 1.6))
    figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize=8, frameon=False)
    return to_png(figure)


def _places(levels: Sequence[float | None]) -> dict[float | None, float]:
    """Where each level is drawn; those without noise (None) apart from the others."""
    noisy = sorted({float(level) for level in levels if level is not None})
    found: dict[float | None, float] = {level: level for level in noisy}
    if None in levels:
        found[None] = (noisy[-1] if noisy else 0.0) + _CLEAN_GAP_DB
    return found


def _share(cell: Measured) -> float:
    return 100.0 * float(cell.figures['posed']) / max(cell.figures['frames'], 1)


def _line(
    axes: Any,
    cells: Sequence[Measured],
    places: Mapping[float | None, float],
    value: Callable[[Measured], float],
    style: Mapping[str, Any],
) -> None:
    """A method's line over the noisy levels, and its mark without noise apart: there is nothing between the two."""
    points = [(cell.settings['snr_db'], value(cell)) for cell in cells]
    noisy = [(places[snr], height) for snr, height in points if snr is not None]
    clean = [(places[snr], height) for snr, height in points if snr is None]
    axes.plot([x for x, _ in noisy], [y for _, y in noisy], linewidth=1.3, **style)
    axes.plot([x for x, _ in clean], [y for _, y in clean], linewidth=0.0, **{**style, 'label': None})


def bars(rows: Sequence[tuple[str, float, float | None]], title: str) -> bytes | None:
    """Horizontal bars of (label, value, limit or None); None without rows."""
    return panels([(rows, title)])


def panels(parts: Sequence[tuple[Sequence[tuple[str, float, float | None]], str]]) -> bytes | None:
    """Such bars under one another, each with its title; parts without rows are left out, None without any."""
    parts = [(rows, title) for rows, title in parts if rows]
    if not parts:
        return None
    heights = [0.32 * len(rows) + 0.9 for rows, _ in parts]
    figure = new_figure(7.0, sum(heights))
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)
    for axes, (rows, title) in zip(grid[:, 0], parts, strict=True):
        places = list(range(len(rows)))[::-1]
        axes.barh(places, [value for _, value, _ in rows], color=COLOURS[0], height=0.62)
        for place, (_, value, limit) in zip(places, rows, strict=True):
            axes.text(value, place, f' {value:,.0f}' if value >= 100.0 else f' {value:.3g}', va='center', fontsize=8)
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


def _online_bars(cells: Sequence[Measured]) -> bytes | None:
    usable = [cell for cell in cells if not cell.failure]
    latency = [
        (f'{cell.label}, {part}', cell.figures[key], None)
        for cell in usable
        for part, key in (('median', 'median_ms'), ('p95', 'p95_ms'))
    ]
    memory = [(cell.label, cell.figures['memory_mb'], None) for cell in usable]
    return panels([(latency, 'milliseconds a frame'), (memory, 'peak memory of the process [MB]')])


_PLOTS = {'ladder': ladder_plot, 'online': _online_bars, 'speed': _speed_bars, 'field': _field_bars}


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
    return '; '.join(f'{count} cells: {", ".join(kind)}' for kind, count in kinds.items()) + _cost(cells)


def _cost(cells: Sequence[Measured]) -> str:
    """Time that cells took, and how busy the machine was: under load the clock says little about the code."""
    loads = [cell.provenance['load'] for cell in cells if cell.provenance.get('load') is not None]
    busy = f', load {min(loads):.1f} to {max(loads):.1f}' if loads else ''
    return f'; {sum(c.seconds for c in cells):.0f} s, {sum(c.processor_s for c in cells):.0f} s of the processor{busy}'


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
