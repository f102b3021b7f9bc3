# SPDX-License-Identifier: Apache-2.0
"""Topics and services of the nodes as data: the nodes create them from here, the documentation prints them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Topic:
    """One topic: name, ROS type, quality of service (`image`, `reliable`, `latched`) and meaning."""

    name: str
    type: str
    qos: str
    doc: str


@dataclass(frozen=True)
class Service:
    """One service: name, ROS type and meaning."""

    name: str
    type: str
    doc: str


IMAGE = Topic(
    'image_raw',
    'sensor_msgs/msg/Image',
    'image',
    'Raw mosaic: bayer_{rggb,bggr,gbrg,grbg}{8,16}; mono8/16 with decode.encoding_override; rgb8/bgr8 with a warning.',
)
CAMERA_INFO = Topic(
    'camera_info',
    'sensor_msgs/msg/CameraInfo',
    'image',
    'Intrinsics of the full sensor with region of interest and binning; kept by frame and size, may come late or once.',
)
ODOM = Topic(
    'odom',
    'nav_msgs/msg/Odometry',
    'sensor',
    'Optional odometry: gives the metric scale, tells jumps, fills in odom -> base between transforms. NaN is refused.',
)
TF_IN = Topic('/tf', 'tf2_msgs/msg/TFMessage', 'reliable', 'odom -> base, where somebody owns it.')
TF_STATIC_IN = Topic('/tf_static', 'tf2_msgs/msg/TFMessage', 'latched', 'base -> camera (optical axes).')

INPUTS = (IMAGE, CAMERA_INFO, ODOM, TF_IN, TF_STATIC_IN)

TF = Topic(
    '/tf',
    'tf2_msgs/msg/TFMessage',
    'reliable',
    "map -> odom when somebody owns odom -> base, else map -> base; nothing while lost; the stamp is the image's.",
)
ODOMETRY = Topic(
    '~/odometry',
    'nav_msgs/msg/Odometry',
    'reliable',
    'Pose of the base in the map with covariance, for every posed frame as soon as it is posed. The twist is unknown.',
)
PATH = Topic(
    '~/path', 'nav_msgs/msg/Path', 'latched', 'Newest estimates of all posed frames: the base in the map, as refined.'
)
CLOUD = Topic('~/cloud', 'sensor_msgs/msg/PointCloud2', 'reliable', 'Points of each new keyframe, in the map frame.')
MAP = Topic('~/map', 'sensor_msgs/msg/PointCloud2', 'latched', 'All points, voxelised, in the map frame.')
GRID = Topic(
    '~/grid',
    'nav_msgs/msg/OccupancyGrid',
    'latched',
    'With publish_grid: obstacles between grid_low and grid_high above the base, seen-through and driven cells free.',
)
KEYFRAMES = Topic(
    '~/keyframes',
    'dark3r_ros/msg/KeyframeArray',
    'reliable',
    'Keyframes that are new or moved: pose of the optical frame in the map.',
)
STATUS = Topic(
    '~/status', 'dark3r_ros/msg/MappingStatus', 'reliable', 'State, SNR, scale, advice, latency, drops, loops, memory.'
)
EXTRINSICS = Topic(
    '~/extrinsics',
    'geometry_msgs/msg/TransformStamped',
    'latched',
    'base -> camera (optical axes) as the node uses it, from /tf_static or assumed.',
)
DIAGNOSTICS = Topic(
    '/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray', 'reliable', 'Health of the node once per second.'
)

OUTPUTS = (TF, ODOMETRY, PATH, CLOUD, MAP, GRID, KEYFRAMES, STATUS, EXTRINSICS, DIAGNOSTICS)

RESET = Service('~/reset', 'std_srvs/srv/Trigger', 'Forget the map and start anew; also accepts stamps that went back.')
PAUSE = Service('~/pause', 'std_srvs/srv/SetBool', 'true: ignore images until false; the map stays.')
SAVE_MAP = Service(
    '~/save_map', 'dark3r_ros/srv/SaveMap', 'Write the reconstruction folder with what ~/load_map needs.'
)
LOAD_MAP = Service(
    '~/load_map',
    'dark3r_ros/srv/LoadMap',
    'Go on in a saved map; refused in one sentence when camera or weights differ.',
)

SERVICES = (RESET, PAUSE, SAVE_MAP, LOAD_MAP)


def load(type_name: str) -> Any:
    """Class of a ROS type such as `nav_msgs/msg/Odometry`."""
    package, kind, name = type_name.split('/')
    return getattr(import_module(f'{package}.{kind}'), name)
