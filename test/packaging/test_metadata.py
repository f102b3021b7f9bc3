# SPDX-License-Identifier: Apache-2.0
"""Versions, dependencies and pins that are written in more than one file agree."""

from __future__ import annotations

import ast
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / 'environment'

# Import name -> distribution name, where they differ.
DISTRIBUTIONS = {
    'PIL': 'pillow',
    'cv2': 'opencv-python-headless',
    'yaml': 'pyyaml',
    'open3d': 'open3d-cpu',
    'rerun': 'rerun-sdk',
}
DISTRIBUTIONS['libusb_package'] = 'libusb-package'
# Used where installed, never required.
OPTIONAL = {'cv_bridge', 'rosbags-image', 'tf2-ros', 'tensorrt', 'gtsam', 'pyceres'}
ROS_RUNTIME = {'rclpy', 'rcl_interfaces', 'ament_index_python', 'tf2_ros', 'cv_bridge'}


def setup_keywords() -> dict[str, object]:
    """Keyword arguments of the setup() call, without running it."""
    captured: dict[str, object] = {}
    source = (ROOT / 'setup.py').read_text(encoding='utf-8').replace('from setuptools import find_packages, setup', '')
    scope = {'find_packages': lambda **_: [], 'setup': captured.update}
    exec(compile(source, 'setup.py', 'exec'), scope)
    return captured


def package_xml() -> ET.Element:
    return ET.parse(ROOT / 'package.xml').getroot()


def requirement_names(lines: list[str]) -> set[str]:
    names = (re.match(r'[A-Za-z0-9._-]+', line.strip()) for line in lines if not line.lstrip().startswith('#'))
    return {match.group().lower().replace('_', '-') for match in names if match}


def third_party_imports() -> dict[str, str]:
    """Distribution -> one file that imports it, over the whole package."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / 'dark3r_ros').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or '']
            for module in modules:
                top = module.split('.')[0]
                if top and top not in sys.stdlib_module_names and top not in ('dark3r_ros', '__future__'):
                    found[DISTRIBUTIONS.get(top, top)] = str(path.relative_to(ROOT))
    return found


def test_one_version_everywhere() -> None:
    changelog = (ROOT / 'CHANGELOG.rst').read_text(encoding='utf-8')
    newest = re.search(r'^(\d+\.\d+\.\d+|Forthcoming)\b', changelog, re.MULTILINE)
    source = (ROOT / 'dark3r_ros' / '__init__.py').read_text(encoding='utf-8')
    declared = re.search(r"^__version__ = '([^']+)'", source, re.MULTILINE)
    assert declared and newest
    version = declared.group(1)
    assert package_xml().findtext('version') == version
    assert setup_keywords()['version'] == version
    assert newest.group(1) in (version, 'Forthcoming')


def test_every_third_party_import_is_declared_for_pip() -> None:
    keywords = setup_keywords()
    extras = keywords['extras_require']
    assert isinstance(extras, dict)
    declared = requirement_names(
        [*keywords['install_requires'], *(item for extra in extras.values() for item in extra)]
    )  # type: ignore[misc]
    ros = {element.text for element in package_xml() if element.tag.endswith('depend')}
    undeclared = {
        name: path
        for name, path in third_party_imports().items()
        if name.lower().replace('_', '-') not in declared | OPTIONAL and name not in ros | ROS_RUNTIME
    }
    assert undeclared == {}


def test_every_extra_that_an_error_names_exists() -> None:
    named: dict[str, str] = {}
    for path in sorted((ROOT / 'dark3r_ros').rglob('*.py')):
        for extra in re.findall(r'dark3r_ros\[(\w+)\]|extra [`"](\w+)[`"]', path.read_text(encoding='utf-8')):
            named[''.join(extra)] = str(path.relative_to(ROOT))
    extras = setup_keywords()['extras_require']
    assert isinstance(extras, dict)
    assert named and {extra: path for extra, path in named.items() if extra not in extras} == {}


def test_every_ros_import_of_the_nodes_is_in_package_xml() -> None:
    declared = {element.text for element in package_xml() if element.tag in ('depend', 'exec_depend')}
    imported = {name for name in third_party_imports() if name.endswith('_msgs') or name in ('rclpy', 'std_srvs')}
    assert imported - {'rcl_interfaces'} <= declared


def test_interface_dependencies_are_built_against() -> None:
    used = set()
    for path in [*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('action/*.action')]:
        used |= set(re.findall(r'^([a-z][a-z0-9_]*)/[A-Z]\w*', path.read_text(encoding='utf-8'), re.MULTILINE))
    cmake = (ROOT / 'CMakeLists.txt').read_text(encoding='utf-8')
    declared = {element.text for element in package_xml() if element.tag == 'depend'}
    assert used <= declared
    assert all(f'find_package({name} REQUIRED)' in cmake for name in used)


@pytest.mark.parametrize('group', ['core', 'ros', 'dev', 'mesh'])
def test_every_requirement_is_pinned(group: str) -> None:
    wanted = requirement_names((ENVIRONMENT / f'requirements-{group}.txt').read_text(encoding='utf-8').splitlines())
    lines = (ENVIRONMENT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    pinned = requirement_names([line for line in lines if '==' in line])
    assert wanted
    assert wanted <= pinned


def test_the_full_install_has_what_pip_users_get() -> None:
    core = requirement_names((ENVIRONMENT / 'requirements-core.txt').read_text(encoding='utf-8').splitlines())
    assert requirement_names(setup_keywords()['install_requires']) <= core  # type: ignore[arg-type]


def test_pins_carry_no_trace_of_the_machine_that_made_them() -> None:
    text = (ENVIRONMENT / 'constraints.txt').read_text(encoding='utf-8')
    assert not re.search(r'\+cpu|\+cu\d|file:|://|/|^-', text.split('\n', 2)[2], re.MULTILINE)


@pytest.mark.parametrize('name', ['dark3r', 'mapping_node', 'recorder', 'replay'])
def test_installed_executables_name_a_main_that_exists(name: str) -> None:
    script = ROOT / 'scripts' / name
    assert script.stat().st_mode & 0o111
    node = next(node for node in ast.parse(script.read_text(encoding='utf-8')).body if isinstance(node, ast.ImportFrom))
    module = ROOT.joinpath(*str(node.module).split('.')).with_suffix('.py')
    functions = [
        item.name for item in ast.parse(module.read_text(encoding='utf-8')).body if isinstance(item, ast.FunctionDef)
    ]
    assert node.names[0].name in functions
    assert f'scripts/{name}' in (ROOT / 'CMakeLists.txt').read_text(encoding='utf-8')
