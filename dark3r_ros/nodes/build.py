# SPDX-License-Identifier: Apache-2.0
"""The pipeline that the parameters of the mapping node describe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import Event
from dark3r_ros.mapping.intake import Prepared
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.mapping.rehearsal import rehearse
from dark3r_ros.mapping.viewer import LiveViewer
from dark3r_ros.matching.classical import ClassicalConfig
from dark3r_ros.matching.learned import LearnedConfig
from dark3r_ros.matching.mini import MiniMatchConfig, MiniPredictor
from dark3r_ros.matching.registry import make_predictor
from dark3r_ros.nodes import parameters
from dark3r_ros.nodes.frugal import FrugalPredictor
from dark3r_ros.nodes.node_config import NodeConfig
from dark3r_ros.nodes.worker import Pipeline
from dark3r_ros.raw.noise import NoiseModel, load_yaml, preset
from dark3r_ros.types import Frame

if TYPE_CHECKING:
    from dark3r_ros.nodes.mapping_node import MappingNode

_rehearsed: set[int] = set()  # widths of planes that this process has mapped


def build_noise(config: NodeConfig) -> NoiseModel | None:
    """Noise model named by the parameters, or None."""
    if config.noise_preset:
        return preset(config.noise_preset)
    return load_yaml(config.noise_file) if config.noise_file else None


def build_pipeline(node: MappingNode) -> Pipeline:
    """Build the pipeline that the parameters of the node describe."""
    noise = build_noise(node.config)
    predictor = make_predictor(
        node.config.predictor,
        noise=noise,
        classical=parameters.read(node, 'matcher', ClassicalConfig),
        learned=parameters.read(node, 'learned', LearnedConfig),
        mini=parameters.read(node, 'mini', MiniMatchConfig),
        device=node.config.device,
    )
    if getattr(predictor, 'device', None) == torch.device('cpu'):
        # Two threads compute at the same time: full pools for both would get in each other's way.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
        # Their calls are short: who waits for the interpreter must not wait for longer than they take.
        sys.setswitchinterval(0.0002)
    # The small matcher works pair by pair, so that there is no batch to make smaller, and tracking looks inside it.
    if not isinstance(predictor, MiniPredictor):
        predictor = FrugalPredictor(predictor, node.warn)
    config = parameters.read(node, 'mapping', MappingConfig)
    if isinstance(predictor, MiniPredictor):
        _rehearse_once(config, predictor)
    pipeline = MappingPipeline(config, predictor, noise)
    return Shown(pipeline, LiveViewer(node.config.viewer, node.warn)) if node.config.viewer else pipeline


def _rehearse_once(config: MappingConfig, predictor: MiniPredictor) -> None:
    """Let a process compile what it compiles once before images wait for it."""
    if config.network_width not in _rehearsed:
        _rehearsed.add(config.network_width)
        rehearse(config, predictor)


class Shown:
    """A pipeline whose frames go to a viewer as well, in the thread that pushes them."""

    def __init__(self, pipeline: MappingPipeline, viewer: LiveViewer) -> None:
        self._pipeline, self._viewer = pipeline, viewer
        self.reconstruction, self.reset, self.status = pipeline.reconstruction, pipeline.reset, pipeline.status
        self.save_state, self.load_state, self.prepare = pipeline.save_state, pipeline.load_state, pipeline.prepare
        self._unseen: list[Event] = []

    def push(self, frame: Frame) -> Sequence[Event]:
        """Process and show one frame."""
        return [*self.pose(self.prepare(frame)), *self.work()]

    def pose(self, prepared: Prepared) -> Sequence[Event]:
        """Process and show a prepared frame."""
        events = self._pipeline.pose(prepared)
        self._viewer.show(prepared.frame, [*self._unseen, *events], self._pipeline.status())
        self._unseen = []
        return events

    def work(self) -> Sequence[Event]:
        """Go on with the newest keyframe; the viewer hears of it with the next frame."""
        self._unseen = self._pipeline.work()
        return self._unseen

    def flush(self) -> Sequence[Event]:
        """Finish the map and show it."""
        events = self._pipeline.flush()
        self._viewer.show(None, [*self._unseen, *events], self._pipeline.status())
        self._unseen = []
        return events
