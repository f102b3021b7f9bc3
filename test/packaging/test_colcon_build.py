# SPDX-License-Identifier: Apache-2.0
"""`colcon build` of the package in an ordinary workspace, copied and with --symlink-install."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Shell = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.ros, pytest.mark.timeout(600)]

CHECK = """
import dark3r_ros, rclpy.serialization
from ament_index_python.packages import get_package_share_directory
from dark3r_ros.action import BuildNerf
from dark3r_ros.msg import KeyframeArray, MappingStatus
from dark3r_ros.srv import SaveMap
from tf2_msgs.msg import TFMessage

status = MappingStatus(snr_db=-4.0, state=MappingStatus.STATE_TRACKING, message='dark')
again = rclpy.serialization.deserialize_message(rclpy.serialization.serialize_message(status), MappingStatus)
assert again == status
assert dark3r_ros.__version__
print(dark3r_ros.__file__)
print(get_package_share_directory('dark3r_ros'))
"""


@pytest.fixture(scope='module')
def workspace(tmp_path_factory: pytest.TempPathFactory, copy_tree: Callable[[Path], Path]) -> Path:
    folder = tmp_path_factory.mktemp('workspace')
    copy_tree(folder / 'src' / 'dark3r_ros')
    return folder


# The second build uses the compiled objects of the first one.
@pytest.mark.parametrize('option', ['', '--symlink-install'])
def test_build_install_and_run(option: str, workspace: Path, activated_shell: Shell) -> None:
    install = workspace / ('install_links' if option else 'install')
    build = (
        f'python -m colcon build {option} --install-base {install} '
        '--cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$(command -v python)"'
    )
    # The one thing that ament cannot turn from a copy into a link.
    shutil.rmtree(workspace / 'build' / 'dark3r_ros' / 'ament_cmake_python', ignore_errors=True)
    result = activated_shell(build, workspace)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]

    # The copy in the workspace comes first on every path, as after sourcing a workspace.
    use = f'source {install}/local_setup.bash\ncd /\n'
    (workspace / 'check.py').write_text(CHECK, encoding='utf-8')
    result = activated_shell(f'{use}python {workspace}/check.py', workspace)
    assert result.returncode == 0, result.stderr
    package, share = map(Path, result.stdout.splitlines()[-2:])
    assert package.is_relative_to(install) and share.is_relative_to(install)

    source = workspace / 'src' / 'dark3r_ros'
    assert package.read_text(encoding='utf-8') == (source / 'dark3r_ros' / '__init__.py').read_text(encoding='utf-8')
    assert package.is_symlink() == bool(option)
    files = {path.relative_to(source / 'dark3r_ros') for path in (source / 'dark3r_ros').rglob('*') if path.is_file()}
    assert {str(path) for path in files if not (package.parent / path).is_file()} == set()
    for folder in ('launch', 'config', 'rviz'):
        names = {path.name for path in (source / folder).iterdir()}
        assert names <= {path.name for path in (share / folder).iterdir()}

    result = activated_shell(f'{use}{install}/dark3r_ros/lib/dark3r_ros/dark3r --help', workspace)
    assert result.returncode == 0, result.stderr
    assert 'usage: dark3r' in result.stdout


def test_the_underlay_speaks_the_real_message() -> None:
    from rosbags.typesys import Stores, get_typestore

    built = ROOT / 'install' / 'tf2_msgs' / 'share' / 'tf2_msgs' / 'msg' / 'TFMessage.json'
    if not built.is_file():
        pytest.skip('this environment has a real tf2_msgs')
    hashes = json.loads(built.read_text(encoding='utf-8'))['type_hashes']
    ours = next(item['hash_string'] for item in hashes if item['type_name'] == 'tf2_msgs/msg/TFMessage')
    assert ours == get_typestore(Stores.ROS2_KILTED).hash_rihs01('tf2_msgs/msg/TFMessage')
