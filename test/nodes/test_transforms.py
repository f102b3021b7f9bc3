# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.nodes import convert
from dark3r_ros.nodes.transforms import TransformBroadcaster, TransformBuffer, TransformError, TransformListener

SECOND = 10**9


def pose(x: float, yaw: float = 0.0) -> np.ndarray:
    return se3.make(se3.exp_so3([0.0, 0.0, yaw]), [x, 0.0, 0.0])


def test_interpolates_at_the_exact_time_and_never_extrapolates():
    buffer = TransformBuffer()
    base = 1795188284 * SECOND  # float seconds would lose 200 ns here
    buffer.insert('odom', 'base', base, pose(0.0, 0.0))
    buffer.insert('odom', 'base', base + 100, pose(1.0, 1.0))
    middle = buffer.lookup('odom', 'base', base + 25)
    np.testing.assert_allclose(middle, pose(0.25, 0.25), atol=1e-9)
    np.testing.assert_array_equal(buffer.lookup('odom', 'base', base + 100), pose(1.0, 1.0))
    for stamp in (base - 1, base + 101):
        with pytest.raises(TransformError, match='odom -> base'):
            buffer.lookup('odom', 'base', stamp)


def test_walks_chains_up_and_down():
    buffer = TransformBuffer()
    buffer.insert('odom', 'footprint', 0, pose(5.0, 0.5))
    buffer.insert('footprint', 'base', 0, pose(1.0, 0.2), static=True)
    buffer.insert('base', 'camera', 0, pose(2.0, -0.1), static=True)
    buffer.insert('base', 'lidar', 0, pose(-3.0, 0.3), static=True)
    np.testing.assert_allclose(
        buffer.lookup('odom', 'camera', 0), pose(5.0, 0.5) @ pose(1.0, 0.2) @ pose(2.0, -0.1), atol=1e-12
    )
    # Between siblings no moving edge is used, so any time will do.
    np.testing.assert_allclose(
        buffer.lookup('lidar', 'camera', 99), se3.inverse(pose(-3.0, 0.3)) @ pose(2.0, -0.1), atol=1e-12
    )
    np.testing.assert_array_equal(buffer.lookup('base', 'base', 7), np.eye(4))
    assert buffer.connected('odom', 'camera') and not buffer.connected('camera', 'odom')
    with pytest.raises(TransformError, match='not connected'):
        buffer.lookup('map', 'camera', 0)


def test_late_samples_find_their_place():
    buffer = TransformBuffer()
    for stamp in (0, 100, 50):
        buffer.insert('odom', 'base', stamp, pose(float(stamp) ** 2))
    np.testing.assert_allclose(buffer.lookup('odom', 'base', 75), pose((2500 + 10000) / 2), atol=1e-9)


def test_history_is_bounded_and_starts_anew_when_time_goes_back():
    buffer = TransformBuffer(history_ns=10 * SECOND, capacity=50)
    for index in range(500):
        buffer.insert('odom', 'base', index * SECOND // 10, pose(float(index)))
    with pytest.raises(TransformError):
        buffer.lookup('odom', 'base', 449 * SECOND // 10)
    buffer.lookup('odom', 'base', 450 * SECOND // 10)
    buffer.insert('odom', 'base', 0, pose(-1.0))
    np.testing.assert_array_equal(buffer.lookup('odom', 'base', 0), pose(-1.0))
    with pytest.raises(TransformError):
        buffer.lookup('odom', 'base', 499 * SECOND // 10)


def test_a_new_parent_replaces_the_old_one():
    buffer = TransformBuffer()
    buffer.insert('map', 'base', 0, pose(1.0))
    buffer.insert('odom', 'base', 0, pose(2.0))
    assert buffer.parent('base') == 'odom'
    with pytest.raises(TransformError):
        buffer.lookup('map', 'base', 0)


def test_loops_end_and_nonsense_is_refused():
    buffer = TransformBuffer()
    buffer.insert('a', 'b', 0, pose(1.0), static=True)
    buffer.insert('b', 'a', 0, pose(1.0), static=True)
    with pytest.raises(TransformError):
        buffer.lookup('c', 'a', 0)
    for parent, child in (('a', 'a'), ('', 'a'), ('a', '')):
        with pytest.raises(DataError):
            buffer.insert(parent, child, 0, np.eye(4))


def test_static_and_moving_transforms_cross_the_graph(graph):
    static, moving = TransformBroadcaster(graph.helper, static=True), TransformBroadcaster(graph.helper)
    static.send(convert.transform_to_message(pose(1.0), 0, 'base', 'camera'))
    static.send(convert.transform_to_message(pose(2.0), 0, 'base', 'lidar'))
    buffer, problems = TransformBuffer(), []
    listener = TransformListener(graph.helper, buffer, problems.append)
    graph.until(lambda: buffer.connected('base', 'lidar'), why='static transforms reach late listeners')
    np.testing.assert_allclose(buffer.lookup('base', 'camera', 5), pose(1.0))  # the first one is repeated as well
    graph.until(lambda: moving._publisher.get_subscription_count() > 0)
    bad = convert.transform_to_message(pose(1.0), 42, 'odom', 'other')
    bad.transform.translation.x = float('nan')
    moving.send(bad, convert.transform_to_message(pose(3.0), 42, 'odom', 'base'))
    graph.until(lambda: buffer.parent('base') == 'odom')
    assert buffer.newest_ns('base') == 42
    assert len(problems) == 1 and 'odom -> other' in problems[0] and buffer.parent('other') is None
    listener.destroy()
