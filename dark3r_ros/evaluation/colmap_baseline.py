# SPDX-License-Identifier: Apache-2.0
"""COLMAP as anybody would run it: SIFT on developed pictures, all pairs, its incremental or its global mapper."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dark3r_ros.errors import ConfigError
from dark3r_ros.evaluation.peer_pictures import Pictures, develop_all, write_pictures
from dark3r_ros.geometry.camera import Camera
from dark3r_ros.sfm.start_colmap import load_pycolmap
from dark3r_ros.types import Float64Array, Frame, Reconstruction

MAPPERS = ('incremental', 'global')


def map_pictures(frames: Iterable[Frame], pictures: str = 'stretched', mapper: str = 'incremental') -> Reconstruction:
    """Poses of raw frames by COLMAP with its default settings and the known intrinsics; no points are kept.

    `pictures` is how the frames are developed (`peer_pictures.KINDS`). Raises ReconstructionError without frames or
    calibration, DependencyError without pycolmap.
    """
    pycolmap = load_pycolmap()
    developed = develop_all(frames, pictures)
    with tempfile.TemporaryDirectory(prefix='dark3r_colmap_') as name:
        folder = Path(name)
        write_pictures(developed, folder / 'pictures')
        _match(pycolmap, folder, developed.camera)
        models = _solve(pycolmap, folder, mapper)
    return developed.reconstruction(_poses(models, developed), 'COLMAP did not register it')


def _match(pycolmap: Any, folder: Path, camera: Camera) -> None:
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = 'PINHOLE'
    # COLMAP counts pixels from the corner of the first one.
    reader.camera_params = f'{camera.fx},{camera.fy},{camera.cx + 0.5},{camera.cy + 0.5}'
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.use_gpu = 1, False
    pycolmap.extract_features(
        folder / 'database.db',
        folder / 'pictures',
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads, matching.use_gpu = 1, False
    pycolmap.match_exhaustive(folder / 'database.db', matching_options=matching)


def _solve(pycolmap: Any, folder: Path, mapper: str) -> dict[int, Any]:
    """Models by number; none where the mapper finds nothing."""
    models = folder / 'models'
    models.mkdir()
    if mapper == 'incremental':
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed, options.min_model_size = 1, 0, 3
        options.ba_refine_focal_length = options.ba_refine_extra_params = False
        return dict(pycolmap.incremental_mapping(folder / 'database.db', folder / 'pictures', models, options))
    if mapper == 'global':
        options = pycolmap.GlobalPipelineOptions()
        options.num_threads, options.random_seed, options.min_model_size = 1, 0, 3
        options.mapper.bundle_adjustment.refine_focal_length = False
        return dict(pycolmap.global_mapping(folder / 'database.db', folder / 'pictures', models, options))
    raise ConfigError(f'COLMAP mapper {mapper!r} is not one of {", ".join(MAPPERS)}')


def _poses(models: dict[int, Any], pictures: Pictures) -> dict[int, Float64Array]:
    """Poses of the largest model by number of the picture."""
    poses: dict[int, Float64Array] = {}
    if not models:
        return poses
    best = max(models.values(), key=lambda model: model.num_reg_images())
    for image_id in best.reg_image_ids():
        image = best.image(image_id)
        pose = np.vstack([image.cam_from_world().inverse().matrix(), [0.0, 0.0, 0.0, 1.0]])
        poses[int(image.name[: len('000000')])] = pose
    return poses
