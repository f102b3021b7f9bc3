# SPDX-License-Identifier: Apache-2.0
"""Landmarks looked for where they should be: against a shift that is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.guided_tracking import track_guided
from dark3r_ros.mapping.sparse_map import Keyframe, SparseMap, View
from dark3r_ros.matching.mini import MiniFeatures, MiniPredictor

ROWS, COLUMNS, LENGTH = 60, 80, 24
CAMERA = Camera(160, 120, 120.0, 120.0, 79.5, 59.5)
CONFIG = MappingConfig(guided_radius=8.0)
SHIFT = np.array([3, -2])  # fine pixels, two picture pixels each


def features(fine):
    nothing = torch.zeros(0).half()
    flat = fine.reshape(-1, LENGTH).half()
    return MiniFeatures(nothing, flat, torch.arange(4), nothing, nothing, nothing, (ROWS, COLUMNS), (160, 120))


@pytest.fixture(scope='module')
def scene():
    """A keyframe that sees a slanted wall, and a view whose picture lies a few pixels beside it."""
    generator = torch.Generator().manual_seed(0)
    fine = functional.normalize(torch.randn(ROWS, COLUMNS, LENGTH, generator=generator), dim=-1)
    shifted = fine.roll((int(SHIFT[1]), int(SHIFT[0])), (0, 1))
    rng = np.random.default_rng(0)
    keyframe = Keyframe(0, 0, 'camera', CAMERA, np.eye(4), 0.0, features(fine))
    pixels = rng.integers([12, 12], [68, 48], (300, 2)) * 2.0 + 0.5
    pixels = np.unique(pixels, axis=0)
    sparse_map = SparseMap()
    # All at one depth, so that a sideways motion shifts the picture as a whole.
    rays = np.column_stack([CAMERA.unproject(pixels), np.ones(len(pixels))])
    rows = keyframe.table.lookup(pixels, None)
    keyframe.table.landmark[rows] = sparse_map.landmarks.add(4.0 * rays, np.zeros((len(pixels), 3), np.uint8))
    sparse_map.keyframes.append(keyframe)
    view = View(1, 'camera', '', CAMERA, features(shifted), np.zeros((120, 160, 3), np.uint8), 0.0)
    return view, keyframe, sparse_map, MiniPredictor(device='cpu')


def test_a_shifted_picture_gives_its_motion(scene):
    view, keyframe, sparse_map, predictor = scene
    result = track_guided(view, [keyframe], sparse_map, predictor, CONFIG, np.eye(4), 15)
    assert result is not None
    assert result.guided
    assert result.inliers > 250
    assert result.overlap > 0.85
    assert result.flow == pytest.approx(2 * np.linalg.norm(SHIFT) / 160, abs=0.002)
    points = sparse_map.landmarks.points[result.landmarks]
    seen = CAMERA.project(se3.transform_points(result.camera_from_world, points))
    np.testing.assert_allclose(seen - CAMERA.project(points), np.broadcast_to(2.0 * SHIFT, seen.shape), atol=0.1)


def test_what_lies_outside_the_window_is_not_believed(scene):
    view, keyframe, sparse_map, predictor = scene
    far = se3.make(np.eye(3), [1.0, 0.0, 0.0])  # thirty pixels beside
    result = track_guided(view, [keyframe], sparse_map, predictor, CONFIG, far, 15)
    assert result is not None
    assert result.camera_from_world is None


def test_it_is_off_without_a_prediction_a_window_or_fine_descriptors(scene):
    view, keyframe, sparse_map, predictor = scene
    off = replace(CONFIG, guided_radius=0.0)
    assert track_guided(view, [keyframe], sparse_map, predictor, CONFIG, None, 15) is None
    assert track_guided(view, [keyframe], sparse_map, predictor, off, np.eye(4), 15) is None
    assert track_guided(view, [keyframe], sparse_map, object(), CONFIG, np.eye(4), 15) is None
