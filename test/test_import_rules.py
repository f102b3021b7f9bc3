# SPDX-License-Identifier: Apache-2.0
"""The import table of docs/architecture.md, read from the syntax trees, and the licence line of every source file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'dark3r_ros'

# Shared modules beside the rooms. `types` builds on the camera of `geometry`; the other two on nothing.
BASE = {'errors', 'config'}
ROOMS: dict[str, set[str]] = {'geometry': set()}
ROOMS['raw'] = {'geometry'}
ROOMS['simulation'] = {'geometry', 'raw'}
ROOMS['storage'] = {'geometry', 'raw'}
ROOMS['model'] = {'geometry', 'raw'}
ROOMS['matching'] = {'geometry', 'raw', 'model'}
ROOMS['sfm'] = {'geometry', 'raw', 'simulation', 'storage', 'model', 'matching'}
ROOMS['mapping'] = ROOMS['sfm'] | {'sfm'}
ROOMS['nerf'] = {'geometry', 'raw', 'storage'}
ROOMS['training'] = {'geometry', 'raw', 'simulation', 'storage', 'model', 'matching'}
ROOMS['evaluation'] = set(ROOMS)
ROOMS['nodes'] = set(ROOMS) - {'training', 'evaluation'}
ROOMS['cli'] = set(ROOMS) - {'nodes'}

INTERFACES = {'msg', 'srv', 'action'}
# These rooms also run on a bare machine with CUDA and nothing else.
BARE_ROOMS = ('geometry', 'raw', 'simulation', 'model', 'training', 'nerf')
BARE_PACKAGES = {'numpy', 'scipy', 'cv2', 'torch', 'safetensors', 'dark3r_ros'}
# Slow or optional: imported where they are used.
LAZY_PACKAGES = {
    'gtsam',
    'matplotlib',
    'onnxruntime',
    'open3d',
    'poselib',
    'pyceres',
    'pycolmap',
    'rawpy',
    'rerun',
    'rosbags',
    'tensorrt',
}
ROS_PACKAGES = {
    'action_msgs',
    'ament_index_python',
    'builtin_interfaces',
    'diagnostic_msgs',
    'geometry_msgs',
    'lifecycle_msgs',
    'nav_msgs',
    'rcl_interfaces',
    'rclpy',
    'sensor_msgs',
    'std_msgs',
    'std_srvs',
    'tf2_msgs',
    'tf2_ros',
}


@dataclass(frozen=True)
class Import:
    """One imported module: dotted name, line, and whether it is imported when the module is."""

    name: str
    line: int
    eager: bool


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[Import]:
    """All imports of a module; names taken from our own package are resolved to the submodule that they may be."""
    stack: list[tuple[ast.AST, bool]] = [(tree, True)]
    while stack:
        node, eager = stack.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, eager)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = module.split('.')
                parts = parts[: len(parts) - node.level + int(is_package)]
                base = '.'.join([*parts, base] if base else parts)
            for alias in node.names:
                yield Import(f'{base}.{alias.name}' if base.split('.')[0] == 'dark3r_ros' else base, node.lineno, eager)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            stack.extend((child, False) for child in ast.iter_child_nodes(node))
        elif isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
            stack.extend((child, False) for child in node.body)
            stack.extend((child, eager) for child in node.orelse)
        else:
            stack.extend((child, eager) for child in ast.iter_child_nodes(node))


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Every breach of the table in one module, as `line: what`."""
    parts = module.split('.')
    room = parts[1] if len(parts) > 1 and parts[1] in ROOMS else None
    allowed = BASE | {'types'} | (ROOMS[room] | {room} if room else {'geometry'})
    if room == 'geometry':
        allowed.discard('types')
    if room == 'nodes':
        allowed |= INTERFACES
    if len(parts) == 2 and parts[1] in BASE:
        allowed = BASE
    found = []
    for item in imports_of(ast.parse(source), module, is_package):
        top, *rest = item.name.split('.')
        if top == 'dark3r_ros' and rest and rest[0] not in allowed and rest[0] != '__version__':
            found.append(f'{item.line}: {room or module} may not import {item.name}')
        if room == 'nodes':
            continue
        if top in ROS_PACKAGES:
            found.append(f'{item.line}: only nodes may import {top}')
        if item.eager and top in LAZY_PACKAGES:
            found.append(f'{item.line}: {top} must be imported where it is used')
        if item.eager and room in BARE_ROOMS and top not in BARE_PACKAGES and top not in sys.stdlib_module_names:
            found.append(f'{item.line}: {room} may not need {top} at import time')
    return found


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_the_table(path: Path) -> None:
    is_package = path.name == '__init__.py'
    module = '.'.join((path.parent if is_package else path.with_suffix('')).relative_to(ROOT).parts)
    assert violations(module, path.read_text(encoding='utf-8'), is_package) == []


