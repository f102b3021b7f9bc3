# SPDX-License-Identifier: Apache-2.0
"""Tables of the parts: networks beside the limit of the machine, rates of training, the radiance field's ablations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dark3r_ros.config import to_mapping
from dark3r_ros.evaluation.bench import speed
from dark3r_ros.evaluation.bench.cells import Cell, Measured
from dark3r_ros.evaluation.bench.layout import Choice, plain
from dark3r_ros.evaluation.bench.machine import ceilings
from dark3r_ros.evaluation.bench.poses import fingerprint
from dark3r_ros.evaluation.nerf_comparison import compare, variants_for
from dark3r_ros.evaluation.nerf_scenes import ComparisonConfig
from dark3r_ros.nerf.config import NerfConfig, profile

# ------------------------------------------------------------------ speed


def speed_cells(choice: Choice) -> Iterator[Cell]:
    """Encode and pair of each network at each size, on one thread and on two."""
    sizes = ((320, 240),) if choice.quick else ((320, 240), (512, 384))
    networks = ('mini',) if choice.quick else ('mini', 'mini-2m', 'compact-10m', 'mast3r-large')
    for network in networks:
        for size in sizes:
            for threads in (1, 2):
                settings = {
                    'network': network,
                    'size': size,
                    'threads': threads,
                    'fingerprint': fingerprint('map', 'mini') if network == 'mini' else '',
                }

                def work(folder: Path, *, run: Sequence[Any] = (network, size, threads)) -> dict[str, Any]:
                    return _times(*run)

                plural = '' if threads == 1 else 's'
                yield Cell('speed', f'{network}, {size[0]}x{size[1]}, {threads} thread{plural}', settings, work)


def _times(network: str, size: tuple[int, int], threads: int) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        limits = ceilings(torch.device('cpu'))
        works = speed.time_mini('cpu', size) if network == 'mini' else speed.time_network(network, 'cpu', size, 'fp32')
    finally:
        torch.set_num_threads(before)
    figures: dict[str, Any] = {'gflops': limits['flops'] / 1e9, 'gbytes': limits['bytes'] / 1e9}
    for name, work in works.items():
        limit = speed.limit_ms(work, limits['flops'])
        figures |= {f'{name}_ms': work.ms, f'{name}_limit_ms': limit, f'{name}_share': limit / work.ms}
    return figures


def rate_cells(choice: Choice) -> Iterator[Cell]:
    """Speed of the two trainings."""

    def training(folder: Path) -> dict[str, Any]:
        return _rate(speed.time_training('cpu', 4 if choice.quick else 20), 'pairs/s')

    def field_rays(folder: Path) -> dict[str, Any]:
        return _rate(speed.time_radiance('cpu', 10 if choice.quick else 60), 'rays/s')

    threads = torch.get_num_threads()
    yield Cell('rates', 'distill, mini, 192x160', {'what': 'distill', 'threads': threads}, training)
    yield Cell('rates', 'nerf train, preview', {'what': 'nerf', 'threads': threads}, field_rays)


def _rate(work: speed.Work, unit: str) -> dict[str, Any]:
    limits = ceilings(torch.device('cpu'))
    limit = speed.limit_ms(work, limits['flops'])
    return {'rate': 1e3 / work.ms, 'limit': 1e3 / limit, 'share': limit / work.ms, 'unit': unit}


# ------------------------------------------------------------------ radiance field


def field_cells(choice: Choice) -> Iterator[Cell]:
    """The floors without a field, and a field for each variant; with true poses, then, unless quick, estimated ones."""
    if choice.quick:
        scene, config = ComparisonConfig(width=64, height=48, views=24), profile('preview', {'width': 64, 'steps': 200})
    else:
        scene, config = ComparisonConfig(), profile('preview', {'width': 120, 'steps': 2000})
    variants = ('full', 'no depth', 'clipped at black') if choice.quick else variants_for(scene)
    yield from _field_rows(replace(scene, seed=choice.seed), config, variants)
    if choice.quick:
        return
    config = profile('preview', {'steps': 2000})
    for name in choice.scenes:
        scene = ComparisonConfig(scene=name, poses='estimated', width=config.width, seed=choice.seed)
        yield from _field_rows(scene, config, variants_for(scene))


def _field_rows(scene: ComparisonConfig, config: NerfConfig, variants: Sequence[str]) -> Iterator[Cell]:
    name = Path(scene.scene).name  # where a sequence lies does not matter
    settings = {'scene': {**to_mapping(scene), 'scene': name}, 'config': to_mapping(config)}
    where = f'{name}, poses {scene.poses}: '

    def rows(folder: Path, chosen: Sequence[str]) -> dict[str, Any]:
        # A reconstruction serves all cells of its scene.
        found = compare(scene, config, variants=chosen, folder=folder, reconstruction=folder.parent / f'poses_{name}')
        return {'rows': {where + key: row for key, row in found.items() if not chosen or key in chosen}}

    yield Cell('field', f'{where}without a field', {**settings, 'variant': None}, lambda folder: rows(folder, ()))
    for variant in variants:

        def work(folder: Path, *, variant: str = variant) -> dict[str, Any]:
            return rows(folder, (variant,))

        yield Cell('field', where + variant, {**settings, 'variant': variant}, work)


def field_markdown(cells: Sequence[Measured]) -> str:
    """A row a variant."""
    columns = {
        'posed': ('posed', '{}'),
        'psnr_linear_db': ('PSNR linear [dB]', '{:.2f}'),
        'psnr_linear_fitted_db': ('after a fit', '{:.2f}'),
        'psnr_tone_db': ('tone-mapped', '{:.2f}'),
        'ssim_tone': ('SSIM', '{:.3f}'),
        'depth_error': ('depth error', '{:.1%}'),
        'rays_per_second': ('rays/s', '{:.0f}'),
    }
    rows = [
        replace(cell, label=name, figures=figures)
        for cell in cells
        for name, figures in (cell.figures.get('rows') or {cell.label: {}}).items()
    ]
    return plain(columns)(rows)
