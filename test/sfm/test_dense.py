# SPDX-License-Identifier: Apache-2.0
"""Guided matching, depth maps and their fusion with `mini` in a simulated room at -4 dB, against exact truth."""

import numpy as np
import pytest

from dark3r_ros.evaluation.depth_metrics import score_depth
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.open3d import import_open3d
from dark3r_ros.matching.guided import GuidedPair, anchor_pixels
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.dense import depth_maps, partner_views
from dark3r_ros.sfm.fusion import fuse, voxel_size
from dark3r_ros.sfm.graph import complete_graph
from dark3r_ros.sfm.mesh import fuse_mesh
from dark3r_ros.sfm.pairs import match_pair
from dark3r_ros.sfm.rematch import project
from dark3r_ros.sfm.tracks import build_tracks
from dark3r_ros.sfm.triangulation import triangulate_tracks
from dark3r_ros.sfm.views import take_view
from dark3r_ros.simulation.sequence import SimulationConfig, simulate
from dark3r_ros.storage.mesh import write_mesh_ply
from dark3r_ros.types import DepthMap

COUNT = 6


@pytest.fixture(scope='module')
def room():
    """Frames with their truth, views, true camera_from_world, and points triangulated from them."""
    config = SfmConfig()
    predictor = MiniPredictor(config=OFFLINE_MINI)
    simulation = simulate(
        SimulationConfig(scene='room', seconds=COUNT / 4, rate=4, width=640, height=480, snr_db=-4, light='ambient')
    )
    made = list(simulation)
    views = [take_view(one.frame, predictor, config) for one in made]
    poses = {number: se3.inverse(one.world_from_camera) for number, one in enumerate(made)}
    pairs = [match_pair(pair, views, predictor, config) for pair in complete_graph(COUNT)]
    tracks = build_tracks(views, [pair for pair in pairs if pair is not None])
    structure = triangulate_tracks(tracks, poses, views[0].focal, 2.0, 0.01)
    return made, views, poses, structure, predictor


@pytest.fixture(scope='module')
def maps(room):
    _, views, poses, structure, predictor = room
    return depth_maps(views, poses, structure, predictor)


def test_partners_stand_apart(room):
    _, _, poses, structure, _ = room
    partners = partner_views(structure, poses, 3)
    assert all(len(found) == 3 and number not in found for number, found in partners.items())


def test_anchors_are_found_near_their_true_place(room):
    made, views, poses, _, predictor = room
    pair = GuidedPair(predictor, views[0].features, views[2].features)
    own = anchor_pixels(views[0].features)
    cells = np.rint(own).astype(np.int64)
    depth = made[0].depth[cells[:, 1].clip(0, 239), cells[:, 0].clip(0, 319)]
    local = np.column_stack([views[0].normalised(own), np.ones(len(own))]) * depth[:, None]
    true = project(views[2], poses[2], se3.transform_points(made[0].world_from_camera, local))
    inside = np.flatnonzero((true > 8).all(axis=1) & (true < (312, 232)).all(axis=1))
    rng = np.random.default_rng(0)
    off = true[inside] + rng.uniform(-3, 3, (len(inside), 2))
    near = pair.search_near(own[inside], off, 6.0)
    sure = (near.chance > 0.3) & (near.return_error < 2.5)
    error = np.linalg.norm(near.pixels - true[inside], axis=1)[sure]
    assert sure.sum() > 50
    assert np.median(error) < 0.8 * np.median(np.linalg.norm(off - true[inside], axis=1))


def test_depth_of_all_views_together(room, maps):
    made, *_ = room
    scores, covered = [], []
    for number, one in maps.items():
        truth = np.where(np.isfinite(made[number].depth), made[number].depth, 0)
        scores.append(score_depth(one.depth, truth, 1.0))
        covered.append(scores[-1].pixels / truth.size)
    assert len(maps) == COUNT
    assert np.mean([score.abs_rel for score in scores]) < 0.10
    assert np.mean([score.delta for score in scores]) > 0.90
    assert np.mean(covered) > 0.6


