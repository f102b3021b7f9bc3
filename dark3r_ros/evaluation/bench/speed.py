# SPDX-License-Identifier: Apache-2.0
"""Times of the parts on one device, each beside what the machine could do at best.

Used by `dark3r bench` on a CPU and by the script for bare CUDA machines. Random images and weights do: time does not
depend on what is seen.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from dark3r_ros.evaluation.nerf_scenes import ComparisonConfig, make_scene
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.model import benchmark
from dark3r_ros.model.backend import TorchBackend, choose_precision
from dark3r_ros.model.config import preset
from dark3r_ros.model.network import TwoViewNetwork, initialise
from dark3r_ros.nerf.config import profile
from dark3r_ros.nerf.load import collect_views
from dark3r_ros.nerf.trainer import Trainer
from dark3r_ros.training.distill import DistillConfig
from dark3r_ros.training.loop import LoopConfig
from dark3r_ros.training.session import Session, SessionConfig
from dark3r_ros.types import Planes


@dataclass(frozen=True)
class Work:
    """Time and arithmetic of one piece of work: milliseconds, floating point operations (0: not counted)."""

    ms: float
    flops: int = 0


def noise_planes(width: int, height: int, seed: int = 0) -> Planes:
    """Planes of a dark frame with some structure in them."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(0.0, 40.0, (3, height // 8 + 1, width // 8 + 1)).repeat(8, 1).repeat(8, 2)
    values = 240.0 + blocks[:, :height, :width] + rng.normal(0.0, 20.0, (3, height, width))
    return Planes(values.astype(np.float32), (240.0,) * 3, 4095.0, (4, 8, 4), 4, seed)


def time_mini(device: str, size: tuple[int, int], repeats: int = 7) -> dict[str, Work]:
    """Encode of a frame and match of a pair whose frames are encoded, by the bundled student, batch of one."""
    predictor = MiniPredictor(device=device)
    width, height = size
    first, second = noise_planes(width, height, 0), noise_planes(width, height, 1)
    a, b = predictor.encode(first), predictor.encode(second)
    with FlopCounterMode(display=False) as encode:
        predictor.encode(first)
    with FlopCounterMode(display=False) as pair:
        predictor.match([(a, b)])
    where = predictor.device
    return {
        'encode': Work(
            1e3 * benchmark.best_seconds(lambda: predictor.encode(first), repeats, where), encode.get_total_flops()
        ),
        'pair': Work(
            1e3 * benchmark.best_seconds(lambda: predictor.match([(a, b)]), repeats, where), pair.get_total_flops()
        ),
    }


def time_network(name: str, device: str, size: tuple[int, int], precision: str, repeats: int = 5) -> dict[str, Work]:
    """The same of a two-view network of the MASt3R family with random weights; a pair is a decoding."""
    network = initialise(TwoViewNetwork(preset(name)), seed=0)
    backend = TorchBackend(network, device=device, precision=precision)
    timing = benchmark.measure(name, size, backend, repeats)
    return {
        'encode': Work(timing.encode_ms, timing.encode_flops),
        'pair': Work(timing.pair_ms, timing.pair_flops),
    }


def time_window(device: str, size: tuple[int, int], keyframes: int = 10) -> Work:
    """A keyframe against all others of its window: one encode and `keyframes` pairs."""
    predictor = MiniPredictor(device=device)
    planes = noise_planes(*size)
    others = [predictor.encode(noise_planes(*size, seed=number + 1)) for number in range(keyframes)]

    def keyframe() -> None:
        mine = predictor.encode(planes)
        predictor.match([(mine, other) for other in others])

    with FlopCounterMode(display=False) as counter:
        keyframe()
    return Work(1e3 * benchmark.best_seconds(keyframe, 3, predictor.device), counter.get_total_flops())


def time_training(device: str, steps: int = 12, batch: int = 8) -> Work:
    """A pair of `dark3r distill --mode full` on textured pairs of 192x160, mean over all steps, data included."""
    config = SessionConfig(
        mode='full',
        data=('textures',),
        device=device,
        procedural=8,
        validation=0,
        loop=LoopConfig(steps=steps, batch=batch, warm_up=1, picture_every=0, checkpoint_s=1e6),
        losses=DistillConfig(matching=1.0),
    )
    with tempfile.TemporaryDirectory(prefix='dark3r_bench_') as folder:
        session = Session(config, Path(folder))
        session.run()
        pairs = session.task.make(0, batch)
        with FlopCounterMode(display=False) as counter:
            loss, _ = session.task.losses(pairs, torch.Generator().manual_seed(0))
            loss.backward()  # type: ignore[no-untyped-call]
    return Work(1e3 * session.trainer.seconds / (steps * batch), counter.get_total_flops() // batch)


def small_training(device: str, steps: int) -> Trainer:
    """`dark3r nerf train` with the `preview` profile on a small simulated room, before its first step."""
    scene = make_scene(ComparisonConfig(width=64, height=48, views=12, seconds=6.0))
    config = profile('preview', {'width': 64, 'steps': steps})
    return Trainer(collect_views(scene.posed, scene.frames, config, noise=scene.noise), config, device=device)


def time_radiance(device: str, steps: int = 60) -> Work:
    """A ray of such a training."""
    trainer = small_training(device, steps + 2)
    with FlopCounterMode(display=False) as counter:
        trainer.step()
    seconds = benchmark.best_seconds(trainer.step, steps, torch.device(device))
    return Work(1e3 * seconds / trainer.rays, counter.get_total_flops() // trainer.rays)


def limit_ms(work: Work, flops_per_second: float) -> float:
    """Milliseconds that the arithmetic alone takes at the rate of a large matrix product."""
    return 1e3 * work.flops / flops_per_second


def default_precision(device: str) -> str:
    """What a user gets without asking."""
    return choose_precision('auto', torch.device(device))
