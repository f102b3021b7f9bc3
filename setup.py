# SPDX-License-Identifier: Apache-2.0
"""Python packaging: everything but the ROS nodes works from `pip install .`."""

from setuptools import find_packages, setup

MESH = ['open3d-cpu>=0.19', 'libusb-package']
VIEWER = ['rerun-sdk>=0.23']
METRICS = ['lpips>=0.1.4']
ONNX = ['onnx>=1.16', 'onnxruntime>=1.18']
# Part of every pip installation; named for people who take only some rooms with --no-deps.
RAW = ['rawpy>=0.21']
BAGS = ['lz4>=4', 'rosbags>=0.10,<0.12', 'zstandard>=0.20']
# Kinds of data files that may lie beside the modules.
DATA = ('css', 'html', 'jinja', 'json', 'npz', 'png', 'safetensors', 'txt', 'yaml')
DEV = [
    'pytest>=8',
    'pytest-timeout',
    'pytest-xdist',
    'hypothesis>=6',
    'mypy>=1.10',
    'ruff>=0.9',
    'types-PyYAML',
    'types-tqdm',
    'types-psutil',
]

setup(
    name='dark3r_ros',
    version='0.1.0',
    description='Structure from motion, online mapping and radiance fields from raw images taken in the dark',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['dark3r_ros', 'dark3r_ros.*']),
    package_data={'dark3r_ros': ['py.typed', *(f'**/*.{suffix}' for suffix in DATA)]},
    python_requires='>=3.10',
    install_requires=[
        *BAGS,
        *RAW,
        'matplotlib>=3.8',
        'numpy>=1.26',
        'opencv-python-headless>=4.9',
        'pillow>=10',
        'poselib>=2.0.4',
        'psutil>=5.9',
        'pycolmap>=3.11',
        'pyyaml>=6',
        'safetensors>=0.4.3',
        'scipy>=1.11',
        'torch>=2.5',
        'tqdm>=4.60',
    ],
    extras_require={
        'bags': BAGS,
        'raw': RAW,
        'onnx': ONNX,
        'mesh': MESH,
        'viewer': VIEWER,
        'metrics': METRICS,
        'dev': DEV,
    },
    entry_points={'console_scripts': ['dark3r = dark3r_ros.cli.main:main']},
)
