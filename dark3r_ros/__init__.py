# SPDX-License-Identifier: Apache-2.0
"""Structure from motion, online mapping and radiance fields from raw images taken in the dark."""

from pkgutil import extend_path

# The ROS interface generator installs `dark3r_ros.msg` and its siblings into another folder of the same
# package name (ros2/rosidl_python#141); with the source tree first on the path they would be hidden.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'
