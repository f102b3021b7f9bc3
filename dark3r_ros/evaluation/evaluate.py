# SPDX-License-Identifier: Apache-2.0
"""Score a result folder or a trajectory against the truth."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DataError
from dark3r_ros.evaluation.depth_metrics import DepthScores, score_depth
from dark3r_ros.evaluation.trajectory_metrics import TrajectoryScores, associate, score_trajectory
from dark3r_ros.geometry import se3
from dark3r_ros.storage.colmap import frame_name, read_observations
from dark3r_ros.storage.files import write_text
from dark3r_ros.storage.result import REPORT_FILE, jsonable, read_result
from dark3r_ros.storage.sequence import CAMERAS_FILE, SequenceInfo, read_cameras_json, read_depth
from dark3r_ros.storage.trajectory import read_tum
from dark3r_ros.types import Float64Array, Trajectory

EVALUATION_FILE = 'evaluation.json'
DEFAULT_TOLERANCE_S = 0.02


@dataclass(frozen=True, eq=False)
class Truth:
    """True poses in order of time, with their file names where the source has them."""

    trajectory: Trajectory
    names: tuple[str, ...] = ()
    metric: bool = True
    sequence: SequenceInfo | None = None


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated poses, names beside them, and the stamps of all input frames, posed or not."""

    trajectory: Trajectory
    names: tuple[str, ...] = ()
    input_stamps: NDArray[np.int64] | None = None
    metric: bool = False
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one result.

    Attributes
    ----------
    true_frames: frames that could have been posed (see `true_frame_count`). posed: those that were.
    by: what the poses were associated by, `name` or `stamp`.
    depth: sparse points against the true depth where they were seen, or None without true depth.
    aligned: estimate in the frame of the truth, or None when it could not be aligned.

    """

    posed: int
    true_frames: int
    by: str
    trajectory: TrajectoryScores
    depth: DepthScores | None
    truth: Truth
    aligned: Trajectory | None

    @property
    def posed_share(self) -> float:
        """Share of the true frames that have an estimated pose."""
        return self.posed / self.true_frames if self.true_frames else math.nan

    def figures(self) -> dict[str, Any]:
        """Plain figures for JSON; lengths in the unit of the truth, angles in degrees."""
        scores = self.trajectory
        return {
            'posed': self.posed,
            'true_frames': self.true_frames,
            'posed_share': self.posed_share,
            'associated_by': self.by,
            'unit': 'm' if self.truth.metric else 'arbitrary',
            'extent': scores.extent,
            'scale': scores.scale,
            'ate': dataclasses.asdict(scores.ate),
            'ate_relative': scores.ate_relative,
            'ate_rigid': dataclasses.asdict(scores.ate_rigid),
            'rpe_translation': dataclasses.asdict(scores.rpe_translation),
            'rpe_rotation_deg': dataclasses.asdict(scores.rpe_rotation),
            'rotation_pairs_median_deg': scores.rotation_pairs_median,
            'degenerate': scores.degenerate,
            'depth': None if self.depth is None else dataclasses.asdict(self.depth),
        }


def load_truth(path: Path | str) -> Truth:
    """Read a TUM file (in metres), or a `cameras.json` or its folder."""
    path = Path(path)
    if not path.exists():
        raise DataError(f'the truth {path} does not exist')
    if path.is_dir() or path.suffix == '.json':
        info = read_cameras_json(path)
        posed = [image for image in info.images if image.world_from_camera is not None]
        if not posed:
            raise DataError(f'{path} holds no pose, so it is no truth')
        posed.sort(key=lambda image: image.stamp_ns)
        return Truth(info.trajectory(), tuple(image.file for image in posed), info.metric, info)
    return Truth(read_tum(path))


def load_estimate(path: Path | str) -> Estimate:
    """Read a result folder, a TUM file or a `cameras.json`."""
    path = Path(path)
    if not path.exists():
        raise DataError(f'the result {path} does not exist')
    if path.is_dir() and not (path / REPORT_FILE).is_file() and not (path / CAMERAS_FILE).is_file():
        raise DataError(f'{path} is no result folder: it holds neither {REPORT_FILE} nor {CAMERAS_FILE}')
    if path.is_dir() and (path / REPORT_FILE).is_file():
        saved = read_result(path).reconstruction
        names = tuple(frame_name(frame) for frame in saved.frames if frame.world_from_camera is not None)
        stamps = np.array([frame.stamp_ns for frame in saved.frames], dtype=np.int64)
        return Estimate(saved.trajectory(), names, stamps, saved.metric_scale, path)
    if path.is_dir() or path.suffix == '.json':
        truth = load_truth(path)
        return Estimate(truth.trajectory, truth.names, metric=truth.metric)
    return Estimate(read_tum(path))


def _by_name(estimate: Estimate, truth: Truth) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Pairs of equal file names (without folder and suffix), where most of the estimate has one."""
    keys = [Path(name).stem for name in truth.names]
    places = {key: index for index, key in enumerate(keys)}
    if not estimate.names or len(places) < len(keys):
        return None
    pairs = [(index, places[Path(name).stem]) for index, name in enumerate(estimate.names) if Path(name).stem in places]
    if 2 * len(pairs) < len(estimate.names) or len({truth_index for _, truth_index in pairs}) < len(pairs):
        return None
    table = np.array(pairs, dtype=np.int64)
    return table[:, 0], table[:, 1]


