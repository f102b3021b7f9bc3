# SPDX-License-Identifier: Apache-2.0
"""The made-up drive that compiles what a node needs."""

from dataclasses import replace
from unittest.mock import patch

from dark3r_ros.mapping import rehearsal, settling
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.rehearsal import rehearse
from dark3r_ros.matching import windows
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.sfm import compact


def test_all_that_is_compiled_is_met():
    predictor = MiniPredictor()
    assert rehearse(replace(MappingConfig(), network_width=160), predictor) == 14
    searches = [windows.cells_there_and_back, windows.there_and_back]
    assert all(function._compiled for function in [*searches, compact._adjusted, settling._settled])
    assert (1, 3, 128, 160) in predictor._outputs._recorded


def test_settings_for_other_cameras_do_not_matter():
    predictor = MiniPredictor()
    config = replace(MappingConfig(), network_width=4096, binning=8)
    with patch.object(rehearsal, '_WIDEST', 160):
        assert rehearse(config, predictor) == 14


def test_only_the_made_up_drive_is_forgotten():
    predictor = MiniPredictor()
    config = replace(MappingConfig(), network_width=160, camera_height=0.8, rest_frames=16)
    rehearse(config, predictor)
    status = MappingPipeline(config, predictor).status()
    assert status.frames == 0 and status.posed == 0
