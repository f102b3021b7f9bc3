# SPDX-License-Identifier: Apache-2.0
"""Reading of the golden cases: sizes, generated weights, comparison."""

import json
import re
from pathlib import Path

import numpy as np
import torch

from dark3r_ros.model.config import NetworkConfig
from dark3r_ros.model.network import TwoViewNetwork

TOLERANCE = 1e-4
DESCRIPTOR_TOLERANCE = 3e-4


def read_config(path: Path) -> tuple[NetworkConfig, dict]:
    """Sizes and the whole description of a case folder."""
    case = json.loads(path.read_text())
    model = dict(case['model'])
    dpt = model.pop('dpt', {})
    config = NetworkConfig(
        **model,
        dpt_feature_dim=dpt.get('feature_dim', 256),
        dpt_last_dim=dpt.get('last_dim', 128),
        dpt_layer_dims=tuple(dpt.get('layer_dims', (96, 192, 384, 768))),
        dpt_hooks=tuple(dpt.get('hooks', ())),
    )
    return config, case


_GOLDEN = 0x9E3779B97F4A7C15


def recipe_tensor(key: str, shape: tuple[int, ...], seed: int, gains: list) -> np.ndarray:
    """Weights by the published recipe: FNV-1a of the key, splitmix64 counter, top 24 bits, gain by fan-in."""
    base = 0xCBF29CE484222325
    for byte in re.sub(r'layer_rn\.(\d)\.weight', lambda m: f'layer{int(m[1]) + 1}_rn.weight', key).encode():
        base = ((base ^ byte) * 0x100000001B3) % 2**64
    count = int(np.prod(shape))
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64((base + seed * _GOLDEN) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float64)
    u /= 2.0**23
    u -= 1
    if len(shape) >= 2:
        gain = next((g for part, g in gains if part in key), 1.0)
        u *= gain * np.sqrt(3 / np.prod(shape[1:]))
    elif key.endswith('weight'):
        u = 1 + 0.2 * u
    else:
        u *= 0.1
    return u.astype(np.float32).reshape(shape)


def recipe_network(config: NetworkConfig, seed: int, gains: list) -> TwoViewNetwork:
    """A network whose weights come from the recipe."""
    with torch.device('meta'):
        network = TwoViewNetwork(config)
    state = {
        key: torch.from_numpy(recipe_tensor(key, tuple(v.shape), seed, gains))
        for key, v in network.state_dict().items()
    }
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def relative_error(name: str, got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value; shapes must agree."""
    assert got.shape == expected.shape, f'{name}: {got.shape} instead of {expected.shape}'
    assert np.isfinite(got).all(), name
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def assert_matches(results: dict, arrays: dict) -> None:
    """Every array named in `results` agrees with the golden one."""
    errors = {name: relative_error(name, got, arrays[name]) for name, got in results.items()}
    worst = {
        name: error
        for name, error in errors.items()
        if error > (DESCRIPTOR_TOLERANCE if name.startswith('desc_') and 'conf' not in name else TOLERANCE)
    }
    assert not worst, worst


def named_outputs(view1, view2) -> dict:
    """Outputs under the names of the golden arrays."""
    result = {}
    for suffix, view, points in (('1', view1, 'pts3d_1'), ('2', view2, 'pts3d_in_other_view_2')):
        result[points] = view.points.numpy()
        result[f'conf_{suffix}'] = view.confidence.numpy()
        result[f'desc_{suffix}'] = view.descriptors.numpy()
        result[f'desc_conf_{suffix}'] = view.descriptor_confidence.numpy()
    return result
