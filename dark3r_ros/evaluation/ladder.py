# SPDX-License-Identifier: Apache-2.0
"""The dark ladder: clean sequences photographed at falling SNR, mapped, and scored against their truth.

    python -m dark3r_ros.evaluation.ladder SEQUENCE [SEQUENCE ...] --snr 20 10 0 -4 -o out/ladder

makes the dark frames exactly as `dark3r darken` (or, for `room`, `corridor` and `tunnel`, as `dark3r simulate`), maps
them as `dark3r map` (`--engine map`), as `dark3r sfm` (`sfm`) or with another method on developed pictures (`PEERS`),
and scores them as `dark3r evaluate`. Every row leaves a result folder; a row whose folder exists with the same settings
is not computed again.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dark3r_ros.config import to_mapping
from dark3r_ros.errors import Dark3rError, ReconstructionError
from dark3r_ros.evaluation.colmap_baseline import map_pictures
from dark3r_ros.evaluation.evaluate import evaluate_result
from dark3r_ros.evaluation.scenes import Scene, open_scene
from dark3r_ros.evaluation.visual_odometry import track_pictures
from dark3r_ros.mapping.config import MappingConfig
from dark3r_ros.mapping.pipeline import MappingPipeline
from dark3r_ros.matching.registry import PREDICTORS, make_predictor
from dark3r_ros.model.predictor import Predictor
from dark3r_ros.sfm.config import OFFLINE_MINI, SfmConfig
from dark3r_ros.sfm.pipeline import SfmRun
from dark3r_ros.simulation.frames import SimulatedFrame
from dark3r_ros.storage.result import jsonable, write_result
from dark3r_ros.types import Frame, Reconstruction

# Poses are what the ladder scores.
LADDER_SFM = SfmConfig(dense=False)
ROW_FILE = 'ladder_row.json'


@dataclass(frozen=True)
class Row:
    """One rung: figures of one sequence at one SNR; shares and the ATE are relative, angles in degrees."""

    sequence: str
    snr_db: float | None
    predictor: str
    posed: int
    frames: int
    ate_relative: float | None
    rotation_median_deg: float | None
    seconds: float
    note: str = ''


class _Clock:
    """Frames of a simulation, with the time that making them took."""

    def __init__(self, made: Iterable[SimulatedFrame]) -> None:
        self._made = made
        self.seconds = 0.0
        self.count = 0

    def __iter__(self) -> Iterator[Frame]:
        began = time.perf_counter()
        for frame in self._made:
            self.seconds += time.perf_counter() - began
            self.count += 1
            yield frame.frame
            began = time.perf_counter()


def _map(frames: Iterable[Frame], predictor: Predictor) -> tuple[Reconstruction, dict[str, Any]]:
    pipeline = MappingPipeline(MappingConfig(), predictor, offline=True)
    for frame in frames:
        pipeline.push(frame)
    pipeline.flush()
    return pipeline.reconstruction(largest=True), {'stages_s': pipeline.stage_seconds, 'start': pipeline.verdict.note}


def _sfm(frames: Iterable[Frame], predictor: Predictor) -> tuple[Reconstruction, dict[str, Any]]:
    run = SfmRun(LADDER_SFM, predictor)
    return run(frames), {'stages_s': run.seconds, 'sfm': run.notes}


OWN_ENGINES: dict[str, Callable[[Iterable[Frame], Predictor], tuple[Reconstruction, dict[str, Any]]]] = {
    'map': _map,
    'sfm': _sfm,
}
# Methods of others, on pictures developed from the same raw frames.
PEERS: dict[str, Callable[[Iterable[Frame]], Reconstruction]] = {
    'colmap': map_pictures,
    'colmap-linear': functools.partial(map_pictures, pictures='linear'),
    'colmap-denoised': functools.partial(map_pictures, pictures='denoised'),
    'colmap-global': functools.partial(map_pictures, mapper='global'),
    'vo-sift': functools.partial(track_pictures, features='sift'),
    'vo-orb': functools.partial(track_pictures, features='orb'),
}
ENGINES = (*OWN_ENGINES, *PEERS)


def engine_config(engine: str) -> dict[str, Any]:
    """Settings that an engine runs with, as JSON."""
    return {'map': to_mapping(MappingConfig()), 'sfm': to_mapping(LADDER_SFM)}.get(engine, {})


def run_row(
    scene: Scene,
    snr_db: float | None,
    predictor: str,
    seed: int,
    preset: str,
    output: Path,
    engine: str = 'map',
    peer: Callable[[Iterable[Frame]], Reconstruction] | None = None,
) -> Row:
    """Darken, map and score one scene; `snr_db` None leaves it clean. The result lands in `output`.

    `peer` is a method beside `PEERS`, under the name `engine`. A reconstruction that fails is a row without poses.
    """
    settings = {'snr_db': snr_db, 'seed': seed, 'preset': preset, 'mapping': engine_config(engine), 'engine': engine}
    settings['scene'] = scene.description
    matcher = None
    if engine in OWN_ENGINES:
        matcher = make_predictor(predictor, mini=OFFLINE_MINI if engine == 'sfm' else None)
        settings['fingerprint'] = matcher.fingerprint
    known = _finished(output, settings)
    if known is not None:
        return known
    frames = _Clock(scene.photograph(snr_db, seed, preset))
    began = time.perf_counter()
    try:
        if matcher is not None:
            reconstruction, details = OWN_ENGINES[engine](frames, matcher)
        else:
            reconstruction, details = (peer or PEERS[engine])(frames), {}
    except ReconstructionError as error:
        row = Row(scene.name, snr_db, predictor, 0, frames.count, None, None, 0.0, str(error))
        output.mkdir(parents=True, exist_ok=True)
        return _finish(output, settings, row)
    seconds = time.perf_counter() - began - frames.seconds
    report = {'wall_s': seconds, 'config': settings, 'predictor': predictor, **details}
    write_result(output, reconstruction, report, overwrite=True)
    posed = len(reconstruction.trajectory())
    row = Row(scene.name, snr_db, predictor, posed, len(reconstruction.frames), None, None, round(seconds, 2))
    if posed >= 3:
        figures = evaluate_result(output, scene.truth(output, seed)).figures()
        row = Row(
            **{
                **asdict(row),
                'ate_relative': figures['ate_relative'],
                'rotation_median_deg': figures['rotation_pairs_median_deg'],
                'note': figures['degenerate'] or '',
            }
        )
    return _finish(output, settings, row)


def _finish(output: Path, settings: dict[str, Any], row: Row) -> Row:
    (output / ROW_FILE).write_text(json.dumps(jsonable({'settings': settings, 'row': asdict(row)}), indent=1))
    return row


def _finished(output: Path, settings: dict[str, Any]) -> Row | None:
    """Row of an earlier run with the same settings."""
    try:
        saved = json.loads((output / ROW_FILE).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return Row(**saved['row']) if saved['settings'] == jsonable(settings) else None


def markdown(rows: list[Row]) -> str:
    """Table of the rows."""
    lines = [
        '| sequence | SNR | posed | relative ATE | median rotation error | seconds |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        level = 'clean' if row.snr_db is None else f'{row.snr_db:+g} dB'
        ate = '-' if row.ate_relative is None or math.isnan(row.ate_relative) else f'{row.ate_relative:.2%}'
        turn = '-' if row.rotation_median_deg is None else f'{row.rotation_median_deg:.2f} deg'
        lines.append(f'| {row.sequence} | {level} | {row.posed}/{row.frames} | {ate} | {turn} | {row.seconds:.1f} |')
    return '\n'.join(lines)


def _level(text: str) -> float | None:
    return None if text == 'clean' else float(text)


def main(argv: list[str] | None = None) -> int:
    """Run the ladder and print its table."""
    parser = argparse.ArgumentParser(prog='python -m dark3r_ros.evaluation.ladder', description=__doc__)
    parser.add_argument('sequences', nargs='+', help='sequence folders with cameras.json, or room, corridor, tunnel')
    parser.add_argument('--snr', nargs='+', type=_level, default=[20.0], metavar='DB', help='levels, or `clean`')
    parser.add_argument(
        '--predictor', default=PREDICTORS[0], help=f'{", ".join(PREDICTORS)} or a weight file (default: %(default)s)'
    )
    parser.add_argument('--engine', choices=ENGINES, default='map', help='what maps (default: %(default)s)')
    parser.add_argument('--preset', default='starvis', help='noise of the camera (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('-o', '--output', type=Path, default=Path('out/ladder'))
    args = parser.parse_args(argv)
    rows: list[Row] = []
    try:
        for scene in map(open_scene, args.sequences):
            for snr_db in args.snr:
                level = 'clean' if snr_db is None else f'{snr_db:+g}dB'
                name = Path(args.predictor).stem
                maker = name if args.engine == 'map' else f'{args.engine}_{name}'
                output = args.output / maker / scene.name / level
                output.parent.mkdir(parents=True, exist_ok=True)
                rows.append(run_row(scene, snr_db, args.predictor, args.seed, args.preset, output, args.engine))
                print(markdown(rows[-1:]).splitlines()[-1], rows[-1].note, file=sys.stderr)
    except Dark3rError as error:
        print(f'dark3r: error: {error}', file=sys.stderr)
        return 2
    print(markdown(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
