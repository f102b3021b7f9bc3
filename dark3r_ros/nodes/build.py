# SPDX-License-Identifier: Apache-2.0
"""The pipeline that the parameters of the mapping node describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.events import Event
from dark3r_ros.mapping.pipeline import MappingPipeline
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
    # The small matcher works pair by pair, so that there is no batch to make smaller, and tracking looks inside it.
    if not isinstance(predictor, MiniPredictor):
        predictor = FrugalPredictor(predictor, node.warn)
    pipeline = MappingPipeline(parameters.read(node, 'mapping', MappingConfig), predictor, noise)
    return Shown(pipeline, LiveViewer(node.config.viewer, node.warn)) if node.config.viewer else pipeline


class Shown:
    """A pipeline whose frames go to a viewer as well, in the thread that pushes them."""

    def __init__(self, pipeline: Pipeline, viewer: LiveViewer) -> None:
        self._pipeline, self._viewer = pipeline, viewer
        self.reconstruction, self.reset, self.status = pipeline.reconstruction, pipeline.reset, pipeline.status
        self.save_state, self.load_state = pipeline.save_state, pipeline.load_state

    def push(self, frame: Frame) -> Sequence[Event]:
        """Process and show one frame."""
        events = self._pipeline.push(frame)
        self._viewer.show(frame, events, self._pipeline.status())
        return events

    def flush(self) -> Sequence[Event]:
        """Finish the map and show it."""
        events = self._pipeline.flush()
        self._viewer.show(None, events, self._pipeline.status())
        return events
