# SPDX-License-Identifier: Apache-2.0
"""The one place where ROS messages become our types and back: stamps, axes, poses, images, clouds.

Our poses use optical axes (x right, y down, z forward); ROS bodies use x forward, y left, z up (REP-103). Large
arrays leave as `array.array`: rclpy copies those in one go, where a list or a numpy array goes element by element.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Vector3
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from dark3r_ros.errors import DataError
from dark3r_ros.geometry import se3
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.types import Float64Array, Frame, PointCloud

if TYPE_CHECKING:
    from dark3r_ros.nodes.grid import Grid

NANOSECONDS = 1_000_000_000

# What an estimator of the pose alone knows about the velocity: nothing. Units (m/s)^2 and (rad/s)^2.
UNKNOWN_VARIANCE = 1e9

_FIELDS = (('x', 0), ('y', 4), ('z', 8), ('rgb', 16), ('confidence', 20))
_POINT = np.dtype(
    {
        'names': [name for name, _ in _FIELDS],
        'formats': ['<f4', '<f4', '<f4', '<u4', '<f4'],
        'offsets': [offset for _, offset in _FIELDS],
        'itemsize': 32,
    }
)


def stamp_to_ns(stamp: Any) -> int:
    """Integer nanoseconds of a builtin_interfaces Time or Duration."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def stamp_from_ns(stamp_ns: int) -> Time:
    """Time message of integer nanoseconds; negative values keep nanosec in [0, 1e9)."""
    seconds, nanoseconds = divmod(int(stamp_ns), NANOSECONDS)
    return Time(sec=seconds, nanosec=nanoseconds)


def header(stamp_ns: int, frame_id: str) -> Header:
    """Header of a stamp and a frame."""
    return Header(stamp=stamp_from_ns(stamp_ns), frame_id=frame_id)


def byte_array(values: NDArray[Any]) -> array[int]:
    """Copy the bytes of an array, in C order, into the container that rclpy assigns without a loop."""
    result = array('B')
    result.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return result


def pose_to_message(target_from_source: Float64Array) -> Pose:
    """Pose message of a transform (4, 4)."""
    x, y, z = (float(value) for value in target_from_source[:3, 3])
    qx, qy, qz, qw = (float(value) for value in se3.quaternion(target_from_source[:3, :3]))
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def _matrix(translation: Any, rotation: Any, what: str) -> Float64Array:
    values = (translation.x, translation.y, translation.z, rotation.x, rotation.y, rotation.z, rotation.w)
    if not np.all(np.isfinite(values)):
        raise DataError(f'{what} holds NaN or infinity')
    if sum(value * value for value in values[3:]) < 1e-12:
        raise DataError(f'{what} has a zero quaternion')
    return se3.from_quaternion(values[3:], values[:3])


def pose_from_message(pose: Any) -> Float64Array:
    """Transform (4, 4) of a Pose message; DataError on NaN, infinity or a zero quaternion."""
    return _matrix(pose.position, pose.orientation, 'the pose')


def transform_to_message(
    target_from_source: Float64Array, stamp_ns: int, target_frame: str, source_frame: str
) -> TransformStamped:
    """TransformStamped with parent `target_frame` and child `source_frame`."""
    x, y, z = (float(value) for value in target_from_source[:3, 3])
    qx, qy, qz, qw = (float(value) for value in se3.quaternion(target_from_source[:3, :3]))
    return TransformStamped(
        header=header(stamp_ns, target_frame),
        child_frame_id=source_frame,
        transform=Transform(translation=Vector3(x=x, y=y, z=z), rotation=Quaternion(x=qx, y=qy, z=qz, w=qw)),
    )


def transform_from_message(message: Any) -> Float64Array:
    """parent_from_child (4, 4) of a TransformStamped; DataError on NaN, infinity or a zero quaternion."""
    edge = f'the transform {message.header.frame_id} -> {message.child_frame_id}'
    return _matrix(message.transform.translation, message.transform.rotation, edge)


def body_covariance(
    covariance: Float64Array,
    map_from_world: Float64Array,
    world_from_camera: Float64Array,
    camera_from_base: Float64Array,
) -> Float64Array:
    """Covariance (6, 6) of the base in map axes from that of the camera in world axes, order x y z rx ry rz.

    A small rotation w of the camera also moves the base, which sits at r from it: dp_base = dp + w x r.
    """
    lever = world_from_camera[:3, :3] @ camera_from_base[:3, 3]
    jacobian = np.eye(6)
    jacobian[:3, 3:] = -se3.hat(lever)
    rotation = np.kron(np.eye(2), map_from_world[:3, :3])
    jacobian = rotation @ jacobian
    return np.asarray(jacobian @ covariance @ jacobian.T)


