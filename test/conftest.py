# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the whole test suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def shared_root() -> Path:
    """Folder of shared reference data: $DARK3R_SHARED, or `shared` beside the project; skips where there is none."""
    folder = Path(os.environ.get('DARK3R_SHARED') or Path(__file__).resolve().parents[2] / 'shared')
    if not folder.is_dir():
        pytest.skip(f'no shared reference data at {folder}')
    return folder
