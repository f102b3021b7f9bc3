# SPDX-License-Identifier: Apache-2.0
"""`dark3r evaluate` from the command line."""

from __future__ import annotations

import json

import pytest
from evaluation_helpers import write_both

from dark3r_ros.cli.main import main


def test_table_files_and_refreshed_report(tmp_path, capsys):
    result, truth = write_both(tmp_path, noise=0.01)
    assert main(['evaluate', str(result), '--truth', str(truth / 'cameras.json')]) == 0
    output = capsys.readouterr()
    assert '11 of 12 (91.7%)' in output.out
    assert 'ATE after Sim(3): RMSE' in output.out
    assert 'evaluation.json' in output.err
    figures = json.loads((result / 'evaluation.json').read_text())
    assert 0.001 < figures['ate_relative'] < 0.02
    assert f'{figures["ate_relative"]:.2%}' in (result / 'report.html').read_text()


def test_json(tmp_path, capsys):
    result, truth = write_both(tmp_path)
    assert main(['evaluate', str(result), '--truth', str(truth), '--json', '--no-report']) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures['posed_share'] == pytest.approx(11 / 12)
    assert figures['ate_relative'] < 1e-9
    assert figures['ate_rigid']['rmse'] is None
    assert not (result / 'report.html').exists()


def test_tum_file_leaves_no_files_behind(tmp_path, capsys):
    result, truth = write_both(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert main(['evaluate', str(result / 'trajectory.tum'), '--truth', str(truth)]) == 0
    assert sorted(tmp_path.rglob('*')) == before
    assert 'posed frames' in capsys.readouterr().out


@pytest.mark.parametrize('truth', ['nowhere.tum', 'bad.tum'])
def test_bad_truth_is_one_line(tmp_path, capsys, truth):
    result, _ = write_both(tmp_path)
    (tmp_path / 'bad.tum').write_text('0 0 0 0 0 0 0 1\n1 2\n')
    assert main(['evaluate', str(result), '--truth', str(tmp_path / truth)]) == 2
    err = capsys.readouterr().err
    assert err.startswith('dark3r: error: ')
    assert err.count('\n') == 1
    assert not (result / 'evaluation.json').exists()