def odometry_message(
    map_from_base: Float64Array, covariance: Float64Array, stamp_ns: int, map_frame: str, base_frame: str
) -> Odometry:
    """Odometry with pose and covariance; the twist is not estimated and carries a huge variance."""
    message = Odometry(header=header(stamp_ns, map_frame), child_frame_id=base_frame)
    message.pose.pose = pose_to_message(map_from_base)
    message.pose.covariance = np.asarray(covariance, dtype=np.float64).reshape(36)
    message.twist.covariance = np.diag(np.full(6, UNKNOWN_VARIANCE)).reshape(36)
    return message


def pose_stamped(map_from_base: Float64Array, stamp_ns: int, map_frame: str) -> PoseStamped:
    """One entry of a path."""
    return PoseStamped(header=header(stamp_ns, map_frame), pose=pose_to_message(map_from_base))


def path_message(poses: Sequence[PoseStamped], stamp_ns: int, map_frame: str) -> Path:
    """Path of poses that were already converted."""
    return Path(header=header(stamp_ns, map_frame), poses=list(poses))


def cloud_message(cloud: PointCloud, stamp_ns: int, frame_id: str) -> PointCloud2:
    """PointCloud2 in the layout of PCL's PointXYZRGB (32 bytes a point), with `confidence` at byte 20."""
    points = np.zeros(len(cloud), dtype=_POINT)
    points['x'], points['y'], points['z'] = cloud.points.T
    red, green, blue = (cloud.colors[:, channel].astype(np.uint32) for channel in range(3))
    points['rgb'] = red << 16 | green << 8 | blue
    points['confidence'] = cloud.confidence
    return PointCloud2(
        header=header(stamp_ns, frame_id),
        height=1,
        width=len(cloud),
        fields=[PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1) for name, offset in _FIELDS],
        is_bigendian=False,
        point_step=_POINT.itemsize,
        row_step=_POINT.itemsize * len(cloud),
        data=byte_array(points),
        is_dense=bool(np.isfinite(cloud.points).all()),
    )


def grid_message(grid: Grid, stamp_ns: int, map_frame: str) -> OccupancyGrid:
    """OccupancyGrid in the plane z = 0 of the map."""
    message = OccupancyGrid(header=header(stamp_ns, map_frame))
    message.info.map_load_time = stamp_from_ns(stamp_ns)
    message.info.resolution = grid.resolution
    message.info.height, message.info.width = grid.cells.shape
    message.info.origin = pose_to_message(se3.make(np.eye(3), [*grid.origin, 0.0]))
    message.data = array('b', grid.cells.tobytes())
    return message


def cloud_from_message(message: Any) -> PointCloud:
    """Points, colours and confidence of a PointCloud2 as written by `cloud_message`, in the frame of the message."""
    layout = {field.name: field.offset for field in message.fields}
    missing = {'x', 'y', 'z'} - set(layout)
    count = message.width * message.height
    if missing or message.is_bigendian or len(message.data) < count * message.point_step:
        raise DataError(
            f'cannot read the cloud: fields {sorted(layout)}, big-endian {message.is_bigendian}, '
            f'{len(message.data)} bytes for {count} points of {message.point_step}'
        )
    raw = np.frombuffer(message.data, dtype=np.uint8, count=count * message.point_step).reshape(count, -1)

    def column(name: str, kind: str) -> NDArray[Any]:
        offset = layout[name]
        return np.ascontiguousarray(raw[:, offset : offset + 4]).view(kind).reshape(count)

    points = np.stack([column(name, '<f4') for name in 'xyz'], axis=1)
    colors = np.full((count, 3), 255, dtype=np.uint8)
    if 'rgb' in layout:
        packed = column('rgb', '<u4')
        colors = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    confidence = column('confidence', '<f4') if 'confidence' in layout else np.ones(count, dtype=np.float32)
    return PointCloud(points, colors, confidence)


def image_message(frame: Frame) -> Image:
    """Image of a frame's mosaic: `bayer_<cfa>16` or `mono16`, little-endian, rows without padding."""
    height, width = frame.mosaic.shape
    message = Image(
        header=header(frame.stamp_ns, frame.frame_id),
        height=height,
        width=width,
        encoding='mono16' if frame.cfa == 'mono' else f'bayer_{frame.cfa}16',
        is_bigendian=0,
        step=2 * width,
    )
    message.data = byte_array(frame.mosaic.astype('<u2', copy=False))
    return message


def camera_info_message(camera: Camera, stamp_ns: int, frame_id: str) -> CameraInfo:
    """CameraInfo of a camera at the size of its images (no region of interest, no binning)."""
    message = CameraInfo(header=header(stamp_ns, frame_id), width=camera.width, height=camera.height)
    # ROS has no model 'none'; plumb_bob with zeros is the same camera.
    message.distortion_model = 'plumb_bob' if camera.distortion_model == 'none' else camera.distortion_model
    message.d = list(camera.distortion) or [0.0] * 5
    message.k = camera.matrix.reshape(9)
    message.r = np.eye(3).reshape(9)
    message.p = np.column_stack([camera.matrix, np.zeros(3)]).reshape(12)
    return message
