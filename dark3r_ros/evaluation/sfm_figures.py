# SPDX-License-Identifier: Apache-2.0
"""What the page of `dark3r sfm` shows beyond that of `dark3r map`: pairs, best and worst matches, start, who is out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.evaluation.figures import (
    BLUE,
    INK,
    RED,
    SamplePicture,
    new_figure,
    samples_figure,
    style_axes,
    to_png,
    upright_axes,
)
from dark3r_ros.geometry import se3
from dark3r_ros.matching.draw import draw_matches
from dark3r_ros.sfm.late import agreement
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.views import View
from dark3r_ros.storage.page import table_tag
from dark3r_ros.types import Correspondences, Reconstruction

Array = NDArray[np.float64]

_SHOWN_PAIRS = 2  # best and worst ones, each
_MOST_LINES = 4000
_SHOWN_MATCHES = 100
_METHODS = {
    'ordered': 'chain of neighbours in time',
    'incremental': "COLMAP's incremental mapper",
    'global': "COLMAP's global mapper",
    'grown again': 'the best of these, parts of it grown again',
    'own': 'own incremental mapper',
    'pointmaps': 'alignment of point maps',
}


def sfm_figures(
    reconstruction: Reconstruction, views: Sequence[View], pairs: Sequence[VerifiedPair], max_error: float
) -> dict[str, bytes]:
    """PNG bytes by name: `pairs`, and `pair_matches` where two posed views are a pair."""
    poses = {
        number: se3.inverse(frame.world_from_camera)
        for number, frame in enumerate(reconstruction.frames)
        if frame.world_from_camera is not None
    }
    agreeing = {(pair.first, pair.second): agreement(pair, poses, views, max_error) for pair in pairs}
    figures = {'pairs': pair_graph_figure(reconstruction, pairs, agreeing)}
    pictures = _pair_pictures(pairs, agreeing, views)
    if pictures:
        figures['pair_matches'] = samples_figure(pictures, columns=2)
    return figures


def pair_graph_figure(
    reconstruction: Reconstruction,
    pairs: Sequence[VerifiedPair],
    agreeing: Mapping[tuple[int, int], NDArray[np.bool_] | None],
) -> bytes:
    """Pairs between camera positions from above, and as a matrix of matches over the numbers of the frames.

    Colours of the lines: share of the matches that agree with the final poses, red for none, blue for all.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    figure = new_figure(11.0, 4.8)
    plan, matrix = figure.subplots(1, 2)
    centres = {
        number: frame.world_from_camera[:3, 3]
        for number, frame in enumerate(reconstruction.frames)
        if frame.world_from_camera is not None
    }
    shown = [pair for pair in pairs if agreeing[pair.first, pair.second] is not None]
    if shown:
        axes = upright_axes(reconstruction.trajectory().world_from_camera)
        flat = {number: axes[:2] @ place for number, place in centres.items()}
        shares = np.array([_share(agreeing[pair.first, pair.second]) for pair in shown])
        # The strongest are drawn, the best on top.
        order = sorted(range(len(shown)), key=lambda row: -shown[row].support)[:_MOST_LINES]
        order.sort(key=lambda row: float(shares[row]))
        lines = [[flat[shown[row].first], flat[shown[row].second]] for row in order]
        colors = LinearSegmentedColormap.from_list('share', [RED, '#d8dee4', BLUE])
        drawn = LineCollection(lines, cmap=colors, linewidths=0.8, alpha=0.7)
        drawn.set_array(shares[order])
        drawn.set_clim(0.0, 1.0)
        plan.add_collection(drawn)
        figure.colorbar(drawn, ax=plan, shrink=0.8).ax.tick_params(labelsize=8)
        places = np.array(list(flat.values()))
        plan.plot(places[:, 0], places[:, 1], '.', color=INK, markersize=5)
    else:
        plan.text(0.5, 0.5, 'no pair of posed views', ha='center', transform=plan.transAxes, color=RED)
    plan.set_aspect('equal', 'datalim')
    style_axes(plan, 'Pairs from above: share of matches that agree with the poses')
    count = len(reconstruction.frames)
    table = np.full((count, count), np.nan)
    for pair in pairs:
        table[pair.first, pair.second] = table[pair.second, pair.first] = pair.support
    if pairs:
        most = max(pair.support for pair in pairs)
        image = matrix.imshow(table, cmap='viridis', norm=LogNorm(10, max(most, 11)), interpolation='nearest')
        figure.colorbar(image, ax=matrix, shrink=0.8).ax.tick_params(labelsize=8)
    out = [number for number in range(count) if number not in centres]
    if out:
        matrix.plot(np.full(len(out), -0.5), out, '>', color=RED, markersize=5, clip_on=False)
        matrix.set_xlabel('frame; red: without a pose', fontsize=8)
    style_axes(matrix, 'Verified matches of the pairs')
    matrix.grid(visible=False)
    return to_png(figure)


