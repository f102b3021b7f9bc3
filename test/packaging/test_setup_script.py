# SPDX-License-Identifier: Apache-2.0
"""environment/setup.sh: what it refuses, what it finds, and that a second run does nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'environment'))
import patch_ros_wheels  # noqa: E402

sys.path.pop(0)

DEAD_INDEX = 'http://127.0.0.1:9/simple'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A tree that holds the set-up script and was never set up."""
    shutil.copytree(ROOT / 'environment', tmp_path / 'project' / 'environment')
    return tmp_path / 'project'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of its own with the usual commands, a compiler and make, but without uv."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    names = 'awk basename bash cat cut date df dirname env find flock g++ c++ grep head make mkdir nproc paste rm sed'
    names += ' sha256sum sort tail tr uname'
    for name in names.split():
        target = shutil.which(name)
        if target:
            (folder / name).symlink_to(target)
    base = Path(sys.base_prefix) / 'bin' / f'python{sys.version_info.major}.{sys.version_info.minor}'
    write_program(folder / 'python3', f'exec {base if base.exists() else sys.executable} "$@"')
    return folder


def write_program(path: Path, body: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f'#!{shutil.which("bash")}\n{body}\n', encoding='utf-8')
    path.chmod(0o755)


def set_up(
    project: Path, bare: Mapping[str, str], tools: Path, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**bare, 'PATH': str(tools), **variables}
    environment.pop('CXX', None)
    environment |= variables
    return subprocess.run(
        [shutil.which('bash') or 'bash', project / 'environment' / 'setup.sh', *options],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def assert_one_clear_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1
    assert result.stdout == ''
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith('setup: error: '), result.stderr
    for word in words:
        assert word in lines[0]


def test_a_complete_machine_passes_the_checks(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    result = set_up(project, bare_environment, tools, '--check')
    assert result.returncode == 0, result.stderr
    assert 'ROS 2: Kilted from wheels' in result.stdout
    assert 'installer: pip; tf2_msgs: environment/underlay' in result.stdout
    assert not (project / '.venv').exists()


def test_no_compiler(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    for name in ('g++', 'c++'):
        (tools / name).unlink()
    assert_one_clear_line(set_up(project, bare_environment, tools), 'no C++ compiler found', 'apt-get install g++')


def test_compiler_variable_names_nothing(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    result = set_up(project, bare_environment, tools, CXX='no-such-compiler')
    assert_one_clear_line(result, 'CXX=no-such-compiler does not exist')


def test_no_make(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    (tools / 'make').unlink()
    assert_one_clear_line(set_up(project, bare_environment, tools), 'no make found', 'apt-get install make')


def test_no_python(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    write_program(tools / 'python3', 'echo "Python 3.8.10"; exit 1')
    assert_one_clear_line(set_up(project, bare_environment, tools), 'no Python between 3.10 and 3.13 found')


def test_named_python_does_not_exist(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    result = set_up(project, bare_environment, tools, '--python', '/nowhere/python3')
    assert_one_clear_line(result, '/nowhere/python3 is not a Python')


def test_no_venv_module(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    real = (tools / 'python3').read_text(encoding='utf-8').splitlines()[1]
    write_program(tools / 'python3', f'case "$*" in *ensurepip*) exit 1 ;; esac\n{real}')
    assert_one_clear_line(set_up(project, bare_environment, tools), 'no venv module', 'apt-get install python3-venv')


def test_no_python_headers(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    real = (tools / 'python3').read_text(encoding='utf-8').splitlines()[1]
    write_program(tools / 'python3', f'case "$*" in *get_path*) echo /nowhere; exit ;; esac\n{real}')
    assert_one_clear_line(set_up(project, bare_environment, tools), 'no Python headers in /nowhere', 'python3-dev')


def test_full_disk(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    write_program(tools / 'df', "printf 'Filesystem 1024-blocks Used Available\\n/dev/x 9 9 120000 99%% /\\n'")
    result = set_up(project, bare_environment, tools)
    assert_one_clear_line(result, '120 MB free', 'set-up needs 5 GB')
    assert not (project / '.venv').exists()


def test_no_network(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    result = set_up(project, bare_environment, tools, PIP_INDEX_URL=DEAD_INDEX)
    assert_one_clear_line(result, 'cannot reach the package index', DEAD_INDEX)
    assert not (project / '.venv').exists()


def test_unknown_option(project: Path, tools: Path, bare_environment: dict[str, str]) -> None:
    assert_one_clear_line(set_up(project, bare_environment, tools, '--gpu'), 'unknown option --gpu', '--help')


def fake_package(prefix: Path, name: str) -> None:
    marker = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages' / name
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    (prefix / 'share' / name).mkdir()
    (prefix / 'share' / name / 'package.xml').write_text(f'<package><name>{name}</name></package>', encoding='utf-8')


def test_a_real_tf2_msgs_is_never_shadowed(
    project: Path, tools: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    real = tmp_path / 'overlay'
    fake_package(real, 'tf2_msgs')
    result = set_up(project, bare_environment, tools, '--check', AMENT_PREFIX_PATH=str(real))
    assert f'tf2_msgs: {real}' in result.stdout


def test_the_underlay_of_another_clone_is_not_taken_for_a_real_tf2_msgs(
    project: Path, tools: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / 'clone' / 'install' / 'tf2_msgs'
    fake_package(other, 'tf2_msgs')
    shutil.copy(ROOT / 'environment' / 'underlay' / 'tf2_msgs' / 'package.xml', other / 'share' / 'tf2_msgs')
    result = set_up(project, bare_environment, tools, '--check', AMENT_PREFIX_PATH=str(other))
    assert 'tf2_msgs: environment/underlay' in result.stdout


def test_a_sourced_ros_is_used(project: Path, tools: Path, bare_environment: dict[str, str], tmp_path: Path) -> None:
    sourced = tmp_path / 'jazzy'
    fake_package(sourced, 'rclpy')
    fake_package(sourced, 'tf2_msgs')
    (tmp_path / 'python' / 'rclpy').mkdir(parents=True)
    (tmp_path / 'python' / 'rclpy' / '__init__.py').touch()
    variables = {'AMENT_PREFIX_PATH': str(sourced), 'PYTHONPATH': str(tmp_path / 'python')}
    result = set_up(project, bare_environment, tools, '--check', **variables)
    assert f'ROS 2: {sourced}; Python: python3;' in result.stdout
    assert f'tf2_msgs: {sourced}' in result.stdout


def test_an_activated_environment_of_wheels_is_not_a_sourced_ros(
    project: Path, tools: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    wheels = tmp_path / 'clone' / '.venv'
    fake_package(wheels, 'rclpy')
    (wheels / 'pyvenv.cfg').touch()
    result = set_up(project, bare_environment, tools, '--check', AMENT_PREFIX_PATH=str(wheels))
    assert 'ROS 2: Kilted from wheels' in result.stdout


def test_a_second_run_takes_seconds_and_no_network(bare_environment: dict[str, str]) -> None:
    if not (ROOT / '.venv' / 'dark3r' / 'build').is_file():
        pytest.skip('environment/setup.sh has not made this environment')
    script = ROOT / 'environment' / 'setup.sh'
    subprocess.run(['bash', script], env=bare_environment, check=True, capture_output=True)
    offline = {**bare_environment, 'PIP_INDEX_URL': DEAD_INDEX, 'PIP_EXTRA_INDEX_URL': DEAD_INDEX}
    offline |= {'PIP_FIND_LINKS': '/nowhere', 'http_proxy': DEAD_INDEX, 'https_proxy': DEAD_INDEX}
    start = time.monotonic()
    result = subprocess.run(['bash', script], env=offline, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 10.0
    assert [line.split(' (')[0] for line in result.stdout.splitlines()] == ['setup: ready']


def test_activation_is_refused_where_nothing_was_set_up(project: Path, bare_environment: dict[str, str]) -> None:
    script = project / 'environment' / 'activate.sh'
    result = subprocess.run(
        ['bash', '-c', f'source {script}'], env=bare_environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.count('\n') == 1 and 'is not set up yet' in result.stderr


@pytest.mark.parametrize(
    ('discovery', 'expected'),
    [({}, ('LARGE_DATA', '')), ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}, ('', 'fastdds_profile.xml'))],
)
def test_activation_chooses_a_transport_for_large_frames(
    discovery: dict[str, str], expected: tuple[str, str], bare_environment: dict[str, str]
) -> None:
    if not (ROOT / '.venv' / 'dark3r' / 'mode').is_file():
        pytest.skip('environment/setup.sh has not made this environment')
    plain = {name: value for name, value in bare_environment.items() if not name.startswith(('FASTDDS', 'ROS_', 'RMW'))}
    lines = (
        f'set -eu; source {ROOT}/environment/activate.sh\n'
        'echo "${FASTDDS_BUILTIN_TRANSPORTS:-}:$(basename "${FASTDDS_DEFAULT_PROFILES_FILE:-}"):$RMW_IMPLEMENTATION"'
    )
    result = subprocess.run(
        ['bash', '-c', lines], env={**plain, **discovery}, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ':'.join((*expected, 'rmw_fastrtps_cpp'))


TARGETS = (
    'set_target_properties(x PROPERTIES\n  INTERFACE_INCLUDE_DIRECTORIES '
    '"/opt/python/cp312-cp312/include/python3.12;/opt/python/lib/python3.12/site-packages/numpy/_core/include;'
    '${_IMPORT_PREFIX}/include/std_msgs"\n)\n'
)


def test_wheel_files_are_patched_once_and_cached_ones_never(tmp_path: Path) -> None:
    folder = tmp_path / 'venv' / 'share' / 'std_msgs' / 'cmake'
    folder.mkdir(parents=True)
    cached = tmp_path / 'cached.cmake'
    cached.write_text(TARGETS, encoding='utf-8')
    installed = folder / 'export_std_msgs__rosidl_generator_pyExport.cmake'
    os.link(cached, installed)
    assert patch_ros_wheels.patch_prefix(tmp_path / 'venv', '/usr/include/python3.11', '/x/numpy/include') == 1
    text = installed.read_text(encoding='utf-8')
    assert '"/usr/include/python3.11;/x/numpy/include;${_IMPORT_PREFIX}/include/std_msgs"' in text
    assert cached.read_text(encoding='utf-8') == TARGETS
    assert patch_ros_wheels.patch_prefix(tmp_path / 'venv', '/usr/include/python3.11', '/x/numpy/include') == 0
