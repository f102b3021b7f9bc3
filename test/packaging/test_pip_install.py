# SPDX-License-Identifier: Apache-2.0
"""`pip install .` on a machine without ROS: every room but `nodes`, and the command."""

from __future__ import annotations

import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def is_ros(entry: Path) -> bool:
    """Whether an entry of site-packages belongs to a ROS wheel (or to an installed copy of this package)."""
    name = entry.name.lower()
    known = (
        Path(sys.prefix) / 'share' / 'ament_index' / 'resource_index' / 'packages' / entry.name.split('-')[0]
    ).exists()
    return known or name.startswith(('ros_', 'rclpy', 'rosidl', 'dark3r', '__editable__')) or name.endswith('.pth')


@pytest.fixture(scope='module')
def environment_without_ros(
    tmp_path_factory: pytest.TempPathFactory,
    copy_tree: Callable[[Path], Path],
    bare_environment: dict[str, str],
) -> tuple[Path, dict[str, str]]:
    """A fresh environment that borrows the numeric packages of this one, with dark3r_ros installed by pip."""
    folder = tmp_path_factory.mktemp('pip')
    venv = folder / 'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], env=bare_environment, check=True)
    borrowed = folder / 'borrowed'
    borrowed.mkdir()
    # Debian's Python names folders here that a virtual environment does not have.
    folders = [*map(Path, reversed(site.getsitepackages())), Path(sysconfig.get_path('purelib'))]
    for packages in filter(Path.is_dir, folders):
        for entry in packages.iterdir():
            if not is_ros(entry) and not (borrowed / entry.name).exists():
                (borrowed / entry.name).symlink_to(entry)
    next(venv.glob('lib/python3*/site-packages')).joinpath('borrowed.pth').write_text(f'{borrowed}\n', encoding='utf-8')
    source = copy_tree(folder / 'source')
    command = [
        venv / 'bin' / 'python',
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
        source,
    ]
    result = subprocess.run(command, env=bare_environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return venv, bare_environment


def run(environment: tuple[Path, dict[str, str]], *command: str) -> subprocess.CompletedProcess[str]:
    venv, variables = environment
    return subprocess.run(
        [venv / 'bin' / command[0], *command[1:]], cwd=venv, env=variables, capture_output=True, text=True, check=False
    )


def test_the_command_answers(environment_without_ros: tuple[Path, dict[str, str]]) -> None:
    result = run(environment_without_ros, 'dark3r', '--help')
    assert result.returncode == 0, result.stderr
    assert 'usage: dark3r' in result.stdout


def test_every_room_but_nodes_imports_without_ros(environment_without_ros: tuple[Path, dict[str, str]]) -> None:
    rooms = sorted(path.parent.name for path in (ROOT / 'dark3r_ros').glob('*/__init__.py'))
    program = (
        'import importlib, importlib.util, pkgutil, sys, dark3r_ros\n'
        f'for room in {[room for room in rooms if room != "nodes"]!r}:\n'
        '    package = importlib.import_module(f"dark3r_ros.{room}")\n'
        '    for item in pkgutil.walk_packages(package.__path__, package.__name__ + "."):\n'
        '        importlib.import_module(item.name)\n'
        'print(dark3r_ros.__file__)\n'
        'print(importlib.util.find_spec("rclpy"), "rclpy" in sys.modules)\n'
    )
    result = run(environment_without_ros, 'python', '-c', program)
    assert result.returncode == 0, result.stderr
    origin, ros = result.stdout.splitlines()
    assert origin.startswith(str(environment_without_ros[0]))
    assert ros == 'None False'


def test_every_file_of_the_package_is_installed(environment_without_ros: tuple[Path, dict[str, str]]) -> None:
    installed = next(environment_without_ros[0].glob('lib/python3*/site-packages/dark3r_ros'))
    source = environment_without_ros[0].parent / 'source' / 'dark3r_ros'
    expected = {str(path.relative_to(source)) for path in source.rglob('*') if path.is_file()}
    missing = {name for name in expected if not (installed / name).is_file()}
    assert missing == set(), 'add the file type to DATA in setup.py'
    assert len(expected) > 20
