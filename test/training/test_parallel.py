# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo train what one process trains with the doubled batch, in all steps and statistics."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dark3r_ros.errors import ConfigError
from dark3r_ros.training.loop import CHECKPOINT
from dark3r_ros.training.parallel import connect
from dark3r_ros.training.record import LOG

TRAINING = [
    'dark3r_ros.cli.main', 'distill', '--data', 'textures', '--mode', 'full', '--steps', '3',
    '--batch', '4', '--parts', '2', '--size', '64x64', '--warm-up', '0', '--log-every', '1', '--validation', '0',
    '--device', 'cpu', '--procedural', '2', '--average', '0.5', '--picture-every', '0', '--freeze-statistics', 'false',
]  # fmt: skip


def start(command, folder):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        [sys.executable, '-m', *command, *TRAINING, '-o', str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    both = start(['torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m'], tmp_path / 'two')
    output, _ = both.communicate(timeout=300)
    assert both.returncode == 0, output
    # Only one of them speaks and writes.
    assert output.count('finished at step 3') == 1
    one = start([], tmp_path / 'one')
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output
    lines = [[json.loads(line) for line in (tmp_path / name / LOG).read_text().splitlines()] for name in ('one', 'two')]
    assert len(lines[0]) == len(lines[1]) == 3
    for alone, together in zip(*lines, strict=True):
        assert {*alone} == {*together}
        for key in ('total', 'encoder', 'clean_correspondence', 'fine', 'gradient'):
            assert alone[key] == pytest.approx(together[key], abs=2e-4), key
    saved = [torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ('one', 'two')]
    start_weights = load_file(tmp_path / 'one' / 'student.safetensors')
    assert any(name.endswith('running_mean') for name in saved[0]['trained'])
    for kind in ('trained', 'average'):
        for name, value in saved[0][kind].items():
            torch.testing.assert_close(value, saved[1][kind][name], rtol=1e-4, atol=1e-6, msg=name)
    # They moved much further than they differ.
    name = 'stage8.0.1.running_mean'
    assert float((saved[0]['trained'][name] - saved[0]['average'][name]).abs().max()) > 1e-4
    assert name in start_weights


def test_a_device_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match='is no device'):
        connect('abacus')
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match='no CUDA device'):
            connect('cuda')
