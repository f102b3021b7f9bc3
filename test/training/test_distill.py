# SPDX-License-Identifier: Apache-2.0
"""The losses of distillation against their formulas, and what they train."""

import math

import numpy as np
import pytest
import torch

from dark3r_ros.errors import ConfigError
from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.mini import MiniConfig, MiniNetwork
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.training.batch import NoTruth, join
from dark3r_ros.training.distill import DistillConfig, DistillTask, scaled_error, similarities, supervised
from dark3r_ros.training.exposure import ExposureConfig, clean_input, noisy_input
from dark3r_ros.training.features import MiniSubject, TwoViewSubject
from dark3r_ros.training.losses import cell_weights
from dark3r_ros.training.mixture import Mixture
from dark3r_ros.training.pairs import PairConfig, PairMaker
from dark3r_ros.training.textures import load_textures

SMALL = MiniConfig(stem=4, quarter=8, eighth=8, sixteenth=8, thirtysecond=8, coarse_dim=8, fine_dim=4, deep_blocks=1)
TINY = NetworkConfig(
    enc_embed_dim=32, enc_depth=3, enc_num_heads=2, dec_embed_dim=32, dec_depth=2, dec_num_heads=2, head='linear',
    output_stride=4, local_ratio=1.0, desc_dim=8,
)  # fmt: skip
CROPS = PairConfig(width=64, height=64)


def maker(snr=5.0):
    return PairMaker(load_textures([], 4, seed=1), CROPS, 2, ExposureConfig(snr_low=snr, snr_high=snr))


@pytest.fixture(scope='module')
def data():
    return maker()


def mini(seed=0):
    torch.manual_seed(seed)
    network = MiniNetwork(SMALL)
    # Running statistics as a short training leaves them, so that evaluation mode makes sense.
    with torch.no_grad():
        for number in range(40):
            network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(number)))
    return network.eval()


def two_view(seed=0):
    return initialise(TwoViewNetwork(TINY), seed).eval()


def generator():
    return torch.Generator().manual_seed(0)