@pytest.mark.parametrize(
    ('module', 'source', 'expected'),
    [
        ('dark3r_ros.raw.cfa', 'from dark3r_ros.storage import bag', 'raw may not import dark3r_ros.storage.bag'),
        ('dark3r_ros.raw.cfa', 'from dark3r_ros import mapping', 'raw may not import dark3r_ros.mapping'),
        ('dark3r_ros.raw.cfa', 'from ..nodes import qos', 'raw may not import dark3r_ros.nodes.qos'),
        ('dark3r_ros.cli.map', 'def f():\n    import dark3r_ros.nodes.qos', 'cli may not import dark3r_ros.nodes.qos'),
        ('dark3r_ros.geometry.se3', 'import dark3r_ros.types', 'geometry may not import dark3r_ros.types'),
        ('dark3r_ros.config', 'import dark3r_ros.types', 'dark3r_ros.config may not import dark3r_ros.types'),
        ('dark3r_ros.storage.bag', 'def f():\n    import rclpy', 'only nodes may import rclpy'),
        ('dark3r_ros.storage.bag', 'import rosbags.highlevel', 'rosbags must be imported where it is used'),
        ('dark3r_ros.model.layers', 'if True:\n    import yaml', 'model may not need yaml at import time'),
    ],
)
def test_checker_finds(module: str, source: str, expected: str) -> None:
    assert [entry.split(': ', 1)[1] for entry in violations(module, source)][:1] == [expected]


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('dark3r_ros.nodes.qos', 'import rclpy\nfrom dark3r_ros.msg import Keyframe\nimport dark3r_ros.mapping'),
        ('dark3r_ros.storage.bag', 'def f():\n    import rosbags.highlevel'),
        ('dark3r_ros.raw.noise', 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import matplotlib'),
        ('dark3r_ros.evaluation.bench', 'from dark3r_ros.training import loop'),
        ('dark3r_ros.raw.noise', 'from . import cfa\nfrom dark3r_ros.types import Frame'),
    ],
)
def test_checker_accepts(module: str, source: str) -> None:
    assert violations(module, source) == []


def test_rooms_are_exactly_those_of_the_table() -> None:
    present = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob('*.py'))}
    assert present <= set(ROOMS), f'rooms without a rule: {sorted(present - set(ROOMS))}'
    assert not present & INTERFACES, 'a subpackage of that name would collide with the generated interfaces'


def test_importing_every_room_but_nodes_loads_nothing_heavy() -> None:
    modules = ['.'.join(path.with_suffix('').relative_to(ROOT).parts) for path in sources()]
    modules = [name.removesuffix('.__init__') for name in modules if not name.startswith('dark3r_ros.nodes')]
    program = (
        'import importlib, sys\n'
        f'for name in {modules!r}: importlib.import_module(name)\n'
        f'print(sorted({LAZY_PACKAGES | ROS_PACKAGES!r} & set(sys.modules)))'
    )
    result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '[]'


def tracked_files() -> list[Path]:
    listing = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip('not a git checkout')
    return [ROOT / name for name in listing.stdout.decode().split('\0') if name]


def test_every_source_file_names_its_licence() -> None:
    suffixes = {'.py', '.sh', '.yaml', '.yml', '.xml', '.toml', '.cmake', '.rviz'}
    names = {'CMakeLists.txt', 'Makefile', 'run', 'dark3r', 'mapping_node', 'nerf_node', 'recorder', 'replay'}
    missing = []
    for path in tracked_files():
        checked = path.suffix in suffixes or path.name in names or path.name.startswith(('requirements', 'constraints'))
        if checked and path.is_file():
            head = path.read_text(encoding='utf-8').splitlines()[:4]
            if not any('SPDX-License-Identifier: Apache-2.0' in line for line in head):
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []
