# SPDX-License-Identifier: Apache-2.0
"""The ablation runner: what its variants differ in, its table, and going on where it was stopped."""

import json
from dataclasses import fields

import pytest

from dark3r_ros.training import ablation
from dark3r_ros.training.ablation import main, table, variants, with_mode
from dark3r_ros.training.session import SessionConfig


def differences(one, other, prefix=''):
    """Names of the settings in which two configurations differ."""
    found = set()
    for item in fields(one):
        a, b = getattr(one, item.name), getattr(other, item.name)
        if a == b:
            continue
        nested = hasattr(a, '__dataclass_fields__')
        found |= differences(a, b, f'{prefix}{item.name}.') if nested else {prefix + item.name}
    return found


@pytest.mark.parametrize('mode', ['lora', 'full'])
def test_variants_differ_in_what_they_are_named_for(mode):
    base = with_mode(SessionConfig(), mode)
    found = {name: differences(base, config) for name, config in variants(base).items()}
    assert found[mode] == set()
    assert found['full' if mode == 'lora' else 'lora'] == {'mode', 'loop.learning_rate'}
    assert found['no-clean-term'] == {'losses.clean'}
    assert found['clipped-at-black'] == {'exposure.clip_black'}
    assert found['distil-and-match'] == {'losses.matching'}
    assert 'losses.matching' in found['direct'] and all(name.startswith('losses.') for name in found['direct'])
    assert found['encoder-only'] - {'mode', 'loop.learning_rate'} == {'lora.part'}


def test_variants_are_trained_measured_and_not_trained_again(tmp_path, capsys, monkeypatch):
    figures = iter(range(100))
    monkeypatch.setattr(ablation, 'held_out_rooms', lambda count: None)
    monkeypatch.setattr(ablation, 'measure', lambda weights, pairs, clip_black=False: {'right': float(next(figures))})
    monkeypatch.setattr(ablation, '_PROCEDURAL', 2)
    arguments = [
        '-o', str(tmp_path), '--data', 'textures', '--steps', '1', '--batch', '1', '--size', '64', '64',
        '--device', 'cpu', '--variants', 'direct', 'encoder-only',
    ]  # fmt: skip
    assert main(arguments) == 0
    results = json.loads((tmp_path / 'ablation.json').read_text())
    assert list(results) == ['teacher', 'direct', 'encoder-only']
    assert [row['steps'] for row in results.values()] == [0, 1, 1]
    written = (tmp_path / 'direct' / 'log.jsonl').read_text()
    assert main(arguments) == 0
    assert (tmp_path / 'direct' / 'log.jsonl').read_text() == written
    assert '| encoder-only | ' in capsys.readouterr().out
    assert main([*arguments, 'nonsense']) == 2
    assert 'unknown variant' in capsys.readouterr().err


def test_table_is_markdown():
    text = table({'teacher': {'a': 1.0, 'b': 0.25}, 'student': {'a': 2.0, 'b': 0.5}})
    rows = ['| variant | a | b |', '| --- | --- | --- |', '| teacher | 1 | 0.25 |', '| student | 2 | 0.5 |']
    assert text.splitlines() == rows
