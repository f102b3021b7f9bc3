# SPDX-License-Identifier: Apache-2.0
"""The report: self-contained, true to the figures, drawn from above whatever the world frame is."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from evaluation_helpers import make_reconstruction, write_both

from dark3r_ros.errors import OutputError
from dark3r_ros.evaluation.evaluate import evaluate_result, write_evaluation
from dark3r_ros.evaluation.figures import SamplePicture, trajectory_figure, upright_axes
from dark3r_ros.evaluation.report import report_rows, truth_in_map, write_report
from dark3r_ros.geometry import se3
from dark3r_ros.storage.result import empty_cloud, read_result


def samples(count=4):
    rng = np.random.default_rng(0)
    return [
        SamplePicture(k, rng.integers(0, 256, (60, 80, 3)).astype(np.uint8), f'frame {k} <b>') for k in range(count)
    ]


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_page_is_self_contained_and_shows_its_figures(tmp_path):
    result, truth = write_both(tmp_path, report={'wall_s': 2.0, 'warnings': ['8 bit <script>'], 'config': {'a': 1}})
    evaluation = evaluate_result(result, truth)
    write_evaluation(result, evaluation, truth)
    saved = read_result(result)
    page = write_report(result, saved.reconstruction, saved.report, samples=samples())
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert 'http' not in text
    assert '<script' not in text
    assert '8 bit &lt;script&gt;' in text
    pictures = [decode(base64.b64decode(data)) for data in re.findall(r'base64,([^"]+)"', text)]
    assert len(pictures) == 4
    for name in ('trajectory', 'health', 'samples', 'cloud'):
        file = decode((result / 'report' / f'{name}.png').read_bytes())
        assert any(np.array_equal(file, picture) for picture in pictures), name
        assert file.std() > 5
    assert '11 of 12 (91.7%)' in text
    assert 'ATE after Sim(3)' in text


def test_earlier_sample_pictures_are_kept(tmp_path):
    result, _ = write_both(tmp_path)
    saved = read_result(result)
    write_report(result, saved.reconstruction, saved.report, samples=samples())
    before = (result / 'report' / 'samples.png').read_bytes()
    page = write_report(result, saved.reconstruction, saved.report)
    assert (result / 'report' / 'samples.png').read_bytes() == before
    assert base64.b64encode(before).decode() in page.read_text()


def test_report_of_nothing(tmp_path):
    reconstruction = make_reconstruction()
    frames = tuple(replace(frame, world_from_camera=None, snr_db=float('nan')) for frame in reconstruction.frames)
    page = write_report(tmp_path, replace(reconstruction, frames=frames, cloud=empty_cloud()), {'frames': 12})
    assert '0 / 12' in page.read_text()
    page = write_report(tmp_path, replace(reconstruction, frames=(), cloud=empty_cloud()), {})
    assert '0 / 0' in page.read_text()


def test_degenerate_scores_are_not_shown_as_zero():
    evaluation = {'degenerate': 'the true camera does not move', 'posed': 3, 'true_frames': 3, 'posed_share': 1.0}
    rows = dict(report_rows({'frames': 3}, evaluation))
    assert rows['Position errors'] == 'not defined: the true camera does not move'
    assert 'ATE after Sim(3)' not in rows


def test_truth_is_drawn_in_the_frame_of_the_estimate(tmp_path):
    result, truth = write_both(tmp_path)
    reconstruction = read_result(result).reconstruction
    mapped = truth_in_map(reconstruction, evaluate_result(result, truth).truth.trajectory)
    assert mapped is not None
    own = reconstruction.trajectory()
    same = np.isin(mapped.stamps_ns, own.stamps_ns)
    np.testing.assert_allclose(mapped.world_from_camera[same], own.world_from_camera, atol=1e-9)
    assert trajectory_figure(reconstruction, mapped) != trajectory_figure(reconstruction)


@pytest.mark.parametrize('world', [np.zeros(6), np.array([1, 2, 3, 0.4, 2.0, -1.0])])
def test_from_above_means_above_in_any_world_frame(world):
    poses = se3.exp(world) @ np.stack([se3.make(np.eye(3), [0, 0, k]) for k in range(5)])
    plan = (poses[:, :3, 3] - poses[0, :3, 3]) @ upright_axes(poses).T
    np.testing.assert_allclose(plan, np.column_stack([np.zeros(5), np.arange(5), np.zeros(5)]), atol=1e-9)


def test_same_input_same_picture():
    reconstruction = make_reconstruction()
    assert trajectory_figure(reconstruction) == trajectory_figure(reconstruction)


def test_unwritable_place(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OutputError, match='cannot write'):
        write_report(tmp_path / 'file', make_reconstruction(), {})
