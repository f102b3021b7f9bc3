# SPDX-License-Identifier: Apache-2.0
"""The tables of the benchmark by name."""

from __future__ import annotations

from dark3r_ros.evaluation.bench.layout import Table, plain
from dark3r_ros.evaluation.bench.parts import field_cells, field_markdown, rate_cells, speed_cells
from dark3r_ros.evaluation.bench.poses import (
    depth_cells,
    ladder_cells,
    ladder_text,
    match_cells,
    match_text,
    online_cells,
    pivot,
)
from dark3r_ros.evaluation.bench.profiles import profile_cells, profile_markdown

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            'ladder',
            'The dark ladder: frames posed, ATE after Sim(3) over the largest distance between two true cameras',
            'student, sfm: every frame; at -4 dB 0.5 % or less, at -8 dB 1 %, at -12 dB 4 %; clean 1.5 times COLMAP',
            ladder_cells,
            pivot(ladder_text),
        ),
        Table(
            'matches',
            'Matches a pair that lie within a pixel of the true epipolar line, and their share of all',
            'more of them in the dark than the teacher, and than SIFT',
            match_cells,
            pivot(match_text),
        ),
        Table(
            'online',
            'Online mapping of a simulated tunnel, lamp on the robot, 320x240, one frame after the other',
            'every frame posed, ATE 1 % or less of the extent, 10 frames/s, p95 below 250 ms',
            online_cells,
            plain(
                {
                    'posed': ('posed', '{}'),
                    'frames': ('of', '{}'),
                    'ate_relative': ('relative ATE', '{:.2%}'),
                    'rate': ('frames/s', '{:.1f}'),
                    'median_ms': ('median ms', '{:.0f}'),
                    'p95_ms': ('p95 ms', '{:.0f}'),
                    'memory_mb': ('peak MB', '{:.0f}'),
                }
            ),
        ),
        Table(
            'depth',
            'Depth of `dark3r sfm` with its own poses, in the scale of the poses',
            'AbsRel 0.10 or less, delta < 1.25 for 93 % or more',
            depth_cells,
            plain(
                {
                    'posed': ('posed', '{}'),
                    'frames': ('of', '{}'),
                    'abs_rel': ('AbsRel', '{:.3f}'),
                    'delta': ('delta < 1.25', '{:.1%}'),
                    'share': ('pixels with a depth', '{:.0%}'),
                    'sure_abs_rel': ('confidence > 0.5: AbsRel', '{:.3f}'),
                    'sure_delta': ('delta', '{:.1%}'),
                    'sure_share': ('pixels', '{:.0%}'),
                }
            ),
        ),
        Table(
            'speed',
            'Networks on the CPU, float32: encode of a frame, pair of encoded frames (mini: matching included)',
            'mini at 320x240 on two cores: 60 ms an encode, 60 ms a pair; the limit is that of a large matrix product',
            speed_cells,
            plain(
                {
                    'encode_ms': ('encode ms', '{:.1f}'),
                    'encode_limit_ms': ('limit ms', '{:.1f}'),
                    'encode_share': ('of the limit', '{:.0%}'),
                    'pair_ms': ('pair ms', '{:.1f}'),
                    'pair_limit_ms': ('limit ms', '{:.1f}'),
                    'pair_share': ('of the limit', '{:.0%}'),
                    'gflops': ('GFLOP/s', '{:.0f}'),
                    'gbytes': ('copy GB/s', '{:.1f}'),
                }
            ),
        ),
        Table(
            'rates',
            'Training on the CPU',
            '12,000 pairs an hour were the estimate for a network of 10 M parameters',
            rate_cells,
            plain(
                {
                    'rate': ('a second', '{:,.1f}'),
                    'unit': ('unit', '{}'),
                    'limit': ('limit of the arithmetic', '{:,.0f}'),
                    'share': ('of the limit', '{:.0%}'),
                }
            ),
        ),
        Table(
            'profile',
            'Where the time goes on the CPU, in milliseconds',
            'map 100 ms a frame; the rest of the time beside the arithmetic of the networks as small as can be',
            profile_cells,
            profile_markdown,
        ),
        Table(
            'field',
            'Radiance fields at -4 dB, held-out views against the clean light',
            'full: 1 dB above no depth and clipped, 8 dB above the noisy input, within 1 dB of true poses',
            field_cells,
            field_markdown,
        ),
    )
}
