# SPDX-License-Identifier: Apache-2.0
"""Bags: see `bag_writer` and `bag_reader`."""

from dark3r_ros.storage.bag_reader import BagMessage, BagReader, TopicSummary
from dark3r_ros.storage.bag_writer import IMAGE_TOPIC, INFO_TOPIC, ODOM_TOPIC, BagWriter

__all__ = ['IMAGE_TOPIC', 'INFO_TOPIC', 'ODOM_TOPIC', 'BagMessage', 'BagReader', 'BagWriter', 'TopicSummary']
