# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from dark3r_ros.cli import demo
from dark3r_ros.cli.main import main
from dark3r_ros.errors import DependencyError


def ros_is_there() -> bool:
    try:
        demo.check_environment()
    except DependencyError:
        return False
    return True


needs_ros = pytest.mark.skipif(
    not ros_is_there(), reason='rclpy or the interfaces are missing: source environment/activate.sh'
)


def test_without_ros_one_line_says_what_to_do(monkeypatch, capsys, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'rclpy' else find(name, *rest))
    assert main(['demo', '-o', str(tmp_path / 'out')]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and 'environment/activate.sh' in lines[0]


@needs_ros
def test_mistakes_are_found_before_the_work(tmp_path, capsys):
    assert main(['demo', '--bag', str(tmp_path)]) == 2
    assert '--truth' in capsys.readouterr().err
    assert main(['demo', '-o', str(tmp_path / 'out'), '--delay', '-1']) == 2
    assert '--delay takes' in capsys.readouterr().err
    for word in ('mapping.neighbours', 'mapping.neighbours=4', ':=4', 'mapping.neighbours:='):
        assert main(['demo', '-o', str(tmp_path / 'out'), '-p', word]) == 2
        assert 'NAME:=VALUE' in capsys.readouterr().err
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'thesis.txt').write_text('x')
    assert main(['demo', '-o', str(precious)]) == 2
    assert 'not replaced' in capsys.readouterr().err
    assert (precious / 'thesis.txt').read_text() == 'x'


def demo_figures(output, *options):
    """Figures that the command prints, run as a user would."""
    command = [sys.executable, '-m', 'dark3r_ros.cli.main', 'demo', '-o', str(output), *options, '--json']
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{') :])


@pytest.mark.slow
@pytest.mark.flaky(reruns=2)  # Fast DDS may cut a process off for good on a busy machine: test/nodes/conftest.py
@needs_ros
def test_a_short_drive_goes_all_the_way(tmp_path):
    output = tmp_path / 'demo'
    figures = demo_figures(
        output, '--seconds', '2', '--rate', '6', '--size', '640x480', '--snr', '20', '-p', 'mapping.neighbours:=4'
    )
    assert figures['posed_share'] == 1.0 and figures['ate_relative'] < 0.02
    present = {path.name for path in output.iterdir()}
    assert present >= {
        'trajectory.tum', 'online.tum', 'keyframes.tum', 'cloud.ply', 'cameras.json', 'colmap', 'transforms.json',
        'report.json', 'report.html', 'evaluation.json', 'report',
    }  # fmt: skip
    report = json.loads((output / 'report.json').read_text())
    assert report['source'] == 'ros' and report['counts']['dropped'] == 0
    # The wheels own odom -> base_link. The node's map -> odom waits for metres, which so short a drive does not give.
    assert set(report['transforms']) == {'odom -> base_link'}
    assert {path.name for path in (output / 'report').iterdir()} >= {'trajectory.png', 'samples.png', 'cloud.png'}


@pytest.mark.slow
@pytest.mark.flaky(reruns=2)
@needs_ros
def test_images_that_come_late_at_random_are_all_posed(tmp_path):
    bag, output = tmp_path / 'bag', tmp_path / 'demo'
    simulated = ['simulate', 'tunnel', '-o', str(bag), '--seconds', '3', '--rate', '4', '--size', '640x480']
    assert main([*simulated, '--snr', '20', '--no-depth', '--odometry']) == 0
    figures = demo_figures(output, '--bag', str(bag), '--truth', str(bag / 'truth.tum'), '--delay', '0.4')
    # Calibration and odometry are there long before the images that they belong to.
    assert figures['posed_share'] == 1.0 and figures['ate_relative'] < 0.02
    assert json.loads((output / 'report.json').read_text())['counts']['dropped'] == 0
