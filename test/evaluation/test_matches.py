# SPDX-License-Identifier: Apache-2.0
"""Matches judged by true epipolar lines."""

from dataclasses import replace

import numpy as np
import pytest

from dark3r_ros.errors import DataError
from dark3r_ros.evaluation.matches import pair_indices, score_matches
from dark3r_ros.evaluation.scenes import SIMULATED, SimulatedScene
from dark3r_ros.types import Correspondences

SCENE = SimulatedScene(replace(SIMULATED['room'], width=160, height=120, seconds=4.0))


class Oracle:
    """Matches along true depth; every second one is moved by `shift` pixels downwards."""

    name = fingerprint = 'oracle'

    def __init__(self, shift: float) -> None:
        self.shift = shift
        self.made = [SCENE.photograph(None, 0, 'starvis').photograph(index) for index in range(8)]

    def encode(self, planes):
        return planes

    def match(self, pairs):
        return [self._match(*pair) for pair in pairs]

    def _match(self, a, b):
        poses = {made.frame.stamp_ns: made.world_from_camera for made in self.made}
        pixels = np.stack(np.meshgrid(np.arange(5.0, 75, 7), np.arange(5.0, 55, 7)), axis=-1).reshape(-1, 2)
        points = np.column_stack([a.camera.unproject(pixels), np.ones(len(pixels))]) * 3.0
        moved = np.linalg.inv(poses[b.stamp_ns]) @ poses[a.stamp_ns] @ np.column_stack([points, np.ones(len(points))]).T
        there = b.camera.project(moved[:3].T)
        there[::2] += self.shift * self._across(poses, a, b, there[::2])
        return Correspondences(pixels, there, np.ones(len(pixels)))

    @staticmethod
    def _across(poses, a, b, pixels):
        """Unit vectors across the epipolar lines: those towards the image of the other centre, turned."""
        centre = np.linalg.inv(poses[b.stamp_ns]) @ poses[a.stamp_ns][:, 3]
        towards = b.camera.project(centre[None, :3] * np.sign(centre[2])) - pixels
        unit = towards / np.linalg.norm(towards, axis=1, keepdims=True)
        return unit[:, ::-1] * (1, -1)


def test_matches_are_judged_by_the_true_lines():
    good = score_matches(SCENE, None, Oracle(0.0), pairs=4)
    assert good.pairs == 4 and good.share == 1.0 and good.right == good.matches == 80
    half = score_matches(SCENE, None, Oracle(4.0), pairs=4)
    assert half.share == pytest.approx(0.5, abs=0.02)


def test_nothing_found_is_no_match_at_all():
    class Blind(Oracle):
        def _match(self, a, b):
            return Correspondences(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))

    assert score_matches(SCENE, None, Blind(0.0), pairs=2).right == 0.0


def test_pairs_are_spread_and_few_frames_are_refused():
    assert pair_indices(40, 3) == [(0, 1), (18, 21), (36, 37)]
    assert pair_indices(4, 10) == [(0, 1)]
    with pytest.raises(DataError, match='too few'):
        pair_indices(3, 10)
