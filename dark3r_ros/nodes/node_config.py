# SPDX-License-Identifier: Apache-2.0
"""Settings of the mapping node that are not settings of a room below it."""

from __future__ import annotations

from dataclasses import dataclass

from dark3r_ros.config import Config, setting
from dark3r_ros.errors import ConfigError
from dark3r_ros.mapping.advice import AdviceConfig
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.metric import MetricConfig
from dark3r_ros.matching.classical import ClassicalConfig
from dark3r_ros.matching.learned import LearnedConfig
from dark3r_ros.matching.mini import MiniMatchConfig
from dark3r_ros.raw.decode import DecodeOptions


@dataclass(frozen=True)
class NodeConfig(Config):
    """Frames, quality of service, queue and outputs of the mapping node."""

    autostart: bool = setting(True, 'Configure and activate without waiting for a lifecycle manager.')
    map_frame: str = setting('map', 'Frame of the map, of ~/path, ~/cloud, ~/map and ~/keyframes.')
    odom_frame: str = setting('odom', 'Frame of a continuous odometry; map -> odom is published when it exists.')
    base_frame: str = setting('base_link', 'Frame of the robot body whose pose is published.')
    camera_frame: str = setting('', "Optical frame of the camera; empty takes the image's frame_id.")
    image_reliability: str = setting(
        'best_effort', 'Reliability asked for on image_raw and camera_info.', choices=('best_effort', 'reliable')
    )
    image_depth: int = setting(5, 'Images that the middleware keeps for this node.', minimum=1, maximum=1000)
    queue_length: int = setting(
        3,
        'Images that wait for the mapping; beyond it the one that is needed least is dropped and counted.',
        minimum=1,
        maximum=10000,
    )
    calibration_wait: float = setting(
        1.0, 'Time that the first images wait for a camera_info.', unit='s', minimum=0.0, maximum=60.0
    )
    predictor: str = setting(
        'mini', 'Matcher between two frames: mini, classical, a weight file or a folder of `dark3r export-engine`.'
    )
    device: str = setting('auto', 'Where a network runs.', choices=('auto', 'cpu', 'cuda'))
    noise_preset: str = setting('', 'Named noise model of the sensor; empty uses noise_file, or the frames alone.')
    noise_file: str = setting('', 'Noise model written by `dark3r calibrate-noise`; empty for none.')
    use_odometry: bool = setting(
        True, 'Find the metric scale from the topic odom, or from odom -> base on /tf where nobody publishes it.'
    )
    publish_tf: bool = setting(True, 'Publish map -> odom, or map -> base if nobody owns odom -> base.', dynamic=True)
    publish_odometry: bool = setting(True, 'Publish ~/odometry.', dynamic=True)
    publish_path: bool = setting(True, 'Publish ~/path.', dynamic=True)
    publish_cloud: bool = setting(True, 'Publish ~/cloud for every keyframe.', dynamic=True)
    publish_map: bool = setting(True, 'Publish ~/map.', dynamic=True)
    publish_grid: bool = setting(False, 'Publish ~/grid with every ~/map, once the scale is known.', dynamic=True)
    publish_keyframes: bool = setting(True, 'Publish ~/keyframes.', dynamic=True)
    path_period: float = setting(
        1.0, 'Least time between two paths.', unit='s', minimum=0.1, maximum=3600.0, dynamic=True
    )
    map_period: float = setting(
        5.0, 'Least time between two maps.', unit='s', minimum=0.5, maximum=3600.0, dynamic=True
    )
    map_voxels: int = setting(
        400,
        'Voxels along the longest side of ~/map; each keeps its most certain point.',
        minimum=10,
        maximum=2000,
        dynamic=True,
    )
    grid_resolution: float = setting(
        0.1, 'Side of a cell of ~/grid.', unit='m', minimum=0.01, maximum=10.0, dynamic=True
    )
    grid_low: float = setting(
        0.15,
        'Height above the base from which points are obstacles.',
        unit='m',
        minimum=-10.0,
        maximum=10.0,
        dynamic=True,
    )
    grid_high: float = setting(
        1.8,
        'Height above the base up to which points are obstacles.',
        unit='m',
        minimum=-10.0,
        maximum=100.0,
        dynamic=True,
    )
    grid_points: int = setting(
        2, 'Points in a cell that make an obstacle of it.', minimum=1, maximum=1000, dynamic=True
    )
    grid_radius: float = setting(
        0.3,
        'Radius of the robot: the ground that it drove over is free.',
        unit='m',
        minimum=0.0,
        maximum=10.0,
        dynamic=True,
    )
    grid_reach: float = setting(
        10.0, 'Longest sight line that clears cells.', unit='m', minimum=0.1, maximum=1000.0, dynamic=True
    )
    path_length: int = setting(20000, 'Newest poses kept in ~/path.', minimum=1, maximum=1000000)
    idle_flush: float = setting(
        2.0,
        'Time without images after which the map is refined as a whole and ~/path and ~/map are published once more.',
        unit='s',
        minimum=0.5,
        maximum=3600.0,
    )
    no_data_after: float = setting(
        5.0,
        'Time without images after which the node explains what it waits for.',
        unit='s',
        minimum=1.0,
        maximum=3600.0,
    )
    tf_wait: float = setting(
        0.3, 'Time that a pose waits for odom -> base at its stamp.', unit='s', minimum=0.0, maximum=10.0
    )
    viewer: str = setting(
        '', "Live viewer by rerun: 'window', or a file .rrd that is recorded; empty for none. Needs the extra viewer."
    )
    error_after: int = setting(
        10, 'Frames in a row that fail with an error of the program after which the state is error.', minimum=1
    )
    load_on_start: str = setting('', 'Saved map to go on in when the node is configured; empty starts a new map.')
    save_on_shutdown: str = setting(
        '', 'Folder that gets the map, as by ~/save_map, when the node shuts down; empty for none.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        names = (self.map_frame, self.odom_frame, self.base_frame)
        if '' in names or len(set(names)) < len(names):
            raise ConfigError(f'map_frame, odom_frame and base_frame must be three different names, got {names}')
        if self.grid_low >= self.grid_high:
            raise ConfigError(f'grid_low {self.grid_low:g} must be below grid_high {self.grid_high:g}')
        if self.noise_preset and self.noise_file:
            raise ConfigError('noise_preset and noise_file exclude each other: leave one empty')


# Parameter prefix of each configuration; the node's own have none.
GROUPS: dict[str, type[Config]] = {
    '': NodeConfig,
    'decode': DecodeOptions,
    'mapping': MappingConfig,
    'metric': MetricConfig,
    'advice': AdviceConfig,
    'matcher': ClassicalConfig,
    'learned': LearnedConfig,
    'mini': MiniMatchConfig,
}
