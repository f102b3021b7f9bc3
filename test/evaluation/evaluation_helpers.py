# SPDX-License-Identifier: Apache-2.0
"""A result folder and its truth, related by a known similarity."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.storage.result import write_result
from dark3r_ros.storage.sequence import SequenceImage, write_cameras_json
from dark3r_ros.types import FrameRecord, Observations, PointCloud, Reconstruction

CAMERA = Camera(160, 120, 120.0, 120.0, 79.5, 59.5)
START_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
# A method of others for `ExternalMethod`: frame n stands at x = n; it loses frame 2.
TRUE_POSES = """
import json, sys
from pathlib import Path
frames, output = map(Path, sys.argv[1:])
stamps = [line.split()[1] for line in (frames / 'times.txt').read_text().splitlines()]
assert len(json.loads((frames / 'cameras.json').read_text())['images']) == len(stamps)
assert len(list((frames / 'raw').glob('*.png'))) == len(list((frames / 'pictures').glob('*.png'))) == len(stamps)
rows = [f'{float(stamp):.6f} {number} 0 0 0 0 0 1' for number, stamp in enumerate(stamps) if number != 2]
output.write_text('\\n'.join(rows))
"""

SCALE = 4.0  # truth = SCALE * estimate, after a rigid motion
WALL = 6.0  # true distance of a wall that all cameras face


def true_pose(index):
    return se3.make(se3.exp_so3([0, 0, 0.02 * index]), [0.3 * index, 0.1 * np.sin(index), 0.0])


def make_reconstruction(count=12, noise=0.0, named=True, unposed=(3,)):
    """Estimate of a camera that slides along a wall at z = WALL; the wall's points are exact."""
    rng = np.random.default_rng(0)
    to_map = se3.exp([0.5, -1.0, 2.0, 0.3, 0.2, -0.4])

    def shrink(pose):
        moved = to_map @ pose
        moved[:3, 3] /= SCALE
        return moved

    points = np.column_stack([rng.uniform(-2, 6, 300), rng.uniform(-2, 2, 300), np.full(300, WALL)])
    records, point_index, frame_index, pixels = [], [], [], []
    for index in range(count):
        pose = true_pose(index)
        seen = CAMERA.project(se3.transform_points(se3.inverse(pose), points))
        inside = np.flatnonzero((np.abs(seen - (79.5, 59.5)) < (78, 58)).all(axis=1))
        estimate = None
        if index not in unposed:
            estimate = shrink(pose @ se3.exp(rng.normal(0, noise, 6) if noise else np.zeros(6)))
            point_index.append(inside)
            frame_index.append(np.full(len(inside), index))
            pixels.append(seen[inside])
        name = f'images/{index:03d}.png' if named else ''
        records.append(
            FrameRecord(
                START_NS + index * STEP_NS, estimate, index % 3 == 0 and estimate is not None, -3.0 + 0.2 * index,
                60 if estimate is not None else 4, 80, '' if estimate is not None else 'too few matches', name,
            )
        )  # fmt: skip
    world = se3.transform_points(to_map, points) / SCALE
    colors = rng.integers(60, 256, (300, 3)).astype(np.uint8)
    observations = Observations(
        world, colors, np.concatenate(point_index), np.concatenate(frame_index), np.concatenate(pixels)
    )
    cloud = PointCloud(world.astype(np.float32), colors, np.ones(300, np.float32))
    return Reconstruction(CAMERA, tuple(records), cloud, observations)


def write_both(folder, *, depth=False, report=None, **options):
    """Result folder and the folder of its true cameras.json."""
    reconstruction = make_reconstruction(**options)
    write_result(folder / 'result', reconstruction, report or {'wall_s': 2.0, 'config': {'binning': 4}})
    images = []
    (folder / 'truth' / 'depth').mkdir(parents=True)
    for index, record in enumerate(reconstruction.frames):
        name = ''
        if depth:
            name = f'depth/{index:03d}.png'
            cv2.imwrite(str(folder / 'truth' / name), np.full((60, 80), round(WALL * 5000), np.uint16))
        images.append(SequenceImage(record.name or f'{index}.png', record.stamp_ns, true_pose(index), name))
    write_cameras_json(folder / 'truth' / 'cameras.json', CAMERA, images, metric=True)
    return folder / 'result', folder / 'truth'


def without_stamps(folder):
    """Shift all stamps of a truth folder, so that only names can associate it."""
    from dark3r_ros.storage.sequence import read_cameras_json

    info = read_cameras_json(folder)
    moved = [replace(image, stamp_ns=image.stamp_ns + 10**12) for image in info.images]
    write_cameras_json(folder / 'cameras.json', info.camera, moved, metric=True)
