# SPDX-License-Identifier: Apache-2.0
"""ROS messages inside bags: building and parsing them without a ROS installation, through `rosbags`."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from dark3r_ros.errors import DataError, DependencyError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.types import Frame

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

IMAGE = 'sensor_msgs/msg/Image'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
ODOMETRY = 'nav_msgs/msg/Odometry'
TF = 'tf2_msgs/msg/TFMessage'

_NANOSECONDS = 10**9


@functools.lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message definitions of ROS 2 Kilted; DependencyError when `rosbags` is missing."""
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise DependencyError('reading and writing bags needs rosbags: pip install "dark3r_ros[bags]"') from error
    return get_typestore(Stores.ROS2_KILTED)


def _type(name: str) -> Any:
    return typestore().types[name]


def stamp_message(stamp_ns: int) -> Any:
    """Build builtin_interfaces/Time of integer nanoseconds."""
    seconds, rest = divmod(int(stamp_ns), _NANOSECONDS)
    return _type('builtin_interfaces/msg/Time')(sec=seconds, nanosec=rest)


def header_message(stamp_ns: int, frame_id: str) -> Any:
    """Build std_msgs/Header."""
    return _type('std_msgs/msg/Header')(stamp=stamp_message(stamp_ns), frame_id=frame_id)


def message_stamp_ns(message: Any) -> int:
    """Header stamp of a parsed message in nanoseconds."""
    return int(message.header.stamp.sec) * _NANOSECONDS + int(message.header.stamp.nanosec)


def serialized_stamp_ns(data: bytes) -> int:
    """Header stamp of a serialised message that begins with a header, without parsing the rest."""
    if len(data) < 12:
        raise DataError(f'a message of {len(data)} bytes is too short for a header')
    # The second byte of the CDR encapsulation says the byte order; the header's time follows at once.
    seconds, rest = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return int(seconds) * _NANOSECONDS + int(rest)


def image_message(frame: Frame, bits: int = 16) -> Any:
    """Build sensor_msgs/Image of a frame: `bayer_*16`, `bayer_*8`, `mono16` or `mono8`, little endian."""
    if bits not in (8, 16):
        raise ValueError(f'an image has 8 or 16 bits, not {bits}')
    mosaic = frame.mosaic
    if bits == 8 and int(mosaic.max(initial=0)) > 255:
        raise DataError(f'values up to {int(mosaic.max())} do not fit into 8 bits: write 16')
    values = np.ascontiguousarray(mosaic, dtype='<u2' if bits == 16 else np.uint8)
    return _type(IMAGE)(
        header=header_message(frame.stamp_ns, frame.frame_id),
        height=values.shape[0],
        width=values.shape[1],
        encoding=f'mono{bits}' if frame.cfa == 'mono' else f'bayer_{frame.cfa}{bits}',
        is_bigendian=0,
        step=values.strides[0],
        data=values.reshape(-1).view(np.uint8),
    )


def camera_info_message(camera: Camera, stamp_ns: int, frame_id: str) -> Any:
    """Build sensor_msgs/CameraInfo of the full image: rectification is the identity, P = [K 0]."""
    plain = camera.distortion_model == 'none'
    return _type(CAMERA_INFO)(
        header=header_message(stamp_ns, frame_id),
        height=camera.height,
        width=camera.width,
        distortion_model='plumb_bob' if plain else camera.distortion_model,
        d=np.zeros(5) if plain else np.array(camera.distortion, dtype=np.float64),
        k=camera.matrix.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.column_stack([camera.matrix, np.zeros(3)]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=_type('sensor_msgs/msg/RegionOfInterest')(x_offset=0, y_offset=0, height=0, width=0, do_rectify=False),
    )


def _vector(values: ArrayLike) -> Any:
    x, y, z = (float(value) for value in np.asarray(values, dtype=np.float64).reshape(3))
    return _type('geometry_msgs/msg/Vector3')(x=x, y=y, z=z)


def odometry_message(
    stamp_ns: int,
    world_from_body: ArrayLike,
    *,
    linear: ArrayLike = (0.0, 0.0, 0.0),
    angular: ArrayLike = (0.0, 0.0, 0.0),
    pose_covariance: ArrayLike | None = None,
    twist_covariance: ArrayLike | None = None,
    frame_id: str = 'odom',
    child_frame_id: str = 'base_link',
) -> Any:
    """Build nav_msgs/Odometry: pose (4, 4) of the body in `frame_id`, velocities in the body, covariances (6, 6)."""
    pose = np.asarray(world_from_body, dtype=np.float64)
    x, y, z, w = (float(value) for value in se3.quaternion(pose[:3, :3]))
    px, py, pz = (float(value) for value in pose[:3, 3])
    pose_message = _type('geometry_msgs/msg/Pose')(
        position=_type('geometry_msgs/msg/Point')(x=px, y=py, z=pz),
        orientation=_type('geometry_msgs/msg/Quaternion')(x=x, y=y, z=z, w=w),
    )
    covariances = [
        np.zeros(36) if given is None else np.asarray(given, dtype=np.float64).reshape(36)
        for given in (pose_covariance, twist_covariance)
    ]
    twist = _type('geometry_msgs/msg/Twist')(linear=_vector(linear), angular=_vector(angular))
    return _type(ODOMETRY)(
        header=header_message(stamp_ns, frame_id),
        child_frame_id=child_frame_id,
        pose=_type('geometry_msgs/msg/PoseWithCovariance')(pose=pose_message, covariance=covariances[0]),
        twist=_type('geometry_msgs/msg/TwistWithCovariance')(twist=twist, covariance=covariances[1]),
    )


def transforms_message(stamp_ns: int, transforms: list[tuple[str, str, ArrayLike]]) -> Any:
    """Build tf2_msgs/TFMessage of (parent, child, parent_from_child (4, 4)) triples."""
    items = []
    for parent, child, matrix in transforms:
        pose = np.asarray(matrix, dtype=np.float64)
        x, y, z, w = (float(value) for value in se3.quaternion(pose[:3, :3]))
        items.append(
            _type('geometry_msgs/msg/TransformStamped')(
                header=header_message(stamp_ns, parent),
                child_frame_id=child,
                transform=_type('geometry_msgs/msg/Transform')(
                    translation=_vector(pose[:3, 3]),
                    rotation=_type('geometry_msgs/msg/Quaternion')(x=x, y=y, z=z, w=w),
                ),
            )
        )
    return _type(TF)(transforms=items)


def serialize(message: Any) -> memoryview | bytes:
    """CDR bytes of a message built by this module."""
    return typestore().serialize_cdr(message, message.__msgtype__)


def deserialize(data: bytes, type_name: str) -> Any:
    """Parse CDR bytes; DataError when they are cut or of another type."""
    try:
        return typestore().deserialize_cdr(data, type_name)
    except Exception as error:  # rosbags lets struct, index, unicode and value errors through
        raise DataError(f'a {type_name} message of {len(data)} bytes cannot be parsed ({error})') from error