def _share(agreeing: NDArray[np.bool_] | None) -> float:
    return float(agreeing.mean()) if agreeing is not None and len(agreeing) else 0.0


def _pair_pictures(
    pairs: Sequence[VerifiedPair],
    agreeing: Mapping[tuple[int, int], NDArray[np.bool_] | None],
    views: Sequence[View],
) -> list[SamplePicture]:
    """Matches of the pairs with most and with the smallest share of matches that agree with the final poses."""
    posed = [pair for pair in pairs if agreeing[pair.first, pair.second] is not None]
    if not posed:
        return []

    def good(pair: VerifiedPair) -> NDArray[np.bool_]:
        found = agreeing[pair.first, pair.second]
        assert found is not None
        return found

    best = sorted(posed, key=lambda pair: (-int(good(pair).sum()), pair.first, pair.second))[:_SHOWN_PAIRS]
    rest = [pair for pair in posed if pair not in best]
    worst = sorted(rest, key=lambda pair: (_share(good(pair)), pair.first, pair.second))[:_SHOWN_PAIRS]
    pictures = []
    for title, chosen in (('best', best), ('worst', worst)):
        for pair in chosen:
            first, second = views[pair.first], views[pair.second]
            assert first.colors is not None and second.colors is not None
            # Evenly from all, so that green and red show in proportion.
            rows = np.linspace(0, len(pair) - 1, min(_SHOWN_MATCHES, len(pair))).astype(np.int64)
            matches = Correspondences(pair.pixels_first[rows], pair.pixels_second[rows], pair.confidence[rows])
            line = f'{title}: frames {pair.first} and {pair.second}, {int(good(pair).sum())} of {len(pair)} agree'
            image = draw_matches(first.colors, second.colors, matches, good(pair)[rows])
            pictures.append(SamplePicture(first.stamp_ns, image, line))
    return pictures


def sfm_rows(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of the closing table about pairs, start and intrinsics, from `sfm` of report.json."""
    if not notes:
        return []
    pairs, start = notes.get('pairs') or {}, notes.get('start') or {}
    rows = [('Pairs', f'{pairs.get("verified")} of {pairs.get("tried")} verified, {pairs.get("matches")} matches')]
    taken = start.get('method')
    for name, found in (start.get('tried') or {}).items():
        if isinstance(found, Mapping):
            text = f'{found["posed"]} views posed, matches that agree: {found["agreeing_share"]:.2f} of the verified'
            if found.get('parts_grown_again'):
                text += f'; {found["parts_grown_again"]} parts grown again, {found["parts_kept"]} kept'
        else:
            text = str(found)
        rows.append((f'Start by {_METHODS.get(name, name)}', text + (' (taken)' if name == taken else '')))
    chain = (start.get('tried') or {}).get('ordered') or {}
    if chain.get('refused_pairs'):
        text = f'{chain["refused_pairs"]}, with {chain["refused_share"]:.2f} of the verified matches'
        rows.append(('Pairs refused: they look alike and show other places', text))
    neighbours = notes.get('neighbours')
    if neighbours:
        text = f'{neighbours["fitting"]:.2f} of their matches; the path breaks at {len(neighbours["breaks"])} places'
        rows.append(('Neighbours in time that lie where the map says', text))
    if notes.get('posed_late'):
        rows.append(('Posed late, by resection', str(notes['posed_late'])))
    focal = notes.get('focal')
    if focal:
        spread = f'{focal["wanted_scale"]:.3f} +- {focal["deviation"]:.3f}'
        rows.append(('Focal length that the matches want, over that given', spread))
    return rows + _scale_rows(notes)


def _scale_rows(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How well the scale is known along the path, and whether odometry holds it."""
    rows, scale, held = [], notes.get('scale'), notes.get('held')
    if scale:
        noise, common = (100 * np.abs(scale[kind]).max() for kind in ('noise', 'common'))
        text = f'+- {noise:.1f} % by independent errors of the matches, +- {common:.1f} % by common ones'
        rows.append(('Scale along the path', text))
    if held:
        text = f'{100 * (held["drift"] - 1):.1f} % between two places, from {held["steps"]} steps'
        rows.append(('Drift of the scale by odometry', text + (': taken out' if held['taken'] else ': not believed')))
    return rows


def set_aside_table(frames: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the frames without a pose and why, counted by reason; empty where all have one."""
    out = [(number, frame) for number, frame in enumerate(frames) if not frame.get('posed')]
    if not out:
        return ''
    reasons: dict[str, list[str]] = {}
    for number, frame in out:
        reasons.setdefault(str(frame.get('reason') or 'unknown'), []).append(str(frame.get('name') or number))
    rows = [
        (reason, f'{len(names)}: {_listed(names)}')
        for reason, names in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return f'<h2>Set aside: {len(out)} of {len(frames)} frames</h2>{table_tag((), rows)}'


def _listed(names: Sequence[str], most: int = 40) -> str:
    shown = ', '.join(names[:most])
    return shown if len(names) <= most else f'{shown} and {len(names) - most} more'
