# SPDX-License-Identifier: Apache-2.0
"""How many correspondences a pose needs."""

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.trust import InlierBound

CONFIG = MappingConfig(min_inliers=15, tracking_share=0.1, relocalisation_share=0.25)


def _bound_after(*inliers: int) -> InlierBound:
    bound = InlierBound(CONFIG)
    for count in inliers:
        bound.accept(count)
    return bound


def test_before_any_pose_the_configured_minimum_holds():
    assert InlierBound(CONFIG).bound(failures=0) == 15
    assert InlierBound(CONFIG).bound(failures=1) == 30


def test_a_dense_matcher_must_show_a_share_of_its_usual_inliers():
    bound = _bound_after(260, 270, 280)
    assert bound.bound(failures=0) == 27
    # A lost camera: 35 agreeing matches, as repeated walls give them, are not enough where 270 are usual.
    assert 35 < bound.bound(failures=1) <= 68


def test_a_sparse_matcher_keeps_the_configured_minimum():
    bound = _bound_after(40, 45, 50)
    assert bound.bound(failures=0) == 15
    assert bound.bound(failures=1) == 30


def test_what_was_usual_in_the_light_fades_while_nothing_is_found():
    bound = _bound_after(*[400] * 10)
    bounds = [bound.bound(failures) for failures in (1, 20, 40, 200)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[1] == 50
    assert bounds[-1] == 30


def test_one_poor_frame_does_not_lower_the_bound():
    assert _bound_after(*[300] * 9, 20).bound(failures=0) == 30
