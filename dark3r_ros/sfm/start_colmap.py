# SPDX-License-Identifier: Apache-2.0
"""First poses by COLMAP's global or incremental mapper, through pycolmap and a database of our own matches.

Anchors of star tracks are keypoints; the other side of every such match becomes a keypoint of its own, so that COLMAP's
tracks are the stars. Both mappers run in one thread with a fixed seed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from dark3r_ros.errors import DependencyError
from dark3r_ros.sfm.pairs import VerifiedPair
from dark3r_ros.sfm.views import View

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# COLMAP gets pixels of an ideal camera with this focal length, whatever the real one is, so that its thresholds in
# pixels mean the same for every input.
_FOCAL = 500.0


def load_pycolmap() -> ModuleType:
    """Import pycolmap; DependencyError names the extra."""
    try:
        import pycolmap
    except ImportError as error:
        raise DependencyError('pycolmap is missing: pip install "pycolmap>=3.11"') from error
    pycolmap.logging.minloglevel = 3
    return pycolmap


class _Keypoints:
    """Keypoints of one view: anchors once, everything else as it comes."""

    def __init__(self) -> None:
        self.pixels: list[Array] = []
        self.count = 0
        self.of_identity: dict[int, int] = {}

    def add(self, pixels: Array, identity: Index) -> Index:
        """Numbers (N,) of keypoints; the same identity keeps its number, -1 is always a new one."""
        numbers = np.empty(len(pixels), dtype=np.int64)
        for row, name in enumerate(identity.tolist()):
            known = self.of_identity.get(name) if name >= 0 else None
            if known is None:
                known, self.count = self.count, self.count + 1
                self.pixels.append(pixels[row])
                if name >= 0:
                    self.of_identity[name] = known
            numbers[row] = known
        return numbers


def write_database(path: Path, views: Sequence[View], pairs: Sequence[VerifiedPair]) -> None:
    """Write views and verified pairs as a COLMAP database with calibrated two-view geometries."""
    pycolmap = load_pycolmap()
    keypoints = {number: _Keypoints() for pair in pairs for number in (pair.first, pair.second)}
    ideal = {number: _ideal(views[number]) for number in keypoints}
    with pycolmap.Database.open(path) as database:
        for number in sorted(keypoints):
            _write_view(pycolmap, database, number, ideal[number])
        for pair in pairs:
            numbers = np.column_stack(
                [
                    keypoints[pair.first].add(_to_ideal(views[pair.first], pair.pixels_first), pair.identity_first),
                    keypoints[pair.second].add(_to_ideal(views[pair.second], pair.pixels_second), pair.identity_second),
                ]
            ).astype(np.uint32)
            database.write_matches(pair.first + 1, pair.second + 1, numbers)
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
            geometry.inlier_matches = numbers
            geometry.cam2_from_cam1 = pycolmap.Rigid3d(pair.second_from_first[:3])
            geometry.tri_angle = pair.parallax
            database.write_two_view_geometry(pair.first + 1, pair.second + 1, geometry)
        for number, held in keypoints.items():
            database.write_keypoints(number + 1, np.array(held.pixels, dtype=np.float32).reshape(-1, 2))


def _ideal(view: View) -> tuple[int, int]:
    assert view.camera is not None
    scale = _FOCAL / view.focal
    return round(view.camera.width * scale), round(view.camera.height * scale)


def _to_ideal(view: View, pixels: Array) -> Array:
    width, height = _ideal(view)
    return view.normalised(pixels) * _FOCAL + (width / 2, height / 2)


def _write_view(pycolmap: ModuleType, database: object, number: int, size: tuple[int, int]) -> None:
    width, height = size
    camera = pycolmap.Camera(
        camera_id=number + 1,
        model='PINHOLE',
        width=width,
        height=height,
        params=[_FOCAL, _FOCAL, width / 2, height / 2],
        has_prior_focal_length=True,
    )
    database.write_camera(camera, use_camera_id=True)  # type: ignore[attr-defined]
    rig = pycolmap.Rig(rig_id=number + 1)
    rig.add_ref_sensor(camera.sensor_id)
    database.write_rig(rig, use_rig_id=True)  # type: ignore[attr-defined]
    frame = pycolmap.Frame(frame_id=number + 1, rig_id=number + 1)
    image = pycolmap.Image(image_id=number + 1, name=f'{number:06d}', camera_id=number + 1, frame_id=number + 1)
    frame.add_data_id(image.data_id)
    database.write_frame(frame, use_frame_id=True)  # type: ignore[attr-defined]
    database.write_image(image, use_image_id=True)  # type: ignore[attr-defined]


def _incremental_options(pycolmap: ModuleType, max_error: float, seed: int) -> object:
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.extract_colors = options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.min_model_size = 3
    # Our own adjustment follows: here the map need not be perfect after every few views.
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.25
    options.ba_global_max_refinements = 2
    options.mapper.init_min_tri_angle = 4.0
    options.mapper.init_min_num_inliers = 40
    options.mapper.abs_pose_min_num_inliers = 20
    options.mapper.abs_pose_min_inlier_ratio = 0.15
    options.mapper.abs_pose_max_error = 3.0 * max_error
    options.mapper.filter_max_reproj_error = 2.0 * max_error
    options.mapper.filter_min_tri_angle = options.triangulation.min_angle = 0.5
    options.triangulation.ignore_two_view_tracks = False
    return options


def _global_options(pycolmap: ModuleType, seed: int) -> object:
    options = pycolmap.GlobalPipelineOptions()
    mapper = options.mapper
    options.num_threads = mapper.num_threads = 1
    options.random_seed = mapper.random_seed = seed
    options.decompose_relative_pose = False
    mapper.rotation_averaging.random_seed = mapper.global_positioning.random_seed = seed
    mapper.global_positioning.use_gpu = mapper.bundle_adjustment.ceres.use_gpu = False
    mapper.bundle_adjustment.refine_focal_length = mapper.bundle_adjustment.refine_extra_params = False
    mapper.bundle_adjustment.ceres.solver_options.num_threads = 1
    mapper.min_tri_angle_deg = 0.5
    mapper.skip_retriangulation = True
    mapper.track_required_tracks_per_view = 300
    return options


def map_by_colmap(
    views: Sequence[View],
    pairs: Sequence[VerifiedPair],
    *,
    mode: str,
    max_error: float,
    seed: int,
    tick: Callable[[], None] | None = None,
) -> dict[int, Array]:
    """Poses camera_from_world (4, 4) by number of the view, of the largest model that COLMAP makes.

    `mode` is `global` or `incremental`; `max_error` is in pixels of the planes; `tick` hears of every view that the
    incremental mapper adds. Empty where no model stands.
    """
    pycolmap = load_pycolmap()
    if not pairs:
        return {}
    scale = _FOCAL / views[pairs[0].first].focal
    with tempfile.TemporaryDirectory(prefix='dark3r_sfm_') as folder:
        database = Path(folder) / 'database.db'
        write_database(database, views, pairs)
        output = Path(folder) / 'models'
        os.mkdir(output)
        if mode == 'global':
            models = pycolmap.global_mapping(database, folder, output, _global_options(pycolmap, seed))
        else:
            options = _incremental_options(pycolmap, max_error * scale, seed)
            models = pycolmap.incremental_mapping(database, folder, output, options, next_image_callback=tick)
    if not models:
        return {}
    best = max(models.values(), key=lambda model: model.num_reg_images())
    return {
        int(image_id) - 1: np.vstack([best.image(image_id).cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]])
        for image_id in sorted(best.reg_image_ids())
    }
