# SPDX-License-Identifier: Apache-2.0
"""Copies of the source tree and shells with or without the activated environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What an activated environment adds; a test that starts from nothing must not inherit it.
ACTIVATED = (
    'AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'DARK3R_ROOT', 'LD_LIBRARY_PATH', 'PYTHONPATH',
    'VIRTUAL_ENV', '_ROS_WHEELS_BOOTSTRAP_COMPLETE',
)  # fmt: skip


@pytest.fixture(scope='session')
def bare_environment() -> dict[str, str]:
    """The environment variables of a shell in which nothing was activated."""
    environment = {name: value for name, value in os.environ.items() if name not in ACTIVATED}
    path = environment['PATH'].split(os.pathsep)
    environment['PATH'] = os.pathsep.join(item for item in path if not item.startswith(str(ROOT)))
    return environment


@pytest.fixture(scope='session')
def copy_tree() -> Callable[[Path], Path]:
    """Copies what git tracks or would track, as a fresh clone has it."""

    def copy(target: Path) -> Path:
        command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if listing.returncode:
            pytest.skip('not a git checkout')
        for name in listing.stdout.decode().split('\0'):
            if name and (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
        return target

    return copy


@pytest.fixture(scope='session')
def activated_shell(bare_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs bash lines after `source environment/activate.sh`."""
    if not (ROOT / '.venv' / 'dark3r' / 'mode').is_file():
        pytest.skip('environment/setup.sh has not made this environment')

    def run(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        lines = f'set -e\nsource "{ROOT}/environment/activate.sh"\n{script}'
        return subprocess.run(
            ['bash', '-c', lines], cwd=cwd, env=bare_environment, capture_output=True, text=True, check=False
        )

    return run
