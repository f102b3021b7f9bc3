# SPDX-License-Identifier: Apache-2.0
"""COLMAP as anybody would run it: SIFT on binned, stretched 8-bit pictures, all pairs, incremental mapper."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dark3r_ros.errors import ReconstructionError
from dark3r_ros.raw.planes import choose_binning, display_image, to_planes
from dark3r_ros.sfm.start_colmap import load_pycolmap
from dark3r_ros.storage.result import empty_cloud, no_observations
from dark3r_ros.types import Frame, FrameRecord, Reconstruction


def map_pictures(frames: Iterable[Frame], network_width: int = 320) -> Reconstruction:
    """Poses of raw frames by COLMAP with its default settings and the known intrinsics; no points are kept.

    The pictures are what a person would see: binned as for a network, stretched and converted to 8 bit.
    """
    pycolmap = load_pycolmap()
    taken: list[Frame] = []
    with tempfile.TemporaryDirectory(prefix='dark3r_colmap_') as name:
        folder = Path(name)
        pictures = folder / 'pictures'
        pictures.mkdir()
        for frame in frames:
            planes = to_planes(frame, choose_binning(frame.size[0], network_width))
            camera = planes.camera
            cv2.imwrite(str(pictures / f'{len(taken):06d}.png'), display_image(planes)[:, :, ::-1])
            taken.append(frame)
        if not taken or camera is None:
            raise ReconstructionError('no frame with calibration was seen, so there is nothing to map')
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = 'PINHOLE'
        reader.camera_params = f'{camera.fx},{camera.fy},{camera.cx + 0.5},{camera.cy + 0.5}'
        database = folder / 'database.db'
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.num_threads, extraction.use_gpu = 1, False
        pycolmap.extract_features(
            database,
            pictures,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            extraction_options=extraction,
        )
        matching = pycolmap.FeatureMatchingOptions()
        matching.num_threads, matching.use_gpu = 1, False
        pycolmap.match_exhaustive(database, matching_options=matching)
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads, options.random_seed, options.min_model_size = 1, 0, 3
        options.ba_refine_focal_length = options.ba_refine_extra_params = False
        (folder / 'models').mkdir()
        models = pycolmap.incremental_mapping(database, pictures, folder / 'models', options)
    return _reconstruction(taken, models)


def _reconstruction(taken: list[Frame], models: Any) -> Reconstruction:
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    poses = {}
    if best is not None:
        for image_id in best.reg_image_ids():
            image = best.image(image_id)
            pose = np.vstack([image.cam_from_world().inverse().matrix(), [0.0, 0.0, 0.0, 1.0]])
            poses[int(image.name[:6])] = pose
    records = tuple(
        FrameRecord(
            frame.stamp_ns,
            poses.get(number),
            number in poses,
            reason='' if number in poses else 'COLMAP did not register it',
            name=frame.name,
        )
        for number, frame in enumerate(taken)
    )
    camera = taken[0].camera
    assert camera is not None
    return Reconstruction(camera, records, empty_cloud(), no_observations())
