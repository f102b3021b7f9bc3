# SPDX-License-Identifier: Apache-2.0
"""Python packaging: everything but the ROS nodes works from `pip install .`."""

from setuptools import find_packages, setup

setup(
    name='dark3r_ros',
    version='0.1.0',
    packages=find_packages(include=['dark3r_ros', 'dark3r_ros.*']),
    package_data={'dark3r_ros': ['py.typed']},
    python_requires='>=3.10',
    install_requires=['numpy', 'scipy', 'torch', 'safetensors', 'opencv-python-headless', 'pyyaml', 'rosbags', 'rawpy', 'poselib', 'matplotlib', 'tqdm'],
    entry_points={'console_scripts': ['dark3r = dark3r_ros.cli.main:main']},
)
