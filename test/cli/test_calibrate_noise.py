# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from dark3r_ros.cli.main import main
from dark3r_ros.raw.noise import load_yaml, preset

TRUE = preset('nikon_d850')
RAW_OPTIONS = ['--encoding-override', 'rggb', '--white-level', '16383']


@pytest.fixture(scope='module')
def recordings(tmp_path_factory) -> Path:
    """Folders of 16-bit PNG mosaics: dark frames, flats stepping through exposures, a static scene."""
    root = tmp_path_factory.mktemp('recordings')
    rng = np.random.default_rng(1)
    ramp = np.tile(np.linspace(0.7, 1.0, 480), (320, 1))
    clean = {
        'dark': [np.zeros((320, 480))] * 12,
        'flat': [ramp * level for level in (200.0, 800.0, 3000.0, 9000.0) for _ in range(2)],
        'static': [np.tile(np.linspace(0.0, 400.0, 480), (320, 1))] * 12,
    }
    for name, images in clean.items():
        (root / name).mkdir()
        for index, image in enumerate(images):
            cv2.imwrite(str(root / name / f'{index:03d}.png'), TRUE.sample(image, rng))
    return root


def test_dark_and_flat_folders(recordings, tmp_path, capsys):
    output = tmp_path / 'd850.yaml'
    arguments = ['--dark', str(recordings / 'dark'), '--flat', str(recordings / 'flat'), '-o', str(output)]
    assert main(['calibrate-noise', *arguments, *RAW_OPTIONS]) == 0
    text = capsys.readouterr().out
    assert 'DN/e-' in text and 'R^2' in text and 'Tukey lambda' in text
    found = load_yaml(output)
    assert found.gain == pytest.approx(TRUE.gain, rel=0.05)
    assert found.read_sigma == pytest.approx(TRUE.read_sigma, rel=0.05)
    assert found.black_level == pytest.approx(400.0, abs=0.2)
    assert found.white_level == 16383.0 and found.name == 'd850'
    assert cv2.imread(str(tmp_path / 'd850.png')) is not None


def test_json_of_a_static_scene(recordings, tmp_path, capsys):
    plot = tmp_path / 'fit.png'
    arguments = ['--static', str(recordings / 'static'), '-o', str(tmp_path / 'n.yaml'), '--plot', str(plot), '--json']
    assert main(['calibrate-noise', *arguments, *RAW_OPTIONS, '--black-level', '400']) == 0
    result = json.loads(capsys.readouterr().out)
    assert result['noise']['gain'] == pytest.approx(TRUE.gain, rel=0.05)
    assert result['noise']['tukey_lambda'] is None
    assert result['fit']['r_squared'] > 0.99 and result['fit']['pairs'] == 6
    assert plot.is_file()
    assert math.isnan(load_yaml(tmp_path / 'n.yaml').tukey_lambda)


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        ([], 'nothing to calibrate from'),
        (['--static', 'missing'], 'missing'),
        (['--dark', '{root}/dark'], 'the gain needs light'),
        (['--dark', '{root}/dark', '--flat', '{root}/flat', '--max-frames', '1'], 'one dark frame only'),
        (['--static', '{root}/dark'], 'does not grow with brightness'),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, text, recordings, tmp_path, capsys):
    filled = [argument.format(root=recordings) for argument in arguments]
    assert main(['calibrate-noise', *filled, *RAW_OPTIONS, '-o', str(tmp_path / 'n.yaml')]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert len(errors) == 1 and text in errors[0]
    assert not (tmp_path / 'n.yaml').exists()


def test_unwritable_output(recordings, tmp_path, capsys):
    arguments = ['--dark', str(recordings / 'dark'), '--flat', str(recordings / 'flat')]
    assert main(['calibrate-noise', *arguments, *RAW_OPTIONS, '-o', str(tmp_path / 'no' / 'n.yaml')]) == 2
    assert 'cannot write' in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    assert main(['calibrate-noise', '--help']) == 0
    assert 'dark3r calibrate-noise --dark' in capsys.readouterr().out
