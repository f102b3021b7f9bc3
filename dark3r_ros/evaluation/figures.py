# SPDX-License-Identifier: Apache-2.0
"""Figures of a report as PNG bytes: trajectory from above, signal and inliers over time, pictures, cloud."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DependencyError
from dark3r_ros.types import Float64Array, FrameRecord, PointCloud, Reconstruction, Trajectory

BLUE, GREY, RED, GREEN, INK = '#1f6feb', '#8b949e', '#d1242f', '#1a7f37', '#24292f'
_DPI = 110
_MAX_POINTS = 60_000


@dataclass(frozen=True, eq=False)
class SamplePicture:
    """A picture for people: time, (h, w, 3) uint8 sRGB, and a line under it."""

    stamp_ns: int
    image: NDArray[np.uint8]
    title: str


def new_figure(width: float, height: float) -> Any:
    """Matplotlib figure in inches without any global state; DependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError('reports need matplotlib: pip install matplotlib') from error
    return Figure(figsize=(width, height), dpi=_DPI, layout='constrained', facecolor='white')


def to_png(figure: Any) -> bytes:
    """PNG bytes of a figure, without a time stamp inside."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', metadata={'Software': None})
    return stream.getvalue()


def style_axes(axes: Any, title: str) -> None:
    """Title, ticks and grid as in all figures."""
    axes.set_title(title, fontsize=10, color=INK, loc='left')
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color='#e6e8eb', linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ('top', 'right'):
        axes.spines[side].set_visible(False)


def upright_axes(poses: Float64Array) -> Float64Array:
    """Rows right, forward, up (3, 3) of a view frame for camera poses (N, 4, 4).

    Up is the mean of the cameras' own up (-y), forward the first camera's direction of view made level; so a plan is
    seen from above whatever world frame the mapping chose.
    """
    up = -poses[:, :3, 1].mean(axis=0)
    up = up / np.linalg.norm(up) if np.linalg.norm(up) > 1e-6 else np.array([0.0, -1.0, 0.0])
    forward = poses[0, :3, 2] - up * (poses[0, :3, 2] @ up)
    if np.linalg.norm(forward) < 1e-6:  # a camera that looks straight up or down
        forward = np.cross(up, poses[0, :3, 0])
    forward = forward / np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), forward, up])


def _view(reconstruction: Reconstruction) -> Float64Array:
    poses = reconstruction.trajectory().world_from_camera
    return upright_axes(poses) if len(poses) else np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


def trajectory_figure(reconstruction: Reconstruction, truth: Trajectory | None = None) -> bytes:
    """Plan of the camera path, keyframes and, where given, the truth in the same frame."""
    view, unit = _view(reconstruction), 'm' if reconstruction.metric_scale else 'arbitrary unit'
    figure = new_figure(6.4, 5.2)
    axes = figure.add_subplot()
    centres = reconstruction.trajectory().world_from_camera[:, :3, 3]
    origin = centres[0] if len(centres) else np.zeros(3)
    if truth is not None and len(truth):
        path = (truth.world_from_camera[:, :3, 3] - origin) @ view.T
        axes.plot(path[:, 0], path[:, 1], color=GREY, linewidth=2.5, alpha=0.8, label='truth')
    path = (centres - origin) @ view.T
    keyframes = (reconstruction.trajectory(keyframes_only=True).world_from_camera[:, :3, 3] - origin) @ view.T
    if len(path):
        axes.plot(path[:, 0], path[:, 1], color=BLUE, linewidth=1.3, label=f'estimate ({len(path)} poses)')
        axes.plot(keyframes[:, 0], keyframes[:, 1], '.', color=BLUE, markersize=5, label=f'{len(keyframes)} keyframes')
        axes.plot(*path[0, :2], 'o', color=GREEN, markersize=7, label='start')
        axes.legend(fontsize=8, frameon=False)
    else:
        axes.text(0.5, 0.5, 'no frame was posed', ha='center', transform=axes.transAxes, color=RED)
    axes.set_aspect('equal', 'datalim')
    axes.set_xlabel(f'right [{unit}]', fontsize=8)
    axes.set_ylabel(f'forward [{unit}]', fontsize=8)
    style_axes(axes, 'Camera path from above')
    return to_png(figure)


def health_figure(frames: Sequence[FrameRecord]) -> bytes:
    """Signal-to-noise ratio and inliers over time; frames without a pose are marked red."""
    seconds = np.array([frame.stamp_ns - frames[0].stamp_ns for frame in frames]) / 1e9
    posed = np.array([frame.world_from_camera is not None for frame in frames])
    snr = np.array([frame.snr_db for frame in frames], dtype=np.float64)
    figure = new_figure(6.4, 4.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    if np.isfinite(snr).any():
        upper.plot(seconds, snr, '.-', color=INK, linewidth=1.0, markersize=3)
    else:
        upper.text(0.5, 0.5, 'unknown', ha='center', transform=upper.transAxes, color=GREY)
    upper.set_ylabel('dB', fontsize=8)
    style_axes(upper, 'Signal-to-noise ratio at network resolution')
    lower.plot(seconds, [frame.matches for frame in frames], color=GREY, linewidth=1.0, label='matches')
    lower.plot(seconds, [frame.inliers for frame in frames], color=BLUE, linewidth=1.3, label='inliers')
    if not posed.all():
        label = f'frames without a pose: {int((~posed).sum())}'
        lower.plot(seconds[~posed], np.zeros((~posed).sum()), '|', color=RED, markersize=9, label=label)
    lower.set_ylim(bottom=0)
    lower.set_xlabel('seconds after the first frame', fontsize=8)
    lower.legend(fontsize=8, frameon=False)
    style_axes(lower, 'Correspondences')
    return to_png(figure)


def samples_figure(samples: Sequence[SamplePicture], columns: int = 0) -> bytes:
    """Pictures side by side with their titles: three in a row, five where they stand upright, or `columns`."""
    aspect = max(sample.image.shape[0] / sample.image.shape[1] for sample in samples)
    columns = min(columns or (5 if aspect > 1.2 else 3), len(samples))
    rows = -(-len(samples) // columns)
    side = 9.6 / max(columns, 2)
    figure = new_figure(side * columns, (side * aspect + 0.3) * rows)
    for number, sample in enumerate(samples, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(sample.image, interpolation='nearest' if sample.image.shape[1] < 400 else 'antialiased')
        axes.set_title(sample.title, fontsize=8, color=INK)
        axes.axis('off')
    return to_png(figure)


def _shown(cloud: PointCloud, origin: Float64Array, view: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Points in view axes and colours in 0..1: thinned, without far outliers, brightened where all is dark."""
    keep = np.isfinite(cloud.points).all(axis=1)
    points, colors = cloud.points[keep].astype(np.float64), cloud.colors[keep].astype(np.float64) / 255.0
    if len(points) > _MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(points), _MAX_POINTS, replace=False)
        points, colors = points[chosen], colors[chosen]
    local = (points - origin) @ view.T
    if len(local) > 20:
        low, high = np.percentile(local, [1, 99], axis=0)
        margin = 0.15 * (high - low) + 1e-9
        inside = ((local >= low - margin) & (local <= high + margin)).all(axis=1)
        local, colors = local[inside], colors[inside]
    bright = float(np.percentile(colors.max(axis=1), 95)) if len(colors) else 1.0
    return local, np.clip(colors * min(4.0, 0.85 / max(bright, 0.05)), 0.0, 1.0)


