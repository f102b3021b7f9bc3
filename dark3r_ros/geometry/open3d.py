# SPDX-License-Identifier: Apache-2.0
"""Open3D, an optional package."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from contextlib import suppress
from typing import Any

from dark3r_ros.errors import DependencyError


def import_open3d() -> Any:
    """Import Open3D, lending it the libusb of a Python package where the system has none."""
    if importlib.util.find_spec('open3d') is None:
        raise DependencyError('meshes need Open3D: pip install "dark3r_ros[mesh]"')
    with suppress(ImportError, OSError):
        return importlib.import_module('open3d')
    try:
        libusb = importlib.import_module('libusb_package')
        ctypes.CDLL(str(libusb.get_library_path()), mode=ctypes.RTLD_GLOBAL)
        return importlib.import_module('open3d')
    except (ImportError, OSError) as error:
        raise DependencyError(
            f'Open3D cannot be loaded ({error}): install libusb-1.0, or pip install libusb-package'
        ) from error
