# SPDX-License-Identifier: Apache-2.0
"""`dark3r distill`: what it leaves behind, going on after a kill, and mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dark3r_ros.cli.main import main
from dark3r_ros.matching.learned import load_predictor
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.lora import load_adapters, merge
from dark3r_ros.model.mini import BUNDLED_TEACHER, load_mini
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.model.weights import WeightsInfo, save_network
from dark3r_ros.training.loop import CHECKPOINT
from dark3r_ros.training.record import LOG
from dark3r_ros.training.session import ADAPTERS, SETTINGS, STUDENT
from dark3r_ros.types import Planes

TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=2, enc_num_heads=2, dec_embed_dim=32, dec_depth=1, dec_num_heads=2, head='linear',
    output_stride=4, local_ratio=1.0, desc_dim=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(folder, *more):
    return [
        'distill', '--data', 'textures', '-o', str(folder), '--batch', '2', '--size', '64x64', '--device', 'cpu',
        '--validation', '0', '--log-every', '1', '--warm-up', '0', '--procedural', '2', *more,
    ]  # fmt: skip


def planes(seed):
    values = np.random.default_rng(seed).normal(260, 20, (3, 64, 64)).astype(np.float32)
    return Planes(values, (240.0,) * 3, 4095.0, (4, 8, 4), 4, 1)


def test_adapters_of_mini(tmp_path, capsys):
    assert main(command(tmp_path, '--steps', '2', '--lora-rank', '4', '--json')) == 0
    said = capsys.readouterr().out
    assert 'step 2/2  loss' in said and 'pairs/s  data' in said
    header = json.loads(said[said.index('{') :])
    assert header['teacher'].startswith('mini-teacher ') and header['pairs'] == 4 and header['licence'] == 'Apache-2.0'
    # The merged student is the teacher with the adapters of the other file, to half precision.
    network, _ = load_mini(BUNDLED_TEACHER)
    load_adapters(tmp_path / ADAPTERS, network)
    merge(network)
    student = load_file(tmp_path / STUDENT)
    before = load_file(BUNDLED_TEACHER)
    for name, value in student.items():
        expected = network.get_parameter(name) if name.endswith('weight') else None
        if expected is not None:
            torch.testing.assert_close(value.float(), expected.detach(), rtol=2e-3, atol=1e-4)
    assert any(not torch.equal(value, before[name]) for name, value in student.items())
    # Statistics belong to no adapter.
    assert all(torch.equal(value, before[name]) for name, value in student.items() if 'running' in name)
    predictor = MiniPredictor(tmp_path / STUDENT, device='cpu')
    assert len(predictor.match([(predictor.encode(planes(0)), predictor.encode(planes(0)))])) == 1
    assert json.loads((tmp_path / SETTINGS).read_text())['lora']['rank'] == 4


@pytest.mark.parametrize('mode', ['lora', 'full', 'supervised'])
def test_two_view_networks(tmp_path, mode):
    teacher = tmp_path / 'teacher.safetensors'
    save_network(teacher, initialise(TwoViewNetwork(TINY), 3), WeightsInfo(TINY, licence='Apache-2.0'))
    source = ['--student' if mode == 'supervised' else '--teacher', str(teacher)]
    assert main(command(tmp_path / 'out', *source, '--mode', mode, '--steps', '2', '--loss-matching', '0.5')) == 0
    predictor = load_predictor(tmp_path / 'out' / STUDENT, device='cpu')
    predictor.match([(predictor.encode(planes(0)), predictor.encode(planes(1)))])
    lines = [json.loads(line) for line in (tmp_path / 'out' / LOG).read_text().splitlines()]
    assert ('encoder' in lines[0]) == (mode != 'supervised') and 'right' in lines[0]
    assert (tmp_path / 'out' / ADAPTERS).exists() == (mode == 'lora')


@pytest.mark.slow
def test_killed_training_ends_with_the_same_weights(tmp_path):
    options = ['--mode', 'full', '--checkpoint-s', '0', '--average', '0.5']
    killed = tmp_path / 'killed'
    process = subprocess.Popen(
        [sys.executable, '-m', 'dark3r_ros.cli.main', *command(killed, *options, '--steps', '6')],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (killed / LOG).exists() or len((killed / LOG).read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(killed / CHECKPOINT, weights_only=True)['step']
    assert 2 <= step <= 6 and not (killed / STUDENT).exists()
    assert main(command(killed, *options, '--steps', '6')) == 0
    assert main(command(tmp_path / 'whole', *options, '--steps', '6')) == 0
    expected = load_file(tmp_path / 'whole' / STUDENT)
    assert all(torch.equal(value, expected[name]) for name, value in load_file(killed / STUDENT).items())
    steps = [json.loads(line)['step'] for line in (killed / LOG).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_time_ends_a_training_that_goes_on_later(tmp_path, capsys):
    assert main(command(tmp_path, '--steps', '50', '--minutes', '0.000001')) == 0
    assert 'stopped at step' in capsys.readouterr().out
    assert (tmp_path / STUDENT).exists()


@pytest.mark.parametrize(
    ('more', 'text'),
    [
        (['--teacher', 'nowhere.pth'], 'is no weight file'),
        (['--teacher', 'new:huge'], 'unknown network'),
        (['--student', 'new:mini-2m'], 'different networks'),
        (['--size', '70x64'], 'multiples of 32'),
        (['--minutes', '0'], 'must be positive'),
        (['--batch', '0'], 'below the minimum'),
        (['--batch', '3', '--parts', '2'], 'leave a rest'),
        (['--lora-layers', '77'], 'no layer for adapters'),
        (['--data', 'nowhere'], 'neither sim, textures'),
        (['--encoder-layers', 'stage9'], 'no layer'),
        (['--mode', 'full', '--device', 'abacus'], 'is no device'),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, more, text):
    assert main(command(tmp_path, '--steps', '1', *more)) == 2
    said = capsys.readouterr().err
    assert text in said and said.count('\n') == 1


def test_damaged_checkpoint_is_told(tmp_path, capsys):
    (tmp_path / CHECKPOINT).write_bytes(b'PK nothing')
    assert main(command(tmp_path, '--steps', '1')) == 2
    assert 'cannot continue from' in capsys.readouterr().err