def cloud_figure(reconstruction: Reconstruction) -> bytes:
    """The cloud from above and from behind above, with the camera path."""
    view = _view(reconstruction)
    trajectory = reconstruction.trajectory().world_from_camera[:, :3, 3]
    origin = trajectory[0] if len(trajectory) else np.zeros(3)
    points, colors = _shown(reconstruction.cloud, origin, view)
    path = (trajectory - origin) @ view.T
    tilt = np.deg2rad(35.0)
    # Looking forward and down: a point's height on the picture mixes forward and up.
    oblique = np.array([[1.0, 0, 0], [0, np.sin(tilt), np.cos(tilt)], [0, -np.cos(tilt), np.sin(tilt)]])
    figure = new_figure(11.0, 4.8)
    for number, (title, rotation) in enumerate([('from above', np.eye(3)), ('from behind above', oblique)], 1):
        axes = figure.add_subplot(1, 2, number)
        shown, line = points @ rotation.T, path @ rotation.T
        order = np.argsort(shown[:, 2])
        size = 2.0 if len(shown) > 5000 else 6.0
        axes.scatter(shown[order, 0], shown[order, 1], s=size, c=colors[order], linewidths=0)
        if len(line):
            axes.plot(line[:, 0], line[:, 1], color=BLUE, linewidth=1.5)
            axes.plot(*line[0, :2], 'o', color=GREEN, markersize=6)
        axes.set_aspect('equal', 'datalim')
        axes.set_facecolor('#f6f8fa')
        style_axes(axes, f'Cloud {title}: {len(reconstruction.cloud)} points')
    return to_png(figure)
