# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dark3r_ros.geometry.camera import Camera


def shared_data() -> Path:
    """Folder of the public development data: data in DARK3R_SHARED, or in `shared` beside the repository."""
    return Path(os.environ.get('DARK3R_SHARED') or Path(__file__).resolve().parents[3] / 'shared') / 'data'


def shared_sequence(name: str) -> Path:
    folder = shared_data() / 'sequences' / name
    if not folder.is_dir():
        pytest.skip(f'the development data are not here: {folder}')
    return folder


def sequence_folder(folder: Path, pictures: list[np.ndarray], camera: Camera) -> Path:
    folder.mkdir(parents=True)
    images = []
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        pose = np.eye(4)
        pose[0, 3] = 0.1 * number
        images.append({'file': f'{number}.png', 'c2w': pose.tolist()})
    intrinsics = {key: getattr(camera, key) for key in ('width', 'height', 'fx', 'fy', 'cx', 'cy')}
    (folder / 'cameras.json').write_text(json.dumps({**intrinsics, 'scale': 'metres', 'images': images}))
    return folder
