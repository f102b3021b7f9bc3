# SPDX-License-Identifier: Apache-2.0
"""The grid of a robot that drives between two walls, against the truth."""

import numpy as np
import pytest
from nav_msgs.msg import OccupancyGrid
from rclpy.parameter import Parameter

from dark3r_ros.geometry import se3
from dark3r_ros.mapping.metric import ScaleEstimate
from dark3r_ros.nodes import convert, qos
from dark3r_ros.nodes.grid import FREE, OCCUPIED, UNKNOWN, GridRules, build_grid

RULES = GridRules(resolution=0.1, low=0.15, high=1.8, points=2, radius=0.3, reach=8.0)
SLOPE = 0.1  # the corridor climbs, so that heights alone would make its floor a wall


def corridor(seed: int = 0):
    """Ten metres along x between walls at y = -1 and 1.04, with floor, ceiling, and a column at (6, 0.5)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.0, 10.0, 6000)
    wall = np.stack([x[:4000], rng.choice([-1.0, 1.04], 4000), rng.uniform(0.0, 2.5, 4000)], axis=1)
    floor = np.stack([x[4000:5000], rng.uniform(-1, 1, 1000), np.zeros(1000)], axis=1)
    ceiling = np.stack([x[5000:], rng.uniform(-1, 1, 1000), np.full(1000, 2.5)], axis=1)
    column = np.stack([np.full(200, 6.05), np.full(200, 0.55), rng.uniform(0.2, 1.6, 200)], axis=1)
    points = np.concatenate([wall, floor, ceiling, column])
    points[:, 2] += SLOPE * points[:, 0]
    bases = np.stack([se3.make(np.eye(3), [d, 0.0, SLOPE * d]) for d in np.arange(0.0, 10.0, 0.25)])
    eyes = bases[:, :3, 3] + [0.0, 0.0, 0.5]
    # Every point is seen from about a metre before it, where nothing is in the way.
    seen_by = np.clip(((points[:, 0] - 1.0) / 0.25).astype(int), 0, len(bases) - 1)
    return bases, eyes, points, seen_by


def at(grid, x: float, y: float) -> int:
    column, row = (int((value - start) / grid.resolution) for value, start in zip((x, y), grid.origin, strict=True))
    return int(grid.cells[row, column])


def test_walls_are_occupied_floor_and_ceiling_are_not():
    bases, eyes, points, seen_by = corridor()
    grid = build_grid(bases, eyes, points, seen_by, points, RULES)
    for y in (-0.99, 1.04):
        assert np.mean([at(grid, x, y) == OCCUPIED for x in np.arange(0.55, 9.5, 0.1)]) > 0.95
    assert at(grid, 6.05, 0.55) == OCCUPIED
    inside = [at(grid, x, y) for x in np.arange(0.5, 9.0, 0.1) for y in np.arange(-0.5, 0.2, 0.1)]
    assert np.mean(np.equal(inside, FREE)) > 0.97 and OCCUPIED not in inside


def test_a_single_stray_point_is_no_obstacle_and_the_unseen_is_unknown():
    bases, eyes, points, seen_by = corridor()
    stray = np.array([[3.0, 0.45, 0.8]])
    grid = build_grid(bases, eyes, points, seen_by, np.concatenate([points, stray]), RULES)
    assert at(grid, 3.0, 0.45) != OCCUPIED
    wide = build_grid(bases, eyes, points[:0], seen_by[:0], np.array([[5.03, 4.03, 1.0], [5.04, 4.04, 1.0]]), RULES)
    assert at(wide, 5.035, 4.035) == OCCUPIED and at(wide, 5.0, 2.0) == UNKNOWN and at(wide, 5.0, 0.0) == FREE


def test_a_huge_map_gets_larger_cells_instead_of_all_memory():
    bases = np.stack([se3.make(np.eye(3), [d, d, 0.0]) for d in np.linspace(0.0, 2000.0, 500)])
    none = np.zeros((0, 3))
    grid = build_grid(bases, bases[:, :3, 3], none, np.zeros(0, np.int64), none, RULES)
    assert grid.cells.size <= 4_000_000 and grid.resolution > 0.5


@pytest.mark.parametrize('count', [1, 2])
def test_a_robot_that_has_seen_nothing_stands_on_free_ground(count):
    none = np.zeros((0, 3))
    grid = build_grid(np.stack([np.eye(4)] * count), np.zeros((count, 3)), none, np.zeros(0, np.int64), none, RULES)
    assert at(grid, 0.0, 0.0) == FREE and (grid.cells == FREE).sum() >= 21


def test_the_node_publishes_it_once_lengths_are_metres(graph, make_node, camera, pipeline):
    grids = graph.listen(OccupancyGrid, '/dark3r_mapping/grid', qos.latched())
    node = make_node(map_period=0.5, queue_length=50, grid_points=1, grid_low=-1.0, publish_grid=True)
    graph.until(camera.matched)
    camera.infos.publish(camera.info())
    graph.until(lambda: len(node.cameras) > 0)
    for number in range(4):
        camera.images.publish(camera.image(10**9 + number * 10**8))
    graph.until(lambda: node.health.pipeline.posed == 4)
    graph.until(lambda: not node.outputs.map_changed)
    assert grids == []
    node.scale.restore(ScaleEstimate(2.0, 0.01, known=True, reason=''))
    node.outputs.rescaled()
    graph.until(lambda: grids)
    message = grids[-1]
    assert message.header.frame_id == 'map' and message.info.resolution == pytest.approx(0.1)
    cells = np.array(message.data, np.int8).reshape(message.info.height, message.info.width)
    # Points of the fake map at optical (0, 0, 4) and (1, 0, 4) units: x 8 and y 0 and -2 metres.
    for x, y in ((8.0, 0.0), (8.0, -2.0)):
        column = int((x - message.info.origin.position.x) / 0.1 + 1e-3)
        row = int((y - message.info.origin.position.y) / 0.1 + 1e-3)
        assert cells[row, column] == OCCUPIED
    result = node.set_parameters([Parameter('grid_low', value=3.0)])
    assert not result[0].successful and 'grid_low 3 must be below' in result[0].reason
    assert convert.stamp_to_ns(message.header.stamp) == 10**9 + 3 * 10**8