def test_error_is_scaled_by_the_spread_within_channels():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(2, 3, 4, 5)) * np.array([1.0, 2.0, 3.0])[None, :, None, None] + 100.0
    student = teacher + rng.normal(size=teacher.shape)
    expected = ((student - teacher) ** 2).mean() / np.mean([teacher[:, c].var() for c in range(3)])
    found = scaled_error(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_similarities_are_those_of_one_view_with_the_other():
    maps = torch.randn(4, 5, 2, 3, generator=generator(), dtype=torch.float64)
    cells = torch.tensor([[0, 5], [1, 2], [3, 4], [5, 0]])
    found = similarities(maps, cells)
    assert found.shape == (4, 2, 6)
    # Pair 1 is rows 1 (view a) and 3 (view b).
    assert float(found[1, 0, 4]) == pytest.approx(float(maps[1, :, 0, 1] @ maps[3, :, 1, 1]), rel=1e-5)
    assert float(found[3, 1, 2]) == pytest.approx(float(maps[3, :, 0, 0] @ maps[1, :, 0, 2]), rel=1e-5)


def test_true_places_are_shared_by_the_cells_around_them():
    points = torch.tensor([[[3.5, 11.5], [7.5, 3.5], [0.0, 0.0]]])
    weights = cell_weights(points, 2, 3)[0].reshape(3, 2, 3)
    assert weights[0, 1, 0] == 1.0
    assert weights[1, 0].tolist() == [0.5, 0.5, 0.0]
    assert torch.allclose(weights.sum((1, 2)), torch.ones(3))


@pytest.mark.parametrize('make', [mini, two_view])
def test_student_equal_to_its_teacher_has_nothing_to_learn_in_good_light(make):
    subject = MiniSubject if make is mini else TwoViewSubject
    config = DistillConfig(distribution=1.0, reliability=0.0)
    bright = DistillTask(subject(make()), subject(make()), maker(70.0), config)
    dark = DistillTask(subject(make()), subject(make()), maker(-8.0), config)
    figures = {}
    for name, task in (('bright', bright), ('dark', dark)):
        with torch.no_grad():
            _, figures[name] = task.losses(task.make(0, 4), generator())
    for key in ('encoder', 'decoder', 'correspondence', 'distribution'):
        assert float(figures['bright'][key]) < 1e-3, key
        assert float(figures['dark'][key]) > 30 * float(figures['bright'][key]), key
        assert float(figures['dark'][f'clean_{key}']) < 1e-6, key


def test_total_is_the_weighted_sum(data):
    config = DistillConfig(encoder=2.0, decoder=3.0, correspondence=0.5, matching=0.25, reliability=0.75, clean=0.3)
    task = DistillTask(MiniSubject(mini()), MiniSubject(mini(1)), data, config)
    with torch.no_grad():
        total, parts = task.losses(data.make(0, 4), generator())
    value = {key: float(part) for key, part in parts.items()}
    distil = sum(
        weight * (value[key] + 0.3 * value[f'clean_{key}'])
        for key, weight in (('encoder', 2.0), ('decoder', 3.0), ('correspondence', 0.5))
    )
    match = 0.5 * value['single'] + value['pair'] + value['fine']
    chances = value['reliability'] + 0.2 / 0.3 * value['seen']
    assert float(total) == pytest.approx(distil + 0.25 * match + 0.75 * chances, rel=1e-5)


@pytest.mark.parametrize('make', [mini, two_view])
@pytest.mark.parametrize('config', [DistillConfig(reliability=0.0), supervised()])
def test_steps_lower_the_loss_of_a_batch(make, config, data):
    subject = MiniSubject if make is mini else TwoViewSubject
    task = DistillTask(subject(make(1)), subject(make()), data, config)
    pairs = data.make(0, 4)
    optimiser = torch.optim.Adam(task.network.parameters(), lr=1e-3)
    totals = []
    for _ in range(6):
        optimiser.zero_grad()
        total, _ = task.losses(pairs, generator())
        total.backward()
        optimiser.step()
        totals.append(float(total))
    assert all(math.isfinite(total) for total in totals)
    assert totals[-1] < 0.97 * totals[0]


def test_encoder_alone_leaves_the_decoder_out(data):
    config = DistillConfig(decoder=0.0, correspondence=0.0, encoder_layers=('0', '2'))
    assert config.encoder_only
    student = two_view(1)
    subjects = [TwoViewSubject(network, (0, 2), encoder_only=True) for network in (student, two_view())]
    task = DistillTask(*subjects, data, config)
    total, parts = task.losses(data.make(0, 2), generator())
    total.backward()
    assert set(parts) == {'encoder', 'clean_encoder'}
    with_gradient = {name.split('.')[0] for name, value in student.named_parameters() if value.grad is not None}
    assert with_gradient == {'patch_embed', 'enc_blocks'}


@pytest.mark.parametrize('make', [mini, two_view])
def test_half_precision_gives_nearly_the_same_losses(make, data):
    subject = MiniSubject if make is mini else TwoViewSubject
    totals = []
    for precision in ('fp32', 'bf16'):
        task = DistillTask(subject(make(1)), subject(make()), data, DistillConfig(matching=1.0), precision=precision)
        total, _ = task.losses(data.make(0, 4), generator())
        total.backward()
        assert all(value.grad.isfinite().all() for value in task.network.parameters() if value.grad is not None)
        totals.append(float(total))
    assert totals[0] != totals[1] and totals[1] == pytest.approx(totals[0], rel=0.05)


def test_teacher_is_never_trained(data):
    teacher = mini()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = DistillTask(MiniSubject(mini(1)), MiniSubject(teacher), data, DistillConfig())
    total, _ = task.losses(data.make(0, 4), generator())
    total.backward()
    assert all(value.grad is None for value in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_clipping_at_black_only_takes_negative_values_away():
    planes = torch.randn(1, 3, 8, 8, generator=generator())
    clipped = noisy_input(planes, ExposureConfig(clip_black=True, normalisation='paper'))
    signed = noisy_input(planes, ExposureConfig(normalisation='paper'))
    assert torch.equal(clipped[planes >= 0], signed[planes >= 0])
    assert torch.allclose(clipped[planes < 0], torch.tensor(240.0 * 2 / 4095 - 1))
    # A clean exposure in the same mode keeps black where it is.
    light = torch.zeros(1, 3, 8, 8)
    assert torch.allclose(clean_input(light, ExposureConfig(normalisation='paper')), clipped[planes < 0][0])


def test_mixture_keeps_pairs_and_truth_together(data):
    class Unknown:
        device, knows_truth = data.device, False

        def make(self, number, count):
            made = data.make(number + 1000, count)
            return type(made)(made.clean_a, made.clean_b, made.image_a, made.image_b, made.snr_db, NoTruth())

    both = Mixture([data, Unknown()], [3.0, 1.0])
    made = both.make(5, 8)
    points = torch.full((8, 3, 2), 30.0)
    target, seen = made.correspond(points)
    known, _ = data.make(5, 6).correspond(points[:6])
    assert torch.equal(target[:6], known) and not seen[6:].any()
    assert torch.equal(made.image_a[6:], data.make(1005, 2).image_a)
    assert torch.equal(made.select(slice(4, 7)).correspond(points[:3])[0], target[4:7])
    assert both.knows_truth and len(join([made, made])) == 16
    counts = [
        int(Mixture([data, Unknown()], [1.0, 2.0]).make(n, 2).correspond(points[:2])[1].any(1).sum()) for n in range(40)
    ]
    assert 0.15 < np.mean(counts) / 2 < 0.55


def test_mistakes_are_told(data):
    with pytest.raises(ConfigError, match='needs a teacher'):
        DistillTask(MiniSubject(mini()), None, data, DistillConfig())
    with pytest.raises(ConfigError, match='nothing would be learnt'):
        DistillTask(MiniSubject(mini()), None, data, DistillConfig(encoder=0, decoder=0, correspondence=0))
    with pytest.raises(ConfigError, match="no layer 'stage9'"):
        MiniSubject(mini(), ('stage9',))
    with pytest.raises(ConfigError, match='encoder has no block 7'):
        TwoViewSubject(two_view(), (7,))
