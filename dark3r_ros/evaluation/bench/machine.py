# SPDX-License-Identifier: Apache-2.0
"""What a figure was measured on and with: hardware, versions, source code, weights; and how fast the machine can be."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import dark3r_ros
from dark3r_ros.model.benchmark import matmul_rate
from dark3r_ros.sfm.progress import usable_cores

PACKAGE = Path(dark3r_ros.__file__).parent


def code_hash() -> str:
    """Hash of all Python sources of the package: tells whether two cells were made by the same code."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob('*.py')):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def weights_hashes() -> dict[str, str]:
    """SHA-256 (first 16 digits) of each bundled weight file."""
    files = sorted((PACKAGE / 'model' / 'weights_mini').glob('*.safetensors'))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def commit() -> str:
    """Commit of the checkout, with `-dirty` for local changes; empty for an installed package."""
    try:
        done = subprocess.run(
            ['git', '-C', str(PACKAGE.parent), 'describe', '--always', '--dirty', '--abbrev=12'],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def processor() -> str:
    """Name of the processor."""
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(seed: int) -> dict[str, Any]:
    """Provenance of figures measured now."""
    return {
        'processor': processor(),
        'cores': usable_cores(),
        'memory_gb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'version': dark3r_ros.__version__,
        'commit': commit(),
        'code': code_hash(),
        'weights': weights_hashes(),
        'seed': seed,
    }


def copy_rate(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that memory gives: a large copy, counted once for reading and once for writing."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float('inf')
    for _ in range(5):
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * source.numel() / best


def ceilings(device: torch.device, precision: str = 'fp32') -> dict[str, float]:
    """Measured limits of the machine: operations a second of a large matrix product, bytes a second of a copy."""
    return {'flops': matmul_rate(device, precision), 'bytes': copy_rate(device)}