def true_frame_count(estimate: Estimate, truth: Truth, tolerance_ns: int) -> int:
    """Frames that could have been posed: the true poses, unless these are much denser than the input.

    A motion capture system gives many poses per image; then the input frames with a true pose are counted.
    """
    stamps = estimate.input_stamps
    if truth.names or stamps is None or len(truth.trajectory) <= 2 * len(stamps):
        return len(truth.trajectory)
    return len(associate(stamps, truth.trajectory.stamps_ns, tolerance_ns)[0])


def _score_depth(
    estimate: Estimate, truth: Truth, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> DepthScores | None:
    """Depth of the sparse points in the frames that see them, against the true depth at those pixels."""
    info = truth.sequence
    if estimate.folder is None or info is None or not any(image.depth for image in info.images):
        return None
    observations = read_observations(estimate.folder / 'colmap')
    images = sorted((i for i in info.images if i.world_from_camera is not None), key=lambda image: image.stamp_ns)
    camera = read_result(estimate.folder).reconstruction.camera
    estimated, true = [np.zeros(0)], [np.zeros(0)]
    for index, truth_index in zip(*pairs, strict=True):
        pixels, points = observations.get(estimate.names[index], (np.zeros((0, 2)), np.zeros((0, 3))))
        depth = read_depth(info, images[truth_index]) if len(pixels) else None
        if depth is None:
            continue
        size = np.array(depth.shape[::-1])
        place = np.rint((pixels + 0.5) * size / (camera.width, camera.height) - 0.5).astype(int)
        column, row = np.clip(place, 0, size - 1).T
        camera_from_world = se3.inverse(estimate.trajectory.world_from_camera[index])
        estimated.append(se3.transform_points(camera_from_world, points)[:, 2])
        true.append(depth[row, column].astype(np.float64))
    return score_depth(np.concatenate(estimated), np.concatenate(true))


def evaluate_result(
    result: Path | str, truth: Path | str, *, tolerance_s: float = DEFAULT_TOLERANCE_S, metric: bool | None = None
) -> Evaluation:
    """Score a result folder, TUM file or `cameras.json` against the truth.

    Poses are associated by file name where both have the same names, else by stamp within the tolerance. `metric`
    says whether both are in metres, so that the error without scale correction means something; None takes what the
    files say. Raises DataError when nothing can be associated.
    """
    estimate, reference = load_estimate(result), load_truth(truth)
    tolerance_ns = round(tolerance_s * 1e9)
    by, pairs = 'name', _by_name(estimate, reference)
    poses: Float64Array = estimate.trajectory.world_from_camera
    if pairs is None:
        by = 'stamp'
        pairs = associate(estimate.trajectory.stamps_ns, reference.trajectory.stamps_ns, tolerance_ns)
    if len(poses) and not len(pairs[0]):
        raise DataError(_apart(estimate.trajectory, reference.trajectory, tolerance_s, truth))
    both_metric = estimate.metric and reference.metric if metric is None else metric
    scores = score_trajectory(
        estimate.trajectory.stamps_ns[pairs[0]],
        poses[pairs[0]],
        reference.trajectory.world_from_camera[pairs[1]],
        all_truth=reference.trajectory.world_from_camera,
        metric=both_metric,
    )
    aligned = None
    if scores.alignment is not None:
        aligned = Trajectory(estimate.trajectory.stamps_ns, scores.alignment.apply(poses))
    total = true_frame_count(estimate, reference, tolerance_ns)
    depth = _score_depth(estimate, reference, pairs)
    return Evaluation(len(pairs[0]), total, by, scores, depth, reference, aligned)


def _apart(estimate: Trajectory, truth: Trajectory, tolerance_s: float, path: Path | str) -> str:
    first, last = (float(estimate.stamps_ns[k]) / 1e9 for k in (0, -1))
    true_first, true_last = (float(truth.stamps_ns[k]) / 1e9 for k in (0, -1))
    return (
        f'no pose of the result lies within {tolerance_s} s of one of {path}: the result spans {first:.3f} to '
        f'{last:.3f} s, the truth {true_first:.3f} to {true_last:.3f} s'
    )


def write_evaluation(folder: Path | str, evaluation: Evaluation, truth: Path | str) -> Path:
    """Write evaluation.json into a result folder and return its path."""
    path = Path(folder) / EVALUATION_FILE
    write_text(path, json.dumps(jsonable({'truth': str(truth), **evaluation.figures()}), indent=1) + '\n')
    return path


def read_evaluation(folder: Path | str) -> dict[str, Any] | None:
    """Figures that `write_evaluation` left in a folder, or None."""
    path = Path(folder) / EVALUATION_FILE
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(f'{path} is unreadable ({error})') from error


def table(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Rows of name and value for people."""
    scores = evaluation.trajectory
    unit = ' m' if evaluation.truth.metric else ''
    rows = [
        ('posed frames', f'{evaluation.posed} of {evaluation.true_frames} ({evaluation.posed_share:.1%})'),
        ('associated by', evaluation.by),
        ('largest distance of true cameras', f'{scores.extent:.4g}{unit}'),
    ]
    if scores.degenerate:
        rows.append(('position errors', f'not defined: {scores.degenerate}'))
    else:
        rows += [
            ('ATE after Sim(3): RMSE', f'{scores.ate.rmse:.4g}{unit} ({scores.ate_relative:.2%} of that distance)'),
            ('ATE median / max', f'{scores.ate.median:.4g} / {scores.ate.maximum:.4g}{unit}'),
            ('scale', f'{scores.scale:.5g}'),
            ('RPE translation, RMSE per step', f'{scores.rpe_translation.rmse:.4g}{unit}'),
        ]
    if math.isfinite(scores.ate_rigid.rmse):
        rows.append(('ATE after SE(3): RMSE', f'{scores.ate_rigid.rmse:.4g}{unit}'))
    if math.isfinite(scores.rpe_rotation.rmse):
        rows.append(('RPE rotation, RMSE per step', f'{scores.rpe_rotation.rmse:.3g} deg'))
    if math.isfinite(scores.rotation_pairs_median):
        rows.append(('rotation between pairs, median error', f'{scores.rotation_pairs_median:.3g} deg'))
    if evaluation.depth is not None:
        depth = evaluation.depth
        rows.append(('depth AbsRel, delta < 1.25', f'{depth.abs_rel:.4f}, {depth.delta:.1%} ({depth.pixels} pixels)'))
    return rows