def test_the_confident_half_is_better(room, maps):
    made, *_ = room
    errors = {True: [], False: []}
    for number, one in maps.items():
        known = one.depth > 0
        error = np.abs(one.depth - made[number].depth)[known] / made[number].depth[known]
        confident = one.confidence[known] >= np.median(one.confidence[known])
        for half in errors:
            errors[half].append(np.mean(error[confident == half]))
    assert np.mean(errors[True]) < 0.7 * np.mean(errors[False])


def test_fused_points_lie_on_surfaces(room, maps):
    made, views, poses, _, _ = room
    world = {number: se3.inverse(pose) for number, pose in poses.items()}
    cloud = fuse(maps, views, world)
    assert len(cloud) > 3000
    local = se3.transform_points(poses[0], cloud.points.astype(np.float64))
    pixels = np.rint(project(views[0], poses[0], cloud.points.astype(np.float64)))
    seen = (local[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < (320, 240)).all(axis=1)
    columns, rows = pixels[seen].astype(np.int64).T
    relative = np.abs(local[seen, 2] / made[0].depth[rows, columns] - 1.0)
    assert np.median(relative) < 0.05


def test_exact_depths_are_fused_to_exact_points(room):
    made, views, poses, _, _ = room
    exact = {
        number: DepthMap(np.nan_to_num(made[number].depth, posinf=0.0), np.ones((240, 320), np.float32))
        for number in (0, 1)
    }
    cloud = fuse(exact, views, {number: se3.inverse(poses[number]) for number in (0, 1)})
    assert len(cloud) > 0.2 * 2 * 240 * 320
    voxel = voxel_size(exact)
    local = se3.transform_points(poses[0], cloud.points.astype(np.float64))
    pixels = project(views[0], poses[0], cloud.points.astype(np.float64))
    cell = np.rint(pixels).astype(np.int64)
    seen = (local[:, 2] > 0) & (cell >= 0).all(axis=1) & (cell < (320, 240)).all(axis=1)
    difference = np.abs(local[seen, 2] - made[0].depth[cell[seen, 1], cell[seen, 0]])
    assert np.median(difference) < voxel


@pytest.mark.parametrize('unit', [1.0, 0.03])
def test_a_mesh_of_exact_depths_lies_on_the_true_surfaces(room, unit, tmp_path):
    """In metres and in an arbitrary unit; read back by Open3D from the file."""
    pytest.importorskip('libusb_package')
    made, views, poses, _, _ = room
    full = np.ones((240, 320), np.float32)
    exact = {
        number: DepthMap((unit * np.nan_to_num(made[number].depth, posinf=0.0)).astype(np.float32), full)
        for number in (0, 1, 2)
    }
    world = {number: se3.inverse(poses[number]) for number in exact}
    for pose in world.values():
        pose[:3, 3] *= unit
    mesh = fuse_mesh(exact, views, world)
    path = tmp_path / 'mesh.ply'
    write_mesh_ply(path, mesh.vertices, mesh.colors, mesh.triangles)
    read = import_open3d().io.read_triangle_mesh(str(path))
    vertices, triangles = np.asarray(read.vertices), np.asarray(read.triangles)
    assert len(triangles) > 5000 and triangles.max() < len(vertices)
    assert np.asarray(read.vertex_colors).std() > 0.01
    local = se3.transform_points(poses[0], vertices / unit)
    pixels = np.rint(project(views[0], poses[0], vertices / unit))
    seen = (local[:, 2] > 0) & (pixels >= 0).all(axis=1) & (pixels < (320, 240)).all(axis=1)
    columns, rows = pixels[seen].astype(np.int64).T
    truth = made[0].depth[rows, columns]
    assert seen.mean() > 0.5
    relative = np.abs(local[seen, 2] / truth - 1.0)
    assert np.median(relative) < 0.005 and np.percentile(relative, 80) < 0.02
