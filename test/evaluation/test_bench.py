# SPDX-License-Identifier: Apache-2.0
"""The benchmark: cells that are kept, tables that say what was measured, pages, the command, the script for devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from evaluation_helpers import TRUE_POSES

from dark3r_ros.cli.main import main
from dark3r_ros.errors import DataError, ReconstructionError
from dark3r_ros.evaluation.bench import device, machine, page, profiles, speed
from dark3r_ros.evaluation.bench.alone import alone
from dark3r_ros.evaluation.bench.cells import Cell, CellStore, Measured
from dark3r_ros.evaluation.bench.layout import Choice, Table, markdown_table, plain
from dark3r_ros.evaluation.bench.poses import METHODS, depth_figures, ladder_cells, ladder_text
from dark3r_ros.evaluation.bench.tables import TABLES
from dark3r_ros.evaluation.scenes import open_scene
from dark3r_ros.matching.mini import MiniPredictor
from dark3r_ros.storage.result import peak_memory_mb


def cell(work, settings=None):
    return Cell('speed', 'row', settings or {'size': (3, 4)}, work)


def test_a_cell_is_measured_once(tmp_path):
    calls = []
    store = CellStore(tmp_path, {'code': 'a'})
    for _ in range(2):
        result = store.measure(cell(lambda folder: calls.append(folder) or {'ms': np.float32(1.5)}))
    assert result.figures == {'ms': 1.5} and len(calls) == 1
    assert result.settings == {'size': [3, 4]} and result.provenance['code'] == 'a' and result.provenance['load'] >= 0
    other = store.measure(cell(lambda folder: {'ms': 2}, {'size': (3, 5)}))
    assert other.figures == {'ms': 2}


def test_what_failed_is_tried_again_and_old_code_is_renewed_on_demand(tmp_path):
    def fails(folder):
        raise DataError('no such scene')

    store = CellStore(tmp_path, {'code': 'a'})
    assert store.measure(cell(fails)).failure == 'DataError: no such scene'
    assert store.measure(cell(lambda folder: {'ms': 1})).figures == {'ms': 1}
    newer = CellStore(tmp_path, {'code': 'b'})
    assert newer.known(cell(fails)).provenance['code'] == 'a'
    assert CellStore(tmp_path, {'code': 'b'}, renew=True).known(cell(fails)) is None


def test_a_cell_that_breaks_does_not_take_the_others_with_it(tmp_path):
    def breaks(folder):
        return {'ms': [][0]}

    assert CellStore(tmp_path, {}).measure(cell(breaks)).failure == 'IndexError: list index out of range'


def test_a_cell_says_what_it_cost_the_processor(tmp_path):
    def busy(folder):
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        return {}

    working = CellStore(tmp_path, {}).measure(cell(busy))
    idle = CellStore(tmp_path, {}).measure(cell(lambda folder: time.sleep(0.2) or {}, {'size': 1}))
    assert working.processor_s > 0.15 and idle.processor_s < 0.15 < idle.seconds
    assert 'of the processor, load ' in page.origin([working, idle])


def test_a_torn_cell_is_measured_again(tmp_path):
    store = CellStore(tmp_path, {})
    store.measure(cell(lambda folder: {'ms': 1}))
    (store.place(cell(None)) / 'cell.json').write_text('{"table": ')
    assert store.measure(cell(lambda folder: {'ms': 3})).figures == {'ms': 3}


def test_cells_of_the_ladder_differ_by_all_that_matters():
    choice = Choice(('room',), (None, -4.0), tuple(METHODS))
    keys = {item.key for item in ladder_cells(choice)}
    assert len(keys) == 2 * len(METHODS)
    assert not keys & {item.key for item in ladder_cells(Choice(('room',), (None, -4.0), tuple(METHODS), seed=1))}
    assert not keys & {item.key for item in ladder_cells(Choice(('tunnel',), (None, -4.0), tuple(METHODS)))}


def test_rows_say_what_is_missing():
    assert ladder_text({'posed': 0, 'frames': 9, 'ate_relative': None}) == '0/9'
    assert ladder_text({'posed': 8, 'frames': 9, 'ate_relative': 0.0123}) == '8/9, 1.23 %'
    assert markdown_table(['a', 'b'], [['1', '2']]) == '| a | b |\n| --- | --- |\n| 1 | 2 |'


def test_every_table_names_its_cells_without_measuring():
    for quick in (True, False):
        choice = Choice(('room',), (None,), ('COLMAP',), quick=quick)
        for name, table in TABLES.items():
            cells = list(table.cells(choice))
            assert cells and {item.table for item in cells} == {name}
            assert len({item.key for item in cells}) == len(cells)


def test_the_code_hash_follows_the_sources(tmp_path, monkeypatch):
    (tmp_path / 'a.py').write_text('x = 1')
    monkeypatch.setattr(machine, 'PACKAGE', tmp_path)
    first = machine.code_hash()
    (tmp_path / 'a.py').write_text('x = 2')
    assert machine.code_hash() != first


@pytest.fixture
def sequence(tmp_path):
    """A tiny clean sequence: three pictures and their poses."""
    folder = tmp_path / 'walk'
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = []
    for number in range(3):
        picture = cv2.resize(rng.integers(0, 255, (12, 16, 3)).astype(np.uint8), (64, 48))
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        pose = np.eye(4)
        pose[0, 3] = float(number)
        images.append({'file': f'{number}.png', 'c2w': pose.tolist()})
    head = {'width': 64, 'height': 48, 'fx': 60.0, 'fy': 60.0, 'cx': 31.5, 'cy': 23.5}
    (folder / 'cameras.json').write_text(json.dumps({**head, 'images': images}))
    return folder


def test_the_command_measures_draws_and_goes_on(sequence, tmp_path, capsys):
    script = tmp_path / 'method.py'
    script.write_text(TRUE_POSES.replace('if number != 2', ''))
    output = tmp_path / 'bench'
    command = ['bench', '-o', str(output), '--tables', 'ladder', '--scenes', str(sequence), '--snr', 'clean', '-4']
    command += ['--methods', 'ORB odometry', '--peer', f'true={sys.executable} {script} {{frames}} {{output}}']
    assert main(command) == 0
    said = capsys.readouterr()
    assert '| walk | clean | 0/3 | 3/3, 0.00 % |' in said.out
    assert '| walk | -4 dB | 0/3 | 3/3, 0.00 % |' in said.out
    page = (output / 'index.html').read_text()
    assert 'data:image/png' in page and 'ORB odometry' in page
    assert cv2.imread(str(output / 'plots' / 'ladder.png')).shape[0] > 200
    assert main(command) == 0
    assert capsys.readouterr().err.count('(known)') == 4
    facts = json.loads((output / 'benchmarks.json').read_text())
    assert len(facts['ladder'][0]['provenance']['code']) == 16


def test_after_kill_the_same_command_goes_on(sequence, tmp_path, capsys):
    script, flag = tmp_path / 'method.py', tmp_path / 'flag'
    script.write_text(f"import os, time\nwhile os.path.exists('{flag}'): time.sleep(0.1)\n" + TRUE_POSES)
    output = tmp_path / 'bench'
    command = ['bench', '-o', str(output), '--tables', 'ladder', '--scenes', str(sequence), '--snr', 'clean']
    command += ['--methods', 'ORB odometry', '--peer', f'true={sys.executable} {script} {{frames}} {{output}}']
    flag.touch()  # the second cell does not end while this is there
    stopped = subprocess.Popen(
        [sys.executable, '-c', f'from dark3r_ros.cli.main import main; main({command!r})'], start_new_session=True
    )
    until = time.monotonic() + 240.0
    while not list(output.glob('cells/*/*/cell.json')):
        assert stopped.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    os.killpg(stopped.pid, signal.SIGKILL)
    assert stopped.wait() == -signal.SIGKILL
    flag.unlink()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.count('(known)') == 1 and '[2/2]' in said.err
    assert '| walk | clean | 0/3 | ' in said.out


def test_pages_are_drawn_once_a_table_and_when_the_user_has_had_enough(tmp_path, monkeypatch, capsys):
    def table(name, count, stop=False):
        def work(folder):
            if stop:
                raise KeyboardInterrupt
            return {'ms': 1.0}

        cells = [Cell(name, f'row {number}', {'number': number}, work) for number in range(count)]
        return Table(name, name, 'none', lambda choice: iter(cells), plain({'ms': ('ms', '{:.0f}')}))

    tables = {'one': table('one', 3), 'two': table('two', 2), 'three': table('three', 1, stop=True)}
    monkeypatch.setattr('dark3r_ros.evaluation.bench.tables.TABLES', tables)
    drawn = []
    plainly = page.write_pages
    monkeypatch.setattr(page, 'write_pages', lambda *args: drawn.append(1) or plainly(*args))
    assert main(['bench', '-o', str(tmp_path)]) == 130
    assert len(drawn) == 3
    text = (tmp_path / 'benchmarks.md').read_text()
    assert text.count('| row ') == 5
    capsys.readouterr()


def test_work_alone_has_a_memory_of_its_own():
    held = np.ones(60_000_000)  # 480 MB
    mine = peak_memory_mb()
    assert mine > 480.0 and held.sum() > 0
    assert alone(peak_memory_mb) < mine - 100.0
    with pytest.raises(DataError, match='moon is neither'):
        alone(open_scene, 'moon')
    with pytest.raises(ReconstructionError, match='ended with 7'):
        alone(os._exit, 7)


def test_depths_are_scored_in_the_scale_of_the_poses():
    truth = np.full((2, 4, 5), 3.0)
    truth[:, 2:] = 9.0
    depth = truth / 2.0
    depth[:, :1], depth[0, 3] = 0.0, 9.0  # the holes lie in what is near: the ratio of medians is not two
    sure = np.where(depth == 9.0, 0.2, 0.9)
    figures = depth_figures(depth, sure, truth, 2.0)
    assert figures['share'] == 0.75 and figures['sure_share'] == 0.625
    assert figures['abs_rel'] == pytest.approx(5 / 30) and figures['sure_abs_rel'] == pytest.approx(0.0)
    assert figures['delta'] == pytest.approx(25 / 30) and figures['sure_delta'] == 1.0
    lost = depth_figures(depth, np.zeros_like(sure), truth, 2.0)
    assert np.isnan(lost['sure_abs_rel']) and lost['sure_share'] == 0.0


def row_of(method, snr, ate, posed=12):
    figures = {'sequence': 'room', 'posed': posed, 'frames': 12, 'ate_relative': ate}
    return Measured('ladder', f'{method} {snr}', {'method': method, 'snr_db': snr}, figures, {}, 1.0, '')


def test_the_ladder_is_drawn_with_noiseless_frames_apart():
    assert page._places([-4.0, None, 10.0, -4.0]) == {-4.0: -4.0, 10.0: 10.0, None: 15.0}
    assert page._places([None]) == {None: 5.0} and page._places([30.0]) == {30.0: 30.0}
    cells = [row_of('COLMAP', None, 0.002), row_of('COLMAP', -4.0, None, posed=0), row_of('student', -4.0, 0.003)]
    drawn = cv2.imdecode(np.frombuffer(page.ladder_plot(cells), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[0] > 400
    blue, orange = (int((np.abs(drawn.astype(int) - colour).max(axis=2) < 40).sum()) for colour in
                    ((0xB2, 0x72, 0x00), (0x00, 0x9F, 0xE6)))  # fmt: skip
    assert min(blue, orange) > 20
    assert page.ladder_plot([]) is None and page.panels([([], 'nothing')]) is None


def test_arithmetic_of_a_predictor_is_counted_call_by_call():
    class Doubling:
        fingerprint = 'x'

        def encode(self, planes):
            return torch.ones(4, 8) @ torch.ones(8, 2)

        def match(self, pairs):
            return [torch.ones(2, 3) @ torch.ones(3, 5) for _ in pairs]

    counted = profiles.CountingPredictor(Doubling())
    for _ in range(3):
        counted.encode(None)
    counted.match([(0, 0)] * 4)
    counted.match([])
    assert counted.flops == 3 * 2 * 4 * 8 * 2 + 4 * 2 * 2 * 3 * 5
    assert counted.seconds > 0 and counted.fingerprint == 'x'


def test_the_parts_of_a_training_step_add_up():
    cells = {item.label: item for item in profiles.profile_cells(Choice(('room',), (None,), (), quick=True))}
    assert len(cells) == 3
    figures = cells['nerf train, a step of `preview`'].work(Path())
    assert sum(figures['parts_ms'].values()) == pytest.approx(figures['ms'])
    assert min(figures['parts_ms'].values()) > 0 and 0 < figures['limit_ms'] < figures['ms']
    row = Measured('profile', 'train', {}, figures, {}, 1.0, '')
    assert 'grids' in profiles.profile_markdown([row])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--tables', 'speeds'], "unknown table 'speeds'"),
        (['--methods', 'ORB'], "unknown method 'ORB'"),
        (['--snr', 'dark'], "--snr 'dark'"),
        (['--peer', 'slam'], 'not NAME=COMMAND'),
        (['--scenes', 'moon'], 'moon is neither'),
    ],
)
def test_the_command_refuses_in_one_line(options, words, tmp_path, capsys):
    assert main(['bench', '-o', str(tmp_path / 'out'), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('dark3r: error: ') and words in error and '\n' not in error


def test_arithmetic_of_mini_is_counted():
    planes = speed.noise_planes(64, 48)
    works = speed.time_mini('cpu', (64, 48), repeats=1)
    network = MiniPredictor(device='cpu').network
    # The stem alone: its multiply-adds, twice, are a lower bound; all parameters at all pixels an upper one.
    stem = next(layer for layer in network.modules() if hasattr(layer, 'stride') and hasattr(layer, 'weight'))
    pixels = planes.values.shape[1] * planes.values.shape[2] // (stem.stride[0] * stem.stride[1])
    assert 2 * stem.weight.numel() * pixels < works['encode'].flops
    assert works['encode'].flops < 2 * network.parameter_count() * planes.values.shape[1] * planes.values.shape[2]
    assert works['encode'].ms > 0 and works['pair'].ms > 0


def test_the_device_script_measures_on_a_cpu_and_leaves_a_table(tmp_path, capsys):
    assert device.main(['--device', 'cpu', '--quick', '--parts', 'alignment', 'matching', '-o', str(tmp_path)]) == 0
    assert 'global alignment, 4 views' in capsys.readouterr().out
    rows = json.loads((tmp_path / 'device.json').read_text())['rows']
    assert len(rows) == 2 and all(row['value'] > 0 for row in rows)


def test_a_part_without_memory_is_a_row(monkeypatch):
    def full(*_):
        raise device.torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')
        yield

    monkeypatch.setitem(device.PARTS, 'networks', full)
    monkeypatch.setattr(device, 'ceilings', lambda *_: {'flops': 1e12, 'bytes': 1e10})
    result = device.measure('cpu', True, ['networks'], lambda line: None)
    assert result['rows'][0]['measured'].startswith('failed: CUDA out of memory')
    assert 'failed' in device.markdown(result)


def test_without_cuda_the_device_script_says_so(monkeypatch, capsys):
    monkeypatch.setattr(device.torch.cuda, 'is_available', lambda: False)
    assert main(['bench', '--gpu']) == 2
    assert 'no CUDA device' in capsys.readouterr().err
