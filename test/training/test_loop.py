# SPDX-License-Identifier: Apache-2.0
"""The loop learns, and a training that was stopped goes on as if it had not been."""

import json
import math
from itertools import pairwise

import pytest
import torch

from dark3r_ros.errors import DataError, OutputError
from dark3r_ros.model.mini import MiniConfig, MiniNetwork
from dark3r_ros.training import loop
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.loop import CHECKPOINT, LoopConfig, Trainer, learning_rate, write_atomically
from dark3r_ros.training.losses import compute_losses, sample_descriptors, sample_points
from dark3r_ros.training.mini import WEIGHTS, MatchingTask
from dark3r_ros.training.mini import main as train_main
from dark3r_ros.training.pairs import PairConfig, PairMaker
from dark3r_ros.training.record import LOG
from dark3r_ros.training.textures import load_textures

SMALL = MiniConfig(stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4)
CROPS = PairConfig(width=64, height=64)


@pytest.fixture(scope='module')
def maker():
    return PairMaker(load_textures([], 4, seed=1), CROPS, seed=2, exposure=ExposureConfig(snr_low=5.0))


def trainer(maker, folder, **settings):
    torch.manual_seed(0)
    config = LoopConfig(**{'steps': 6, 'batch': 2, 'warm_up': 0, 'log_every': 1, **settings})
    return Trainer(MatchingTask(MiniNetwork(SMALL), maker), config, folder)


def test_a_step_lowers_the_loss_of_its_batch(maker):
    torch.manual_seed(0)
    network = MiniNetwork(SMALL)
    pairs = maker.make(0, 4)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)

    def losses():
        return compute_losses(network, pairs, torch.Generator().manual_seed(0), points=48, fine_points=48)

    before = losses()
    before.total.backward()
    optimiser.step()
    after = losses()
    assert after.total.item() < before.total.item()
    for name in ('single', 'pair', 'fine', 'reliability', 'seen'):
        assert math.isfinite(getattr(after, name).item())


def test_resuming_equals_an_uninterrupted_run_bit_for_bit(maker, tmp_path):
    whole = trainer(maker, tmp_path / 'whole')
    assert whole.run()
    first = trainer(maker, tmp_path / 'parts')
    for _ in range(3):
        first.train_step()
    first.save()
    second = trainer(maker, tmp_path / 'parts')
    assert second.step == 3
    assert second.run()
    expected = whole.task.network.state_dict()
    for key, value in second.task.network.state_dict().items():
        assert key.endswith('num_batches_tracked') or torch.equal(value, expected[key]), key
    for key, value in second.average.items():
        assert torch.equal(value, whole.average[key]), key
    lines = [json.loads(line) for line in (tmp_path / 'whole' / LOG).read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line['pairs_per_s'] > 0 and 0 <= line['data_share'] <= 1 for line in lines)


def test_time_limit_stops_and_leaves_a_checkpoint(maker, tmp_path):
    stopped = trainer(maker, tmp_path, steps=1000)
    assert not stopped.run(minutes=0.0)
    assert (tmp_path / CHECKPOINT).exists() and stopped.step == 0


def test_dying_while_writing_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / CHECKPOINT
    write_atomically(path, {'step': 1})

    def dies(content, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(loop.torch, 'save', dies)
    with pytest.raises(OutputError, match='No space left'):
        write_atomically(path, {'step': 2})
    assert torch.load(path, weights_only=True) == {'step': 1}


def test_checkpoint_of_another_network_is_refused(maker, tmp_path):
    trainer(maker, tmp_path).save()
    with pytest.raises(DataError, match='cannot continue from'):
        Trainer(MatchingTask(MiniNetwork(MiniConfig(stem=5)), maker), LoopConfig(), tmp_path)


def test_learning_rate_rises_then_falls_to_zero():
    config = LoopConfig(steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] < 0.1 and max(rates) > 0.95 and rates[100] == pytest.approx(0.0, abs=1e-9)
    assert all(b <= a for a, b in pairwise(rates[12:]))


def test_descriptors_are_sampled_at_pixel_centres():
    table = torch.nn.functional.normalize(torch.randn(1, 5, 6, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    # Coarse cell (3, 2) of 8 px covers pixels 24..31 and 16..23: its centre is at (27.5, 19.5).
    found = sample_descriptors(table, torch.tensor([[[27.5, 19.5], [31.5, 19.5]]]), 8)
    assert torch.allclose(found[0, 0], table[0, :, 2, 3], atol=1e-6)
    between = torch.nn.functional.normalize(table[0, :, 2, 3] + table[0, :, 2, 4], dim=0)
    assert torch.allclose(found[0, 1], between, atol=1e-6)


def test_points_lie_on_the_fine_grid_one_a_cell(maker):
    chosen = sample_points(maker.make(1, 2), 40, torch.Generator().manual_seed(0))
    assert ((chosen.a - 0.5) % 2 == 0).all()
    cells = (chosen.a // 8)[..., 1] * 8 + (chosen.a // 8)[..., 0]
    assert all(len(row.unique()) == 40 for row in cells)


def test_command_trains_writes_weights_and_goes_on(tmp_path, capsys):
    arguments = ['-o', str(tmp_path), '--procedural', '8', '--batch', '1', '--device', 'cpu', '--validation', '1']
    assert train_main([*arguments, '--steps', '1']) == 0
    assert (tmp_path / WEIGHTS).exists()
    last = json.loads((tmp_path / LOG).read_text().splitlines()[-1])
    assert 0 <= last['validation_-4dB_within_2px'] <= 1
    assert train_main([*arguments, '--steps', '2']) == 0
    assert 'finished at step 2' in capsys.readouterr().out
    assert train_main([*arguments[:2], '--textures', str(tmp_path / 'none'), '--steps', '2']) == 2
