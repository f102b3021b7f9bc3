# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes. Nothing outside this room imports rclpy."""
