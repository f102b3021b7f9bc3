# SPDX-License-Identifier: Apache-2.0
"""Views that maps from different beginnings put at different places."""

import numpy as np
from star_world import camera_path

from dark3r_ros.geometry import se3
from dark3r_ros.sfm.ambiguity import consistent_views


def test_the_views_that_two_maps_agree_upon_are_found_whatever_their_worlds():
    truth = {number: se3.inverse(pose) for number, pose in enumerate(camera_path(9))}
    world = se3.exp([0.3, -0.2, 0.7, 0.4, -0.9, 0.5])
    rng = np.random.default_rng(0)
    other = {}
    for number, pose in truth.items():
        moved = pose @ world
        moved[:3, 3] *= 2.5
        other[number] = se3.exp([0, 0, 0, *np.radians(rng.normal(0, 0.5, 3))]) @ moved
    assert consistent_views(truth, other) == set(range(9))
    other[4] = se3.exp([0, 0, 0, 0, np.radians(20.0), 0]) @ other[4]
    del other[7]
    assert consistent_views(truth, other) == {0, 1, 2, 3, 5, 6, 8}
    assert consistent_views(truth, {}) == set()
