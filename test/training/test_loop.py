# SPDX-License-Identifier: Apache-2.0
"""The loop learns, and a training that was stopped goes on as if it had not been."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dark3r_ros.errors import ConfigError, DataError, OutputError
from dark3r_ros.model.mini import MiniConfig, MiniNetwork
from dark3r_ros.training import loop
from dark3r_ros.training.distill import DistillTask, supervised
from dark3r_ros.training.exposure import ExposureConfig
from dark3r_ros.training.features import MiniSubject
from dark3r_ros.training.loop import CHECKPOINT, LoopConfig, Trainer, learning_rate, write_atomically
from dark3r_ros.training.losses import (
    FINE,
    SampledPoints,
    compute_losses,
    flattening_slope,
    sample_descriptors,
    sample_points,
)
from dark3r_ros.training.pairs import PairConfig, PairMaker
from dark3r_ros.training.record import LOG
from dark3r_ros.training.textures import load_textures

SMALL = MiniConfig(stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4)
CROPS = PairConfig(width=64, height=64)


@pytest.fixture(scope='module')
def maker():
    return PairMaker(load_textures([], 4, seed=1), CROPS, seed=2, exposure=ExposureConfig(snr_low=5.0))


def task(network, maker):
    return DistillTask(MiniSubject(network), None, maker, supervised())


def trainer(maker, folder, **settings):
    torch.manual_seed(0)
    config = LoopConfig(**{'steps': 6, 'batch': 2, 'warm_up': 0, 'log_every': 1, **settings})
    return Trainer(task(MiniNetwork(SMALL), maker), config, folder)


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


def test_the_slope_of_flattening_is_the_share_of_relief_that_errors_take_away():
    side = torch.arange(12.0) * 10.0
    a = torch.stack(torch.meshgrid(side, side, indexing='xy'), dim=-1).reshape(1, -1, 2)
    generator = torch.Generator().manual_seed(0)
    relief = 4.0 * torch.rand(a.shape, generator=generator) - 2.0
    drift = 0.05 * a  # a smooth motion of all is no relief
    points = SampledPoints(a, a + drift + relief, torch.ones(a.shape[:2], dtype=torch.bool))
    slope = flattening_slope(-0.3 * relief / FINE, points)
    assert slope.item() == pytest.approx(-0.3, abs=0.06)
    assert flattening_slope(torch.ones_like(relief), points).item() == pytest.approx(0.0, abs=0.06)
    jumping = SampledPoints(a, a + drift + 100.0 * relief, points.valid)
    assert abs(flattening_slope(-0.3 * relief / FINE, jumping).item()) < 0.06


def test_the_weight_against_flattening_counts(maker):
    pairs = maker.make(0, 4)

    def loss(weight):
        torch.manual_seed(0)
        subject = MiniSubject(MiniNetwork(SMALL))
        found = DistillTask(subject, None, maker, replace(supervised(), flattening=weight))
        total, figures = found.losses(pairs, torch.Generator().manual_seed(0))
        return total.item(), figures['flattening'].item()

    plain, slope = loss(0.0)
    weighted, same = loss(50.0)
    assert same == slope > 0.0
    assert weighted == pytest.approx(plain + 50.0 * slope, rel=1e-4)


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


def test_training_by_time_ends_with_a_small_rate(maker, tmp_path):
    timed = trainer(maker, tmp_path, steps=10_000, span_minutes=0.01)
    assert timed.run()
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert timed.step < 10_000 and timed.seconds >= 0.6
    rates = [line['learning_rate'] for line in lines]
    assert all(b < a for a, b in pairwise(rates)) and len(rates) == timed.step
    # What is over stays over.
    assert trainer(maker, tmp_path, steps=10_000, span_minutes=0.01).run()


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
        Trainer(task(MiniNetwork(MiniConfig(stem=5)), maker), LoopConfig(), tmp_path)


def test_learning_rate_rises_then_falls_to_zero():
    config = LoopConfig(steps=100, warm_up=10, learning_rate=1.0)
    rates = [learning_rate(config, step, step / 100) for step in range(101)]
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


def test_averaged_weights_are_held_for_a_while(maker, tmp_path):
    made = trainer(maker, tmp_path, average=0.9)
    made.train_step()
    made.train_step()
    network = made.task.network
    present = {name: value.clone() for name, value in network.state_dict().items()}
    with made.averaged():
        assert not network.training
        assert torch.equal(network.coarse_head.weight, made.average['coarse_head.weight'])
        assert not torch.equal(network.coarse_head.weight, present['coarse_head.weight'])
    assert network.training
    assert all(torch.equal(value, present[name]) for name, value in network.state_dict().items())


def test_a_step_in_parts_averages_gradients_and_statistics(maker, tmp_path):
    both = trainer(maker, tmp_path / 'both', steps=1, parts=2, batch=4, clip=1e9)
    both._train_mode()
    _, figures = both._gather()
    grads, losses, statistics = [], [], []
    for part in range(2):
        one = trainer(maker, tmp_path / f'part{part}', steps=1, batch=2)
        network = one.task.network.train()
        total, _ = one.task.losses(maker.make(part, 2), torch.Generator().manual_seed(part))
        total.backward()
        grads.append(network.stage8[0][0].weight.grad)
        losses.append(float(total))
        statistics.append(network.stage8[0][1].running_mean)
    network = both.task.network
    assert float(figures['total']) == pytest.approx(sum(losses) / 2, rel=1e-5)
    torch.testing.assert_close(network.stage8[0][0].weight.grad, (grads[0] + grads[1]) / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(network.stage8[0][1].running_mean, (statistics[0] + statistics[1]) / 2)


def test_frozen_statistics_stay(maker, tmp_path):
    frozen = trainer(maker, tmp_path, freeze_statistics=True)
    before = frozen.task.network.stage8[0][1].running_var.clone()
    frozen.train_step()
    assert torch.equal(frozen.task.network.stage8[0][1].running_var, before)
    assert 'stage8.0.1.running_var' not in frozen.average


def test_a_training_that_is_lost_says_so(maker, tmp_path):
    lost = trainer(maker, tmp_path, steps=1000)
    with torch.no_grad():
        lost.task.network.coarse_head.bias.fill_(float('nan'))
    with pytest.raises(DataError, match='not finite'):
        lost.run()
    assert lost.step == 49
    assert lost.average['stage8.0.0.weight'].isfinite().all()


def test_nothing_to_train_is_told(maker, tmp_path):
    network = MiniNetwork(SMALL).requires_grad_(False)
    with pytest.raises(ConfigError, match='nothing of the network'):
        Trainer(task(network, maker), LoopConfig(), tmp_path)
